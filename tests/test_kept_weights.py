"""What autograd keeps of weights that are released after the forward pass, and gathered before the backward pass."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from tgo_trl.policy.kept_weights import keeping_no_gathered

from .runs import assert_close


@pytest.mark.parametrize("share_memory", [False, True])
def test_gradients_are_those_of_weights_that_stay(share_memory):
    """No memory of theirs is kept, and it is another one later: of each weight for itself, though it began in one."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    weights, given = [*layers.parameters()], torch.randn(5, 3, requires_grad=True)
    wanted = {"given": given, **dict(layers.named_parameters())}

    def gradients(loss):
        return dict(zip(wanted, torch.autograd.grad(loss, [*wanted.values()]), strict=True))

    expected = gradients(layers(given).square().sum())
    whole = [weight.detach().clone() for weight in weights]
    if share_memory:
        parts = torch.cat([value.flatten() for value in whole]).split([value.numel() for value in whole])
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part.view(weight.shape)
        del parts, part
    memory = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
    with keeping_no_gathered(lambda: iter(weights)):
        loss = layers(given).square().sum()
    for weight in weights:
        weight.data = torch.empty(0)
    assert all(it.expired() for it in memory)
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.autograd.grad(loss, given, retain_graph=True)
    for weight, value in zip(weights, whole, strict=True):
        weight.data = value
    assert_close(gradients(loss), expected, 0)


@pytest.mark.parametrize(
    ("dtype", "is_cast", "is_recomputed", "sizes"),
    [
        (torch.float32, False, False, [35]),
        (torch.bfloat16, True, False, [35]),  # as the frozen base of an adapter
        (torch.float32, True, False, [35, 77]),  # as all weights with `bf16=True`
        (torch.float32, True, True, [35]),
    ],
)
def test_what_autocast_makes_of_a_weight_is_kept_unless_it_is_made_again(
    monkeypatch, dtype, is_cast, is_recomputed, sizes
):
    """Numbers that autograd keeps of a layer of 7 to 11 that is called with 5 rows: of its input and its weight."""
    torch.manual_seed(0)
    layer, kept = torch.nn.Linear(7, 11, dtype=dtype), []
    given = torch.randn(5, 7, dtype=dtype, requires_grad=True)
    saved = torch.autograd.graph.saved_tensors_hooks

    def hooks(pack, unpack):
        def note(tensor):
            kept.append(pack(tensor))
            return kept[-1]

        return saved(note, unpack)

    def call():
        with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            return checkpoint(layer, given, use_reentrant=False) if is_recomputed else layer(given)

    def gradients(output):
        wanted = {"given": given, **dict(layer.named_parameters())}
        return dict(zip(wanted, torch.autograd.grad(output.float().square().sum(), [*wanted.values()]), strict=True))

    expected = gradients(call())
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", hooks)
        with keeping_no_gathered(lambda: iter(layer.parameters())):
            patch.undo()  # checkpointing has hooks of its own
            output = call()
    assert sorted(it.numel() for it in kept if isinstance(it, torch.Tensor)) == sizes
    assert_close(gradients(output), expected, 0)

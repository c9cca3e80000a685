"""What autograd keeps of weights that are released after the forward pass, and gathered before the backward pass."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

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

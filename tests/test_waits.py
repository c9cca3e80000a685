"""No micro-step waits for the device, which would leave it idle until the host has caught up.

The device is PyTorch's `meta`, whose tensors have no numbers: to read one is an error there, and so are operators whose
result has a size that numbers decide. Copies between it and the CPU are looked at one by one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tgo_trl import TGOTrainer

from .cases import CASES
from .runs import make_trainer

DEVICE = torch.device("meta")

WAITING = [
    case
    for case in CASES
    if case.name in ("qwen_image21", "qwen_image21_edit", "hunyuan_video15", "hunyuan_video15_image_to_video")
]
"""Whose network asks the device itself: where images lie in its sequence, whether there is one, where prompts end."""
FAMILIES = [case for case in CASES if case not in WAITING and ("-" not in case.name or case.name == "wan-two_stage")]
"""Of each other a case, and the two networks of which the times of the rows choose."""

# `compute_text_seq_len_from_mask` of diffusers brings a number to the device where prompts of a batch have different
# lengths, in the forward pass of the reference and in that of the policy. It is not read.
KNOWN = {name: ["as_tensor"] * 2 for name in ("qwen_image", "qwen_image_edit", "qwen_image_edit_plus")}
# `ChromaCombinedTimestepTextProjEmbeddings` brings the embedding of no guidance to the device in each of them.
KNOWN["chroma"] = ["_to_copy"] * 2


class _Copies(TorchDispatchMode):
    """Notes copies between the devices that are not left to themselves."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            waits = not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            source = args[1] if name == "copy_" else args[0]
            if waits and source.device != result.device and source.dim() > 0:
                self.found.append(name)
        return result


class _Numbers(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host, on the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if is_made and result.device == DEVICE:
            self.found.append(func.__name__)
        return result


@contextmanager
def waits() -> Iterator[list[str]]:
    """What makes the host wait for the device within, as far as it is no error there."""
    found: list[str] = []
    with _Copies(found), _Numbers(found):
        yield found


def micro_step(trainer: TGOTrainer, batch: dict) -> None:
    """Loss and gradient of a batch that is on the device."""
    num_rows = torch.full((), 4, device=DEVICE)
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_rows).backward()


@pytest.mark.parametrize("way", ["as_tensor", "tensor", "to", "copy_"])
def test_what_is_found(way):
    values = torch.zeros(2)
    ways = {
        "as_tensor": lambda: torch.as_tensor([1.0], device=DEVICE),
        "tensor": lambda: torch.tensor([1.0], device=DEVICE),
        "to": lambda: values.to(DEVICE),
        "copy_": lambda: torch.empty(2, device=DEVICE).copy_(values),
    }
    with waits() as found:
        ways[way]()
    assert len(found) == 1
    with waits() as found:
        values.to(DEVICE, non_blocking=True)
        torch.empty(2, device=DEVICE).copy_(values, non_blocking=True)
        values.tolist()  # of the CPU
        torch.full((2,), 3.0, device=DEVICE)
    assert found == []


@pytest.mark.parametrize(
    "read", [torch.Tensor.tolist, lambda it: bool(it[0]), torch.nonzero, lambda it: it[it > 0]],
    ids=["tolist", "bool", "nonzero", "mask"],
)  # fmt: skip
def test_what_is_an_error(read):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        read(torch.zeros(2, device=DEVICE))


def on_the_device(case, folder):
    args = case.config(folder, gradient_checkpointing=False, dataloader_pin_memory=False)
    trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(4))
    batch = next(iter(trainer.get_train_dataloader()))
    if "prompt_length" in batch:
        assert batch["prompt_length"] == batch["prompt"]["mask"].sum(1).tolist()
    batch = tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), batch)
    trainer.model.to(DEVICE).train()
    return trainer, batch


@pytest.mark.parametrize("case", WAITING, ids=lambda case: case.name)
def test_a_network_that_waits_by_itself_is_said_to(case, tmp_path):
    trainer, batch = on_the_device(case, tmp_path)
    assert trainer.family.waits_for_device
    with pytest.raises(RuntimeError, match="meta"):
        micro_step(trainer, batch)


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_no_micro_step_waits(case, tmp_path):
    trainer, batch = on_the_device(case, tmp_path)
    assert not trainer.family.waits_for_device
    micro_step(trainer, batch)  # which brings to the device what stays there
    with waits() as found:
        micro_step(trainer, batch)
    assert found == KNOWN.get(case.name, [])
    assert all(tensor.device == DEVICE for tensor in tree_leaves(batch) if isinstance(tensor, torch.Tensor))

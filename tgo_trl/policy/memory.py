"""How much memory of the device a step takes: a model with two measured numbers, of the blocks of a network."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..families import Family
from .denoising import Corrupted
from .policy import Policy
from .shapes_and_numbers import ShapesBesideNumbers, as_shape

OF_A_UNET = ("ResnetBlock2D", "BasicTransformerBlock")
BYTES_OF_A_UNET = 50
"""Kept for the backward pass in bfloat16 for each number of the output of a block; measured of Stable Diffusion 1.5
(49) and SDXL (51), with a LoRA on attention."""
BYTES_OF_A_TRANSFORMER = 33
"""Likewise, of FLUX.1."""
BYTES_OF_4_BITS = 0.5 + 4 / 64
"""Of each number in NF4: half a byte, and a float32 for every 64."""
BLOCKS_AT_ONCE = 3.5
"""How many times what the largest block keeps is there at most, where each is recomputed."""


@dataclass(frozen=True)
class Footprint:
    """What is in the memory of the device.

    Attributes:
        fixed: bytes, of weights, gradients and the optimizer's averages.
        kept: bytes for each row, of what blocks keep for the backward pass, masks of attention among it.
        outputs: bytes for each row, of what blocks hand on, which is all that recomputed ones keep.
        largest: bytes for each row, of what the block that keeps most does.
    """

    fixed: int
    kept: int
    outputs: int
    largest: int

    def peak(self, rows: int, every: int | None) -> int:
        """Bytes at most.

        Args:
            rows: in a batch, times the draws of each.
            every: of each kind of block, the first and every so many after it are recomputed; None for no block.
        """
        recomputed = min(self.kept, self.outputs + round(BLOCKS_AT_ONCE * self.largest))
        share = 0 if every is None else 1 / every
        return self.fixed + rows * round(self.kept - share * (self.kept - recomputed))


def has_usual_adapter(policy: Policy) -> bool:
    """Whether an adapter on the family's own modules is trained, which is what the numbers above were measured with."""
    if policy.adapter_name is None:
        return False
    targets = policy.lora_config.target_modules
    return not isinstance(targets, str) and set(targets or ()) == set(policy.family.lora_target_modules)


def quantization_saves(networks: Iterable[nn.Module], bits: int) -> int:
    """Bytes that frozen linear layers take less once they are quantised by bitsandbytes, to 4 (NF4) or 8 bits."""
    of_each = BYTES_OF_4_BITS if bits == 4 else 1.0
    linear = [it for network in networks for it in network.modules() if isinstance(it, nn.Linear)]
    frozen = [it.weight for it in linear if not it.weight.requires_grad]
    return sum(round(weight.nbytes - of_each * weight.numel()) for weight in frozen)


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None of another device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def fixed_bytes(networks: Iterable[nn.Module], num_processes: int) -> int:
    """Bytes of networks that are there as long as they train, with an optimizer that has two averages, as Adam."""
    total = 0
    for weight in (weight for network in networks for weight in (*network.parameters(), *network.buffers())):
        total += weight.nbytes
        if weight.requires_grad:
            total += weight.numel() * 4 * (3 if num_processes == 1 else 4)  # of several, gradients are exchanged
    return total


def footprint(policy: Policy, corrupted: Corrupted, fixed: int) -> Footprint | None:
    """What it takes to train a policy, found by calling it; None of networks whose blocks diffusers cannot recompute.

    Networks without weights are called with real inputs, and their blocks with shapes alone.

    Args:
        policy: on the device, in whose networks no block is recomputed yet.
        corrupted: rows to call it with, of which nothing is kept; on the CPU for networks without weights.
        fixed: bytes that are there as long as it trains, the reference's included, in each process.
    """
    if type(policy.family).enable_gradient_checkpointing is not Family.enable_gradient_checkpointing:
        return None
    if not all(getattr(it, "_supports_gradient_checkpointing", False) for it in policy.networks.values()):
        return None
    found: list[tuple[int, int]] = []  # of each block, bytes that it hands on and that it keeps
    has_no_weights = any(weight.is_meta for weight in policy.parameters())

    def call(block: nn.Module, *args: Any) -> Any:
        if has_no_weights:  # an attention mask of numbers would have as many as there are pairs of tokens
            args = tree_map_only(Tensor, as_shape, args)
        with torch.no_grad(), AttentionMasks() as masks:
            outputs = block(*args)
        tensors = [it for it in tree_leaves(outputs) if isinstance(it, Tensor)]
        numbers, size = sum(it.numel() for it in tensors), sum(it.nbytes for it in tensors)
        found.append((size, _kept(type(block).__name__, numbers, size) + masks.bytes))
        return outputs

    for network in policy.networks.values():
        network.enable_gradient_checkpointing(call)
    try:
        # without gradient, no network asks for a block to be recomputed
        with torch.enable_grad(), ShapesBesideNumbers() if has_no_weights else nullcontext():
            corrupted.predictions(policy)
    finally:
        for network in policy.networks.values():
            network.disable_gradient_checkpointing()
    rows = len(corrupted.sample)
    kept = [of_block // rows for _, of_block in found]
    return Footprint(
        fixed=fixed,
        kept=sum(kept),
        outputs=sum(size for size, _ in found) // rows,
        largest=max(kept, default=0),
    )


class AttentionMasks(TorchFunctionMode):
    """Within, counts the masks of attention, which has a number of each pair of tokens where they say so.

    Attributes:
        bytes: of them in the dtype of what attends, in which they are added to its scores, and kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, whatever it is."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            query = args[0] if args else kwargs["query"]
            if mask is not None:  # an expanded one is there once
                sides = zip(mask.shape, mask.stride(), strict=True)
                self.bytes += query.element_size() * math.prod(side if stride else 1 for side, stride in sides)
        return func(*args, **kwargs)


def _kept(block: str, numbers: int, size: int) -> int:
    """Bytes that a block keeps, of an output of so many numbers and bytes."""
    in_bfloat16 = numbers * (BYTES_OF_A_UNET if block in OF_A_UNET else BYTES_OF_A_TRANSFORMER)
    return in_bfloat16 * max(size, 2 * numbers) // (2 * numbers) if numbers else 0

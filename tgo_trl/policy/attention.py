"""The functions that compute attention, by diffusers' names of its back ends."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import attention_backend
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from ..settings import check_choice

NAMES = tuple(it.value for it in AttentionBackendName)
"""All that diffusers knows."""
WITHOUT_GRADIENT = ("sage", "_sage", "_flash_3")
"""How the names begin of those without a backward pass: SageAttention has none, and diffusers calls FlashAttention 3
as an operator that has none (as `_flash_varlen_3` it is called directly, and has it)."""
FROM_THE_HUB = "_hub"
"""How the names end of those whose code is downloaded."""
MOST_APART = 0.05
"""How far outputs and gradients may be from PyTorch's own, over the largest of those: bfloat16 has 0.004."""


def check_backend_name(name: str) -> None:
    """Raises a ValueError for a back end that diffusers does not have, or that cannot be trained with."""
    if name not in NAMES:
        check_choice("attention_backend", name, trainable())
    if name.endswith(FROM_THE_HUB):
        raise ValueError(
            f"`attention_backend` is {name!r}, which downloads code from the Hub and runs it. Set one that is "
            f"installed, of {', '.join(map(repr, trainable()))}, or leave it out."
        )
    if name not in trainable():
        raise ValueError(
            f"`attention_backend` is {name!r}, which has no backward pass in diffusers, so that nothing could be "
            f"trained. Set one of {', '.join(map(repr, trainable()))}, or leave it out."
        )


def trainable() -> list[str]:
    """The names of those that have a gradient, and are not downloaded."""
    return [it for it in NAMES if not it.endswith(FROM_THE_HUB) and not it.startswith(WITHOUT_GRADIENT)]


def check_backend(
    name: str, device: torch.device, dtype: torch.dtype, autocasts: bool = False, with_mask: bool = False
) -> None:
    """Raises a ValueError for a back end that does not work here: it is tried, forward and backward.

    Args:
        name: of the back end.
        device: that training runs on.
        dtype: that training computes in.
        autocasts: whether under autocast, where norms make float32 of queries and keys, and leave values alone.
        with_mask: whether prompts are masked.
    """
    kind = (device, dtype, autocasts, with_mask)
    try:
        with attention_backend(name):  # which looks for its package
            found = _attention(name, *kind)
    except Exception as error:  # whatever another package raises
        reason = " ".join(str(error).split())[:300]
        how = " under autocast" * autocasts + " with masked prompts" * with_mask
        before = "set `bf16_autocast=False`, or " if autocasts else ""
        raise ValueError(
            f"`attention_backend` is {name!r}, which cannot be trained with on this {device.type.upper()} in "
            f"{str(dtype).removeprefix('torch.')}{how} ({type(error).__name__}: {reason}). To have PyTorch's own, "
            f"{before}leave it out."
        ) from error
    for one, other in zip(found, _attention(AttentionBackendName.NATIVE.value, *kind), strict=True):
        if not (one - other).abs().max() <= MOST_APART * other.abs().max():
            raise ValueError(
                f"`attention_backend` is {name!r}, whose outputs or gradients on this {device.type.upper()} are not "
                "those of PyTorch's own attention. Leave it out."
            )


def _attention(name: str, device: torch.device, dtype: torch.dtype, autocasts: bool, with_mask: bool) -> list[Tensor]:
    """Of some numbers, the output and the gradients of query, key and value, float32 `[1, 128, 2, 64]` each."""
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn((1, 128, 2, 64), generator=generator) for _ in range(3)]
    dtypes = [torch.float32, torch.float32, dtype] if autocasts else [dtype] * 3
    inputs = [it.to(device, kind).requires_grad_() for it, kind in zip(numbers, dtypes, strict=True)]
    mask = torch.ones(1, 1, 1, 128, dtype=torch.bool, device=device) if with_mask else None
    with torch.enable_grad(), torch.autocast(device.type, dtype, enabled=autocasts):
        output = dispatch_attention_fn(*inputs, attn_mask=mask, backend=AttentionBackendName(name))
        gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    return [it.detach().float() for it in (output, *gradients)]


def check_dispatch(network: nn.Module) -> None:
    """Raises a ValueError for a network whose attention no back end is chosen for."""
    if not any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in network.modules()):
        raise ValueError(
            f"`attention_backend` is set, and `{type(network).__name__}` calls PyTorch's own attention whatever it is: "
            "diffusers chooses back ends for newer transformers alone. Leave it out."
        )


def set_backend(name: str, networks: Iterable[Any]) -> None:
    """Has networks compute attention with a back end, and no other network of this process."""
    with attention_backend(name):  # to the end of which diffusers' method would set that of all others too
        for network in networks:
            network.set_attention_backend(name)

"""What makes a step faster and changes its results by rounding at most: settings that are checked."""

from collections.abc import Mapping
from typing import Any

import torch

from ..policy.recomputation import checked_interval
from ..settings import check_choice, shown

DEFAULT_BACKEND = "inductor"
"""Of `torch.compile`, if nobody sets another."""
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
"""Of that backend, without those that replay CUDA graphs: each block's would overwrite what the one before gave it."""


def check_recomputation(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for options of activation checkpointing that diffusers does not have."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # the newer and the older name
        options = settings.get(f"{name}_kwargs")
        if isinstance(options, Mapping) and checked_interval(options) > 1 and settings[name] is False:
            raise ValueError(
                f"`{name}_kwargs` has `every_n_layers`, and `{name}` is False, so that no block is recomputed. Leave "
                "one of the two out."
            )


def check_attention(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for an `attention_backend` that nothing can be trained with, wherever it is."""
    if settings["attention_backend"] is not None:
        from ..policy.attention import check_backend_name  # loads diffusers, which nobody else needs yet

        check_backend_name(settings["attention_backend"])
        if settings["attention_backend"] == "flex" and not settings["compile_repeated_blocks"]:
            raise ValueError(
                "`attention_backend` is 'flex', which makes the whole matrix of scores unless it is compiled. Set "
                "`compile_repeated_blocks=True` too, or leave it out."
            )


def check_compilation(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """The settings of `torch.compile` that are of the repeated blocks, by name; empty where these are not compiled.

    Raises:
        ValueError: if they do not fit together.
    """
    if not settings["compile_repeated_blocks"]:
        return {}
    backend, mode = settings["torch_compile_backend"], settings["torch_compile_mode"]
    if settings["torch_compile"]:
        raise ValueError(
            "`compile_repeated_blocks` and `torch_compile` are both True, and the latter compiles the whole network, "
            "blocks included. Leave one of the two out."
        )
    if backend is not None:
        check_choice("torch_compile_backend", backend, torch.compiler.list_backends(exclude_tags=()))
    if mode is not None:
        check_choice("torch_compile_mode", mode, COMPILE_MODES)
        if backend not in (None, DEFAULT_BACKEND):
            raise ValueError(
                f"`torch_compile_mode` is {mode!r}, which is of the backend {DEFAULT_BACKEND!r}, and "
                f"`torch_compile_backend` is {shown(backend)}. Leave one of the two out."
            )
    return {"torch_compile_backend": backend, "torch_compile_mode": mode}

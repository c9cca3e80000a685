"""Dtypes: what a network computes in, what stays in float32, and what is cast."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

_Found = tuple["ref[nn.Module]", str]
_FOUND: "WeakKeyDictionary[nn.Module, _Found]" = WeakKeyDictionary()
"""The modules whose parameters of a name decided, as `compute_dtype` is asked in every call of a network."""


def compute_dtype(network: nn.Module) -> torch.dtype:
    """The dtype that a network takes its inputs in: of its frozen weights, where they are numbers as they are.

    Trained weights are float32 whatever the others are, and quantised ones are stored as integers.
    """
    found = _FOUND.get(network)
    if found is not None:
        owner, attribute = found
        deciding = getattr(owner(), "_parameters", {}).get(attribute)
        if deciding is not None and deciding.is_floating_point():
            return deciding.dtype  # type: ignore[no-any-return]
    kept = kept_in_float32(network)
    for path, module in network.named_modules():
        for name, weight in module.named_parameters(path, recurse=False):
            if weight.is_floating_point() and "lora_" not in name and not kept & set(name.split(".")):
                _FOUND[network] = ref(module), name.rpartition(".")[2]
                return weight.dtype  # type: ignore[no-any-return]
    return torch.bfloat16


def kept_in_float32(network: nn.Module) -> set[str]:
    """Names of the modules and parameters that diffusers leaves in float32 when it loads a network in another dtype."""
    return set(getattr(network, "_keep_in_fp32_modules", None) or ())


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Puts a module's weights into `dtype`, unless they are quantised.

    Those that the network keeps in float32 whatever it is loaded in (the time embedding and norms of Wan, say) become
    float32, so that it trains as it will sample.
    """
    if getattr(module, "hf_quantizer", None) is not None:
        return
    kept = kept_in_float32(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # tensor by tensor: diffusers' own `to` warns of every cast, and knows of no exceptions
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it, else float32."""
    return torch.bfloat16 if device.type == "cuda" and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Whether there is a GPU that computes in bfloat16: NVIDIA's before Ampere only emulate it, slower than float32."""
    from transformers.utils.import_utils import is_torch_bf16_gpu_available  # slow to load

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(is_torch_bf16_gpu_available())


def as_dtype(dtype: str | torch.dtype, setting: str = "dtype") -> torch.dtype:
    """`torch.bfloat16` of `"bfloat16"`.

    Args:
        dtype: or its name.
        setting: that has it, for the error.

    Raises:
        ValueError: if it is no floating-point type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`{setting}` is {dtype!r}; it must be 'float32', 'bfloat16' or 'float16'.")
    return found


def with_dtypes(init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` with the dtypes that they name, which diffusers would take for float32.

    Raises:
        ValueError: for a name that is none of a floating-point type.
    """
    read = dict(init_kwargs)
    for name in {"dtype", "torch_dtype"} & init_kwargs.keys():
        given, setting = init_kwargs[name], f"model_init_kwargs[{name!r}]"
        if isinstance(given, Mapping):  # by part
            read[name] = {part: as_dtype(it, f"{setting}[{part!r}]") for part, it in given.items()}
        elif given is not None:
            read[name] = as_dtype(given, setting)
    return read


def dtype_names(value: Any) -> Any:
    """The value with the names of the dtypes in it, through mappings and lists: the inverse of [`with_dtypes`]."""
    if isinstance(value, Mapping):
        return {name: dtype_names(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [dtype_names(entry) for entry in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

"""Adapters for programs other than diffusers.

Such programs know an adapter by the names of its weights, and many read no more than that: what diffusers and peft note
in the header of the file, the adapter's `alpha` among it, is passed over, and a model drawn with half its strength. So
the scale goes into the weights, and there is nothing left to be passed over.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...families import Family
from ...messages.values import shown_path
from ...policy.loading import attach_adapter, find_family_class, load_pipeline
from ...precision import cast
from ...storage.files import replace_file, sweep
from ..strength.card import find_base, local_folder
from .adapter import Factors, adapter_folder, read_factors
from .config import COMFYUI, ExportConfig

NETWORK_NOTES = {"transformer": "high-noise", "transformer_2": "low-noise"}
"""What tells the files of two networks apart, in the words of who loads them."""


def export(config: ExportConfig) -> list[Path]:
    """Writes an adapter for other programs, and says what was written.

    Args:
        config: what is exported, and how.

    Returns:
        The files, or the folder of the pipeline.

    Raises:
        ValueError: if the adapter cannot be written so, before the base is loaded.
    """
    folder = adapter_folder(config.adapter_name_or_path)
    init_kwargs: Any = config.model_init_kwargs
    base = config.model_name_or_path or find_base(config.adapter_name_or_path)
    if config.format == COMFYUI:
        return _export_factors(config, folder, find_family_class(base, init_kwargs, None), base)
    return [_export_merged(config, folder, base, init_kwargs)]


# ---- Factors under other names ----


def _export_factors(config: ExportConfig, folder: Path, family_class: type[Family] | None, base: str) -> list[Path]:
    if family_class is None:
        raise ValueError(
            f"The base {shown_path(base)} is a single file, which does not say what it is before it is loaded. Set "
            "`model_name_or_path` to the Hub id of a pipeline of its kind."
        )
    if family_class.comfyui_prefix is None:
        raise ValueError(
            f"ComfyUI has no names for the weights of a `{family_class.__name__}`, or has other layers. Set `format` "
            "to 'merged'."
        )
    family = family_class()
    parts = read_factors(folder, family)
    dtype = getattr(torch, config.dtype)
    local = local_folder(config.adapter_name_or_path)
    output, name = Path(config.output_dir), (local or Path(config.adapter_name_or_path)).resolve().name
    output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    states = {network: named_factors(family, factors, config.scale, dtype) for network, factors in parts.items()}
    paths = []
    for network, state in states.items():
        path = output / (f"{name}-{NETWORK_NOTES[network]}.safetensors" if len(states) > 1 else f"{name}.safetensors")
        replace_file(path, lambda temporary, state=state: save_file(state, temporary, {"format": "pt"}))  # type: ignore[misc]
        print(f"{path}: {len(parts[network])} layers, at a scale of {config.scale:g}")
        paths.append(path)
    print("Put it into ComfyUI's folder `models/loras`, and load it with a strength of 1.")
    return paths


def named_factors(
    family: Family, factors: Mapping[str, Factors], scale: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    """An adapter's weights by ComfyUI's names, each pair multiplied by all that it acts with.

    Args:
        family: of the base.
        factors: of each module of a network.
        scale: of the whole adapter.
        dtype: of the result.

    Returns:
        Where names are of dots, `lora_A` and `lora_B` of each module, as diffusers reads them too. Where they are of
        underscores, Kohya's `lora_down`, `lora_up`, and an `alpha` that equals the rank.

    Raises:
        ValueError: for a module that has no such name, and for numbers that `dtype` cannot hold.
    """
    prefix = family.comfyui_prefix
    assert prefix is not None
    state: dict[str, Tensor] = {}
    for module, pair in factors.items():
        name = family.comfyui_module(module)
        if name is None:
            raise ValueError(
                f"ComfyUI has no name for `{module}` of a `{type(family).__name__}`. Set `format` to 'merged', or "
                "train an adapter with `lora_target_modules` of attention and feed-forward layers."
            )
        up = (pair.up.float() * (pair.scale * scale)).to(dtype)
        down = pair.down.to(dtype)
        if not (up.isfinite().all() and down.isfinite().all()):
            raise ValueError(f"The adapter's weights of `{module}` are infinite in {dtype}. Set `dtype` to 'bfloat16'.")
        if prefix.endswith("_"):
            key = prefix + name.replace(".", "_")
            state |= {
                f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(float(len(down)), dtype=dtype),
            }  # fmt: skip
        else:
            state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return {name: tensor.contiguous() for name, tensor in state.items()}


# ---- The base with the adapter in it ----


def _export_merged(config: ExportConfig, folder: Path, base: str, init_kwargs: Any) -> Path:
    output = Path(config.output_dir)
    if output.exists() and any(output.iterdir()):
        raise ValueError(
            f"`output_dir` is {shown_path(str(output))}, which is not empty; a pipeline is written into a folder of "
            "its own. Name another one, or delete it."
        )
    pipeline: Any = load_pipeline(base, init_kwargs, None, None)
    family_class = find_family_class(pipeline, None, None)
    assert family_class is not None
    family = family_class()
    attach_adapter(pipeline, family, str(folder))
    networks = family.networks(pipeline)
    for network in networks.values():
        network.fuse_lora(config.scale, safe_fusing=True)
        network.unload_lora()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            cast(part, getattr(torch, config.dtype))
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    pipeline.save_pretrained(unfinished)
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
    print(f"{output}: the pipeline with the adapter in its weights, at a scale of {config.scale:g}")
    print(f"Load it as any other: {type(pipeline).__name__}.from_pretrained({str(output)!r})")
    return output

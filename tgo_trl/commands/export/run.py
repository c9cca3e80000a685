"""Adapters for programs other than diffusers.

Such programs know an adapter by the names of its weights, and many read no more than that: what diffusers and peft note
in the header of the file, the adapter's `alpha` among it, is passed over, and a model drawn with half its strength. So
the scale goes into the weights, and there is nothing left to be passed over.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...families import Family
from ...messages.failures import writing
from ...messages.values import shown_path
from ...policy.index import Index, find_family_class, find_index, network_names
from ...policy.loading import attach_adapter, load_pipeline
from ...policy.pipeline_class import chosen_class
from ...precision import cast
from ...settings import with_pipeline_class
from ...storage.files import flush, replace_file, sweep
from ...storage.processes import process_state
from ..sharded_run import locks_output_dir
from ..strength.card import find_base
from .adapter import Factors, adapter_folder, load_weights, read_factors
from .config import COMFYUI, ExportConfig

NETWORK_NOTES = {"transformer": "-high-noise", "transformer_2": "-low-noise"}
"""What tells the files of two networks apart, in the words of who loads them."""
MOST_ROUNDING = 0.01
"""Of a factor, over its own size (Frobenius): float16 has 0.0003, unless numbers are too small for it."""


@locks_output_dir
def export(config: ExportConfig) -> list[Path]:
    """Writes an adapter for other programs, and says what was written. Of several processes, the main one does.

    Args:
        config: what is exported, and how.

    Returns:
        The files, or the folder of the pipeline; nothing in other processes.

    Raises:
        ValueError: if the adapter cannot be written so; but for numbers that the dtype cannot hold, before the base is
            loaded.
    """
    if not process_state().is_main_process:
        return []
    folder = adapter_folder(config.adapter_name_or_path)
    if Path(config.output_dir).resolve() == folder.resolve():
        raise ValueError("`output_dir` is the folder of the adapter itself, which would then hold two. Name another.")
    init_kwargs = _init_kwargs(config)
    base = config.model_name_or_path or find_base(config.adapter_name_or_path)
    index = find_index(base, init_kwargs)
    family_class = find_family_class(base, init_kwargs, None, index)
    if index is None or family_class is None:
        raise ValueError(
            f"The base {shown_path(base)} is a single file, which does not say what it is before it is loaded. Set "
            "`model_name_or_path` to the folder or the Hub id of a pipeline of its kind."
        )
    networks = network_names(index, family_class)
    if config.format == COMFYUI:
        return _export_factors(config, folder, family_class, networks)
    load_weights(folder, family_class(), networks)  # which fails where it does not fit, before the base is loaded
    return [_export_merged(config, folder, family_class(), init_kwargs, index)]


def _init_kwargs(config: ExportConfig) -> dict[str, Any] | None:
    assert not isinstance(config.model_init_kwargs, str)
    name = chosen_class(config.pipeline_class, config.adapter_name_or_path)
    return with_pipeline_class(config.model_init_kwargs, name)


# ---- Factors under other names ----


def _export_factors(config: ExportConfig, folder: Path, family_class: type[Family], networks: list[str]) -> list[Path]:
    if family_class.comfyui_prefix is None:
        raise ValueError(
            f"ComfyUI has no names for the weights of a `{family_class.__name__}`, or has other layers. Set `format` "
            "to 'merged'."
        )
    family = family_class()
    parts = read_factors(folder, family, networks)
    dtype = getattr(torch, config.dtype)
    states = {network: named_factors(family, factors, config.scale, dtype) for network, factors in parts.items()}
    output, name = Path(config.output_dir), _name(config.adapter_name_or_path)
    notes = NETWORK_NOTES if len(networks) > 1 else {}
    paths = {network: output / f"{name}{notes.get(network, '')}.safetensors" for network in states}
    for network, path in paths.items():
        _check_free(path, states[network])
    output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    for network, path in paths.items():
        _write(path, states[network])
        print(f"{path}: {len(parts[network])} layers, at a scale of {config.scale:g}")
    print("Put it into ComfyUI's folder `models/loras`, and load it with a strength of 1.")
    return list(paths.values())


def _name(adapter: str) -> str:
    """What the file is called: as the run, and, of a checkpoint, as the run and the checkpoint."""
    path = Path(adapter).resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def _check_free(path: Path, state: Mapping[str, Tensor]) -> None:
    if not path.exists():
        return
    try:
        there = load_file(path) if path.is_file() else {}
    except SafetensorError:  # damaged, or none
        there = {}
    if there.keys() != state.keys() or not all(torch.equal(there[name], tensor) for name, tensor in state.items()):
        raise ValueError(
            f"{shown_path(str(path))} is there already, with other weights. Name another `output_dir`, or delete it."
        )


def _write(path: Path, state: dict[str, Tensor]) -> None:
    replace_file(path, lambda temporary: save_file(state, temporary, {"format": "pt"}))


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
        underscores, Kohya's `lora_down`, `lora_up`, and an `alpha` that equals the rank, float32.

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
        down, up = _scaled(module, pair, scale, dtype)
        if prefix.endswith("_"):
            key = prefix + name.replace(".", "_")
            alpha = torch.tensor(float(len(down)))
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
        else:
            state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _scaled(module: str, pair: Factors, scale: float, dtype: torch.dtype) -> list[Tensor]:
    down, up = pair.down.float(), pair.up.float() * (pair.scale * scale)
    if dtype != torch.float32:
        # The second factor is small after a short training, and float16 ends at 6e-8: both are made alike, exactly.
        largest = [float(it.abs().max()) for it in (down, up)]
        if all(0 < it < math.inf for it in largest):
            shift = 2.0 ** round(math.log2(largest[1] / largest[0]) / 2)
            down, up = down * shift, up / shift
    rounded = [it.to(dtype) for it in (down, up)]
    for before, after, given in zip((down, up), rounded, (pair.down, pair.up), strict=True):
        error = float((after.float() - before).norm())
        if not error <= MOST_ROUNDING * float(before.norm()) or (given.any() and not after.any()):
            raise ValueError(
                f"The adapter's weights of `{module}`, at a scale of {scale:g}, are too large or too small for "
                f"{dtype}, which would change them by more than {MOST_ROUNDING:.0%}. Set `dtype` to 'bfloat16' or "
                "'float32', or `scale` nearer to 1."
            )
    return rounded


# ---- The base with the adapter in it ----


def _export_merged(
    config: ExportConfig, folder: Path, family: Family, init_kwargs: Mapping[str, Any] | None, index: Index
) -> Path:
    output = Path(config.output_dir).resolve()
    # without the lock, and what a kill leaves
    if output.exists() and (not output.is_dir() or any(it.name[0] not in "._" for it in output.iterdir())):
        raise ValueError(
            f"`output_dir` is {shown_path(str(output))}, which is not empty; a pipeline is written into a folder of "
            "its own. Name another one, or delete it."
        )
    pipeline: Any = load_pipeline(index.model, init_kwargs, None, None, index=index)
    _merge(pipeline, family, folder, config.scale, getattr(torch, config.dtype))
    _publish(pipeline, output)
    print(f"{output}: the pipeline with the adapter in its weights, at a scale of {config.scale:g}")
    print(f"Load it as any other: {type(pipeline).__name__}.from_pretrained({str(output)!r})")
    return output


def _merge(pipeline: Any, family: Family, folder: Path, scale: float, dtype: torch.dtype) -> None:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    quantized = [name for name, part in parts.items() if getattr(part, "hf_quantizer", None) is not None]
    if quantized:
        raise ValueError(
            f"`{quantized[0]}` of the base is quantised, and an adapter cannot be merged into its numbers. Name the "
            "base that it was quantised from."
        )
    attach_adapter(pipeline, family, str(folder))
    for network in family.networks(pipeline).values():
        network.fuse_lora(scale, safe_fusing=True)
        network.unload_lora()
    for name, part in parts.items():
        if any(".lora_" in key for key in part.state_dict()):
            raise ValueError(f"The adapter changes `{name}` too, which only diffusers' `fuse_lora` can merge.")
        cast(part, dtype)
        bad = [key for key, tensor in part.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise ValueError(f"`{name}.{bad[0]}` has NaN or infinity in {dtype}. Set `dtype` to 'bfloat16'.")


def _publish(pipeline: Any, output: Path) -> None:
    """Writes a pipeline such that the folder has all of it, or no `model_index.json`."""
    unfinished = output / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    moved: list[Path] = []
    try:
        with writing(output):
            pipeline.save_pretrained(unfinished)
            for path in unfinished.rglob("*"):
                flush(path)
            index = unfinished / "model_index.json"  # what makes a pipeline of a folder comes last
            for path in [*(it for it in unfinished.iterdir() if it != index), index]:
                moved.append(path.rename(output / path.name))
            flush(output)
            moved.clear()
    finally:
        for path in (unfinished, *moved):
            shutil.rmtree(path, ignore_errors=True)

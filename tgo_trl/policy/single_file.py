"""Pipelines in a single file, as model sites and other programs keep them: read by diffusers' `from_single_file`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    SingleFileComponentError,
    fetch_diffusers_config,
    infer_diffusers_model_type,
)
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import nn

from ..families import Family
from ..messages.public import public_text
from ..settings import PIPELINE_CLASS
from .named import HUB_OPTIONS, PICKLED, SUFFIX, load_entries
from .pipeline_class import check_pipeline_class

_HUB_ADDRESS = re.compile(
    r"https?://(huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)/(blob|resolve)/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?"
)
UNFIT = (
    AttributeError, IndexError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError, TypeError,
    ValueError,
)  # fmt: skip
"""What diffusers raises for weights that do not fit a configuration."""


def load_single_file(model: str, kwargs: Mapping[str, Any], family: type[Family] | None = None) -> DiffusionPipeline:
    """The pipeline in a `.safetensors` file.

    Args:
        model: path of the file, or its address on the Hub.
        kwargs: for `from_single_file`: `config`, a folder or Hub id with the pipeline's configuration, is found out
            from the weights if it is not there; components that the file lacks may be passed as objects; with
            `pipeline_class`, the name of a class, it is loaded under that.
        family: of the class that is set; looked up if None.

    Raises:
        ValueError: saying how, if it cannot be loaded.
    """
    path = _local_file(model, kwargs)
    kwargs = dict(kwargs)
    config = str(kwargs.pop("config", None) or _default_config(path, model))
    pipeline_class = _pipeline_class(config, _entries(config, kwargs, model), kwargs, model, family)
    kwargs.pop(PIPELINE_CLASS, None)
    try:
        pipeline = pipeline_class.from_single_file(str(path), config=config, **kwargs)
    except UNFIT as error:
        raise ValueError(
            f"{_shown(model)} holds no whole `{pipeline_class.__name__}` of the configuration {config!r} "
            f"({' '.join(str(error).split())[:300]}). Pass another `config` in `model_init_kwargs`, or load the "
            "pipeline yourself, with the parts that the file lacks, and pass the object, or a folder it is saved in."
        ) from error
    _check_loaded(pipeline, model)
    pipeline.register_to_config(_name_or_path=public_text(model))
    return pipeline


def configuration_of(model: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The folder or Hub id of the configuration that a file is loaded with, and its index; no weights are read.

    Arguments and errors as of [`load_single_file`].
    """
    config = str(kwargs.get("config") or _default_config(_local_file(model, kwargs), model))
    entries = _entries(config, kwargs, model)
    _pipeline_class(config, entries, kwargs, model)
    return config, entries


def _local_file(model: str, kwargs: Mapping[str, Any]) -> Path:
    is_address = "://" in model
    suffix = Path(urlsplit(model).path if is_address else model).suffix.lower()
    if suffix in PICKLED:
        raise ValueError(
            f"{_shown(model)} is a pickle, which runs code when it is read. Use its {SUFFIX} version, or, if you trust "
            f"it, convert it once: `safetensors.torch.save_file(torch.load(path, weights_only=True)['state_dict'], "
            f"'model{SUFFIX}')`."
        )
    if suffix != SUFFIX:
        raise ValueError(
            f"{_shown(model)} holds a quantised network, not a pipeline. Load it with `from_single_file` and "
            "`GGUFQuantizationConfig` of diffusers, put it into its pipeline, and pass that object."
        )
    if is_address:
        return _download(model, kwargs)
    if not Path(model).is_file():
        raise ValueError(f"There is no file {_shown(model)}.")
    return Path(model)


def _download(address: str, kwargs: Mapping[str, Any]) -> Path:
    match = _HUB_ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(
            f"{_shown(address)} is no address of a file on the Hub, such as "
            f"https://huggingface.co/owner/name/blob/main/model{SUFFIX}. Download it, and pass the path."
        )
    options = {"revision": match["revision"], **{key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}}
    return Path(hf_hub_download(match["repository"], match["file"], **options))


def _default_config(path: Path, model: str) -> str:
    """The Hub id of the pipeline that the weights look like."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except SafetensorError as error:
        raise ValueError(f"{_shown(model)} is damaged, or no safetensors file: {error}.") from error
    # diffusers takes what it does not know for Stable Diffusion 1.5
    if infer_diffusers_model_type(shapes) == "v1" and CHECKPOINT_KEY_NAMES["v1"] not in shapes:
        raise ValueError(
            f"{_shown(model)} holds the weights of no pipeline that diffusers knows ({', '.join(names[:3])}). "
            "An adapter goes into `adapter_name_or_path`. If it is a pipeline, give the folder or Hub id of another "
            "one of its kind: `model_init_kwargs={'config': ...}`."
        )
    return str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])


def _entries(config: str, kwargs: Mapping[str, Any], model: str) -> dict[str, Any]:
    try:
        return load_entries(config, kwargs)
    except OSError as error:
        raise ValueError(
            f"{_shown(model)} needs the configuration of {config!r}, which cannot be read "
            f"({' '.join(str(error).split())[:200]}). Pass the folder of a pipeline of the same kind as "
            "`model_init_kwargs={'config': folder}`; its weights are not needed."
        ) from error


def _pipeline_class(
    config: str, entries: Mapping[str, Any], kwargs: Mapping[str, Any], model: str, family: type[Family] | None = None
) -> Any:
    name = str(entries.get("_class_name"))
    pipeline_class = getattr(diffusers, name, None)
    if kwargs.get(PIPELINE_CLASS) is not None:
        pipeline_class = check_pipeline_class(kwargs[PIPELINE_CLASS], entries, kwargs, config, family)
        name = pipeline_class.__name__
    if not hasattr(pipeline_class, "from_single_file"):
        raise ValueError(
            f"diffusers reads no `{name}` from a single file. Load its parts yourself, `save_pretrained(folder)`, and "
            "pass that folder."
        )
    return pipeline_class


def _check_loaded(pipeline: DiffusionPipeline, model: str) -> None:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    missing = [
        f"{name}.{key}" for name, part in parts.items() for key, weight in part.named_parameters() if weight.is_meta
    ]
    if missing:
        raise ValueError(f"{_shown(model)} lacks {len(missing)} weights, such as {', '.join(missing[:3])}.")


def _shown(model: str) -> str:
    return repr(public_text(model))

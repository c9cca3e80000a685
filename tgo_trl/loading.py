"""Loading what the user names: pipelines by Hub id or folder, and the networks of a reference."""

import logging
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from .families import Family, find_family

logger = logging.getLogger(__name__)


def load_pipeline(
    model: str | DiffusionPipeline,
    init_kwargs: Mapping[str, Any] | None,
    quantization_config: Any,
    family: Family | None,
) -> DiffusionPipeline:
    """The user's pipeline, loaded in float32 unless told otherwise, never with code from the Hub.

    Args:
        model: Hub id, folder, or a pipeline, which is returned as it is.
        init_kwargs: for `from_pretrained`.
        quantization_config: for the whole pipeline (`PipelineQuantizationConfig`), or for the trained networks only.
        family: given by the user, or None to look it up.

    Raises:
        TypeError: if `model` is neither.
        ValueError: for settings that cannot be honoured.
    """
    if isinstance(model, DiffusionPipeline):
        if init_kwargs is not None:
            logger.warning(
                "You passed `model_init_kwargs` to the `TGOConfig`, but your model is already instantiated. The "
                "`model_init_kwargs` will be ignored."
            )
        if quantization_config is not None:
            raise ValueError(
                "You passed `quantization_config` to the trainer, but your model is already instantiated. Quantization "
                "is applied while loading: pass the model's Hub id, or leave `quantization_config` out."
            )
        return model
    if not isinstance(model, str):
        raise TypeError(
            f"`model` must be a diffusers pipeline, a Hub id or a folder, got `{type(model).__name__}`. A network "
            "alone (a UNet, say) lacks the encoders and the scheduler that training needs: pass its pipeline."
        )
    kwargs = _with_dtype(init_kwargs or {})
    if kwargs.pop("trust_remote_code", False):
        raise ValueError(
            "`model_init_kwargs` has `trust_remote_code=True`, which would run code from the Hub. If you have read "
            "that code, load the pipeline yourself and pass the object as `model`."
        )
    if "custom_pipeline" in kwargs:
        raise ValueError(
            "`model_init_kwargs` has `custom_pipeline`, which runs code from the Hub. If you have read that code, load "
            "the pipeline yourself and pass the object as `model`."
        )
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ValueError(
                "You set `quantization_config` both as a trainer argument and in `args.model_init_kwargs`. Set it in "
                "one place, preferably as a trainer argument."
            )
        kwargs["quantization_config"] = _pipeline_quantization(model, quantization_config, family)
    return DiffusionPipeline.from_pretrained(model, **kwargs)


def load_reference_networks(
    ref_model: str | DiffusionPipeline | nn.Module, pipeline: DiffusionPipeline, family: Family,
    init_kwargs: Mapping[str, Any] | None,
) -> dict[str, nn.Module]:  # fmt: skip
    """The networks of the `ref_model` argument: of a pipeline, a Hub id, or a single network.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it is the policy itself, or lacks a network.
    """
    names = family.network_names
    if isinstance(ref_model, nn.Module):
        if len(names) != 1:
            raise ValueError(
                f"`ref_model` is one network, but this pipeline trains {', '.join(names)}. Pass a pipeline."
            )
        networks = {names[0]: ref_model}
    elif isinstance(ref_model, (str, DiffusionPipeline)):
        source = load_pipeline(ref_model, init_kwargs if isinstance(ref_model, str) else None, None, family)
        missing = [name for name in names if getattr(source, name, None) is None]
        if missing:
            raise ValueError(
                f"`ref_model` is a `{type(source).__name__}` without {', '.join(missing)}, which the policy trains. "
                "Pass a pipeline of the same kind as `model`."
            )
        networks = {name: getattr(source, name) for name in names}
    else:
        raise TypeError(
            "`ref_model` must be a diffusers pipeline, a Hub id, a folder or a network, got "
            f"`{type(ref_model).__name__}`."
        )
    for name, network in networks.items():
        if network is getattr(pipeline, name):
            raise ValueError(
                "`model` and `ref_model` cannot be the same object. In most cases you should omit `ref_model`: the "
                "reference is then the policy as it is before training."
            )
    return networks


def replace_tokenizer(pipeline: DiffusionPipeline, processing_class: Any) -> None:
    """Honours TRL's `processing_class`: a tokenizer takes the place of the pipeline's.

    Raises:
        TypeError: if it is no tokenizer, or the pipeline has none.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase) or "tokenizer" not in pipeline.components:
        raise TypeError(
            f"`processing_class` is a `{type(processing_class).__name__}`. A pipeline brings its own processing; only "
            "a tokenizer can be replaced here. Set other components on the pipeline before you pass it."
        )
    pipeline.register_modules(tokenizer=processing_class)


def _with_dtype(init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = dict(init_kwargs)
    names = [name for name in ("dtype", "torch_dtype") if name in kwargs]
    if not names:
        kwargs["torch_dtype"] = torch.float32
    for name in names:  # a command line and YAML give strings, which diffusers would replace by float32
        if isinstance(kwargs[name], str):
            kwargs[name] = getattr(torch, kwargs[name], kwargs[name])
    return kwargs


def _pipeline_quantization(model: str, config: Any, family: Family | None) -> PipelineQuantizationConfig:
    if isinstance(config, PipelineQuantizationConfig):
        return config
    if family is None:
        class_name = DiffusionPipeline.load_config(model)["_class_name"]
        family = find_family(getattr(diffusers, class_name))
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(family.network_names, config))

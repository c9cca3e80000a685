"""Loading what the user names: pipelines by Hub id or folder, and the networks of a reference."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline, ModularPipeline, PipelineQuantizationConfig
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from huggingface_hub.errors import HFValidationError
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..families import PUBLISHED_NAMES, Family, find_family, find_published_family
from ..precision import with_dtypes
from ..settings import PIPELINE_CLASS
from .alterations import unwrapped
from .index import Index, class_name, find_family_class, find_index, network_names, read_index
from .modular import as_standard, load_modular
from .named import is_single_file
from .pipeline_class import check_instance, check_pipeline_class
from .single_file import configuration_of, load_single_file
from .skeleton import load_skeleton

logger = logging.getLogger(__name__)

_INIT_KWARGS: WeakKeyDictionary[DiffusionPipeline, Mapping[str, Any]] = WeakKeyDictionary()
"""What pipelines were loaded with that [`load_pipeline`] has loaded."""


def load_pipeline(
    model: str | os.PathLike[str] | DiffusionPipeline | ModularPipeline,
    init_kwargs: Mapping[str, Any] | None,
    quantization_config: Any,
    family: Family | None,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
    index: Index | None = None,
) -> DiffusionPipeline:
    """The user's pipeline, loaded in float32 unless told otherwise, never with code from the Hub.

    Args:
        model: Hub id, folder, `.safetensors` file, or a pipeline, which is returned as it is. A modular one is put
            together as the standard pipeline of the same parts.
        init_kwargs: for `from_pretrained`, or for `from_single_file`; with `pipeline_class`, the name of a class of
            diffusers, it is loaded under that instead of the one that its `model_index.json` names.
        quantization_config: for the whole pipeline (`PipelineQuantizationConfig`), or for the trained networks only.
        family: given by the user, or None to look it up.
        dtype: that training computes in, for the parts that are quantised: those are not cast later.
        weights: False for the skeleton of what is named, without weights, and so without quantised ones.
        index: of `model`, where it has been read with these `init_kwargs`; read if None.

    Raises:
        TypeError: if `model` is neither.
        ValueError: for settings that cannot be honoured.
    """
    # A pipeline that is there is taken as it is.
    model = as_standard(model)
    if isinstance(model, DiffusionPipeline):
        check_instance(model, init_kwargs)
        settings = {name: it for name, it in (init_kwargs or {}).items() if name != PIPELINE_CLASS}
        if settings and init_kwargs != _INIT_KWARGS.get(model):
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
    check_model(model)

    # A name, with keyword arguments that run no code.
    kwargs = dict(init_kwargs or {})
    _check_no_code(kwargs)
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ValueError(
            "You set `quantization_config` both as a trainer argument and in `args.model_init_kwargs`. Set it in one "
            "place, preferably as a trainer argument."
        )
    if is_single_file(model) and (quantization_config is not None or "quantization_config" in kwargs):
        raise ValueError(
            "A single file is loaded whole, and cannot be quantised while it is. Call `save_pretrained(folder)` on "
            "the pipeline, and pass that folder."
        )
    index = index or find_index(model, kwargs, family if weights else None)
    if not weights:
        pipeline = _named_skeleton(index or _index_of_file(model, kwargs), kwargs)
    elif is_single_file(model):
        pipeline = load_single_file(model, _with_dtype(kwargs, [], dtype), None if family is None else type(family))
        _check_networks(pipeline, kwargs, family)
    else:
        pipeline = _load_repository(model, kwargs, quantization_config, family, dtype, index)
    if init_kwargs is not None:
        _INIT_KWARGS[pipeline] = dict(init_kwargs)
    return pipeline


def check_model(model: object) -> None:
    """Raises a TypeError for what is neither a pipeline nor the name of one."""
    if not isinstance(model, (str, os.PathLike, DiffusionPipeline, ModularPipeline)):
        raise TypeError(
            f"`model` must be a diffusers pipeline, a Hub id or a folder, got `{type(model).__name__}`. A network "
            "alone (a UNet, say) lacks the encoders and the scheduler that training needs: pass its pipeline."
        )


def check_reference(ref_model: object) -> None:
    """Raises a TypeError for what is neither a pipeline, nor a network, nor the name of a pipeline."""
    if not isinstance(ref_model, (str, os.PathLike, DiffusionPipeline, ModularPipeline, nn.Module)):
        raise TypeError(
            "`ref_model` must be a diffusers pipeline, a Hub id, a folder or a network, got "
            f"`{type(ref_model).__name__}`."
        )


def _load_repository(
    model: str, kwargs: dict[str, Any], quantization_config: Any, family: Family | None, dtype: torch.dtype,
    index: Index | None,
) -> DiffusionPipeline:  # fmt: skip
    # The class is known before anything is loaded, and with it the networks to be quantised.
    family_class = find_family_class(model, kwargs, family, index)
    assert family_class is not None
    modular = None if index is None else index.modular
    if modular is not None or (index is not None and index.entries.get("_class_name") == kwargs.get(PIPELINE_CLASS)):
        kwargs.pop(PIPELINE_CLASS, None)  # it is the one that the index names
    if PIPELINE_CLASS in kwargs:
        kwargs[PIPELINE_CLASS] = _another_class(index or read_index(model, kwargs), kwargs, family)
    quantization_config = quantization_config or kwargs.pop("quantization_config", None)
    quantized: list[str] = []
    if quantization_config is not None:
        if not isinstance(quantization_config, PipelineQuantizationConfig):
            quantization_config = _of_networks(quantization_config, family_class, index or read_index(model, kwargs))
        quantized = list(quantization_config.quant_mapping or quantization_config.components_to_quantize or ())
        kwargs["quantization_config"] = quantization_config
    kwargs = _with_dtype(kwargs, quantized, dtype)
    return family_class.load(model, **kwargs) if modular is None else load_modular(modular, model, kwargs)


def _another_class(index: Index, kwargs: Mapping[str, Any], family: Family | None) -> type[DiffusionPipeline]:
    """The class that is set; raises a ValueError, before weights are loaded, if the networks are not of its kind."""
    found = check_pipeline_class(
        kwargs[PIPELINE_CLASS], index.entries, kwargs, index.model, None if family is None else type(family)
    )
    if family is None:
        _check_networks(_named_skeleton(index, dict(kwargs)), kwargs, family)
    return found


def _check_networks(pipeline: DiffusionPipeline, kwargs: Mapping[str, Any], family: Family | None) -> None:
    """Raises a ValueError if a class that is set does not call networks such as these."""
    if PIPELINE_CLASS in kwargs and family is None:
        usual = find_family(type(pipeline))()
        usual.fitted_to(pipeline).check(pipeline)


def _index_of_file(model: str, kwargs: dict[str, Any]) -> Index:
    config, entries = configuration_of(model, kwargs)
    kwargs.pop("config", None)
    return Index(config, entries, None)


def _named_skeleton(index: Index, kwargs: dict[str, Any]) -> DiffusionPipeline:
    kwargs.pop("quantization_config", None)
    name = class_name(index, kwargs)
    find_published_family(name)
    kwargs.pop(PIPELINE_CLASS, None)
    options = _with_dtype(kwargs, [], torch.float32)
    if index.modular is not None:
        return load_modular(index.modular, index.model, options, weights=False)
    return load_skeleton(index.model, PUBLISHED_NAMES.get(name, name), index.entries, options)


def _check_no_code(kwargs: dict[str, Any]) -> None:
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


def attach_adapter(pipeline: DiffusionPipeline, family: Family, weights: str) -> None:
    """Loads an adapter into a pipeline, all of it.

    Args:
        pipeline: whose networks get it.
        family: of the pipeline.
        weights: Hub id, folder or file of the adapter.

    Raises:
        ValueError: if it cannot be read, or does not fit this pipeline.
    """
    before = adapter_scales(pipeline)
    kind = type(pipeline).__name__
    try:
        family.attach_adapter(pipeline, weights)
    except (SafetensorError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SafetensorError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise  # there is no such file, or no connection
        raise ValueError(f"The adapter {weights!r} is damaged, or no safetensors file: {cause}.") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # of diffusers, for odd contents
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"The adapter {weights!r} does not fit a `{kind}` ({type(error).__name__}: {reason})."
        ) from error
    except ValueError as error:
        is_no_id = isinstance(error, HFValidationError)
        if not is_no_id and "weight_name" not in str(error):
            raise
        why = "no id on the Hub has that form" if is_no_id else "the Hub, without a connection, cannot be asked for it"
        raise ValueError(
            f"There is no folder {weights!r} here, and {why}. Mend the name, or write the path of a folder with the "
            "adapter."
        ) from error
    if adapter_scales(pipeline) == before:  # diffusers passes over keys that it does not know
        raise ValueError(
            f"The adapter {weights!r} holds no weights for a `{kind}`. It was saved for another network, or not in "
            "diffusers' format: save it with the pipeline's `save_lora_weights`."
        )


def adapter_scales(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The factor of each adapter in each layer that has one, which no weight tells; those that are off are left out."""
    scales = {}
    for part_name, part in pipeline.components.items():
        for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict) and not getattr(module, "disable_adapters", False):
                active = set(getattr(module, "active_adapters", scaling))
                scales[f"{part_name}.{name}"] = {key: value for key, value in scaling.items() if key in active}
    return scales


def set_adapter_scale(pipeline: DiffusionPipeline, scale: float) -> None:
    """Weights the active adapters as diffusers' `set_adapters(names, scale)` does; at 0 they are switched off.

    For any pipeline: not all have that method, and of those that have, not all reach each network.
    """
    for part in pipeline.components.values():
        for layer in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(layer, LoraLayer):
                for name in layer.active_adapters:
                    layer.set_scale(name, scale)
                layer.enable_adapters(scale != 0)  # exactly the base, without the cost of adding zeros


def load_reference_networks(
    ref_model: str | os.PathLike[str] | DiffusionPipeline | ModularPipeline | nn.Module, pipeline: DiffusionPipeline,
    family: Family, init_kwargs: Mapping[str, Any] | None, quantization_config: Any = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, nn.Module]:  # fmt: skip
    """The networks of the `ref_model` argument: of a pipeline, a Hub id, or a single network.

    What is named is loaded as the policy is: with its keyword arguments, quantised as it is.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it is the policy itself, lacks a network, or predicts something else or under other noise.
    """
    check_reference(ref_model)
    names, ref_model = tuple(family.networks(pipeline)), as_standard(ref_model)
    if isinstance(ref_model, nn.Module):
        if len(names) != 1:
            raise ValueError(
                f"`ref_model` is one network, but this pipeline trains {', '.join(names)}. Pass a pipeline."
            )
        networks = {names[0]: unwrapped(ref_model)}
    else:
        is_named = isinstance(ref_model, str)
        kwargs, quantization = (init_kwargs, quantization_config) if is_named else (None, None)
        source = load_pipeline(ref_model, kwargs, quantization, family, dtype)
        missing = [name for name in names if getattr(source, name, None) is None]
        if missing:
            raise ValueError(
                f"`ref_model` is a `{type(source).__name__}` without {', '.join(missing)}, which the policy trains. "
                "Pass a pipeline of the same kind as `model`."
            )
        _check_same_noise(source, pipeline, family)
        networks = {name: unwrapped(getattr(source, name)) for name in names}
    for name, network in networks.items():
        if network is getattr(pipeline, name):
            raise ValueError(
                "`model` and `ref_model` cannot be the same object. In most cases you should omit `ref_model`: the "
                "reference is then the policy as it is before training."
            )
    return networks


def _check_same_noise(source: DiffusionPipeline, pipeline: DiffusionPipeline, family: Family) -> None:
    """Raises a ValueError for a reference whose networks were trained to answer another question than the policy's."""
    if getattr(source, "scheduler", None) is None:  # it does not say
        return
    try:
        why = family.process(pipeline).conflict(family.process(source))
    except (AttributeError, KeyError, ValueError) as error:
        why = f"scheduler is none that `model` could be trained with ({error})"
    if why is not None:
        raise ValueError(
            f"`ref_model` cannot be asked what the policy is asked: its {why}, as of `model`. Pass a pipeline that was "
            "trained with the noise and the target of `model`; if its network was, and only its scheduler says "
            "otherwise, pass the network alone, or mend the scheduler."
        )


def remove_offloading(pipeline: DiffusionPipeline) -> None:
    """Takes over the placement of a pipeline's parts, with a warning if the user had arranged it.

    Raises:
        ValueError: for group offloading, which diffusers cannot undo.
    """
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if any(_is_group_offload_enabled(module) for module in modules):
        raise ValueError(
            "The pipeline has group offloading (`enable_group_offload`), which would move the network while it trains. "
            "Pass the pipeline without it: the trainer keeps encoders off the device while they are not used."
        )
    mapped = getattr(pipeline, "hf_device_map", None) is not None
    if mapped or any(hasattr(module, "_hf_hook") for module in modules):
        logger.warning(
            "The pipeline's CPU offloading or `device_map` will be removed: the trainer itself keeps encoders off the "
            "device while they are not used, and the trained network has to stay there."
        )
        if mapped:
            pipeline.reset_device_map()
        pipeline.remove_all_hooks()


def check_tokenizer(processing_class: object, has_tokenizer: bool = True) -> None:
    """Raises a TypeError if it is no tokenizer, or the pipeline has none."""
    if not isinstance(processing_class, PreTrainedTokenizerBase) or not has_tokenizer:
        raise TypeError(
            f"`processing_class` is a `{type(processing_class).__name__}`. A pipeline brings its own processing; only "
            "a tokenizer can be replaced here. Set other components on the pipeline before you pass it."
        )


def replace_tokenizer(pipeline: DiffusionPipeline, processing_class: Any) -> None:
    """Honours TRL's `processing_class`: a tokenizer takes the place of the pipeline's.

    Raises:
        TypeError: if it is no tokenizer, or the pipeline has none.
    """
    check_tokenizer(processing_class, "tokenizer" in pipeline.components)
    pipeline.register_modules(tokenizer=processing_class)


def _with_dtype(kwargs: dict[str, Any], quantized: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    if not {"dtype", "torch_dtype"} & kwargs.keys():
        by_part = {**dict.fromkeys(quantized, dtype), "default": torch.float32}
        return {**kwargs, "dtype": by_part if quantized else torch.float32}
    return with_dtypes(kwargs)


def _of_networks(config: Any, family: type[Family], index: Index) -> PipelineQuantizationConfig:
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(network_names(index, family), config))

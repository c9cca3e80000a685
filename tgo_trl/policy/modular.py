"""Modular pipelines of diffusers, as the standard pipelines that families know. No code of theirs is run."""

import inspect
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, ModularPipeline
from torch import nn

from ..messages.public import public_text
from .named import HUB_OPTIONS
from .part_class import named_class
from .skeleton import without_weights

STANDARD = {
    "Flux2KleinBaseModularPipeline": "Flux2KleinPipeline",
    "Flux2KleinModularPipeline": "Flux2KleinPipeline",
    "Flux2ModularPipeline": "Flux2Pipeline",
    "FluxKontextModularPipeline": "FluxKontextPipeline",
    "FluxModularPipeline": "FluxPipeline",
    "HunyuanVideo15ModularPipeline": "HunyuanVideo15Pipeline",
    "Krea2ModularPipeline": "Krea2Pipeline",
    "Krea2TurboModularPipeline": "Krea2Pipeline",
    "LTX2ModularPipeline": "LTX2Pipeline",
    "QwenImage21ModularPipeline": "QwenImage21Pipeline",
    "QwenImage21TurboModularPipeline": "QwenImage21Pipeline",
    "QwenImageEditModularPipeline": "QwenImageEditPipeline",
    "QwenImageEditPlusModularPipeline": "QwenImageEditPlusPipeline",
    "QwenImageModularPipeline": "QwenImagePipeline",
    "StableDiffusion3ModularPipeline": "StableDiffusion3Pipeline",
    "StableDiffusionXLModularPipeline": "StableDiffusionXLPipeline",
    "Wan22Image2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22ModularPipeline": "WanPipeline",
    "WanImage2VideoModularPipeline": "WanImageToVideoPipeline",
    "WanModularPipeline": "WanPipeline",
    "ZImageModularPipeline": "ZImagePipeline",
}
"""The pipeline class of the same parts, of each modular class that there is a family for."""
WITH_A_PART = {"HunyuanVideo15ModularPipeline": ("image_encoder", "HunyuanVideo15ImageToVideoPipeline")}
"""That of modular classes of two kinds, where they have a part that the other kind has not."""
VALUES: dict[str, dict[str, Any]] = {
    "Flux2KleinModularPipeline": {"is_distilled": True},
    "Krea2TurboModularPipeline": {"is_distilled": True},
    "Wan22Image2VideoModularPipeline": {"boundary_ratio": 0.875},
    "Wan22ModularPipeline": {"boundary_ratio": 0.875},
}
"""What a modular class says by its name, where its index does not: the defaults of its blocks."""
WEIGHT_OPTIONS = ("low_cpu_mem_usage", "use_safetensors", "variant")
"""What networks are loaded with, beside their dtype."""


@dataclass(frozen=True)
class Part:
    """Where a part of a modular repository is.

    Attributes:
        library: of its class; None if the index does not say.
        class_name: its class.
        repository: Hub id or folder.
        subfolder: there.
        options: `variant` and `revision`, where they are told.
    """

    library: str | None
    class_name: str | None
    repository: str
    subfolder: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Modular:
    """What a `modular_model_index.json` says, as of a standard pipeline.

    Attributes:
        modular_class: name of its own class.
        pipeline_class: the standard one.
        parts: that the standard one takes.
        values: of its configuration, likewise.
    """

    modular_class: str
    pipeline_class: type[DiffusionPipeline]
    parts: Mapping[str, Part]
    values: Mapping[str, Any]

    @property
    def index(self) -> dict[str, Any]:
        """What the `model_index.json` of the standard pipeline would be."""
        parts = {name: [part.library, part.class_name] for name, part in self.parts.items()}
        return {"_class_name": self.pipeline_class.__name__, **self.values, **parts}


def read_modular(model: str, options: Mapping[str, Any]) -> Modular | None:
    """What a folder or Hub id says that has a `modular_model_index.json`; None of others.

    Args:
        model: the folder or Hub id.
        options: for `load_config`.

    Raises:
        ValueError: if there is no standard pipeline of a known family.
    """
    try:
        index = dict(ModularPipeline.load_config(model, **options))
    except OSError:
        return None
    modular_class = _known_class([str(index.get("_class_name"))], f"{model!r} is a modular repository")
    parts = {name: _part(model, name, entry) for name, entry in index.items() if isinstance(entry, (list, tuple))}
    pipeline_class = _standard_class(modular_class, parts)
    _, settings = pipeline_class._get_signature_keys(pipeline_class)  # of which a list is no part
    names = [name for name in _accepted(pipeline_class) if name not in settings]
    said = {**VALUES.get(modular_class, {}), **index}
    values = {name: said[name] for name in settings if name in said}
    found = {name: part for name in names if (part := parts.get(name)) is not None}
    return Modular(modular_class, pipeline_class, found, values)


def load_modular(modular: Modular, model: str, kwargs: Mapping[str, Any], weights: bool = True) -> DiffusionPipeline:
    """The standard pipeline of the parts of a modular repository.

    Args:
        modular: what it says.
        model: its folder or Hub id.
        kwargs: of `DiffusionPipeline.from_pretrained`: `dtype` or `torch_dtype` (one, or a dictionary of one per part
            and `"default"`), a `PipelineQuantizationConfig`, [`HUB_OPTIONS`], [`WEIGHT_OPTIONS`], and parts as objects.
        weights: False for networks of shapes alone.

    Raises:
        ValueError: for other arguments, and for parts that are missing or of other libraries.
    """
    accepted = _accepted(modular.pipeline_class)
    known = {"dtype", "torch_dtype", "quantization_config", *HUB_OPTIONS, *WEIGHT_OPTIONS}
    if unknown := kwargs.keys() - known - accepted.keys():
        raise ValueError(
            f"`model_init_kwargs` has {', '.join(sorted(unknown))}, which the parts of the modular repository "
            f"{model!r} are not loaded with. They take {', '.join(sorted(known))}, and parts as objects. Leave it out."
        )
    parts = {name: kwargs[name] for name in accepted if name in kwargs}
    for name, part in modular.parts.items():
        if name not in parts:
            parts[name] = _load_part(name, part, model, kwargs, weights)
    wanted = [name for name, it in accepted.items() if it.default is it.empty and name not in parts]
    return _assembled(
        modular.pipeline_class, modular.modular_class, {**parts, **_made(modular, wanted)}, modular.values, model
    )


def as_standard(model: Any) -> Any:
    """The standard pipeline of the same parts, if a model is a `ModularPipeline`; a path as text; any other as it is.

    Raises:
        ValueError: if there is none of a known family, or parts of it are not loaded.
    """
    if isinstance(model, os.PathLike):
        return os.fspath(model)
    if not isinstance(model, ModularPipeline):
        return model
    names = [ancestor.__name__ for ancestor in type(model).__mro__]
    modular_class = _known_class(names, f"`model` is a `{names[0]}`")
    pipeline_class = _standard_class(modular_class, model.components)
    accepted = _accepted(pipeline_class)
    parts = {name: part for name, part in model.components.items() if name in accepted and part is not None}
    said = {**VALUES.get(modular_class, {}), **model.config}
    values = {name: said[name] for name in accepted if name in said and name not in model.components}
    return _assembled(pipeline_class, modular_class, parts, values, model._pretrained_model_name_or_path)


def base_code(pipeline: DiffusionPipeline, base: str, dtype: torch.dtype) -> str | None:
    """Python that makes the variable `pipeline`, for a card; None if its base is not modular.

    Args:
        pipeline: of a run.
        base: what to call its folder or Hub id.
        dtype: of its weights.
    """
    arguments: dict[str, str] | None = vars(pipeline).get("_modular_code")
    if arguments is None:
        return None
    told = ", ".join(f"{name}={code}" for name, code in arguments.items())
    loading = "" if dtype == torch.float32 else f"dtype={dtype}"
    return (
        f'modular = ModularPipeline.from_pretrained("{base}")\n'
        f"modular.load_components({loading})\n"
        f"pipeline = {type(pipeline).__name__}({told})"
    )


def _standard_class(modular_class: str, parts: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """By the parts that are there, which are not None."""
    part, class_name = WITH_A_PART.get(modular_class, ("", ""))
    name = STANDARD[modular_class] if parts.get(part) is None else class_name
    found: type[DiffusionPipeline] = getattr(diffusers, name)
    return found


def _known_class(names: list[str], what: str) -> str:
    """The first of the names of a modular class and its ancestors that a standard class is known of."""
    for name in names:
        if name in STANDARD:
            return name
    raise ValueError(
        f"{what}, of the class `{names[0]}`: its blocks are not called in training, and no standard pipeline of a "
        f"known family has its parts. Known are {', '.join(sorted(STANDARD))}. Put its components into the pipeline "
        "class that they fit, and pass that object, or the folder it is saved in."
    )


def _accepted(pipeline_class: type[DiffusionPipeline]) -> dict[str, inspect.Parameter]:
    """The arguments of a pipeline's constructor."""
    return {name: it for name, it in inspect.signature(pipeline_class).parameters.items() if name != "self"}


def _part(model: str, name: str, entry: Any) -> Part | None:
    """Of an entry of an index: library and class, which are None if it was not loaded when saved, and where it is."""
    if len(entry) != 3 or not isinstance(entry[2], Mapping):
        return None
    where = entry[2]
    library, class_name = where.get("type_hint") or (None, None)
    if class_name is None:
        library, class_name = entry[:2]
    repository, subfolder = where.get("pretrained_model_name_or_path") or where.get("repo"), where.get("subfolder")
    options = {option: where[option] for option in ("variant", "revision") if where.get(option)}
    if (Path(model) / (subfolder or name)).is_dir():  # a copy of what the index still calls by another name
        repository, subfolder = model, subfolder or name
        options.pop("revision", None)
    if not isinstance(repository, str):
        return None
    return Part(library, class_name, repository, subfolder or "", options)


def _load_part(name: str, part: Part, model: str, kwargs: Mapping[str, Any], weights: bool) -> Any:
    part_class: Any = named_class(part.library, part.class_name)
    if part_class is None:
        raise ValueError(
            f"`{name}` of the modular repository {model!r} is a `{part.class_name}` of `{part.library}`, which is "
            "neither diffusers' nor transformers': code of a repository is not run. Load it yourself, and pass it in "
            f"`model_init_kwargs` as `{name}`."
        )
    options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
    if part.repository != model:
        options.pop("revision", None)  # of the modular one
    options |= {option: value for option, value in part.options.items() if option == "revision"}
    if not issubclass(part_class, nn.Module):
        return part_class.from_pretrained(part.repository, subfolder=part.subfolder, **options)
    if not weights:
        return without_weights(part_class, part.repository, part.subfolder, options)
    options |= {option: value for option, value in part.options.items() if option == "variant"}
    options |= {option: kwargs[option] for option in WEIGHT_OPTIONS if option in kwargs}
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    options["dtype"] = dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
    quantization = kwargs.get("quantization_config")
    if quantization is not None:
        is_diffusers = issubclass(part_class, ModelMixin)
        found = quantization._resolve_quant_config(is_diffusers=is_diffusers, module_name=name)
        options |= {} if found is None else {"quantization_config": found}
    return part_class.from_pretrained(part.repository, subfolder=part.subfolder, **options)


def _made(modular: Modular, names: Collection[str]) -> dict[str, Any]:
    """Those of the named parts that the modular class makes itself, as a guider: its repositories have none of them."""
    if not names:  # to make one warns of guiders
        return {}
    made = getattr(diffusers, modular.modular_class)().components
    return {name: made[name] for name in names if made.get(name) is not None}


def _assembled(
    pipeline_class: type[DiffusionPipeline], modular_class: str, parts: Mapping[str, Any], values: Mapping[str, Any],
    name: str | None,
) -> DiffusionPipeline:  # fmt: skip
    given, code = {**parts, **values}, {it: f"modular.{it}" for it in parts}
    code |= {it: repr(value) for it, value in values.items()}
    accepted = _accepted(pipeline_class)
    if "tokenizer" in accepted and "tokenizer" not in given and hasattr(given.get("processor"), "tokenizer"):
        given["tokenizer"], code["tokenizer"] = given["processor"].tokenizer, "modular.processor.tokenizer"
    absent = [it for it, parameter in accepted.items() if parameter.default is parameter.empty and it not in given]
    missing = [f"`{it}`" for it in absent if it not in pipeline_class._optional_components]
    if missing:
        raise ValueError(
            f"The `{modular_class}` has no {', '.join(missing)}, which a `{pipeline_class.__name__}` of the same parts "
            "needs. Of an object, call `load_components()` or `update_components(...)` first; of a repository, pass "
            "the part in `model_init_kwargs`, as an object."
        )
    build: Any = pipeline_class
    pipeline: DiffusionPipeline = build(**dict.fromkeys(absent), **given)
    if name is not None:
        pipeline.register_to_config(_name_or_path=public_text(str(name)))
        vars(pipeline)["_modular_code"] = {**dict.fromkeys(absent, "None"), **code}
    return pipeline

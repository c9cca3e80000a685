"""What a repository or folder says of its pipeline, before any weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

from ..families import PUBLISHED_NAMES, Family, find_family, find_published_family
from ..settings import PIPELINE_CLASS
from .alterations import unwrapped
from .modular import Modular, read_modular
from .named import INDEX_OPTIONS, is_single_file, load_entries
from .part_class import class_in_index
from .pipeline_class import check_pipeline_class
from .skeleton import pipeline_type


@dataclass(frozen=True)
class Index:
    """The `model_index.json` of a repository or folder, which each load reads once: of the Hub, it is a request.

    Attributes:
        model: Hub id or folder.
        entries: of the file; of a modular repository, what they would be.
        modular: what a repository says that has a `modular_model_index.json` instead; None of others.
    """

    model: str
    entries: Mapping[str, Any]
    modular: Modular | None


def read_index(model: str, kwargs: Mapping[str, Any]) -> Index:
    """What a repository or folder says of its pipeline.

    Args:
        model: Hub id or folder.
        kwargs: that it is loaded with.

    Raises:
        OSError: if it has no index.
        ValueError: if it is modular and of no known kind, or `pipeline_class` is set to another one.
    """
    try:
        return Index(model, load_entries(model, kwargs), None)
    except OSError:
        modular = read_modular(model, {name: kwargs[name] for name in INDEX_OPTIONS if name in kwargs})
        if modular is None:
            raise
    named = kwargs.get(PIPELINE_CLASS)
    if named not in (None, modular.pipeline_class.__name__):
        raise ValueError(
            f"`pipeline_class` is {named!r}, and {model!r} is a modular repository, whose parts are loaded as a "
            f"`{modular.pipeline_class.__name__}`. Leave it out, or name another model."
        )
    return Index(model, modular.index, modular)


def find_index(model: Any, init_kwargs: Mapping[str, Any] | None, family: Family | None = None) -> Index | None:
    """What is known of a model before it is loaded; None of a single file, and of a pipeline that is there.

    Args:
        model: Hub id, folder or `.safetensors` file, or a pipeline.
        init_kwargs: for `from_pretrained`.
        family: given by the user, which may load what has no index, so that this is None too.

    Raises:
        OSError: if there is no index, and no family is given.
        ValueError: as of [`read_index`].
    """
    if not isinstance(model, str) or is_single_file(model):
        return None
    try:
        return read_index(model, init_kwargs or {})
    except OSError:
        if family is None:
            raise
        return None


def readable_index(model: Any, init_kwargs: Mapping[str, Any] | None) -> Index | None:
    """As [`find_index`], but None if there is none too: loading says more of what is wrong."""
    try:
        return find_index(model, init_kwargs)
    except OSError:
        return None


def class_name(index: Index, kwargs: Mapping[str, Any], family: type[Family] | None = None) -> str:
    """The pipeline class that a repository or folder is loaded as; raises a ValueError if it names none.

    Args:
        index: of the repository or folder.
        kwargs: that it is loaded with.
        family: of the class that is set; looked up if None.
    """
    if kwargs.get(PIPELINE_CLASS) is not None:
        return check_pipeline_class(kwargs[PIPELINE_CLASS], index.entries, kwargs, index.model, family).__name__
    name = index.entries.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"The `model_index.json` of {index.model!r} names no class of a pipeline (`_class_name`), so that it is "
            "none. Name the folder or the Hub id of a whole pipeline."
        )
    return name


def class_beside_index(pipeline: DiffusionPipeline) -> str | None:
    """The class of diffusers that a pipeline is loaded under again; None if its own index names it.

    A class of the user's counts as the one that it derives from. The index is that of the folder or Hub id which the
    pipeline says that it came from, as it is here or in the cache; where there is none, as of a pipeline that was put
    together from parts, nothing names the class.
    """
    pipelines = [it for it in type(pipeline).__mro__ if issubclass(it, DiffusionPipeline)]
    names = [it.__name__ for it in pipelines if getattr(diffusers, it.__name__, None) is it]
    if not names or names[0] == DiffusionPipeline.__name__:
        return None
    try:
        index = find_index(pipeline.config.get("_name_or_path"), {"local_files_only": True})
    except (OSError, ValueError):  # a folder that is no longer there, or of a kind that is not known
        index = None
    return None if index is not None and index.entries.get("_class_name") == names[0] else names[0]


def find_family_class(
    model: str | DiffusionPipeline, init_kwargs: Mapping[str, Any] | None, family: Family | None, index: Index | None
) -> type[Family] | None:
    """The class of the pipeline's family, before any weights are loaded; None of a name without an index.

    Args:
        model: Hub id, folder or `.safetensors` file, or a pipeline.
        init_kwargs: for `from_pretrained`.
        family: given by the user, or None to look it up.
        index: of the model, if it is named and has one.

    Raises:
        ValueError: if no family is known.
    """
    if family is not None:
        return type(family)
    if isinstance(model, DiffusionPipeline):
        return find_family(type(model))
    return None if index is None else find_published_family(class_name(index, init_kwargs or {}))


def loaded_class(
    model: str | DiffusionPipeline, init_kwargs: Mapping[str, Any] | None, index: Index | None,
    family: type[Family] | None,
) -> type[DiffusionPipeline] | None:  # fmt: skip
    """The class of the pipeline, before any weights are loaded; None of a name without an index, or not known here.

    Arguments as of [`find_family_class`], but for `family`, which is what that returns.
    """
    if isinstance(model, DiffusionPipeline):
        return type(model)
    if index is None:
        return None
    name = class_name(index, init_kwargs or {}, family)
    found: type[DiffusionPipeline] | None = pipeline_type(PUBLISHED_NAMES.get(name, name))
    return found


def network_names(index: Index, family: type[Family]) -> list[str]:
    """The trained networks that a repository or folder has, before any of them is loaded."""
    return [name for name in family.network_names if index.entries.get(name, [None])[0] is not None]


def network_classes(
    model: str | DiffusionPipeline, init_kwargs: Mapping[str, Any] | None, family: Family | None, index: Index | None
) -> list[type]:
    """The classes of the networks that are trained, before any weights are loaded, of those that can be told.

    Arguments and errors as of [`find_family_class`].
    """
    family_class = find_family_class(model, init_kwargs, family, index)
    if isinstance(model, DiffusionPipeline) and family_class is not None:
        networks = (getattr(model, name, None) for name in family_class.network_names)
        return [type(unwrapped(network)) for network in networks if network is not None]
    if family_class is None or index is None:
        return []
    entries = {**index.entries, **(init_kwargs or {})}
    parts = [entries.get(name) for name in family_class.network_names]
    classes = [type(part) if isinstance(part, nn.Module) else class_in_index(part) for part in parts]
    return [it for it in classes if it is not None]

"""What a repository or folder says of its pipeline, before any weights are loaded."""

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from ..settings import PIPELINE_CLASS
from .modular import Modular, read_modular
from .pipeline_class import check_pipeline_class

INDEX_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""What an index is read with."""


def read_index(model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The `model_index.json` of a repository or folder, which comes before its weights, or what it would be.

    Args:
        model: Hub id or folder.
        kwargs: that it is loaded with.

    Raises:
        OSError: if there is none.
    """
    options = {name: kwargs[name] for name in INDEX_OPTIONS if name in kwargs}
    try:
        return dict(DiffusionPipeline.load_config(model, **options))
    except OSError:
        modular = find_modular(model, kwargs)
        if modular is None:
            raise
        return modular.index


def find_modular(model: str, kwargs: Mapping[str, Any]) -> Modular | None:
    """What a repository or folder says that has a `modular_model_index.json` and no `model_index.json`.

    Raises:
        ValueError: if it is of no known kind, or `pipeline_class` is set to another one.
    """
    options = {name: kwargs[name] for name in INDEX_OPTIONS if name in kwargs}
    try:
        DiffusionPipeline.load_config(model, **options)
    except OSError:
        modular = read_modular(model, options)
    else:
        return None
    named = kwargs.get(PIPELINE_CLASS)
    if modular is not None and named not in (None, modular.pipeline_class.__name__):
        raise ValueError(
            f"`pipeline_class` is {named!r}, and {model!r} is a modular repository, whose parts are loaded as a "
            f"`{modular.pipeline_class.__name__}`. Leave it out, or name another model."
        )
    return modular


def class_name(model: str, kwargs: Mapping[str, Any]) -> str:
    """The pipeline class that a repository or folder is loaded as; raises a ValueError if it names none."""
    index = read_index(model, kwargs)
    if kwargs.get(PIPELINE_CLASS) is not None:
        return check_pipeline_class(kwargs[PIPELINE_CLASS], index, kwargs, model).__name__
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"The `model_index.json` of {model!r} names no class of a pipeline (`_class_name`), so that it is none. "
            "Name the folder or the Hub id of a whole pipeline."
        )
    return name

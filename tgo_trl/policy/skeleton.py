"""A pipeline without its weights: its networks have shapes alone, so that it can be asked what it would take."""

import typing
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from .. import models
from .single_file import HUB_OPTIONS

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
"""Whose classes a `model_index.json` may name here."""


def load_skeleton(
    model: str, pipeline_class: str, index: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> DiffusionPipeline:
    """The pipeline of a Hub id or folder, with networks on the meta device; of a Hub id, no weights are fetched.

    Schedulers and tokenizers are there.

    Args:
        model: Hub id or folder.
        pipeline_class: the name of a class of diffusers, or of this package.
        index: the pipeline's `model_index.json`.
        kwargs: for `from_pretrained`; parts that are passed as objects are taken as they are.
    """
    found: Any = getattr(diffusers, pipeline_class, None) or getattr(models, pipeline_class)
    hints = typing.get_type_hints(found.__init__)
    parts = {}
    for name, entry in index.items():
        part_class = None if name in kwargs else _network_class(entry, hints.get(name))
        if part_class is not None:
            parts[name] = _without_weights(part_class, model, name, kwargs)
    # not of `DiffusionPipeline`, which loads what a pipeline may lack although it is passed
    pipeline: DiffusionPipeline = found.from_pretrained(model, **kwargs, **parts)
    return pipeline


def _network_class(entry: Any, hint: Any) -> Any:
    """The class of a part that a `model_index.json` names, if it is a network.

    Args:
        entry: its library and class.
        hint: what the pipeline takes, which is right where the two do not go together: published indexes name classes
            that are nowhere.
    """
    if not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[0] is None:
        return None
    named = getattr(LIBRARIES.get(str(entry[0])), str(entry[1]), None)
    is_class = isinstance(hint, type)
    if not isinstance(named, type) or (is_class and not issubclass(named, hint)):
        named = hint if is_class else None
    return named if isinstance(named, type) and issubclass(named, nn.Module) else None


def _without_weights(network_class: Any, model: str, name: str, kwargs: Mapping[str, Any]) -> Any:
    options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
    if issubclass(network_class, transformers.PreTrainedModel):
        config = network_class.config_class.from_pretrained(model, subfolder=name, **options)
        with torch.device("meta"):
            return network_class(config).eval()
    config = network_class.load_config(model, subfolder=name, **options)
    with torch.device("meta"):
        return network_class.from_config(config).eval()

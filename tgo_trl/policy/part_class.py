"""The classes that an index of a pipeline names for its parts."""

from typing import Any

import diffusers
import transformers

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
"""Whose classes an index may name here, beside those of the modules of pipelines."""


def is_part(entry: Any) -> bool:
    """Whether an entry of a `model_index.json` is a part that is there: its library and class."""
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] is not None


def class_in_index(entry: Any, of_diffusers_alone: bool = True) -> type | None:
    """The class of a part that a `model_index.json` names; None if it is no part, or its class is not known here.

    Args:
        entry: of the index.
        of_diffusers_alone: whether only classes that diffusers itself has are looked for.
    """
    if not is_part(entry) or (of_diffusers_alone and entry[0] != "diffusers"):
        return None
    return named_class(*entry)


def named_class(library: str | None, class_name: str | None) -> type | None:
    """The class of a part that an index names; None if it is neither of diffusers nor of transformers."""
    # of a part that one kind of pipeline alone has, the library is the module of that pipeline
    found = LIBRARIES.get(str(library)) or getattr(diffusers.pipelines, str(library), None)
    named = getattr(found, str(class_name), None)
    return named if isinstance(named, type) else None

"""Model families, one file each, and the table that finds the family of a pipeline."""

from diffusers import DiffusionPipeline

from .base import Family
from .stable_diffusion import StableDiffusionFamily

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusionFamily(),
}
"""The family of each pipeline class, by the class's name."""


def find_family(pipeline_class: type[DiffusionPipeline]) -> Family:
    """The family of a pipeline class, or of the nearest class that it derives from.

    Raises:
        ValueError: if no family is known, naming those that are.
    """
    for ancestor in pipeline_class.__mro__:
        if ancestor.__name__ in FAMILIES:
            return FAMILIES[ancestor.__name__]
    raise ValueError(
        f"No model family is known for `{pipeline_class.__name__}`. Known are {', '.join(sorted(FAMILIES))}. Pass an "
        "object of your own subclass of `tgo_trl.families.Family` as `TGOTrainer(..., family=...)`."
    )


__all__ = ["FAMILIES", "Family", "StableDiffusionFamily", "find_family"]

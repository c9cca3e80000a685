"""Model families, one file for each or for near relatives, and the table that finds the family of a pipeline."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from ..media.types import Sample, Size, VideoFormat
from .amused import AmusedFamily
from .base import Family
from .base_sources import SourceFamily
from .chroma import ChromaFamily
from .flux import FluxFamily
from .flux2 import Flux2DevFamily, Flux2KleinFamily
from .flux2_edit import Flux2DevEditFamily, Flux2KleinEditFamily
from .flux_kontext import FluxKontextFamily
from .hunyuan_video15 import HunyuanVideo15Family
from .hunyuan_video15_image_to_video import HunyuanVideo15ImageToVideoFamily
from .krea2 import Krea2Family
from .longcat_image import LongCatImageFamily
from .longcat_image_edit import LongCatImageEditFamily
from .ltx2 import LTX2Family
from .lumina2 import Lumina2Family
from .meissonic import MeissonicFamily
from .qwen_image import QwenImageFamily
from .qwen_image21 import QwenImage21Family
from .qwen_image21_edit import QwenImage21EditFamily
from .qwen_image_edit import QwenImageEditFamily, QwenImageEditPlusFamily
from .sana import SanaFamily
from .stable_diffusion import StableDiffusionFamily
from .stable_diffusion_3 import StableDiffusion3Family
from .stable_diffusion_xl import StableDiffusionXLFamily
from .wan import WanFamily
from .wan_image_to_video import WanImageToVideoFamily
from .z_image import ZImageFamily

Clip = VideoFormat
"""The older name."""

FAMILIES: dict[str, type[Family]] = {
    "AmusedPipeline": AmusedFamily,
    "ChromaPipeline": ChromaFamily,
    "Flux2KleinPipeline": Flux2KleinFamily,
    "Flux2Pipeline": Flux2DevFamily,
    "FluxKontextPipeline": FluxKontextFamily,
    "FluxPipeline": FluxFamily,
    "HunyuanVideo15ImageToVideoPipeline": HunyuanVideo15ImageToVideoFamily,
    "HunyuanVideo15Pipeline": HunyuanVideo15Family,
    "Krea2Pipeline": Krea2Family,
    "LongCatImageEditPipeline": LongCatImageEditFamily,
    "LongCatImagePipeline": LongCatImageFamily,
    "LTX2Pipeline": LTX2Family,
    "Lumina2Pipeline": Lumina2Family,
    "MeissonicPipeline": MeissonicFamily,
    "QwenImage21Pipeline": QwenImage21Family,
    "QwenImageEditPipeline": QwenImageEditFamily,
    "QwenImageEditPlusPipeline": QwenImageEditPlusFamily,
    "QwenImagePipeline": QwenImageFamily,
    "SanaPipeline": SanaFamily,
    "StableDiffusion3Pipeline": StableDiffusion3Family,
    "StableDiffusionPipeline": StableDiffusionFamily,
    "StableDiffusionXLPipeline": StableDiffusionXLFamily,
    "WanImageToVideoPipeline": WanImageToVideoFamily,
    "WanPipeline": WanFamily,
    "ZImagePipeline": ZImageFamily,
}
"""The family of each pipeline class, by the class's name."""

EDIT_FAMILIES: dict[type[Family], type[Family]] = {
    Flux2DevFamily: Flux2DevEditFamily,
    Flux2KleinFamily: Flux2KleinEditFamily,
    QwenImage21Family: QwenImage21EditFamily,
}
"""What takes the place of a family where there are source images, of pipelines that take some or none."""

PUBLISHED_NAMES = {"Pipeline": "MeissonicPipeline"}
"""What published repositories call a pipeline class that is not in diffusers."""


def find_family(pipeline_class: type[DiffusionPipeline]) -> type[Family]:
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


def find_published_family(class_name: str) -> type[Family]:
    """The family of the pipeline class that a `model_index.json` names; raises as [`find_family`] does."""
    class_name = PUBLISHED_NAMES.get(class_name, class_name)
    pipeline_class = getattr(diffusers, class_name, None)
    if class_name in FAMILIES or pipeline_class is None:
        pipeline_class = type(class_name, (DiffusionPipeline,), {})
    return find_family(pipeline_class)


def edit_class(kind: type[Family]) -> type[Family]:
    """What takes the place of a family's class where there are source images: itself, if no other does."""
    return EDIT_FAMILIES.get(kind, kind)


def edit_family(family: Family) -> Family:
    """As [`edit_class`], of a family with settings, which stay the same."""
    kind = edit_class(type(family))
    if kind is type(family):
        return family
    return kind(**{field.name: getattr(family, field.name) for field in fields(family)})


def build_family(pipeline_class: type[DiffusionPipeline], settings: Mapping[str, Any]) -> Family:
    """The family of a pipeline class, with the settings that are its own.

    Args:
        pipeline_class: of the user's pipeline.
        settings: by the name of the family's field.

    Raises:
        ValueError: if no family is known, or it has no such setting.
    """
    family = find_family(pipeline_class)
    known = [field.name for field in fields(family)]
    for name in settings:
        if name not in known:
            has = f"has {', '.join(f'`{name}`' for name in known)}" if known else "has no settings of its own"
            raise ValueError(
                f"`{name}` is set, but `{pipeline_class.__name__}` has nothing that it could change: "
                f"`{family.__name__}` {has}. Leave `{name}` unset."
            )
    return family(**settings)


__all__ = [
    "EDIT_FAMILIES",
    "FAMILIES",
    "AmusedFamily",
    "ChromaFamily",
    "Clip",
    "Family",
    "Flux2DevEditFamily",
    "Flux2DevFamily",
    "Flux2KleinEditFamily",
    "Flux2KleinFamily",
    "FluxFamily",
    "FluxKontextFamily",
    "HunyuanVideo15Family",
    "HunyuanVideo15ImageToVideoFamily",
    "Krea2Family",
    "LTX2Family",
    "LongCatImageEditFamily",
    "LongCatImageFamily",
    "Lumina2Family",
    "MeissonicFamily",
    "QwenImage21EditFamily",
    "QwenImage21Family",
    "QwenImageEditFamily",
    "QwenImageEditPlusFamily",
    "QwenImageFamily",
    "Sample",
    "SanaFamily",
    "Size",
    "SourceFamily",
    "StableDiffusion3Family",
    "StableDiffusionFamily",
    "StableDiffusionXLFamily",
    "VideoFormat",
    "WanFamily",
    "WanImageToVideoFamily",
    "ZImageFamily",
    "build_family",
    "edit_class",
    "edit_family",
    "find_family",
    "find_published_family",
]

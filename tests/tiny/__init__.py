"""Tiny pipelines and data sets with random weights and pictures, built offline.

One file per model family, each with `build(seed, **network_kwargs)`, `CALL` (keyword arguments of a fast call of the
pipeline) and `RESOLUTION` (the smallest side it takes). Stable Diffusion, which most tests use, is at hand here.
"""

from .data import PROMPTS, RESOLUTION, clip, paired_rows, picture, scored_rows, scored_videos, with_sources
from .parts import clip_tokenizer
from .stable_diffusion import StableDiffusionPipeline, stable_diffusion

__all__ = [
    "PROMPTS",
    "RESOLUTION",
    "StableDiffusionPipeline",
    "clip",
    "clip_tokenizer",
    "paired_rows",
    "picture",
    "scored_rows",
    "scored_videos",
    "stable_diffusion",
    "with_sources",
]

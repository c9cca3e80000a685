"""The pipeline of a run, loaded and checked against the settings."""

from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline

from ..families import Family
from ..media.types import Size
from ..policy.attention import check_dispatch
from ..policy.compilation import check_compilable, check_repeated
from ..policy.denoising import Denoiser
from ..policy.index import Index, find_index
from ..policy.loading import load_pipeline, remove_offloading, replace_tokenizer
from .arguments import resolve_family, resolve_size, resolve_sizes, try_attention
from .tgo_config import TGOConfig


class TrainedPipeline(NamedTuple):
    """A pipeline, and what the settings make of it.

    Attributes:
        pipeline: the user's.
        family: how it is called.
        denoiser: how its networks are asked to denoise.
        size: that images are brought to, in pixels.
        sizes: the same, or buckets of about as many pixels.
    """

    pipeline: DiffusionPipeline
    family: Family
    denoiser: Denoiser
    size: Size
    sizes: list[Size]


def load_for_training(
    model: str | DiffusionPipeline, args: TGOConfig, dtype: torch.dtype, family: Family | None = None,
    processing_class: Any = None, quantization_config: Any = None, weights: bool = True, has_sources: bool = False,
    index: Index | None = None,
) -> TrainedPipeline:  # fmt: skip
    """The pipeline of a run; raises as [`~tgo_trl.policy.loading.load_pipeline`] does, and if settings do not fit it.

    Args:
        model: Hub id, folder, file or pipeline.
        args: the run's settings.
        dtype: that training computes in.
        family: given by the user, or None to look it up.
        processing_class: takes the place of the pipeline's tokenizer.
        quantization_config: that it is loaded with.
        weights: False for networks of shapes alone.
        has_sources: whether rows have source images, of pipelines that take some or none.
        index: of the model, where it has been read; read if None.
    """
    if args.compile_repeated_blocks:
        index = index or find_index(model, args.model_init_dict, family)
        check_compilable(model, args.model_init_dict, family, index)
    pipeline = load_pipeline(model, args.model_init_dict, quantization_config, family, dtype, weights, index)
    remove_offloading(pipeline)
    if processing_class is not None:
        replace_tokenizer(pipeline, processing_class)
    family = resolve_family(args, family, pipeline, has_sources)
    size = resolve_size(args, family, pipeline)
    sizes = resolve_sizes(args, size, family, pipeline)
    networks = family.networks(pipeline).values()
    if args.compile_repeated_blocks:
        for network in networks:
            check_repeated(type(network))
    if args.attention_backend is not None:
        for network in networks:
            check_dispatch(network)
        if family.reads_lengths:  # and so masks prompts, where those of a batch have several
            try_attention(args, args.attention_backend, with_mask=True)
    return TrainedPipeline(pipeline, family, Denoiser(family, pipeline, family.process(pipeline)), size, sizes)

"""What sampling from a pipeline needs beside the call: generators by seed, and silence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline


def cpu_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, on the CPU, so that every device draws the same noise."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def quiet(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Within, the pipeline shows no progress bar of its own."""
    config = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**config)

"""What sampling from a pipeline needs beside the call: generators by seed, a negative prompt for each, and silence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def negating(pipeline: DiffusionPipeline, negative_prompt: str | None) -> Any:
    """The pipeline, called with this negative prompt for each prompt of a call: some repeat one, and others do not."""
    return pipeline if negative_prompt is None else _Negating(pipeline, negative_prompt)


class _Negating:
    def __init__(self, pipeline: DiffusionPipeline, negative_prompt: str) -> None:
        self._pipeline = pipeline
        self._negative_prompt = negative_prompt

    def __call__(self, prompt: str | list[str], **kwargs: Any) -> Any:
        negative = self._negative_prompt if isinstance(prompt, str) else [self._negative_prompt] * len(prompt)
        return self._pipeline(prompt=prompt, **{**kwargs, "negative_prompt": negative})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

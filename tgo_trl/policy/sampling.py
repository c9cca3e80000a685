"""What sampling from a pipeline needs beside the call: a seed and a negative prompt for each prompt, and silence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..settings import shown


def cpu_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, on the CPU, so that every device draws the same noise."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def check_asked(
    prompts: Sequence[str], seeds: Sequence[int], sources: Sequence[Sequence[Any]] | None = None,
    batch_size: int | None = None,
) -> None:  # fmt: skip
    """Raises an error unless there are a seed, and sources if there are any, for each of a list of prompts.

    Args:
        prompts: what is to be sampled.
        seeds: one per prompt.
        sources: those of each prompt.
        batch_size: samples that are drawn at once.

    Raises:
        TypeError: for one prompt or one seed that is in no list, and prompts that are no text.
        ValueError: for other numbers of seeds or sources than prompts, or no sample at once.
    """
    for name, given, alone in (("prompts", prompts, (str, bytes)), ("seeds", seeds, (str, int))):
        if isinstance(given, alone) or not hasattr(given, "__len__"):
            raise TypeError(f"`{name}` is {shown(given)}; it must be a list. Of a single one, write [{shown(given)}].")
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise TypeError(f"`prompts` has {shown(wrong[0])}; each of them must be text.")
    for name, number in (("seeds", len(seeds)), ("sources", len(prompts if sources is None else sources))):
        if number != len(prompts):
            raise ValueError(f"There are {number} `{name}` and {len(prompts)} `prompts`. Pass one for each prompt.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` is {shown(batch_size)}; it must be at least 1, or None for all at once.")


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

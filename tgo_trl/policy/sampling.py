"""Randomness of samples from a pipeline."""

from collections.abc import Sequence

import torch


def cpu_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, on the CPU, so that every device draws the same noise."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]

"""The older path of [`SampleGridCallback`]."""

from .trainer.sample_grids import SampleGridCallback

__all__ = ["SampleGridCallback"]

"""The processes of a distributed launch."""

from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


def process_state() -> PartialState:
    """The process among the others, which wait for each other for as long as the work takes.

    On machines without an accelerator too, where accelerate takes each launched process for the only one unless told.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))


def from_all(parts: list[T]) -> list[T]:
    """The parts of all processes, in their order; all of them come here alike."""
    return gather_object(parts) if PartialState().num_processes > 1 else parts

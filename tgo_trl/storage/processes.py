"""The processes of a distributed launch."""

from datetime import timedelta

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The process among the others, which wait for each other for as long as the work takes.

    On machines without an accelerator too, where accelerate takes each launched process for the only one unless told.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))

"""One thread per test process, nothing from the Hub, and the CPU for the modules that ask for it."""

import os

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def on_cpu():
    """Whatever picks a device by itself picks the CPU, and so float32, on a machine with a GPU too.

    For modules that hold pictures and scores, bit for bit or to float32's rounding, against those of another program.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    assert PartialState(cpu=True).device.type == "cpu"
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

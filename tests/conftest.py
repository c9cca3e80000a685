"""One thread per test process, nothing from the Hub, a Hub of one's own, and the CPU for modules that ask for it."""

import importlib
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A Hub on this machine, which huggingface_hub, diffusers and datasets take for the real one."""
    from .hub_server import connect, serving

    with serving() as server:
        connect(server, tmp_path_factory.mktemp("home"), monkeypatch)
        yield server


@pytest.fixture
def naps(monkeypatch):
    """Seconds that would have been slept between attempts, by huggingface_hub and here."""
    taken = []
    for module in ("huggingface_hub.utils._http", "tgo_trl.hub.repositories"):
        real = importlib.import_module(module).time
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(**{**vars(real), "sleep": taken.append}))
    return taken


@pytest.fixture(scope="module")
def on_cpu():
    """Whatever picks a device by itself picks the CPU, and so float32, on a machine with a GPU too.

    For modules that hold pictures and scores, bit for bit or to float32's rounding, against those of another program.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    assert PartialState(cpu=True).device.type == "cpu"
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

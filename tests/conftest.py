"""One thread per test process, nothing from the Hub, a Hub of one's own, and the CPU for modules that ask for it."""

import functools
import importlib
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from diffusers.loaders.peft import PeftAdapterMixin
from jinja2 import Environment
from matplotlib.figure import Figure

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


def _untraced(function):
    """The method, in which coverage follows nothing, unless it is one of the package's own objects."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        tracer = sys.gettrace()
        if tracer is None or type(args[0]).__module__.startswith("tgo_trl."):
            return function(*args, **kwargs)
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call


LEAVES = {
    Accelerator: ("clip_grad_norm_", "free_memory", "prepare", "unwrap_model"),
    Environment: ("from_string",),
    Figure: ("savefig",),
    PeftAdapterMixin: ("add_adapter", "enable_adapters", "set_adapter"),
    torch.Tensor: ("backward",),
    torch.nn.Module: ("__call__", "train", "zero_grad"),
}
"""What calls nothing of the package, by class: coverage would follow each of its lines, which takes half as long again."""
if sys.gettrace() is not None:
    for owner, names in LEAVES.items():
        for name in names:
            setattr(owner, name, _untraced(getattr(owner, name)))


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

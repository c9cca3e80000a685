"""One thread per test process, nothing from the Hub, a Hub of one's own, and the CPU for modules that ask for it."""

import functools
import gc
import importlib
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import memory
from matplotlib.figure import Figure

from .pictures import save_empty

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # nothing here outlives a loss of power, and trainers wait for the disk very often
memory.gc = SimpleNamespace(collect=lambda: 0)  # which `Trainer` calls at every start: garbage is collected when due


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


def follow_no_library():
    """Takes out of coverage what calls nothing of the package; it would follow each line of it, half as long again."""
    from diffusers import ConfigMixin, StableDiffusionPipeline
    from diffusers.loaders.peft import PeftAdapterMixin

    leaves = {
        Accelerator: ("clip_grad_norm_", "free_memory", "prepare", "unwrap_model"),
        Figure: ("savefig",),
        PeftAdapterMixin: ("add_adapter", "enable_adapters", "set_adapter"),
        StableDiffusionPipeline: ("__call__",),
        torch.Tensor: ("backward",),
        torch.nn.Module: ("__call__", "train", "zero_grad"),
    }
    for owner, names in leaves.items():
        for name in names:
            setattr(owner, name, _untraced(getattr(owner, name)))
    ConfigMixin.from_config = classmethod(_untraced(ConfigMixin.from_config.__func__))


def pytest_collection_finish():
    gc.freeze()  # what was imported since `runs.py` did so
    gc.set_threshold(20_000, 20, 20)  # every run makes many small objects, and not much garbage
    if sys.gettrace() is not None:  # which begins after this file is loaded, in the processes of pytest-xdist
        follow_no_library()


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
def undrawn():
    """Pictures are empty, for modules that look at none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_empty)
        yield


@pytest.fixture
def undrawn_here(monkeypatch):
    """Pictures are empty, for a test that looks at none, in a module where others do."""
    monkeypatch.setattr(Figure, "savefig", save_empty)


@pytest.fixture(scope="module")
def on_cpu():
    """Whatever picks a device by itself picks the CPU, and so float32, on a machine with a GPU too.

    For modules that hold pictures and scores, bit for bit or to float32's rounding, against those of another program.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    assert PartialState(cpu=True).device.type == "cpu"
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

"""One thread per test process, nothing from the Hub, and a Hub of one's own."""

import importlib
import os
from types import SimpleNamespace

import pytest
import torch

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
    for module in ("huggingface_hub.utils._http", "tgo_trl.repositories"):
        real = importlib.import_module(module).time
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(**{**vars(real), "sleep": taken.append}))
    return taken

"""What a step costs beside a bare loop, counted: of networks as deep as published ones, on any machine."""

import accelerate.optimizer
import pytest
import torch

from benchmarks.step_counts import Counts, count
from benchmarks.step_depths import DEPTHS
from tgo_trl.families.base_guidance import told
from tgo_trl.families.flux_kontext import _all_ids
from tgo_trl.trainer.lomo import look_for_lomo_once

MOST_CALLS, MOST_KERNELS = 1.05, 48
AT_A_BAR = {"flux2-klein": (1.055, 48), "flux-kontext": (1.05, 49)}
"""What the page says of those that are above one of the two, or next to it."""


def test_counting_by_hand():
    def called() -> None:
        pass

    counts = Counts()
    with counts.counting_calls():
        called()
        called()
    values = torch.zeros(2, 3)
    with counts.counting_kernels():
        (values + 1).T.detach().sum()  # between the two, views
    assert (counts.calls, counts.kernels) == (2, 2)


@pytest.mark.parametrize(
    "name", [name if name == "sd15" else pytest.param(name, marks=pytest.mark.slow) for name in DEPTHS]
)
def test_a_step_costs_little_beside_a_bare_loop(name):
    trainer, bare = count(DEPTHS[name])
    most_calls, most_kernels = AT_A_BAR.get(name, (MOST_CALLS, MOST_KERNELS))
    assert trainer.calls <= most_calls * bare.calls
    assert trainer.kernels <= most_kernels + bare.kernels


@pytest.mark.parametrize("name", ["flux", "wan-1.3b"])
def test_kernels_beyond_the_bare_loop_s_are_few_whatever_the_depth(name):
    trainer, bare = count(DEPTHS[name], shallow=True)
    assert trainer.kernels <= MOST_KERNELS + bare.kernels


def test_what_the_garbage_collector_calls_does_not_count():
    class Left:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            pass

    counts = Counts()
    Left()
    with counts.counting_calls():
        for _ in range(3):  # one call each
            Left()
        [[] for _ in range(100_000)]  # which begins a collection, and is one call
    assert counts.calls == 4


def test_accelerate_looks_once_for_an_optimizer_that_is_not_installed(monkeypatch):
    looked = []
    monkeypatch.setattr(accelerate.optimizer, "is_lomo_available", lambda: looked.append(1))
    for _ in range(2):
        look_for_lomo_once()
        assert not accelerate.optimizer.is_lomo_available()
    assert looked == [1]


def test_what_a_network_is_told_of_its_guidance_and_of_tokens_is_made_once():
    device = torch.device("cpu")
    assert told(3.5, 2, device).tolist() == [3.5, 3.5]
    assert told(3.5, 2, device) is told(3.5, 2, device)
    ids = _all_ids((1, 2), (2, 1), device, torch.float32)
    assert ids.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]]  # of the sample, then of the source

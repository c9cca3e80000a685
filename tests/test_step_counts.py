"""What a step costs beside a bare loop, counted: of a network as deep as SD 1.5's, on any machine."""

import torch

from benchmarks.step_counts import DEPTHS, Counts, count

MOST_CALLS, MOST_KERNELS = 1.05, 48


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


def test_a_step_costs_little_beside_a_bare_loop():
    trainer, bare = count(DEPTHS["sd15"])
    assert trainer.calls <= MOST_CALLS * bare.calls
    assert trainer.kernels <= MOST_KERNELS + bare.kernels

"""How far bfloat16 rounds differences of errors: what the benchmark of it measures, by hand and on a tiny network."""

import pytest
import torch

from benchmarks.rounding import AVERAGED, Network, averaged, count_kernels, measure, random_rows, root_mean_square

from .tiny import stable_diffusion


def test_means_over_draws_by_hand():
    differences = torch.tensor([[3.0, -1.0], [5.0, 1.0]])
    assert averaged(differences, 1).tolist() == differences[:, None].flatten(1).tolist()
    assert averaged(differences, 2).tolist() == [[4.0, 0.0]]
    assert root_mean_square(differences) == 3.0  # of 9, 1, 25 and 1


@pytest.mark.slow
def test_both_ways_round_a_little_and_the_gradient_less_than_a_small_difference():
    def build(seed):
        return stable_diffusion(seed=seed), *random_rows(seed)

    found = measure(Network("tiny", build, {}), 0, (1, 5))
    assert found.keys() == {(number, way) for number in (1, 5) for way in ("autocast", "without")}
    for columns in found.values():
        assert columns.keys() == {"reward", "gradient", "left at K = 16", *(f"K = {number}" for number in AVERAGED)}
        assert 0 < columns["gradient"] < min(0.1, columns["K = 1"])
        assert 0 < columns["left at K = 16"] < 1
    for way in ("autocast", "without"):  # what was moved further is rounded no more
        assert found[5, way]["K = 1"] < found[1, way]["K = 1"]


def test_fewer_kernels_without_autocast():
    kernels = count_kernels("sd15")
    assert kernels["without"] < 0.75 * kernels["autocast"]

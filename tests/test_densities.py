"""Timestep densities against diffusers' own, and by hand."""

import math

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from tgo_trl.noise import DENSITIES, build_density

QUANTILES = torch.linspace(0, 1, 1001)[:-1]


def test_uniform_is_the_quantile_itself():
    assert torch.equal(build_density("uniform", 0, 1, 1)(QUANTILES), QUANTILES)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_increase_from_0_to_1(name):
    positions = build_density(name, 0.5, 1.5, 1.29)(QUANTILES)
    assert positions[0] == 0
    assert (positions.diff() > 0).all()
    assert positions[-1] <= 1


def test_the_logit_normal_by_hand():
    density = build_density("logit_normal", 1.0, 2.0, 0)
    # the median is sigmoid(mean); a standard normal is 1 at its quantile 0.8413447
    sigmoid = [1 / (1 + math.exp(-x)) for x in (1.0, 3.0, -1.0)]
    found = density(torch.tensor([0.5, 0.8413447, 0.1586553]))
    torch.testing.assert_close(found, torch.tensor(sigmoid), rtol=1e-5, atol=1e-6)


def test_the_mode_density_by_hand():
    density = build_density("mode", 0, 1, 1.29)
    # at q = 1/2: 1/2 - 1.29 (1/2 - 1/2); at q = 1/3: 1/3 - 1.29 (sin^2 30 - 1/3) = 1/3 - 1.29 (1/4 - 1/3)
    found = density(torch.tensor([0.5, 1 / 3]))
    torch.testing.assert_close(found, torch.tensor([0.5, 1 / 3 + 1.29 / 12]))


@pytest.mark.parametrize(
    ("name", "theirs", "settings"),
    [
        ("uniform", "none", {}),
        ("logit_normal", "logit_normal", {"logit_mean": 0.0, "logit_std": 1.0}),
        ("logit_normal", "logit_normal", {"logit_mean": -0.8, "logit_std": 0.5}),
        ("mode", "mode", {"mode_scale": 1.29}),
        ("mode", "mode", {"mode_scale": -0.5}),
    ],
)
def test_the_distribution_is_diffusers(name, theirs, settings):
    settings = {"logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.0, **settings}
    generator = torch.Generator().manual_seed(0)
    samples = compute_density_for_timestep_sampling(theirs, 200_000, generator=generator, device="cpu", **settings)
    quantiles = torch.linspace(0.01, 0.99, 99)
    ours = build_density(name, **settings)(quantiles)
    torch.testing.assert_close(ours, samples.quantile(quantiles), rtol=0, atol=5e-3)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="`timestep_density` is 'cosmap'; it must be one of 'uniform', 'logit_normal'"):
        build_density("cosmap", 0, 1, 1)

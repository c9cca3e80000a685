"""Noise processes against diffusers' own schedulers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from tgo_trl.noise import DiffusionProcess, FlowMatchingProcess, MaskedTokenProcess

NUM_TIMESTEPS = 1000


def process_and_scheduler(prediction_type="epsilon", **kwargs):
    scheduler = DDPMScheduler(NUM_TIMESTEPS, prediction_type=prediction_type, **kwargs)
    return DiffusionProcess(scheduler.alphas_cumprod, prediction_type), scheduler


def one_sample_per_timestep():
    """Clean samples, noise and time: every timestep once."""
    clean, noise = torch.randn(2, NUM_TIMESTEPS, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    return clean, noise, torch.arange(NUM_TIMESTEPS)


@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_corruption_and_targets_are_diffusers(schedule):
    clean, noise, time = one_sample_per_timestep()
    process, scheduler = process_and_scheduler("v_prediction", **schedule)
    assert torch.equal(process.corrupt(clean, noise, time), scheduler.add_noise(clean, noise, time))
    assert torch.equal(process.target(clean, noise, time), scheduler.get_velocity(clean, noise, time))
    epsilon, _ = process_and_scheduler("epsilon", **schedule)
    assert torch.equal(epsilon.corrupt(clean, noise, time), scheduler.add_noise(clean, noise, time))
    assert torch.equal(epsilon.target(clean, noise, time), noise)


def test_corruption_and_velocity_by_hand():
    # abar = 0.64 at t = 1: sqrt abar = 0.8, sqrt(1 - abar) = 0.6; x_0 = 5, eps = 10
    process = DiffusionProcess(torch.tensor([0.9, 0.64]), "v_prediction")
    clean, noise, time = torch.full((1, 1), 5.0), torch.full((1, 1), 10.0), torch.tensor([1])
    assert process.corrupt(clean, noise, time).item() == pytest.approx(0.8 * 5 + 0.6 * 10)
    assert process.target(clean, noise, time).item() == pytest.approx(0.8 * 10 - 0.6 * 5)


def test_clean_sample_follows_from_corruption_and_velocity():
    # x_0 = sqrt(abar) x_t - sqrt(1 - abar) v, since the coefficients' squares sum to 1
    clean, noise, time = one_sample_per_timestep()
    process, scheduler = process_and_scheduler("v_prediction")
    abar = scheduler.alphas_cumprod[time].reshape(-1, 1, 1, 1)
    corrupted, velocity = process.corrupt(clean, noise, time), process.target(clean, noise, time)
    torch.testing.assert_close(abar.sqrt() * corrupted - (1 - abar).sqrt() * velocity, clean, atol=1e-5, rtol=1e-5)


def test_error_is_the_mean_over_all_but_the_batch():
    process, _ = process_and_scheduler()
    noise = torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    # (1 + 4 + 9 + 16) / 4 = 7.5 and (0 + 0 + 0 + 4) / 4 = 1
    error = process.error(prediction, torch.ones_like(noise), noise, torch.tensor([0, 999]))
    assert error.tolist() == [7.5, 1.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_error_of_the_right_prediction_is_zero(prediction_type):
    clean, noise, time = one_sample_per_timestep()
    process, scheduler = process_and_scheduler(prediction_type)
    right = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, time)
    assert process.error(right, clean, noise, time).tolist() == [0.0] * NUM_TIMESTEPS
    # Off by 1/2 everywhere: the mean of squares is 1/4.
    assert process.error(right + 0.5, clean, noise, time).tolist() == pytest.approx([0.25] * NUM_TIMESTEPS, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_is_float32_for_half_precision_predictions(dtype):
    # The target 1 + 2^-12 is a float32 number, but rounds to 1 in bfloat16 (2^-7 apart) and float16 (2^-10 apart): an
    # error in the prediction's dtype would be 0. In float32 it is (2^-12)^2 = 2^-24.
    process, _ = process_and_scheduler()
    noise = torch.full((1, 4, 8, 8), 1 + 2**-12)
    prediction = torch.ones(1, 4, 8, 8, dtype=dtype, requires_grad=True)
    error = process.error(prediction, torch.zeros_like(noise), noise, torch.tensor([0]))
    assert error.dtype == torch.float32
    assert error.item() == 2**-24
    error.sum().backward()
    assert prediction.grad.dtype == dtype


def test_error_is_reduced_in_float32():
    # (1^2 + (2^-5)^2) / 2 = (1 + 2^-10) / 2 has its last bit 2^-10 below its first; bfloat16 would round it to 0.5.
    process, _ = process_and_scheduler()
    prediction = torch.tensor([[1.0, 2**-5]], dtype=torch.bfloat16)
    zeros = torch.zeros(1, 2)
    assert process.error(prediction, zeros, zeros, torch.tensor([0])).item() == (1 + 2**-10) / 2


def test_error_gradient():
    # d/dp of mean (p - eps)^2 over 4 numbers is 2 (p - eps) / 4
    process, _ = process_and_scheduler()
    prediction = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    process.error(prediction, torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([5])).sum().backward()
    assert prediction.grad.tolist() == [[0.0, 0.5, 1.0, 1.5]]


def test_time_covers_all_timesteps():
    process, _ = process_and_scheduler()
    largest_below_1 = 1 - 2**-24
    quantile = torch.tensor([0.0, 0.25, 0.9995, largest_below_1], dtype=torch.float32)
    assert quantile[-1] < 1
    time = process.time(quantile)
    assert time.dtype == torch.int64
    assert time.tolist() == [0, 250, 999, 999]  # floor(1000 u)
    # The middle of each of the 1000 intervals gives each timestep once.
    middles = (torch.arange(NUM_TIMESTEPS, dtype=torch.float64) + 0.5) / NUM_TIMESTEPS
    assert process.time(middles.float()).tolist() == list(range(NUM_TIMESTEPS))


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000, 4097])
def test_time_stays_below_the_number_of_timesteps(num_timesteps):
    process = DiffusionProcess(torch.linspace(0.99, 0.01, num_timesteps), "epsilon")
    assert process.time(torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, num_timesteps - 1]


def test_temperature_is_the_papers_at_its_size():
    process, _ = process_and_scheduler()
    assert process.temperature(4 * 64 * 64) == 0.001
    # 0.001 * 16384 / 64 = 0.001 * 256
    assert process.temperature(64) == pytest.approx(0.256, rel=1e-15)


def test_temperature_keeps_the_papers_sigma():
    # A Gaussian of standard deviation sigma has log density -sum d^2 / (2 sigma^2), which is -mean d^2 / T at
    # T = 2 sigma^2 / D.
    sigma = math.sqrt(0.001 * 4 * 64 * 64 / 2)
    process, _ = process_and_scheduler()
    for num_elements in (64, 4096, 65536):
        assert process.temperature(num_elements) == pytest.approx(2 * sigma**2 / num_elements)


@pytest.mark.parametrize("prediction_type", ["sample", "flow", None])
def test_other_prediction_types_are_refused(prediction_type):
    with pytest.raises(ValueError, match=rf"`prediction_type` is {prediction_type!r}.*Use a scheduler with"):
        DiffusionProcess(torch.tensor([0.5]), prediction_type)


def test_coefficients_are_float32():
    process = DiffusionProcess(torch.tensor([0.9, 0.1], dtype=torch.float64), "v_prediction")
    clean = torch.ones(1, 2, dtype=torch.bfloat16)
    assert process.corrupt(clean, torch.ones(1, 2), torch.tensor([1])).dtype == torch.float32
    assert process.target(clean, torch.ones(1, 2), torch.tensor([1])).dtype == torch.float32


# ---- Whether two networks can be asked the same ----


def test_processes_of_one_question_do_not_conflict():
    alphas = DDPMScheduler(NUM_TIMESTEPS).alphas_cumprod
    mine = DiffusionProcess(alphas, "epsilon")
    assert mine.conflict(DiffusionProcess(alphas.double() * (1 + 1e-6), "epsilon")) is None
    assert (
        mine.conflict(DiffusionProcess(alphas, "v_prediction")) == "`prediction_type` is 'v_prediction', not 'epsilon'"
    )
    assert "ends at abar = 0.5, not 4.04e-05" in mine.conflict(DiffusionProcess(alphas.clamp(min=0.5), "epsilon"))
    # another shift asks at other times, of which velocities mean the same
    sigmas = torch.linspace(1, 0.001, NUM_TIMESTEPS)
    flow = FlowMatchingProcess(sigmas, NUM_TIMESTEPS)
    assert flow.conflict(FlowMatchingProcess(3 * sigmas / (1 + 2 * sigmas), NUM_TIMESTEPS)) is None
    assert flow.conflict(FlowMatchingProcess(sigmas, 1)) == "`num_train_timesteps` is 1, not 1000"
    assert MaskedTokenProcess(7).conflict(MaskedTokenProcess(7)) is None
    assert MaskedTokenProcess(7).conflict(MaskedTokenProcess(8)) == "mask is token 8, not 7"
    for one, other in ((mine, flow), (flow, mine), (MaskedTokenProcess(7), flow)):
        names = [type(it).__name__ for it in (other, one)]
        assert one.conflict(other) == "noise is that of a `{}`, not of a `{}`".format(*names)

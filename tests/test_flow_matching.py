"""Flow matching against diffusers' scheduler, and by hand."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from tgo_trl.families.base_flow import flow_schedule
from tgo_trl.noise import FlowMatchingProcess, build_density

from .tiny.flux import build as build_flux
from .tiny.wan import build as build_wan


def process(shift=1.0, **kwargs):
    schedule = FlowMatchEulerDiscreteScheduler(shift=shift)
    return FlowMatchingProcess(schedule.sigmas, 1000, **kwargs), schedule


def test_times_are_the_schedulers_and_grow_with_the_quantile():
    flow, schedule = process(shift=3.0)
    middles = (torch.arange(1000) + 0.5) / 1000
    times = flow.time(middles)
    assert torch.equal(times, schedule.timesteps.flip(0))
    assert flow.time(torch.tensor([0.0])) == schedule.timesteps[-1]  # nothing below the grid
    assert flow.time(torch.tensor([1 - 2**-24])) == 1000


def test_a_shift_of_3_by_hand():
    flow, _ = process(shift=3.0)
    # the grid's 500th of 1000 sigmas is 0.5: 3 * 0.5 / (1 + 2 * 0.5) = 0.75
    assert flow.time(torch.tensor([0.49999])).item() == pytest.approx(750)


def test_corruption_is_the_schedulers_own():
    flow, schedule = process(shift=3.0)
    clean, noise = torch.randn(2, 5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    times = flow.time(torch.tensor([0.0, 0.2, 0.5, 0.8, 0.999]))
    torch.testing.assert_close(flow.corrupt(clean, noise, times), schedule.scale_noise(clean, times, noise))


def test_corruption_and_error_by_hand():
    flow, _ = process()
    clean, noise = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    time = torch.tensor([250.0])
    # 0.75 * [2, 4] + 0.25 * [1, -1]
    assert torch.equal(flow.corrupt(clean, noise, time), torch.tensor([[1.75, 2.75]]))
    # the velocity is [1, -1] - [2, 4] = [-1, -5]; errors 1 and 3 give (1 + 9) / 2
    assert torch.equal(flow.error(torch.tensor([[0.0, -2.0]]), clean, noise, time), torch.tensor([5.0]))


def test_the_velocity_leads_from_data_to_noise():
    flow, _ = process()
    clean, noise = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([100.0, 500.0, 900.0])
    velocity = noise - clean
    corrupted = flow.corrupt(clean, noise, time)
    torch.testing.assert_close(corrupted + (1 - time / 1000)[:, None] * velocity, noise)
    assert flow.error(velocity, clean, noise, time).max() == 0


def test_half_precision_predictions_are_compared_in_float32():
    flow, _ = process()
    clean, noise = torch.zeros(1, 1000), torch.full((1, 1000), 1.0)
    prediction = torch.full((1, 1000), 1.0078125, dtype=torch.bfloat16)
    error = flow.error(prediction, clean, noise, torch.tensor([500.0]))
    assert error.dtype == torch.float32
    assert error.item() == 0.0078125**2


def test_a_density_moves_the_times():
    quantiles = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    uniform, _ = process()
    middle, _ = process(density=build_density("logit_normal", 0.0, 0.5, 0))
    noisy, _ = process(density=build_density("logit_normal", 2.0, 0.5, 0))
    assert middle.time(quantiles).std() < 0.5 * uniform.time(quantiles).std()
    assert middle.time(quantiles).mean() == pytest.approx(500, abs=5)
    assert noisy.time(quantiles).mean() > 800


def test_the_temperature_is_the_papers_scaled_with_the_size():
    flow, _ = process()
    assert flow.temperature(16384) == 0.001
    assert flow.temperature(4 * 16384) == 0.00025


# ---- The schedule behind a pipeline's sampler ----


def test_a_static_shift_is_kept_and_a_dynamic_one_is_the_samplers_business():
    pipeline = build_flux()  # shifts by the image's size when it samples
    assert torch.equal(flow_schedule(pipeline, None).sigmas, FlowMatchEulerDiscreteScheduler().sigmas)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.equal(flow_schedule(pipeline, None).sigmas, FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas)


def test_sampling_beforehand_does_not_change_the_training_grid():
    pipeline = build_flux()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.scheduler.set_timesteps(4)
    assert torch.equal(flow_schedule(pipeline, None).sigmas, FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas)


@pytest.mark.parametrize("shift", [None, 5.0])
def test_a_solvers_flow_shift_counts_and_a_shift_of_ones_own_more(shift):
    pipeline = build_wan()
    assert isinstance(pipeline.scheduler, UniPCMultistepScheduler)
    expected = FlowMatchEulerDiscreteScheduler(shift=shift or 3.0).sigmas
    assert torch.equal(flow_schedule(pipeline, shift).sigmas, expected)


def test_a_shift_of_ones_own_replaces_a_dynamic_one():
    expected = FlowMatchEulerDiscreteScheduler(shift=2.0).sigmas
    assert torch.equal(flow_schedule(build_flux(), 2.0).sigmas, expected)


def test_a_shift_left_over_from_another_class_does_not_count():
    pipeline = build_flux()
    pipeline.scheduler = UniPCMultistepScheduler.from_config(
        FlowMatchEulerDiscreteScheduler(shift=3.0).config, prediction_type="flow_prediction", use_flow_sigmas=True,
        flow_shift=5.0,
    )  # fmt: skip
    assert pipeline.scheduler.config.shift == 3.0
    assert torch.equal(flow_schedule(pipeline, None).sigmas, FlowMatchEulerDiscreteScheduler(shift=5.0).sigmas)

"""Samples with gradient are the stock pipeline's, and the gradient is that of the whole chain, as far back as asked."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from tgo_trl.families import FAMILIES, build_family
from tgo_trl.policy.draws import draw_samples
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.policy.gradient_sampling import GradientSampler, check_sampler, step_options
from tgo_trl.policy.policy import Policy

from . import tiny
from .cases import CASES
from .runs import assert_equal

PROMPTS = ["a red cat", "a blue dog on a hill"]
SCHEDULERS = {
    EulerDiscreteScheduler: {}, EulerAncestralDiscreteScheduler: {}, DPMSolverMultistepScheduler: {},
    PNDMScheduler: {"skip_prk_steps": True},
}  # fmt: skip
PACKING = (tiny.flux2, tiny.flux2_dev)
TOLD = (tiny.flux, tiny.flux2_dev)
SAMPLED = [case for case in CASES if case.family(case.build()).has_sampler]


def make_sampler(pipeline, family, size, num_steps=3, guidance_scale=None, eta=0.0):
    encoders = FrozenEncoders(family, pipeline, torch.device("cpu"), torch.float32)
    blank, geometry = torch.zeros(1, 3, size, size), torch.tensor([[size, size, 0, 0]])
    image = encoders.images(blank, geometry)
    scale = family.guidance(pipeline, guidance_scale)
    return GradientSampler(encoders, image, encoders.nothing(), num_steps, scale, eta)


def make_draw(sampler, rows=(0, 1), last_steps=(1, 1), epoch=0):
    return draw_samples(0, [epoch] * len(rows), rows, sampler.shape, last_steps, torch.device("cpu"))


def drawn(case, pipeline, **settings):
    """What is drawn here, and by the pipeline itself from the same noise."""
    family = case.family(pipeline)
    size = case.module.RESOLUTION
    sampler = make_sampler(pipeline, family, size, **settings)
    draw = make_draw(sampler)
    with torch.no_grad():
        ours = sampler(Policy(family, family.networks(pipeline), None), sampler.encoders.prompts(PROMPTS), draw)
    options = {"num_inference_steps": 3, **family.guidance_options(sampler.guidance_scale)}
    options |= {name: value for name, value in settings.items() if name == "eta"}
    again = make_draw(sampler)  # the generators of the first are spent
    latents = again.noise
    if hasattr(pipeline, "_pack_latents") and case.module not in PACKING:  # which pack what they are given
        latents = pipeline._pack_latents(latents, 2, *sampler.shape)
    theirs = family.sample(
        pipeline, PROMPTS, again.generators, (size, size), latents=latents, output_type="pt", **options
    )
    return ours, torch.stack(theirs)


@pytest.mark.parametrize(
    ("case", "scale"),
    [(case, scale) for case in SAMPLED for scale in ([None] if case.module in TOLD else [None, 3.0, 1.0])],
    ids=lambda value: getattr(value, "name", value),
)
def test_samples_are_those_of_the_stock_pipeline(case, scale):
    """At the pipeline's own guidance, at another, and at one that is none to most; that of [dev] is an input."""
    ours, theirs = drawn(case, case.build(), guidance_scale=scale)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() < 5e-6


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_so_they_are_with_other_schedulers(scheduler):
    case = next(case for case in CASES if case.name == "stable_diffusion")
    pipeline = case.build()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **SCHEDULERS[scheduler])
    ours, theirs = drawn(case, pipeline, guidance_scale=2.0)
    assert (ours - theirs).abs().max() < 2e-6


@pytest.mark.parametrize("name", ["stable_diffusion_3", "lumina2", "z_image", "qwen_image", "krea2", "qwen_image21"])
def test_so_they_are_where_the_size_of_the_image_shifts_the_steps(name):
    case = next(case for case in CASES if case.name == name)
    pipeline = case.build()
    shifts = {"use_dynamic_shifting": True, "base_image_seq_len": 3, "max_image_seq_len": 50, "max_shift": 1.8}
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**shifts)
    ours, theirs = drawn(case, pipeline)
    assert (ours - theirs).abs().max() < 5e-6


@pytest.mark.parametrize(("name", "scale"), [("flux2", None), ("krea2", 0.0)])
def test_so_they_are_of_a_pipeline_distilled_to_do_without_guidance(name, scale):
    case = next(case for case in CASES if case.name == name)
    ours, theirs = drawn(case, case.build(is_distilled=True), guidance_scale=scale)
    assert (ours - theirs).abs().max() < 5e-6


def test_so_they_are_at_levels_of_the_pipelines_own():
    case = next(case for case in CASES if case.name == "qwen_image21")
    ours, theirs = drawn(case, case.build(sample_sigmas=[1.0, 0.9, 0.5]))
    assert (ours - theirs).abs().max() < 5e-6


def test_noise_between_steps_is_each_rows_own():
    case = next(case for case in CASES if case.name == "stable_diffusion")
    ours, theirs = drawn(case, case.build(), eta=1.0)
    assert (ours - theirs).abs().max() < 2e-6
    still, _ = drawn(case, case.build())
    assert (ours - still).abs().max() > 1e-3


# ---- The gradient ----


def chain(num_steps, guidance_scale, last_steps, recomputes=False):
    """A pipeline in float64, all of it trained, and the weighted sum of what it draws as a function of nothing."""
    pipeline = tiny.stable_diffusion().to(torch.float64)
    family = build_family(type(pipeline), {})
    encoders = FrozenEncoders(family, pipeline, torch.device("cpu"), torch.float64)
    pipeline.vae.double()  # which are float32 otherwise
    image = {"mean": torch.zeros(1, 4, 8, 8)}
    sampler = GradientSampler(encoders, image, encoders.nothing(), num_steps, guidance_scale)
    draw = replace(make_draw(sampler, last_steps=last_steps))
    draw = replace(draw, noise=draw.noise.double())
    policy = Policy(family, family.networks(pipeline), None)
    policy.recomputes_calls = recomputes
    prompt = encoders.prompts(PROMPTS)
    weight = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(
        pipeline=pipeline, sampler=sampler, draw=draw, policy=policy, prompt=prompt, weight=weight,
        value=lambda: (sampler(policy, prompt, draw) * weight).sum(),
    )  # fmt: skip


def gradient(it):
    return torch.autograd.grad(it.value(), list(it.policy.parameters()))


def test_the_gradient_of_the_whole_chain_is_that_of_finite_differences():
    it = chain(num_steps=3, guidance_scale=2.0, last_steps=(3, 3))
    found = gradient(it)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ways = [torch.randn(weight.shape, generator=generator).double() for weight in it.policy.parameters()]
        slope = sum((one * way).sum() for one, way in zip(found, ways, strict=True))
        values = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(it.policy.state_dict())
            with torch.no_grad():
                for weight, way in zip(it.policy.parameters(), ways, strict=True):
                    weight.add_(step * way)
                values.append(it.value())
            it.policy.load_state_dict(moved)
        assert (values[0] - values[1]).item() / 2e-5 == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_gradient_of_the_last_step_is_the_one_made_by_hand(guidance_scale):
    it = chain(num_steps=3, guidance_scale=guidance_scale, last_steps=(1, 1))
    found = gradient(it)
    # DDIM (arXiv 2010.02502, equation 12 without noise), from where the stock pipeline is before its last step
    seen = []
    it.pipeline(
        PROMPTS, height=16, width=16, num_inference_steps=3, guidance_scale=guidance_scale, latents=it.draw.noise,
        output_type="latent", callback_on_step_end=lambda _, i, t, kept: seen.append(kept["latents"]) or {},
    )  # fmt: skip
    latents = seen[1]
    schedule, unet, embeds = it.pipeline.scheduler, it.pipeline.unet, it.prompt["embeds"]
    time = schedule.timesteps[2]
    now, before = schedule.alphas_cumprod[time].double(), schedule.final_alpha_cumprod.double()
    noise = unet(latents, time, embeds).sample
    if guidance_scale > 1:
        nothing = unet(latents, time, it.sampler.nothing["embeds"].expand_as(embeds)).sample
        noise = nothing + guidance_scale * (noise - nothing)
    clean = (latents - (1 - now).sqrt() * noise) / now.sqrt()
    end = before.sqrt() * clean + (1 - before).sqrt() * noise
    decoded = it.pipeline.vae.decode(end / it.pipeline.vae.config.scaling_factor).sample
    value = ((decoded / 2 + 0.5).clamp(0, 1) * it.weight).sum()
    assert value.item() == pytest.approx(it.value().item(), rel=1e-6)
    for one, other in zip(found, torch.autograd.grad(value, list(it.policy.parameters())), strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


def test_each_row_goes_back_through_steps_of_its_own():
    both = chain(num_steps=3, guidance_scale=2.0, last_steps=(1, 3))
    both.draw.num_last_steps[:] = [1, 3]
    alone = [chain(num_steps=3, guidance_scale=2.0, last_steps=(num, num)) for num in (1, 3)]
    for i, it in enumerate(alone):
        it.weight[1 - i] = 0  # the other row
    sums = [one + other for one, other in zip(*map(gradient, alone), strict=True)]
    for one, other in zip(gradient(both), sums, strict=True):
        assert (one - other).abs().max() < 1e-12 * max(1.0, float(other.abs().max()))
    longer = gradient(chain(num_steps=3, guidance_scale=2.0, last_steps=(3, 3)))
    assert max((one - other).abs().max() for one, other in zip(sums, longer, strict=True)) > 1e-3


def test_recomputed_calls_have_the_same_gradient_and_keep_latents_alone():
    found, kept = [], []
    for recomputes in (False, True):
        sizes = []
        for num in (1, 4):
            it = chain(num_steps=4, guidance_scale=1.0, last_steps=(num, num), recomputes=recomputes)
            saved = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
                value = it.value()
            sizes.append(sum(saved))
        found.append(torch.autograd.grad(value, list(it.policy.parameters())))
        kept.append((sizes[1] - sizes[0]) / 3)  # numbers per step
    assert_equal(found[1], found[0])
    assert kept[1] < 0.05 * kept[0]
    assert kept[1] < 20 * it.draw.noise.numel()


# ---- Draws ----


def test_draws_are_of_seed_epoch_and_row_alone():
    def draw(seed, epochs, rows):
        return draw_samples(seed, epochs, rows, (4, 2, 2), (1, 5), torch.device("cpu"))

    both, one = draw(0, [0, 0], [3, 7]), draw(0, [0], [7])
    assert torch.equal(both.noise[1], one.noise[0])
    assert both.num_last_steps[1] == one.num_last_steps[0]
    assert torch.equal(torch.randn(3, generator=both.generators[1]), torch.randn(3, generator=one.generators[0]))
    others = [draw(1, [0], [7]), draw(0, [1], [7]), draw(0, [0], [8])]
    assert not any(torch.equal(one.noise, other.noise) for other in others)
    many = draw(0, [0] * 500, range(500))
    counts = [many.num_last_steps.count(num) for num in range(7)]
    assert counts[0] == counts[6] == 0
    assert all(70 <= count <= 130 for count in counts[1:6])  # 100, give or take 3.4 standard deviations
    assert abs(many.noise.mean()) < 0.04
    assert abs(many.noise.std() - 1) < 0.03


# ---- What has no such samples ----


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_has_a_sampler_or_says_why_not(name):
    family = FAMILIES[name]
    if family.has_sampler:
        check_sampler(family, name)
        return
    with pytest.raises(ValueError, match=f"`{name}` cannot be trained by the gradient of a reward here") as refused:
        check_sampler(family, name)
    why = dict.fromkeys(("AmusedPipeline", "MeissonicPipeline"), "tokens")
    of_videos = ("LTX2Pipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline")
    why |= dict.fromkeys((*of_videos, "WanImageToVideoPipeline", "WanPipeline"), "videos")
    assert why.get(name, "has_sampler") in str(refused.value)


def test_noise_that_would_come_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"`sample_eta` is 0.5, and the pipeline's scheduler, a `EulerDiscrete"):
        step_options(EulerDiscreteScheduler(), 0.5, [])
    with pytest.raises(ValueError, match="`stochastic_sampling=True`"):
        step_options(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 0.0, [])
    assert step_options(DDIMScheduler(), 0.5, []) == {"eta": 0.5, "generator": []}

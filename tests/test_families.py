"""Families: which pipelines they take, and that they call networks as the pipelines themselves do."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from torch import nn

from tgo_trl.families import (
    FAMILIES,
    Family,
    Flux2KleinFamily,
    FluxFamily,
    StableDiffusionFamily,
    StableDiffusionXLFamily,
    build_family,
    find_family,
)
from tgo_trl.noise import DiffusionProcess
from tgo_trl.policy.denoising import Denoiser
from tgo_trl.policy.draws import draw_rows
from tgo_trl.policy.errors import row_errors
from tgo_trl.policy.policy import build_policy
from tgo_trl.policy.reference import ModelReference
from tgo_trl.precision import cast, compute_dtype

from .runs import config, make_trainer
from .tiny import PROMPTS, scored_rows, stable_diffusion
from .tiny.flux import build as build_flux
from .tiny.flux2 import build as build_flux2
from .tiny.wan import build as build_wan

FAMILY = StableDiffusionFamily()
GEOMETRY = torch.tensor([[16, 16, 0, 0]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- The table ----


def test_a_pipeline_class_and_its_subclasses_have_its_family():
    class MyPipeline(StableDiffusionPipeline):
        pass

    class MyOtherPipeline(MyPipeline):
        pass

    for pipeline_class in (StableDiffusionPipeline, MyPipeline, MyOtherPipeline):
        assert find_family(pipeline_class) is StableDiffusionFamily


def test_an_unknown_class_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="No model family") as caught:
        find_family(DiffusionPipeline)
    assert str(caught.value) == (
        "No model family is known for `DiffusionPipeline`. Known are "
        f"{', '.join(sorted(FAMILIES))}. Pass an object of your own "
        "subclass of `tgo_trl.families.Family` as `TGOTrainer(..., family=...)`."
    )


# ---- What a pipeline must have ----


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(name):
    pipeline = stable_diffusion()
    FAMILY.check(pipeline)
    pipeline.register_modules(**{name: None})
    with pytest.raises(ValueError, match=f"The pipeline has no `{name}`, which `StableDiffusionFamily` needs"):
        FAMILY.check(pipeline)


def test_an_inpainting_network_is_refused():
    with pytest.raises(
        ValueError, match="The UNet takes 9 channels and the autoencoder gives 4: this is an inpainting"
    ):
        FAMILY.check(stable_diffusion(in_channels=9))


def test_a_consistency_model_is_refused():
    with pytest.raises(ValueError, match="The UNet takes the guidance scale as an input: this is a latent consistency"):
        FAMILY.check(stable_diffusion(time_cond_proj_dim=8))


def test_a_scheduler_of_another_process_is_refused():
    pipeline = build_flux()
    pipeline.scheduler = DDPMScheduler()
    with pytest.raises(
        ValueError, match="`DDPMScheduler` with `prediction_type='epsilon'`, but this network was trained"
    ):
        FluxFamily().check(pipeline)


def test_a_prompt_longer_than_the_pipeline_takes_is_refused():
    with pytest.raises(ValueError, match="`max_sequence_length` is 600, but this `FluxPipeline` takes prompts of 512"):
        FluxFamily(max_sequence_length=600).check(build_flux())
    FluxFamily(max_sequence_length=512).check(build_flux())


# ---- Step-distilled pipelines ----


@pytest.mark.parametrize("is_distilled", [True, False])
def test_a_pipeline_distilled_to_few_steps_is_trained_with_a_warning(is_distilled, tmp_path, caplog):
    pipeline = build_flux2(is_distilled=is_distilled)
    args = config(tmp_path, resolution=16, max_sequence_length=16)
    make_trainer(args, model=pipeline, train_dataset=scored_rows(4))
    warned = [record.getMessage() for record in caplog.records if "distilled to draw in few steps" in record.msg]
    assert len(warned) == is_distilled
    assert all("`black-forest-labs/FLUX.2-klein-base-4B` or" in message for message in warned)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("stabilityai/sdxl-turbo", "`stabilityai/stable-diffusion-xl-base-1.0`"),
        ("models/SDXL_Lightning_4step", "`stabilityai/stable-diffusion-xl-base-1.0`"),
        ("lcm/blue", None),
        ("stabilityai/stable-diffusion-xl-base-1.0", None),
        (None, None),
    ],
)
def test_a_pipeline_of_few_steps_is_known_by_its_name(name, base):
    pipeline = SimpleNamespace(config={"_name_or_path": name})
    assert StableDiffusionXLFamily().step_distilled_from(pipeline) == base


def test_a_family_of_several_models_names_no_undistilled_one():
    pipeline = SimpleNamespace(config={"_name_or_path": "stabilityai/sd-turbo"})
    assert FAMILY.step_distilled_from(pipeline) == "the model that it was distilled from"


@pytest.mark.parametrize(("guidance_embeds", "dynamic", "is_schnell"), [(0, 0, True), (1, 1, False), (0, 1, False)])
def test_schnell_is_known_without_its_name(guidance_embeds, dynamic, is_schnell):
    """By the configurations of network and scheduler, in which it differs from [dev]."""
    pipeline = SimpleNamespace(
        config={},
        transformer=SimpleNamespace(config=SimpleNamespace(guidance_embeds=guidance_embeds)),
        scheduler=SimpleNamespace(config={"use_dynamic_shifting": dynamic}),
    )
    assert FluxFamily().step_distilled_from(pipeline) == ("`black-forest-labs/FLUX.1-dev`" if is_schnell else None)


def test_guidance_of_a_distilled_pipeline_is_none_and_any_is_refused():
    family = Flux2KleinFamily()
    assert family.guidance(build_flux2(), None) == 4.0
    pipeline = build_flux2(is_distilled=True)
    assert family.guidance(pipeline, None) == family.guidance(pipeline, 1.0) == 1.0
    with pytest.raises(ValueError, match=r"`sample_guidance_scale` is 2.0, and this pipeline was distilled"):
        family.guidance(pipeline, 2.0)


def test_a_loss_of_negative_prompts_is_refused_for_a_pipeline_that_takes_none(tmp_path):
    args = config(tmp_path, resolution=16, max_sequence_length=16, loss_type="csft")
    with pytest.raises(ValueError, match=r"a `Flux2KleinPipeline` takes no `negative_prompt`. Set `positive_prefix`"):
        make_trainer(args, model=build_flux2(), train_dataset=scored_rows(4))
    args = config(tmp_path, resolution=16, max_sequence_length=16, loss_type="csft", positive_prefix="good, ")
    make_trainer(args, model=build_flux2(), train_dataset=scored_rows(4))


# ---- Settings ----


def test_a_guidance_that_no_network_hears_is_refused():
    with pytest.raises(ValueError, match=r"`train_guidance_scale` is 2.0, but this network takes no guidance"):
        FluxFamily(train_guidance_scale=2.0).check(build_flux(guidance_embeds=False))


def test_schnell_is_trained_and_sampled_on_256_tokens_and_dev_on_512():
    for guidance_embeds, length in ((False, 256), (True, 512)):
        pipeline = build_flux(guidance_embeds=guidance_embeds)
        assert FluxFamily().prompt_length(pipeline) == {"max_sequence_length": length}
        assert FluxFamily(max_sequence_length=77).prompt_length(pipeline) == {"max_sequence_length": 77}


def test_a_family_takes_the_settings_that_are_its_own():
    family = build_family(FluxPipeline, {"max_sequence_length": 77, "timestep_density": "mode"})
    assert family == FluxFamily(max_sequence_length=77, timestep_density="mode")


def test_a_setting_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="`timestep_shift` is set, but `StableDiffusionPipeline` has nothing that it"):
        build_family(StableDiffusionPipeline, {"timestep_shift": 3.0})
    with pytest.raises(
        ValueError,
        match=r"`FluxFamily` has `timestep_density`, .*`train_guidance_scale`, `max_sequence_length`. Leave `fps`",
    ):
        build_family(FluxPipeline, {"fps": 3.0})


def test_the_guidance_in_training_is_an_input_of_the_network():
    pipeline = build_flux()
    latents, prompts = random(1, 4, 8, 8), FluxFamily(max_sequence_length=16).encode_prompts(pipeline, ["a red cat"])
    networks = {"transformer": pipeline.transformer}

    def predict(scale):
        family = FluxFamily(train_guidance_scale=scale)
        return family.predict(networks, latents, torch.tensor([500.0]), prompts)

    with torch.no_grad():
        assert torch.equal(predict(3.5), FluxFamily().predict(networks, latents, torch.tensor([500.0]), prompts))
        assert not torch.allclose(predict(1.0), predict(3.5), rtol=1e-4)


def test_the_dtype_of_the_inputs_is_that_of_the_frozen_weights():
    pipeline = build_wan()
    wan = pipeline.transformer
    wan.add_adapter(LoraConfig(target_modules=["to_q"]))
    cast(wan, torch.bfloat16)
    assert wan.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32  # as diffusers loads it
    assert wan.blocks[0].attn1.to_k.weight.dtype == torch.bfloat16
    for name, weight in wan.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    assert compute_dtype(wan) == torch.bfloat16


def test_the_dtype_of_the_inputs_is_looked_up_anew_where_the_weight_that_decided_is_another():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    assert [compute_dtype(network) for _ in range(2)] == [torch.float32] * 2
    network.half()
    assert compute_dtype(network) == torch.float16
    network[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)  # as if quantised
    network[0].bias = None
    assert compute_dtype(network) == torch.float16
    network[0] = nn.Identity()
    network[1].double()
    assert compute_dtype(network) == torch.float64
    first = nn.Linear(2, 2)
    network = nn.Sequential(first)
    assert compute_dtype(network) == torch.float32
    network[0] = nn.Sequential(first)  # as an adapter puts its layer around it
    network.bfloat16()
    assert compute_dtype(network) == torch.bfloat16


def test_sizes_are_the_pipelines():
    pipeline = stable_diffusion()  # latents of 8, and an autoencoder that halves
    assert FAMILY.default_size(pipeline) == (16, 16)
    assert FAMILY.size_multiple(pipeline) == 8
    assert FAMILY.latent_shape({"mean": torch.zeros(5, 4, 8, 7), "std": torch.zeros(5, 4, 8, 7)}) == (4, 8, 7)


# ---- The process ----


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler(), UniPCMultistepScheduler(use_flow_sigmas=True)]
)
def test_a_unet_of_another_noise_process_is_refused(scheduler):
    pipeline = stable_diffusion()
    FAMILY.check(pipeline)
    pipeline.scheduler = scheduler
    name = type(scheduler).__name__
    with pytest.raises(ValueError, match=f"The scheduler is a `{name}`.* adds noise in another way"):
        FAMILY.check(pipeline)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_process_is_the_one_of_the_pipelines_scheduler(prediction_type):
    pipeline = stable_diffusion(prediction_type)
    process = FAMILY.process(pipeline)
    assert isinstance(process, DiffusionProcess)
    assert process.prediction_type == prediction_type
    clean, noise, time = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1), torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(process.corrupt(clean, noise, time), scheduler.add_noise(clean, noise, time))
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, time)
    torch.testing.assert_close(process.target(clean, noise, time), target)


def test_a_zero_terminal_snr_is_kept():
    pipeline = stable_diffusion("v_prediction")
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True)
    assert FAMILY.process(pipeline).alphas_cumprod[-1] == 0


def test_another_prediction_type_is_refused():
    with pytest.raises(ValueError, match="`prediction_type` is 'sample'"):
        FAMILY.process(stable_diffusion("sample"))


# ---- Encoding ----


def test_clean_samples_are_drawn_from_the_posterior_and_scaled():
    pipeline = stable_diffusion()
    pipeline.vae.register_to_config(scaling_factor=0.5)
    image = {"mean": torch.full((1, 4, 2, 2), 3.0), "std": torch.full((1, 4, 2, 2), 2.0)}
    noise = torch.full((1, 4, 2, 2), -0.25)
    # (3 + 2 * (-0.25)) * 0.5 = 1.25
    assert torch.equal(FAMILY.clean(pipeline, image, noise), torch.full((1, 4, 2, 2), 1.25))


def test_clean_samples_decode_as_the_pipeline_decodes():
    pipeline = stable_diffusion()
    pixels = random(2, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        image = FAMILY.encode_images(pipeline, pixels, GEOMETRY)
        clean = FAMILY.clean(pipeline, image, torch.zeros_like(image["mean"]))
        reconstruction = pipeline.vae(pixels).sample  # encodes to the mode and decodes, unscaled
        decoded = pipeline.vae.decode(clean / pipeline.vae.config.scaling_factor).sample  # as in the pipeline
    torch.testing.assert_close(decoded, reconstruction)


def test_an_autoencoder_in_another_dtype_gives_float32():
    pipeline = stable_diffusion()
    pipeline.vae.to(torch.bfloat16)
    with torch.no_grad():
        image = FAMILY.encode_images(pipeline, torch.zeros(1, 3, 16, 16), GEOMETRY)
    assert {tensor.dtype for tensor in image.values()} == {torch.float32}


# ---- Prediction ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_network_is_called_as_the_pipeline_calls_it(prediction_type):
    pipeline = stable_diffusion(prediction_type)
    calls = []

    def keep(module, args, kwargs, output):
        sample, time = args
        calls.append((sample, time, kwargs["encoder_hidden_states"], output[0]))

    handle = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    prompts, latents = list(PROMPTS[:2]), random(2, 4, 8, 8)
    pipeline(prompts, latents=latents, num_inference_steps=3, guidance_scale=1.0, output_type="latent")
    handle.remove()

    sample, time, embeds, output = calls[0]
    assert torch.equal(sample, latents)  # the first step sees pure noise
    with torch.no_grad():
        prompt = FAMILY.encode_prompts(pipeline, prompts)
        prediction = FAMILY.predict({"unet": pipeline.unet}, sample, time.expand(2), prompt)
    assert torch.equal(prompt["embeds"], embeds)
    torch.testing.assert_close(prediction, output)
    assert prediction.std() > 0.1


def test_each_row_is_predicted_at_its_own_time_and_prompt():
    pipeline = stable_diffusion()
    sample, time, embeds = random(3, 4, 8, 8), torch.tensor([10, 500, 990]), random(3, 77, 32, seed=1)
    with torch.no_grad():
        together = FAMILY.predict({"unet": pipeline.unet}, sample, time, {"embeds": embeds})
        for i in range(3):
            alone = FAMILY.predict(
                {"unet": pipeline.unet}, sample[i : i + 1], time[i : i + 1], {"embeds": embeds[i : i + 1]}
            )
            torch.testing.assert_close(together[i : i + 1], alone)


def test_inputs_are_cast_to_the_networks_dtype():
    pipeline = stable_diffusion()
    pipeline.unet.to(torch.bfloat16)
    with torch.no_grad():
        prediction = FAMILY.predict(
            {"unet": pipeline.unet}, random(1, 4, 8, 8), torch.tensor([7]), {"embeds": random(1, 77, 32)}
        )
    assert prediction.dtype == torch.bfloat16


# ---- Sampling ----


def test_samples_are_drawn_one_per_prompt_each_from_its_own_generator():
    pipeline = stable_diffusion()

    def sample(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = FAMILY.sample(pipeline, prompts, generators, (24, 16), num_inference_steps=1)
        return [(image.size, image.tobytes()) for image in images]

    first, second = sample(["a red cat", "a blue dog"], [1, 2])
    assert first[0] == (16, 24)  # width and height
    assert first != second
    assert sample(["a blue dog", "a red cat"], [2, 1]) == [second, first]


# ---- A family of one's own ----


class PixelPipeline(DiffusionPipeline):
    """Unconditional diffusion on pixels: no autoencoder, no text."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


class PixelFamily(Family):
    """The least that a family has to say."""

    network_names = ("unet",)
    image_encoders = ()
    prompt_encoders = ()
    lora_target_modules = ("to_q", "to_v")

    def process(self, pipeline):
        return DiffusionProcess(pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type)

    def default_size(self, pipeline):
        return (pipeline.unet.config.sample_size,) * 2

    def size_multiple(self, pipeline):
        return 4

    def encode_images(self, pipeline, pixels, geometry):
        return {"pixels": pixels}

    def encode_prompts(self, pipeline, prompts):
        return {"nothing": torch.zeros(len(prompts), 1)}

    def latent_shape(self, image):
        return tuple(image["pixels"].shape[1:])

    def clean(self, pipeline, image, posterior_noise):
        return image["pixels"]

    def predict(self, networks, corrupted, time, conditions):
        return networks["unet"](corrupted, time, return_dict=False)[0]


def pixel_pipeline():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return PixelPipeline(unet, DDPMScheduler())


def test_a_family_must_say_all_of_it():
    class Unfinished(Family):
        network_names = ("unet",)

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def test_a_family_of_ones_own_trains_through_the_same_policy_and_likelihood(tmp_path):
    pipeline, family = pixel_pipeline(), PixelFamily()
    family.check(pipeline)
    with pytest.raises(ValueError, match=r"`unet` \(UNet2DModel\) takes no LoRA adapter. Set `use_peft=False`"):
        build_policy(pipeline, family, config(tmp_path), None, torch.float32)
    policy, _ = build_policy(pipeline, family, config(tmp_path, use_peft=False), None, torch.float32)
    reference = ModelReference({"unet": copy.deepcopy(pipeline.unet)}, policy)
    image = family.encode_images(pipeline, random(2, 3, 8, 8), GEOMETRY)
    prompt = family.encode_prompts(pipeline, ["a", "b"])
    draw = draw_rows(0, [0, 0], [0, 1], family.latent_shape(image), 1, torch.device("cpu"))
    denoiser = Denoiser(family, pipeline, family.process(pipeline))
    errors = row_errors(policy, reference, denoiser.corrupt(image, prompt, draw))
    assert errors.policy.shape == (1, 2)
    assert torch.equal(errors.policy, errors.reference)
    errors.policy.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in reference.model.parameters())

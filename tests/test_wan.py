"""Wan: what is refused, rows shared out between two networks, and adapters in two files."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tgo_trl.families.wan import WanFamily
from tgo_trl.media.types import VideoFormat
from tgo_trl.policy.policy import build_policy

from .cases import PROMPTS
from .runs import config
from .tiny import wan

FAMILY = WanFamily(num_frames=wan.NUM_FRAMES, max_sequence_length=16)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- What a pipeline must have ----


@pytest.mark.parametrize(("num_frames", "nearest"), [(80, "77 or 81"), (4, "1 or 5"), (6, "5 or 9")])
def test_a_number_of_frames_that_the_autoencoder_cannot_take_is_refused(num_frames, nearest):
    with pytest.raises(ValueError, match=f"`num_frames` is {num_frames}, .* Set `num_frames` to {nearest}.$"):
        WanFamily(num_frames=num_frames).check(wan.build())


@pytest.mark.parametrize("num_frames", [1, 5, 81])
def test_one_frame_and_four_at_a_time_are_taken(num_frames):
    family = WanFamily(num_frames=num_frames, fps=8)
    family.check(wan.build())
    assert (family.clip.num_frames, family.clip.fps) == (num_frames, 8)


def test_image_to_video_networks_are_refused():
    with pytest.raises(ValueError, match="`transformer` takes 36 channels, and the autoencoder gives 16 channels"):
        FAMILY.check(wan.build(in_channels=36))
    with pytest.raises(ValueError, match=r"takes 16 channels and an image, .* an image-to-video model"):
        FAMILY.check(wan.build(image_dim=8))
    pipeline = wan.build_two_stage()
    pipeline.transformer_2.register_to_config(in_channels=36)
    with pytest.raises(ValueError, match="`transformer_2` takes 36 channels"):
        FAMILY.check(pipeline)


def test_half_a_pair_of_networks_is_refused():
    FAMILY.check(wan.build_two_stage())
    with pytest.raises(ValueError, match="has a `transformer_2` and no `boundary_ratio`"):
        FAMILY.check(wan.build_two_stage(boundary_ratio=None))
    pipeline = wan.build_two_stage(boundary_ratio=0.9)
    pipeline.register_modules(transformer_2=None)
    with pytest.raises(ValueError, match=r"has `boundary_ratio=0\.9` and no `transformer_2`"):
        FAMILY.check(pipeline)
    pipeline.register_modules(transformer=None)
    with pytest.raises(ValueError, match="has no `transformer`"):
        FAMILY.check(pipeline)


def test_frames_and_their_rate_are_the_models_where_they_are_left_out():
    family, ti2v = WanFamily(), wan.build_ti2v()
    assert family.fitted_to(wan.build()).video_format == family.video_format == VideoFormat(81, 16.0)
    assert family.fitted_to(ti2v).video_format == VideoFormat(121, 24.0)
    assert WanFamily(num_frames=5).fitted_to(ti2v).video_format == VideoFormat(5, 24.0)
    assert WanFamily(fps=8.0).fitted_to(ti2v).video_format == VideoFormat(121, 8.0)


def test_sizes_are_the_pipelines():
    assert FAMILY.default_size(wan.build()) == (480, 832)
    assert FAMILY.default_size(wan.build_ti2v()) == (704, 1280)
    assert FAMILY.size_multiple(wan.build()) == 16  # an autoencoder of 8, patches of 2
    assert FAMILY.size_multiple(wan.build_ti2v()) == 32
    assert FAMILY.size_multiple(wan.build(patch_size=(1, 2, 3))) == 48


# ---- Latents ----


def test_clean_samples_are_drawn_from_the_posterior_and_normalised_by_channel():
    pipeline = wan.build()
    pipeline.vae.register_to_config(latents_mean=[1.0] * 15 + [-2.0], latents_std=[2.0] * 15 + [0.5])
    image = {"mean": torch.full((1, 16, 1, 1, 1), 3.0), "std": torch.full((1, 16, 1, 1, 1), 2.0)}
    clean = FAMILY.clean(pipeline, image, torch.full((1, 16, 1, 1, 1), -0.25))
    # 3 - 0.25 * 2 = 2.5;  (2.5 - 1) / 2 = 0.75;  (2.5 + 2) / 0.5 = 9
    assert clean.flatten().tolist() == [0.75] * 15 + [9.0]


def test_clean_samples_decode_as_the_pipeline_decodes():
    pipeline = wan.build()
    pixels = random(1, 3, 5, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        image = FAMILY.encode_images(pipeline, pixels, torch.zeros(1, 4))
        latents = FAMILY.clean(pipeline, image, torch.zeros_like(image["mean"]))
        call = {**wan.CALL, "num_inference_steps": 1, "latents": latents, "output_type": "pt"}
        pipeline.transformer.proj_out.weight.zero_()
        pipeline.transformer.proj_out.bias.zero_()  # a velocity of zero leaves the latents as they are
        decoded = pipeline("a", **call).frames
        expected = pipeline.vae.decode(image["mean"]).sample / 2 + 0.5
    torch.testing.assert_close(decoded, expected.transpose(1, 2), rtol=0, atol=1e-4)


# ---- Two networks ----


def call_arguments(times, boundary=875.0):
    """Arguments of `predict`: samples, times and conditions of as many rows as there are times."""
    num_rows = len(times)
    conditions = {"embeds": random(num_rows, 16, 32, seed=1), "boundary": torch.full((num_rows,), boundary)}
    return random(num_rows, 16, 2, 4, 4), torch.tensor(times), conditions


def test_the_boundary_comes_from_the_pipelines_configuration():
    image, prompt = {"mean": torch.zeros(3, 16, 2, 4, 4)}, {"embeds": torch.zeros(3, 16, 32)}
    conditions = FAMILY.conditions(wan.build_two_stage(boundary_ratio=0.9), image, prompt)
    assert conditions["boundary"].tolist() == [900.0] * 3
    assert FAMILY.conditions(wan.build(), image, prompt).keys() == {"mean", "embeds"}


def test_each_row_goes_to_the_network_of_its_time():
    pipeline = wan.build_two_stage()
    networks = FAMILY.networks(pipeline)
    times = [100.0, 875.0, 874.9, 999.0, 500.0]
    corrupted, time, conditions = call_arguments(times)
    with torch.no_grad():
        prediction = FAMILY.predict(networks, corrupted, time, conditions)
        for i, name in enumerate(["transformer_2", "transformer", "transformer_2", "transformer", "transformer_2"]):
            row = slice(i, i + 1)
            expected = networks[name](corrupted[row], time[row], conditions["embeds"][row], return_dict=False)[0]
            torch.testing.assert_close(prediction[row], expected)


@pytest.mark.parametrize(("times", "idle"), [([900.0, 990.0], "transformer_2"), ([10.0, 800.0], "transformer")])
def test_a_network_without_rows_has_a_gradient_of_zero(tmp_path, times, idle):
    pipeline = wan.build_two_stage()
    policy, _ = build_policy(pipeline, FAMILY, config(tmp_path), None, torch.float32)
    policy(*call_arguments(times)).square().sum().backward()
    for name, network in policy.networks.items():
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        assert all(weight.grad is not None for weight in trained)
        assert any(weight.grad.abs().max() > 0 for weight in trained) == (name != idle)
        assert all(weight.grad is None for weight in network.parameters() if not weight.requires_grad)


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_distributed_training_finds_every_weight_in_every_step(tmp_path, one_process):
    policy, _ = build_policy(wan.build_two_stage(), FAMILY, config(tmp_path), None, torch.float32)
    wrapped = DistributedDataParallel(policy)
    for times in ([900.0, 990.0], [10.0, 800.0], [10.0, 990.0]):
        wrapped(*call_arguments(times)).square().sum().backward()  # which waits for the gradients of the last step


def test_the_time_of_each_token_gives_what_one_time_gives():
    pipeline = wan.build_ti2v()
    network: WanTransformer3DModel = pipeline.transformer
    corrupted, time, embeds = random(2, 48, 2, 4, 6), torch.tensor([20.0, 700.0]), random(2, 16, 32, seed=1)
    num_tokens = 2 * 2 * 3
    with torch.no_grad():
        ours = FAMILY.predict({"transformer": network}, corrupted, time, {"embeds": embeds})
        theirs = network(corrupted, time[:, None].expand(-1, num_tokens), embeds, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs)
    assert ours.std() > 0.1


# ---- Prompts ----


def test_prompts_of_different_lengths_are_encoded_as_each_alone():
    pipeline = wan.build()
    with torch.no_grad():
        together = FAMILY.encode_prompts(pipeline, PROMPTS)["embeds"]
        for i, prompt in enumerate(PROMPTS):
            alone, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)
            torch.testing.assert_close(together[i], alone[0])
    assert together.shape == (2, 16, 32)
    assert (together[0, 15] == 0).all()


# ---- Adapters ----


def test_two_networks_are_saved_to_two_files(tmp_path):
    pipeline = wan.build_two_stage()
    policy, _ = build_policy(pipeline, FAMILY, config(tmp_path), None, torch.float32)
    FAMILY.save_adapter(pipeline, policy.adapter_name, tmp_path)
    files = {path.name: load_file(path) for path in tmp_path.iterdir()}
    assert files.keys() == {"pytorch_lora_weights.safetensors", "pytorch_lora_weights_2.safetensors"}
    loaded = FAMILY.load_adapter(tmp_path)
    for name, state in zip(("transformer", "transformer_2"), (files[key] for key in sorted(files)), strict=True):
        assert all(key.startswith("transformer.blocks.") for key in state)
        for key, value in loaded[name].items():
            assert torch.equal(value, state[f"transformer.{key}"])
            assert torch.equal(value, policy.adapter_state(policy.adapter_name)[f"{name}.{key}"])
    assert FAMILY.loading_code(pipeline, "me/wan") == (
        'pipeline.load_lora_weights("me/wan", weight_name="pytorch_lora_weights.safetensors")\n'
        'pipeline.load_lora_weights("me/wan", weight_name="pytorch_lora_weights_2.safetensors", '
        "load_into_transformer_2=True)"
    )


def test_one_network_is_saved_to_one_file(tmp_path):
    pipeline = wan.build()
    policy, _ = build_policy(pipeline, FAMILY, config(tmp_path), None, torch.float32)
    FAMILY.save_adapter(pipeline, policy.adapter_name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert FAMILY.load_adapter(tmp_path).keys() == {"transformer"}
    assert FAMILY.loading_code(pipeline, "me/wan") == 'pipeline.load_lora_weights("me/wan")'


# ---- Sampling ----


def test_samples_are_the_frames_of_a_video_per_prompt_each_from_its_own_generator():
    pipeline = wan.build()

    def sample(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        videos = FAMILY.sample(pipeline, prompts, generators, (32, 48), num_inference_steps=1)
        return [[(frame.size, frame.tobytes()) for frame in video] for video in videos]

    first, second = sample(PROMPTS, [1, 2])
    assert [size for size, _ in first] == [(48, 32)] * 5
    assert first != second
    assert sample(PROMPTS[::-1], [2, 1]) == [second, first]
    generator = torch.Generator().manual_seed(1)
    (video,) = FAMILY.sample(pipeline, PROMPTS[:1], [generator], (32, 48), num_inference_steps=1, output_type="np")
    assert video.shape == (5, 32, 48, 3)


def test_a_family_of_ones_own_says_what_a_video_is_by_the_older_name_too():
    class Slower(WanFamily):
        @property
        def clip(self):
            return VideoFormat(9, 4.0)

    assert Slower(num_frames=5, fps=8).video_format == VideoFormat(9, 4.0)
    assert (WanFamily(num_frames=5, fps=8).video_format, WanFamily().medium) == (VideoFormat(5, 8), "video")

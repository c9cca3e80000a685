"""LTX-2: what is refused, where latents are, and that the video is trained without the sound."""

from types import SimpleNamespace

import pytest
import torch

from tgo_trl.families.ltx2 import LTX2Family, _coords
from tgo_trl.media.types import VideoFormat
from tgo_trl.policy.loading import load_pipeline
from tgo_trl.policy.policy import build_policy

from .runs import config
from .tiny import ltx2

FAMILY = LTX2Family(num_frames=ltx2.NUM_FRAMES, max_sequence_length=16)


@pytest.fixture(scope="module")
def pipeline():
    return ltx2.build()


# ---- What fits ----


@pytest.mark.parametrize(("num_frames", "nearest"), [(120, "113 or 121"), (8, "1 or 9")])
def test_a_number_of_frames_that_the_autoencoder_cannot_take_is_refused(pipeline, num_frames, nearest):
    family = LTX2Family(num_frames=num_frames, max_sequence_length=16)
    with pytest.raises(ValueError, match=f"one frame and then 8 at a time. Set `num_frames` to {nearest}.$"):
        family.check(pipeline)


@pytest.mark.parametrize(("length", "nearest"), [(20, "16 or 24"), (5, "8")])
def test_a_length_that_registers_do_not_fill_is_refused(pipeline, length, nearest):
    family = LTX2Family(num_frames=9, max_sequence_length=length)
    with pytest.raises(ValueError, match=f"with 8 registers. Set it to {nearest}.$"):
        family.check(pipeline)


def test_networks_of_another_model_are_refused(pipeline):
    with pytest.raises(ValueError, match="`transformer` takes 4 channels, and the autoencoder gives 8"):
        FAMILY.check(ltx2.build(in_channels=4))


def test_frames_rate_and_size_are_the_pipelines_where_they_are_left_out(pipeline):
    assert LTX2Family().fitted_to(pipeline).video_format == VideoFormat(121, 24.0)
    assert LTX2Family(fps=12.0).fitted_to(pipeline).video_format == VideoFormat(121, 12.0)
    assert FAMILY.default_size(pipeline) == (512, 768)
    assert FAMILY.size_multiple(pipeline) == 32


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [("Lightricks/LTX-2", False), ("x/LTX-2.3-Distilled-Diffusers", True), ("ltx-2-19b-distilled", True)],
)
def test_distilled_versions_are_known_by_their_names(name, is_distilled):
    named = SimpleNamespace(config={"_name_or_path": name})
    assert FAMILY.step_distilled_from(named) == ("`Lightricks/LTX-2`" if is_distilled else None)


# ---- Latents ----


def test_latents_are_standardised_by_the_autoencoders_own_statistics(pipeline):
    pixels = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
        clean = FAMILY.clean(pipeline, FAMILY.encode_images(pipeline, pixels, torch.zeros(1, 4)), torch.empty(1, 0))
    mean, std = pipeline.vae.latents_mean, pipeline.vae.latents_std
    torch.testing.assert_close(clean[0, 3, 1, 2, 0], (mode[0, 3, 1, 2, 0] - mean[3]) / std[3])


def test_latents_are_at_their_seconds_and_pixels():
    """Frame 0, then frames 1 to 8, at 4 per second; two latents of 8 pixels in a row."""
    coords = _coords((2, 1, 2), (8, 32, 32), 1, 4.0, torch.device("cpu"))
    assert coords.shape == (1, 3, 4, 2)
    assert coords[0, 0].tolist() == [[0.0, 0.25], [0.0, 0.25], [0.25, 2.25], [0.25, 2.25]]
    assert coords[0, 1].tolist() == [[0.0, 32.0]] * 4
    assert coords[0, 2].tolist() == [[0.0, 32.0], [32.0, 64.0]] * 2


@pytest.mark.parametrize("fps", [24.0, 8.0])
def test_coordinates_are_the_networks_own(pipeline, fps):
    own = pipeline.transformer.rope.prepare_video_coords(1, 2, 4, 4, torch.device("cpu"), fps=fps)
    assert torch.equal(_coords((2, 4, 4), (8, 8, 8), 1, fps, torch.device("cpu")), own)


def test_the_rate_is_told_in_training_and_in_samples(pipeline):
    seen = []
    handle = pipeline.transformer.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(kwargs["fps"]), with_kwargs=True
    )
    family = LTX2Family(num_frames=9, fps=8.0, max_sequence_length=16)
    videos = family.sample(pipeline, ["a"], [torch.Generator().manual_seed(0)], (32, 32), num_inference_steps=2)
    handle.remove()
    assert set(seen) == {8.0}
    assert [len(frames) for frames in videos] == [9]


def test_samples_are_of_the_kind_that_is_asked_for(pipeline):
    family = LTX2Family(num_frames=9, fps=8.0, max_sequence_length=16)
    (video,) = family.sample(
        pipeline, ["a"], [torch.Generator().manual_seed(0)], (32, 32), num_inference_steps=2, output_type="np"
    )
    assert video.shape == (9, 32, 32, 3)


# ---- Sound ----


def test_with_all_weights_all_that_is_trained_gets_gradient_and_nothing_of_sound_is(tmp_path):
    for build in (ltx2.build, ltx2.build_later):
        pipeline = build()
        policy, _ = build_policy(pipeline, FAMILY, config(tmp_path, use_peft=False), None, torch.float32)
        conditions = {"mask": torch.ones(1, 4, dtype=torch.int64)}
        conditions["embeds"] = torch.ones(1, 4, 16 if build is ltx2.build else 32)
        prediction = FAMILY.predict(policy.networks, torch.ones(1, 8, 2, 4, 4), torch.full((1,), 500.0), conditions)
        prediction.square().sum().backward()
        trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        assert not [name for name, weight in trained.items() if weight.grad is None]
        assert not [name for name in trained if "audio" in name]
        frozen = {name for name, weight in policy.named_parameters() if not weight.requires_grad}
        assert all(any(word in name for word in ("audio", "a2v", "v2a", "av_cross_attn")) for name in frozen)


def test_adapters_on_the_sound_are_left_out_or_refused(tmp_path, caplog):
    def adapted(*names):
        pipeline = ltx2.build()
        policy, _ = build_policy(pipeline, FAMILY, config(tmp_path, lora_target_modules=names), None, torch.float32)
        return [name for name, weight in policy.named_parameters() if weight.requires_grad]

    names = adapted("to_q", "to_k")
    assert len(names) == 2 * 2 * 2 * 2  # blocks, attentions, layers, factors
    assert not [name for name in names if "audio" in name]
    assert "also fits 16 modules of `transformer` that nothing reads in training" in caplog.text
    with pytest.raises(ValueError, match=r"'audio_attn1.to_q', which fits only modules of `transformer` that nothing"):
        adapted("to_q", "audio_attn1.to_q")


# ---- A plan ----


def test_a_skeleton_has_no_weights_of_sound_either(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    skeleton = load_pipeline(str(tmp_path), None, None, None, weights=False)
    for name in ("vocoder", "audio_vae", "connectors", "transformer", "vae", "text_encoder"):
        assert {weight.device.type for weight in getattr(skeleton, name).parameters()} == {"meta"}, name

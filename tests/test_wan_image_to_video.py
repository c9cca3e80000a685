"""Wan, image to video: what is refused, what the networks see of a first frame, and samples."""

import importlib.util
import json

import pytest
import torch
from datasets import load_dataset
from PIL import Image, ImageOps

from tgo_trl.commands.generate import GenerateConfig
from tgo_trl.commands.generate.run import generate
from tgo_trl.commands.score import ScoreConfig
from tgo_trl.commands.score.run import score
from tgo_trl.families import WanImageToVideoFamily
from tgo_trl.media.types import VideoFormat
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.policy.sampling import cpu_generators
from tgo_trl.storage.shards import VIDEOS_PER_SHARD

from . import tiny
from .cases import PROMPTS, calls_of
from .runs import config, first_log, make_trainer
from .tiny import wan, wan_image_to_video

REWARD = """
import numpy as np

def stays(prompts, videos, sources):
    first = [images[0].resize(video[0].size) for video, images in zip(videos, sources)]
    return [-float(np.abs(np.asarray(v[-1], float) - np.asarray(f, float)).mean()) for v, f in zip(videos, first)]
"""
FAMILY = WanImageToVideoFamily(**wan_image_to_video.SETTINGS)


# ---- What a pipeline must have ----


def test_networks_of_other_inputs_are_refused():
    FAMILY.check(wan_image_to_video.build())
    FAMILY.check(wan_image_to_video.build_two_stage())
    FAMILY.check(wan_image_to_video.build_ti2v())
    with pytest.raises(
        ValueError, match="takes 16 channels, and the pipeline gives it 36: 16 of the sample, 4 of a mask"
    ):
        FAMILY.check(wan_image_to_video.build_two_stage(in_channels=16))
    with pytest.raises(ValueError, match=r"`transformer` sees two images, as that of Wan 2\.1 FLF2V does"):
        FAMILY.check(wan_image_to_video.build(pos_embed_seq_len=10))
    with pytest.raises(ValueError, match="has a `transformer_2` and no `boundary_ratio`"):
        FAMILY.check(wan_image_to_video.build_two_stage(boundary_ratio=None))
    with pytest.raises(ValueError, match="`num_frames` is 1, and the first frame is given: nothing is left"):
        WanImageToVideoFamily(num_frames=1).check(wan_image_to_video.build_ti2v())
    with pytest.raises(ValueError, match=r"A `WanPipeline` takes no image. Load it by `WanImageToVideoPipeline.from"):
        FAMILY.check(wan.build_ti2v())


def test_clip_is_needed_by_networks_that_see_the_image_by_it():
    pipeline = wan_image_to_video.build()
    with pytest.raises(ValueError, match=r"`max_sequence_length` is 226, .* which have to be 512 for diffusers"):
        WanImageToVideoFamily(num_frames=5, max_sequence_length=226).check(pipeline)
    WanImageToVideoFamily(num_frames=5, max_sequence_length=226).check(wan_image_to_video.build_two_stage())
    pipeline.register_modules(image_encoder=None)
    with pytest.raises(ValueError, match="sees the image by CLIP, and the pipeline has no `image_encoder`"):
        FAMILY.check(pipeline)


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'ftfy, which is missing: pip install "tgo_trl\[video\]"'):
        WanImageToVideoFamily.load("no/model")


def test_a_model_for_720p_says_so_in_its_name():
    pipeline = wan_image_to_video.build()
    for name, size in (
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", (480, 832)),
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", (720, 1280)),
        ("/720p/wan/", (480, 832)),
    ):
        pipeline.register_to_config(_name_or_path=name)
        assert FAMILY.default_size(pipeline) == size
    assert WanImageToVideoFamily().fitted_to(pipeline).video_format == VideoFormat(81, 16.0)


def test_a_repository_of_text_to_video_is_loaded_as_image_to_video(tmp_path):
    wan.build_ti2v().save_pretrained(tmp_path)
    pipeline = FAMILY.load(str(tmp_path))
    FAMILY.check(pipeline)
    assert FAMILY.default_size(pipeline) == (704, 1280)
    assert WanImageToVideoFamily().fitted_to(pipeline).video_format == VideoFormat(121, 24.0)


# ---- The first frame ----


def test_a_mask_of_the_first_frame_is_before_its_latents():
    pipeline = wan_image_to_video.build_two_stage()
    pipeline.vae.register_to_config(latents_mean=[1.0] * 16, latents_std=[2.0] * 16)
    image = {"mean": torch.zeros(1, 16, 2, 4, 4), "source": torch.full((1, 16, 2, 4, 4), 4.0)}
    source = FAMILY.conditions(pipeline, image, {})["source"]
    assert source.shape == (1, 20, 2, 4, 4)
    assert (source[:, :4, 0] == 1).all()
    assert (source[:, :4, 1] == 0).all()
    assert (source[:, 4:] == 1.5).all()  # (4 - 1) / 2


def test_a_first_frame_without_noise_has_a_time_of_its_own_and_no_error():
    pipeline = wan_image_to_video.build_ti2v()
    generator = torch.Generator().manual_seed(0)
    first, rest = (torch.randn(2, 48, frames, 4, 6, generator=generator) for frames in (1, 2))
    inputs = {"embeds": torch.randn(2, 8, 32, generator=generator), "first_frame": first}
    [(seen, (whole,))] = calls_of(
        pipeline.transformer, FAMILY.velocity, pipeline.transformer, rest, torch.tensor([300.0, 700.0]), inputs
    )
    assert torch.equal(seen["hidden_states"], torch.cat([first, rest], 2))
    assert seen["timestep"].tolist() == [[0.0] * 6 + [300.0] * 12, [0.0] * 6 + [700.0] * 12]  # of 2 x 3 tokens a frame
    with torch.no_grad():
        prediction = FAMILY.velocity(pipeline.transformer, rest, torch.tensor([300.0, 700.0]), inputs)
    assert torch.equal(prediction, whole[:, :, 1:])


def test_what_is_given_is_no_part_of_a_sample():
    family, pixels = WanImageToVideoFamily(num_frames=9), torch.rand(1, 3, 9, 32, 32) * 2 - 1
    for build, num_latent_frames in ((wan_image_to_video.build_two_stage, 3), (wan_image_to_video.build_ti2v, 2)):
        with torch.no_grad():
            pipeline = build()
            image = family.encode_images(pipeline, pixels, torch.zeros(1, 4))
            whole = pipeline.vae.encode(pixels).latent_dist.mean
        assert family.latent_shape(image)[1] == num_latent_frames
        assert torch.equal(image["mean"], whole[:, :, -num_latent_frames:])


def test_rows_of_two_networks_keep_their_sources():
    pipeline = wan_image_to_video.build_two_stage()
    networks = FAMILY.networks(pipeline)
    generator = torch.Generator().manual_seed(0)
    corrupted, source = (torch.randn(3, channels, 2, 4, 4, generator=generator) for channels in (16, 20))
    conditions = {
        "embeds": torch.randn(3, 8, 32, generator=generator), "source": source, "boundary": torch.full((3,), 900.0)
    }  # fmt: skip
    with torch.no_grad():
        found = FAMILY.predict(networks, corrupted, torch.tensor([100.0, 950.0, 899.0]), conditions)
        for row, (name, time) in enumerate(
            (("transformer_2", 100.0), ("transformer", 950.0), ("transformer_2", 899.0))
        ):
            inputs = torch.cat([corrupted[row], source[row]])[None]
            expected = networks[name](inputs, torch.tensor([time]), conditions["embeds"][row : row + 1]).sample
            torch.testing.assert_close(found[row], expected[0])


# ---- Sampling ----


def test_samples_are_the_pipelines_own_from_each_first_frame():
    pipeline = wan_image_to_video.build()
    call = {"num_inference_steps": 2, "guidance_scale": 2.0}
    sources = [[tiny.picture(i, (48, 40))] for i in range(2)]  # brought to the samples' size
    encoders = FrozenEncoders(FAMILY, pipeline, torch.device("cpu"), torch.float32)
    with torch.no_grad(), encoders.decoding():
        found = FAMILY.sample(pipeline, PROMPTS, cpu_generators([1, 2]), (32, 64), sources=sources, **call)
    for i, video in enumerate(found):
        image, [generator] = ImageOps.fit(sources[i][0], (64, 32), Image.Resampling.LANCZOS), cpu_generators([1 + i])
        size = {"height": 32, "width": 64, "num_frames": 5}
        [expected] = pipeline(image, PROMPTS[i], **size, generator=generator, output_type="pil", **call).frames
        assert [frame.tobytes() for frame in video] == [frame.tobytes() for frame in expected]


# ---- From prompts to an adapter ----


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_first_frames_go_from_prompts_to_a_trained_adapter(tmp_path):
    lines = []
    for i, prompt in enumerate(("it turns", "it turns", "it falls")):
        tiny.picture(i, (40, 40)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"prompt": prompt, "source_image": f"{i}.png"}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "reward.py").write_text(REWARD)
    settings = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "num_images_per_prompt": 2}
    drawn = GenerateConfig("tiny", str(tmp_path / "prompts.jsonl"), str(tmp_path / "drawn"), **settings)
    generate(drawn, pipeline=wan_image_to_video.build_ti2v())
    reward = f"{tmp_path / 'reward.py'}:stays"
    scored = score(ScoreConfig(str(tmp_path / "drawn"), str(tmp_path / "scored"), [reward]))
    rows = load_dataset(str(scored), split="train")
    assert [len(video) for video in rows["video"]] == [5] * 6
    assert len(set(rows["score"])) == 6
    assert len({video[0].tobytes() for video in rows["video"]}) == 3  # of two videos of a frame, the first is the same

    args = config(
        tmp_path / "run", max_steps=1, resolution=32, num_frames=5, sample_prompts=["it turns"],
        sample_sources=[str(tmp_path / "0.png")], sample_num_inference_steps=1,
    )  # fmt: skip
    trainer = make_trainer(args, model=wan_image_to_video.build_ti2v(), train_dataset=rows)
    trainer.train()
    assert first_log(trainer)["rewards/margins"] == 0
    places = trainer.train_dataset.sources._places.values()
    assert len({row for _, row in places}) == 3  # each frame once
    assert {shards.rows_per_shard for shards, _ in places} == {VIDEOS_PER_SHARD}  # of Wan 2.1, they are whole videos
    assert list((tmp_path / "run" / "out" / "samples").glob("*.png"))

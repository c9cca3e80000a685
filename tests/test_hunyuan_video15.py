"""HunyuanVideo 1.5: what its pipeline takes no argument for, and which networks it is not called with."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor, generate_crop_size_list

from tgo_trl import EvaluateConfig, GenerateConfig, TGOTrainer, evaluate, generate
from tgo_trl.families import HunyuanVideo15Family, HunyuanVideo15ImageToVideoFamily, build_family
from tgo_trl.policy.draws import stable_seed
from tgo_trl.policy.sampling import negating

from .runs import config, make_trainer
from .tiny import hunyuan_video15_image_to_video as image_to_video
from .tiny import scored_videos
from .tiny.hunyuan_video15 import NUM_FRAMES, RESOLUTION, build

FAMILY = HunyuanVideo15Family(num_frames=NUM_FRAMES)


def drawn(pipeline, prompts=("a red cat", "a blue dog"), **kwargs):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return FAMILY.sample(pipeline, prompts, generators, (RESOLUTION, RESOLUTION), num_inference_steps=2, **kwargs)


def test_a_guidance_scale_is_refused_with_what_to_write_instead(tmp_path):
    told = r"The guidance scale is 3.0, and a `HunyuanVideo15Pipeline` takes none: .*guider.new\(guidance_scale=3.0\)"
    pipeline = build()
    for called in (pipeline, negating(pipeline, "a dog")):
        with pytest.raises(ValueError, match=told):
            drawn(called, guidance_scale=3.0)
    assert len(drawn(pipeline, ["a cat"], guidance_scale=None)) == 1
    args = config(
        tmp_path, resolution=RESOLUTION, num_frames=NUM_FRAMES, sample_prompts=["a cat"], sample_guidance_scale=3.0
    )
    with pytest.raises(ValueError, match=told):
        make_trainer(args, model=build(), train_dataset=scored_videos(4))


def test_a_guidance_scale_is_refused_before_anything_is_loaded(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "HunyuanVideo15Pipeline"}')  # and no parts
    (tmp_path / "prompts.txt").write_text("a cat")
    told = r"The guidance scale is 3.0, and a `HunyuanVideo15Pipeline` takes none: .*guider.new\(guidance_scale=3.0\)"
    drawing = GenerateConfig(str(folder), str(tmp_path / "prompts.txt"), str(tmp_path / "drawn"), guidance_scale=3.0)
    with pytest.raises(ValueError, match=told):
        generate(drawing)
    args = config(tmp_path, sample_prompts=["a cat"], sample_guidance_scale=3.0)
    with pytest.raises(ValueError, match=told):
        TGOTrainer(str(folder), args, scored_videos(4))
    evaluation = EvaluateConfig(
        models=[f"one={folder}"], prompts=drawing.prompts, rewards=["ocr"], output_dir=str(tmp_path / "evaluation"),
        guidance_scale=3.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="The model 'one': " + told):
        evaluate(evaluation)


def test_samples_are_guided_by_the_pipelines_own_guider():
    pipeline = build()
    unguided = [frames[0].tobytes() for frames in drawn(pipeline)]
    pipeline.guider = pipeline.guider.new(guidance_scale=3.0)
    guided = [frames[0].tobytes() for frames in drawn(pipeline)]
    assert all(one != other for one, other in zip(unguided, guided, strict=True))
    stock = build(guidance_scale=3.0)
    generator = torch.Generator().manual_seed(1)
    size = {"height": RESOLUTION, "width": RESOLUTION, "num_frames": NUM_FRAMES}
    video = stock(prompt="a blue dog", generator=generator, num_inference_steps=2, output_type="pil", **size).frames[0]
    assert guided[1] == video[0].tobytes()


def test_each_prompt_has_its_own_of_a_list_of_negative_prompts():
    pipeline = build(guidance_scale=3.0)
    alone = [drawn(pipeline, negative_prompt=negative) for negative in ("a", "bb")]
    together = drawn(pipeline, negative_prompt=["a", "bb"])
    assert [frames[0].tobytes() for frames in together] == [alone[i][i][0].tobytes() for i in range(2)]
    assert alone[0][0][0].tobytes() != alone[1][0][0].tobytes()


def test_what_stands_in_quotation_marks_is_read_by_its_letters():
    pipeline = build()
    encoded = FAMILY.encode_prompts(pipeline, ['a sign "cat"', "a sign cat"])
    # ByT5's tokens are bytes, and an end: `Text "cat". ` and it
    assert encoded["glyph_mask"].sum(1).tolist() == [13, 0]
    assert not encoded["glyphs"][1].any()
    assert encoded["mask"].dtype == encoded["glyph_mask"].dtype == torch.int64


def test_networks_of_images_and_other_numbers_of_frames_are_refused():
    FAMILY.check(build())
    with pytest.raises(
        ValueError,
        match="`transformer` has `task_type='i2v'` and takes 9 channels, and a `HunyuanVideo15Pipeline` is one of",
    ):
        FAMILY.check(build(task_type="i2v"))
    with pytest.raises(ValueError, match=r"takes 13 channels, and a .* that gives it 9"):
        FAMILY.check(build(in_channels=13))
    with pytest.raises(ValueError, match=r"`num_frames` is 6, .* Set `num_frames` to 5 or 9"):
        HunyuanVideo15Family(num_frames=6).check(build())
    with pytest.raises(ValueError, match="`max_sequence_length` is set, but `HunyuanVideo15Pipeline` has nothing"):
        build_family(type(build()), {"max_sequence_length": 16})


def test_videos_are_as_published_where_nobody_says_otherwise():
    family = HunyuanVideo15Family().fitted_to(build())
    assert (family.num_frames, family.fps) == (121, 24.0)
    pipeline = build(target_size=640)
    pipeline.video_processor.register_to_config(vae_scale_factor=16)  # that of the published autoencoder
    assert family.default_size(pipeline) == (480, 848)


def test_the_snippet_of_the_card_draws_as_the_trainer_does(tmp_path, monkeypatch):
    build(guidance_scale=3.0).save_pretrained(tmp_path / "base")
    args = config(
        tmp_path, resolution=RESOLUTION, num_frames=NUM_FRAMES, sample_prompts=["a cat"], sample_num_inference_steps=2
    )
    trainer = make_trainer(args, model=str(tmp_path / "base"), train_dataset=scored_videos(4))
    trainer.save_model()
    trainer.create_model_card()
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'export_to_video(frames, "sample.mp4", fps=24)' in code
    shown = []
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda frames, *_, **__: shown.append(frames))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {})
    ((first, *_),) = shown
    [drawn] = trainer.sample(["a cat"], [stable_seed(args.seed, 0)], num_inference_steps=2)
    assert np.abs(np.asarray(first) * 255 - np.asarray(drawn[0])).max() <= 1.01


def test_autoencoders_take_one_video_after_the_other():
    pipeline = build()
    pixels = torch.rand(2, 3, NUM_FRAMES, RESOLUTION, RESOLUTION) * 2 - 1
    with torch.no_grad():
        together = FAMILY.encode_images(pipeline, pixels, torch.zeros(2, 4, dtype=torch.long))["mean"]
        torch.testing.assert_close(together[1:], pipeline.vae.encode(pixels[1:]).latent_dist.mean)


def test_image_to_video_takes_the_sizes_that_it_draws():
    """At most 16 tokens of 4 pixels for a `target_size` of 16: 2 x 8 are, 4 x 6 are not, and 3 x 4 is near."""
    pipeline = image_to_video.build()
    family = HunyuanVideo15ImageToVideoFamily(num_frames=NUM_FRAMES)
    assert family.call_options(pipeline, (8, 32)) == {"num_frames": NUM_FRAMES}
    told = r"to 24 x 16 pixels, and a `Hunyuan\w+` takes none: .* videos .* 16 x 12. Set `height=12` and `width=16`, w"
    for refused in (
        lambda: family.call_options(pipeline, (16, 24)),
        lambda: family.encode_sources(pipeline, torch.zeros(1, 1, 3, 16, 24)),
    ):
        with pytest.raises(ValueError, match=told):
            refused()


@pytest.mark.parametrize("target_size", [640, 960])
def test_sizes_that_are_advised_are_taken(target_size):
    """For the targets of 480p and 720p, and the 16 pixels to a latent of the published autoencoder."""
    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=16)
    pipeline = SimpleNamespace(video_processor=processor, target_size=target_size)
    family, num_refused = HunyuanVideo15ImageToVideoFamily(), 0
    for size in [*generate_crop_size_list(target_size, 16), (1280, 720)]:
        try:
            family.check_size(pipeline, size)
        except ValueError as error:
            num_refused += 1
            told = re.search(r"`height=(\d+)` and `width=(\d+)`", str(error)).groups()
            family.check_size(pipeline, tuple(map(int, told)))
    assert num_refused == {640: 42, 960: 78}[target_size]
    if target_size == 640:  # drawn with 480 x 848, which itself is drawn with this
        with pytest.raises(ValueError, match=r"with 480 x 848. Set `height=832` and `width=480`, which it keeps"):
            family.check_size(pipeline, (1280, 720))


def test_the_first_frame_is_beside_the_first_latents_alone():
    family = HunyuanVideo15ImageToVideoFamily()
    sample, source = torch.full((1, 2, 3, 1, 1), 7.0), torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1, 1)
    beside = family.first_frame(sample, {"source": source})
    assert beside.flatten(2).tolist() == [[[2, 0, 0], [3, 0, 0], [1, 0, 0]]]


def test_networks_that_are_told_where_a_step_ends_are_refused():
    with pytest.raises(ValueError, match="`transformer` has `use_meanflow=True`: it was distilled to few steps"):
        HunyuanVideo15ImageToVideoFamily(num_frames=NUM_FRAMES).check(image_to_video.build(use_meanflow=True))

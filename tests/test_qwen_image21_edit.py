"""Qwen-Image 2.1 with source images: where they stand in prompts, how long these may be, and which sizes are seen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2VLImageProcessorPil

from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import build_sampler
from tgo_trl.families import QwenImage21EditFamily, QwenImage21Family
from tgo_trl.trainer.arguments import resolve_sizes

from . import tiny
from .cases import CASES, calls_of
from .runs import make_trainer
from .tiny.qwen_image21_edit import RESOLUTION, SOURCES, build

SHORT, LONG = "a cat", "a dog on a hill"
CASE = next(case for case in CASES if case.name == "qwen_image21_edit")
FAMILY = CASE.family(CASE.build())


@pytest.fixture(scope="module")
def pipeline():
    return build()


@torch.no_grad()
def test_prompts_are_encoded_beside_their_sources_as_each_alone(pipeline):
    found = FAMILY.encode_edits(pipeline, [SHORT, LONG], CASE.source_pixels())
    of_pictures = 2 * (RESOLUTION // 32) ** 2
    assert found["embeds"].shape == (2, 64 + of_pictures, 16)
    for row, (prompt, images) in enumerate(zip((SHORT, LONG), SOURCES, strict=True)):
        embeds, mask, slots = pipeline.encode_prompt(prompt, images)
        assert mask is None
        missing = 64 + of_pictures - embeds.shape[1]
        assert torch.equal(found["embeds"][row], F.pad(embeds[0], (0, 0, 0, missing)))
        assert torch.equal(found["slots"][row], F.pad(slots[0].long(), (0, missing)))
        assert found["mask"][row].sum() == embeds.shape[1]
        assert found["slots"][row].sum() == of_pictures
    both = [pipeline.encode_prompt(SHORT, images)[0] for images in SOURCES]
    assert (both[0] - both[1]).abs().max() > 0.1  # the text encoder sees them


@torch.no_grad()
def test_longer_prompts_are_refused_without_counting_pictures(pipeline):
    embeds, _, slots = pipeline.encode_prompt(LONG, SOURCES[0])
    length = int(embeds.shape[1] - slots.sum())
    fits, short = (QwenImage21EditFamily(max_sequence_length=limit) for limit in (length, length - 1))
    for family in (fits, short):
        for refuse in (
            lambda family=family: family.encode_edits(pipeline, [LONG], CASE.source_pixels(1)),
            lambda family=family: family.check_prompts(pipeline, [SHORT, LONG], 2),
        ):
            if family is fits:
                refuse()
                continue
            with pytest.raises(ValueError, match=f"'a dog on a hill' has {length} tokens, and `max_sequence_length`"):
                refuse()
    short.check_prompts(pipeline, [LONG], 1)  # without the name of a second picture


@torch.no_grad()
def test_sources_have_the_size_of_the_sample(pipeline):
    """96 x 64, of which no whole number is the square root."""
    size = (96, 64)
    generators = [torch.Generator().manual_seed(0)]
    images = [[tiny.picture(0, (50, 37)), tiny.picture(1, (64, 96))]]
    calls = calls_of(
        pipeline.transformer, FAMILY.sample, pipeline, [SHORT], generators, size, images, num_inference_steps=1,
        use_kv_cache=False, output_type="latent",
    )  # fmt: skip
    ((call, _),) = calls
    assert call["img_shapes"] == [[(1, 6, 4)] * 3]
    assert call["hidden_states"].shape == (1, 3 * 24, 4)
    options = FAMILY.source_options([tiny.picture(0, (1024, 1024))])
    assert options["output_resolution"] == 1024  # what the pipeline takes by itself
    assert isinstance(options["output_resolution"], int)


def enlarging(least, most=2**20):
    """A pipeline whose text encoder has other tokens for smaller pictures, and larger ones, than the network."""
    pipeline = build()
    pipeline.processor.image_processor = Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most, patch_size=16)
    return pipeline


def test_pictures_that_the_text_encoder_would_enlarge_are_refused(tmp_path):
    """128 x 128 are 16,384 pixels; 192 x 96 are more, and 160 x 96 fewer."""
    pipeline = enlarging(128**2, 256**2)
    told = "does not see source images of 64 x 64 pixels as they are, .* to 16,384 pixels at least and 65,536 at most"
    generator, config = torch.Generator(), GenerateConfig("tiny", "p.txt", "out", height=64, width=64)
    for refuse in (
        lambda: FAMILY.encode_edits(pipeline, [SHORT], CASE.source_pixels(1)),
        lambda: FAMILY.sample(pipeline, [SHORT], [generator], (64, 64), SOURCES[:1]),
        lambda: build_sampler(config, pipeline, None, True),
        lambda: make_trainer(CASE.config(tmp_path), model=pipeline, train_dataset=CASE.rows(4)),
    ):
        with pytest.raises(ValueError, match=told):
            refuse()
    for size in ((128, 128), (192, 96), (256, 256)):
        FAMILY.check_size(pipeline, size)
    for size in ((160, 96), (288, 256)):
        with pytest.raises(ValueError, match=f"source images of {size[1]} x {size[0]} pixels"):
            FAMILY.check_size(pipeline, size)
    QwenImage21Family().check_size(pipeline, (64, 64))  # of no pictures


def test_buckets_that_the_text_encoder_would_enlarge_are_refused():
    """Of 256 x 256 all others have fewer pixels; of 288 x 288 at a ratio of 1.3, 320 x 256 and no fewer."""
    args = SimpleNamespace(aspect_ratio_buckets=True, max_aspect_ratio=2.0)
    pipeline = enlarging(256**2)
    with pytest.raises(ValueError, match=r"`aspect_ratio_buckets` of 256 x 256 pixels have one of .* 65,536 pixels"):
        resolve_sizes(args, (256, 256), FAMILY, pipeline)
    args.max_aspect_ratio = 1.3
    assert resolve_sizes(args, (288, 288), FAMILY, pipeline) == [(320, 256), (288, 288), (256, 320)]


@pytest.mark.parametrize("name", ["qwen_image21", "qwen_image21_edit"])
def test_the_guidance_scale_is_taken_by_the_name_that_it_has_everywhere(name):
    """Of a pipeline whose call has `true_cfg_scale` alone."""
    case = next(it for it in CASES if it.name == name)
    given = GenerateConfig("tiny", "p.txt", "out", guidance_scale=4.0)
    sampler = build_sampler(given, case.build(), None, bool(case.sources))
    call = sampler.family.call_options(sampler.pipeline, sampler.size, **sampler.call)
    assert (call["true_cfg_scale"], "guidance_scale" in call) == (4.0, False)
    with pytest.raises(ValueError, match="cannot be called with 'guidance'"):
        build_sampler(replace(given, call_kwargs={"guidance": 1}), case.build(), None, bool(case.sources))


def test_the_column_decides_what_is_trained(tmp_path):
    for dataset, kind in ((tiny.scored_rows(4), QwenImage21Family), (CASE.rows(4), QwenImage21EditFamily)):
        trainer = make_trainer(CASE.config(tmp_path / kind.__name__), model=CASE.build(), train_dataset=dataset)
        assert trainer.family == kind(max_sequence_length=64)

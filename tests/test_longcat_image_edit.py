"""LongCat-Image-Edit: the sizes that its pipeline draws, prompts beside a source, and samples as it draws them."""

import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import build_sampler, generate_rows, write_samples
from tgo_trl.commands.generate.tasks import SourceImage, Task
from tgo_trl.families import LongCatImageEditFamily, LongCatImageFamily
from tgo_trl.trainer.arguments import resolve_sizes
from tgo_trl.trainer.measured_speed import Subject
from tgo_trl.trainer.plan import plan_run

from .cases import CASES, PROMPTS, calls_of
from .runs import make_trainer
from .tiny import picture
from .tiny.longcat_image_edit import CALL, OBLONG, RESOLUTION, SOURCES, build, calculate_dimensions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

(CASE,) = (case for case in CASES if case.name == "longcat_image_edit")
FAMILY = LongCatImageEditFamily()
SIZE = (RESOLUTION, RESOLUTION)


@pytest.fixture(scope="module")
def pipeline():
    return build()


@pytest.fixture
def whole(monkeypatch):
    """The published pipeline's sizes, of which a family asks nothing more."""
    monkeypatch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", calculate_dimensions)
    return SimpleNamespace(vae_scale_factor=8, default_sample_size=128)


# ---- Sizes ----


@pytest.mark.parametrize(
    ("size", "drawn", "kept"),
    # sqrt(1024^2 * 4 / 3) = 1182.4, that is 73.9 times 16, and 886.8, 55.4 times; 1184 : 896 is drawn with itself;
    # sqrt(1024^2 * 3 / 2) = 1254.1, 78.4 times 16, and 836.1, 52.3 times; 1264 : 848 too
    [
        ((1024, 1024), (1024, 1024), (1024, 1024)),
        ((512, 512), (1024, 1024), (1024, 1024)),
        ((480, 640), (896, 1184), (896, 1184)),
        ((832, 1248), (848, 1264), (848, 1264)),
    ],
)
def test_sizes_are_those_that_the_pipeline_draws(whole, size, drawn, kept):
    assert FAMILY.drawn_size(whole, size) == drawn
    assert FAMILY.kept_size(whole, size) == kept
    assert FAMILY.default_size(whole) == (1024, 1024)


def test_every_size_ends_at_one_that_is_kept(whole):
    for size in itertools.product(range(256, 2049, 16), repeat=2):
        kept = FAMILY.kept_size(whole, size)
        FAMILY.check_size(whole, kept)
        assert kept[0] % 16 == kept[1] % 16 == 0


def test_buckets_are_sizes_that_are_kept(whole):
    args = SimpleNamespace(aspect_ratio_buckets=True, max_aspect_ratio=2.0)
    sizes = resolve_sizes(args, (1024, 1024), FAMILY, whole)
    assert len(sizes) == len(set(sizes)) > 10
    assert (1024, 1024) in sizes
    assert all(FAMILY.drawn_size(whole, size) == size for size in sizes)
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.55
    assert ratios[-1] > 1.85


def test_the_pipeline_asks_for_the_area_of_the_family(pipeline, monkeypatch):
    asked, smaller = [], pipeline_longcat_image_edit.calculate_dimensions
    monkeypatch.setattr(
        pipeline_longcat_image_edit, "calculate_dimensions", lambda *given: (asked.append(given), smaller(*given))[1]
    )
    FAMILY.drawn_size(pipeline, OBLONG)
    pipeline(image=picture(0).resize(OBLONG[::-1]), prompt="a cat", num_inference_steps=1, output_type="latent")
    assert len(asked) == 2
    assert set(asked) == {(1024 * 1024, 1.5)}


def test_another_size_is_refused_before_anything_is_encoded(pipeline, tmp_path):
    told = (
        "The size is set to 16 x 16 pixels, and a `LongCatImageEditPipeline` takes none: it draws images of such an "
        "image with 32 x 32. Set `height=32` and `width=32`, which it keeps."
    )
    refusing = (
        lambda: make_trainer(CASE.config(tmp_path, resolution=16), model=build(), train_dataset=CASE.rows(4)),
        lambda: FAMILY.encode_sources(pipeline, torch.zeros(1, 1, 3, 16, 16)),
        lambda: FAMILY.encode_edits(pipeline, ["a"], torch.zeros(1, 1, 3, 16, 16)),
        lambda: FAMILY.call_options(pipeline, (16, 16)),
    )
    for refuse in refusing:
        with pytest.raises(ValueError, match=told):
            refuse()
    assert not list(tmp_path.rglob("*.safetensors"))


# ---- Prompts ----


def test_prompts_are_those_of_the_pipeline_beside_their_sources(pipeline):
    """Behind 3 tokens of the picture: one of 2 x 2 patches, which 28 pixels are, and one on each side of it."""
    encoded = FAMILY.encode_edits(pipeline, PROMPTS, CASE.source_pixels())["embeds"]
    assert encoded.shape == (2, 3 + 24, 16)
    for row, prompt, (source,) in zip(encoded, PROMPTS, SOURCES, strict=True):
        seen = source.resize((RESOLUTION // 2, RESOLUTION // 2), 1)
        torch.testing.assert_close(row, pipeline.encode_prompt(prompt, seen)[0][0])
    other = FAMILY.encode_edits(pipeline, PROMPTS[:1], CASE.source_pixels()[1:])["embeds"]
    assert not torch.allclose(other, encoded[:1])


@pytest.mark.parametrize("prompt", ["x" * 24, 'a "' + "y" * 20 + '"', "it's " + "z" * 19])
def test_a_prompt_that_is_too_long_is_refused(pipeline, prompt):
    """A token a letter; of 24 there is room for."""
    FAMILY.check_prompts(pipeline, [prompt], 1)
    assert FAMILY.encode_edits(pipeline, [prompt], CASE.source_pixels(1))["embeds"].shape[1] == 27
    for refuse in (
        lambda: FAMILY.check_prompts(pipeline, [prompt, prompt + "!"], 1),
        lambda: FAMILY.encode_edits(pipeline, [prompt + "!"], CASE.source_pixels(1)),
    ):
        with pytest.raises(ValueError, match=r"has 25 tokens, .* a `LongCatImageEditPipeline` takes 24 at most. Short"):
            refuse()


def test_a_long_prompt_is_refused_before_a_run(tmp_path):
    rows = CASE.rows(4).remove_columns("prompt").add_column("prompt", ["a", "b", "c", "long " * 5])
    args = CASE.config(tmp_path)
    with pytest.raises(ValueError, match="has 25 tokens"):
        plan_run(build(), Subject("edit"), args, rows, None)


@pytest.mark.parametrize("setting", ["sample", "eval"])
def test_a_long_prompt_of_samples_is_refused_before_rows_are_read(setting, tmp_path):
    picture(0).save(tmp_path / "a.png")
    samples = {f"{setting}_prompts": ["a", "long " * 5], f"{setting}_sources": [str(tmp_path / "a.png")] * 2}
    args = CASE.config(tmp_path / "run", eval_strategy="steps", eval_steps=1, **samples)
    with pytest.raises(ValueError, match=f"`{setting}_prompts`: The prompt .* has 25 tokens"):
        make_trainer(args, model=build(), train_dataset=CASE.rows(4), eval_dataset=CASE.rows(4))


def test_a_long_prompt_is_refused_before_anything_is_drawn(tmp_path):
    """As commands write data sets, and as rows are drawn in Python."""
    file = io.BytesIO()
    SOURCES[0][0].save(file, "PNG")
    image = SourceImage("key", file.getvalue())
    tasks = [Task("a", (image,)), Task("long " * 5, (image,))]
    config = GenerateConfig("tiny", "p.jsonl", str(tmp_path / "out"), height=RESOLUTION, width=RESOLUTION)
    sampler = build_sampler(config, build(), None, True)
    for refuse in (
        lambda: write_samples(config, tasks, sampler, None),
        lambda: next(generate_rows(build(), None, ["a", "long " * 5], sources=[(file.getvalue(),)] * 2, size=SIZE)),
        lambda: FAMILY.sample(build(), ["a", "long " * 5], [torch.Generator()] * 2, SIZE, SOURCES),
    ):
        with pytest.raises(ValueError, match="has 25 tokens"):
            refuse()
    assert not (tmp_path / "out").exists()


# ---- The network, and samples ----


def test_guidance_does_not_shorten_predictions():
    """`1 + 3 * (2 - 1)`, which is longer than 2."""
    guided = FAMILY.guided(torch.full((1, 16, 4, 4), 2.0), torch.ones(1, 16, 4, 4), 3.0)
    assert guided.unique().tolist() == [4]
    assert LongCatImageFamily().guided(torch.full((1, 16, 4, 4), 2.0), torch.ones(1, 16, 4, 4), 3.0).max() <= 2


@torch.no_grad()
def test_the_source_is_at_the_same_places_of_another_image(pipeline):
    conditions = {"embeds": torch.randn(1, 3, 16), "source": torch.full((1, 16, 4, 4), 7.0)}
    latents, time = torch.zeros(1, 16, 4, 4), torch.tensor([250.0])
    networks = FAMILY.networks(pipeline)
    ((call, _),) = calls_of(pipeline.transformer, FAMILY.predict, networks, latents, time, conditions)
    places = [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert call["img_ids"].tolist() == [[image, *place] for image in (1, 2) for place in places]
    assert call["hidden_states"][0, :, 0].tolist() == [0.0] * 4 + [7.0] * 4


@pytest.mark.parametrize("negative", [{}, {"negative_prompt": "a dog"}], ids=["alone", "negative"])
def test_samples_are_the_pipelines(pipeline, negative):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    call = {name: value for name, value in CALL.items() if name != "image"}
    drawn = FAMILY.sample(pipeline, PROMPTS, generators(), SIZE, SOURCES, **call, **negative)
    for prompt, generator, (source,), image in zip(PROMPTS, generators(), SOURCES, drawn, strict=True):
        expected = pipeline(prompt=prompt, image=source, generator=generator, **call, **negative).images[0]
        assert image.tobytes() == expected.tobytes()
        assert image.size == (RESOLUTION, RESOLUTION)
    assert drawn[0].tobytes() != drawn[1].tobytes()

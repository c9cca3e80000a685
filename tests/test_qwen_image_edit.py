"""Qwen-Image-Edit: sources at the sizes that the pipelines bring them to, and prompts that are encoded beside them."""

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from safetensors.torch import load_file

from tgo_trl.families import QwenImageEditFamily, QwenImageEditPlusFamily
from tgo_trl.media.images import image_to_tensor
from tgo_trl.trainer.measured_speed import Subject
from tgo_trl.trainer.plan import plan_run

from .cases import CASES, PROMPTS
from .runs import make_trainer
from .tiny import picture, qwen_image_edit, qwen_image_edit_plus, scored_rows
from .tiny.qwen_image_edit import RESOLUTION

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SIZE = (RESOLUTION, RESOLUTION)
EDITS = [case for case in CASES if case.name.startswith("qwen_image_edit")]
EDIT, PLUS = EDITS


@pytest.mark.parametrize(
    ("size", "encoded"),
    # of 1024 * 1024 pixels; sqrt(1024^2 * 4 / 3) = 1182.4, that is 36.95 times 32, and 886.8, 27.7 times
    [((1024, 1024), (1024, 1024)), ((480, 640), (896, 1184)), ((512, 512), (1024, 1024)), ((832, 1248), (832, 1248))],
)
def test_sources_come_to_the_pipelines_sizes(monkeypatch, size, encoded):
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", qwen_image_edit.calculate_dimensions)
    for name, area in qwen_image_edit_plus.AREAS.items():
        monkeypatch.setattr(pipeline_qwenimage_edit_plus, name, area)
    edit, plus = QwenImageEditFamily(), QwenImageEditPlusFamily()
    assert edit.encoded_size(size) == edit.seen_size(size) == plus.encoded_size(size) == encoded
    # of 384 * 384; sqrt(384^2 * 4 / 3) = 443.4, that is 13.9 times 32, and 332.6, 10.4 times
    seen = {(480, 640): (320, 448), (832, 1248): (320, 480)}
    assert plus.seen_size(size) == seen.get(size, (384, 384))


def test_the_area_is_that_of_the_pipeline(monkeypatch):
    asked, smaller = [], pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(
        pipeline_qwenimage_edit, "calculate_dimensions", lambda *given: (asked.append(given), smaller(*given))[1]
    )
    QwenImageEditFamily().encoded_size(SIZE)
    qwen_image_edit.build()(prompt="a cat", image=picture(0), num_inference_steps=1, output_type="latent")
    assert set(asked) == {(1024 * 1024, 1.0)}


@pytest.mark.parametrize("case", EDITS, ids=lambda case: case.name)
def test_the_error_of_a_network_with_clean_sources_is_the_pipelines(case, tmp_path):
    """2511, whose network is told that the tokens of sources have no noise."""
    setup = case.setup(tmp_path, pipeline=case.build(zero_cond_t=True))
    draw = setup.draw()
    with torch.no_grad():
        expected = case.module.denoising_error(setup.pipeline, case.pixels(), PROMPTS, draw)
    torch.testing.assert_close(setup.errors(draw).policy[0].detach(), expected, rtol=1e-5, atol=1e-5)
    noisy = case.setup(tmp_path).errors(draw).policy[0]
    assert not torch.allclose(noisy, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", EDITS, ids=lambda case: case.name)
def test_samples_are_the_pipelines(case):
    pipeline, family = case.build(), case.family(case.build())
    options = {"num_inference_steps": 2, "max_sequence_length": 80}

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    drawn = family.sample(pipeline, PROMPTS, generators(), SIZE, case.sources, guidance_scale=2.0, **options)
    for prompt, generator, sources, image in zip(PROMPTS, generators(), case.sources, drawn, strict=True):
        given = sources if family.most_sources > 1 else sources[0]
        expected = pipeline(
            prompt=prompt, image=given, generator=generator, true_cfg_scale=2.0, negative_prompt=" ",
            height=RESOLUTION, width=RESOLUTION, **options,
        ).images[0]  # fmt: skip
        assert image.tobytes() == expected.tobytes()
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_each_prompt_has_its_own_of_a_list_of_negative_prompts():
    pipeline, family = PLUS.build(), PLUS.family(PLUS.build())
    options = {"num_inference_steps": 2, "max_sequence_length": 80, "guidance_scale": 2.0}

    def drawn(negative):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        images = family.sample(pipeline, PROMPTS, generators, SIZE, PLUS.sources, negative_prompt=negative, **options)
        return [image.tobytes() for image in images]

    first, second = drawn("a"), drawn("bb")
    assert drawn(["a", "bb"]) == [first[0], second[1]]
    assert first[0] != second[0]


def test_prompts_see_every_source():
    pipeline, family = PLUS.build(), PLUS.family(PLUS.build())
    pixels = PLUS.source_pixels()
    other = pixels.clone()
    other[0, 1] = pixels[1, 0]
    before, after = (family.encode_edits(pipeline, PROMPTS, it) for it in (pixels, other))
    assert torch.equal(before["mask"], after["mask"])
    assert not torch.allclose(before["embeds"][0], after["embeds"][0])
    assert torch.equal(before["embeds"][1], after["embeds"][1])


def test_prompts_that_are_too_long_are_refused():
    pipeline, pixels = EDIT.build(), EDIT.source_pixels(1)
    # a token a letter, 2 around the picture, and 5 of the template after the prompt
    fits = QwenImageEditFamily(max_sequence_length=12).encode_edits(pipeline, ["xxxxx"], pixels)
    assert fits["mask"].tolist() == [[1] * (4 + 12)]
    message = "The prompt 'xxxxxx' has 13 tokens, and `max_sequence_length` is 12"
    with pytest.raises(ValueError, match=message):
        QwenImageEditFamily(max_sequence_length=12).encode_edits(pipeline, ["xxxxxx"], pixels)
    with pytest.raises(ValueError, match=message):  # of the tokenizer alone
        QwenImageEditFamily(max_sequence_length=12).check_prompts(pipeline, ["xxxxx", "xxxxxx"], 1)
    QwenImageEditFamily(max_sequence_length=12).check_prompts(pipeline, ["xxxxx"], 1)


def test_prompts_that_name_pictures_are_as_long_as_the_pipeline_makes_them():
    pipeline, pixels = PLUS.build(), PLUS.source_pixels(1)
    whole = QwenImageEditPlusFamily(max_sequence_length=64)
    of_pictures = whole.encode_edits(pipeline, ["x {} y"], pixels)["mask"].shape[1] - 64
    length = int(whole.encode_edits(pipeline, ["x {} y"], pixels)["mask"].sum()) - of_pictures
    QwenImageEditPlusFamily(max_sequence_length=length).check_prompts(pipeline, ["x {} y"], pixels.shape[1])
    with pytest.raises(ValueError, match=f"has {length} tokens, and `max_sequence_length` is {length - 1}"):
        QwenImageEditPlusFamily(max_sequence_length=length - 1).check_prompts(pipeline, ["x {} y"], pixels.shape[1])


def test_a_long_prompt_is_refused_before_anything_is_encoded(tmp_path):
    rows = EDIT.rows(4).remove_columns("prompt").add_column("prompt", ["a", "b", "c", "long " * 40])
    for refuse in (
        lambda args: make_trainer(args, model=EDIT.build(), train_dataset=rows),
        lambda args: plan_run(EDIT.build(), Subject("edit"), args, rows, None),
    ):
        with pytest.raises(ValueError, match="this pipeline cuts no prompts"):
            refuse(EDIT.config(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_row_has_its_prompt_as_it_is_encoded_beside_its_sources(tmp_path):
    """Once for each prompt and sources, and without padding on disk."""
    pictures = [picture(i, SIZE) for i in range(3)]
    pairs = [(0, 1), (1, 0), (0, 1), (0, 2), (0, 1), (1, 0), (0, 1), (0, 1)]
    columns = {
        "prompt": [PROMPTS[i % 2] for i in range(8)],
        "source_image": [[pictures[i], pictures[k]] for i, k in pairs],
    }
    features = Features({"prompt": Value("string"), "source_image": List(Image())})
    rows = scored_rows(8).remove_columns("prompt")
    rows = concatenate_datasets([rows, Dataset.from_dict(columns, features=features)], axis=1)
    trainer = make_trainer(PLUS.config(tmp_path), model=PLUS.build(), train_dataset=rows)
    places = trainer.train_dataset.prompts._places
    distinct = {(PROMPTS[i % 2], pair) for i, pair in enumerate(pairs)}
    assert len({place for _, place in places.values()}) == len(distinct)
    stored = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    (lengths,) = (tensors["embeds/lengths"].tolist() for tensors in stored if "embeds/lengths" in tensors)
    family, pipeline = PLUS.family(PLUS.build()), PLUS.build()
    for i, (prompt, pair) in enumerate(zip(rows["prompt"], pairs, strict=True)):
        pixels = torch.stack([image_to_tensor(pictures[k], SIZE) for k in pair])[None]
        expected = family.encode_edits(pipeline, [prompt], pixels)
        row = trainer.train_dataset[i]
        for name in ("embeds", "mask"):
            torch.testing.assert_close(row["prompt"][name], expected[name][0])
        assert row["prompt_length"] == expected["mask"].sum()
        assert lengths[places[i][1]] == row["prompt_length"]
        torch.testing.assert_close(row["image"]["source"], family.encode_sources(pipeline, pixels)["source"][0])

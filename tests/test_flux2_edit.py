"""FLUX.2 with source images or none: which of the two is decided by the data, and large sources are made small."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from tgo_trl.commands.evaluate.config import EvaluateConfig
from tgo_trl.commands.evaluate.run import _shared_use
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.prompts import SourceUse
from tgo_trl.commands.generate.run import build_sampler, find_tasks, generate_rows
from tgo_trl.commands.generate.tasks import SourceImage, Task
from tgo_trl.commands.plan.run import plan
from tgo_trl.commands.rounds.run import _check_alike
from tgo_trl.commands.strength.drift import read_drift_rows
from tgo_trl.commands.train.config import TrainArguments
from tgo_trl.commands.train.run import train
from tgo_trl.data.columns import Columns
from tgo_trl.families import (
    Flux2DevEditFamily,
    Flux2DevFamily,
    Flux2KleinEditFamily,
    Flux2KleinFamily,
    FluxFamily,
    FluxKontextFamily,
    edit_family,
)
from tgo_trl.media.images import image_to_tensor
from tgo_trl.trainer.refusals import check_datasets
from tgo_trl.trainer.sources import RunSources

from . import tiny
from .cases import CASES, PROMPTS
from .runs import config, make_trainer
from .tiny import flux2, flux2_edit

KLEIN = next(case for case in CASES if case.name == "flux2_edit")


# ---- What the network is given of a source ----


class EncodedError(Exception):
    """The pipeline has encoded its sources."""


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(64, 80, 4 * 5), pytest.param(2064, 512, 128 * 31, marks=pytest.mark.slow)],
)
def test_sources_are_encoded_as_the_pipeline_encodes_them(width, height, tokens, monkeypatch):
    """Also more than a million pixels, which both bring to 2055 x 510, and cut to 2048 x 496."""
    pipeline = flux2_edit.build()
    images = [tiny.picture(i, (width, height)) for i in range(2)]
    prepare, taken = pipeline.prepare_image_latents, []

    def stop(images, **kwargs):
        taken.extend([image.shape[-2:] for image in images])
        latents, ids = prepare(images=images, **kwargs)
        raise EncodedError(latents, ids)

    monkeypatch.setattr(pipeline, "prepare_image_latents", stop)
    with torch.no_grad(), pytest.raises(EncodedError) as caught:
        pipeline(image=images, prompt="a", **{**flux2.CALL, "height": height, "width": width})
    latents, ids = caught.value.args
    pixels = torch.stack([image_to_tensor(image, (height, width)) for image in images])[None]
    with torch.no_grad():
        source = Flux2KleinEditFamily().encode_sources(pipeline, pixels)["source"]
    assert source.shape == (1, 2, 16, *(side // 16 for side in taken[0]))
    assert source.shape[-2] * source.shape[-1] == tokens
    sample = torch.zeros(1, 16, 4, 4)
    ours, our_ids = Flux2KleinEditFamily().image_tokens(sample, {"source": source})
    torch.testing.assert_close(ours[:, 16:], latents, rtol=1e-5, atol=1e-5)
    assert torch.equal(our_ids[:, 16:], ids)
    assert set(our_ids[0, 16:, 0].tolist()) == {10, 20}


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 528)])
def test_sizes_that_the_pipeline_takes_no_sources_of_are_refused(height, width, tmp_path):
    message = r"FLUX.2 takes no source images of this size \(.*\). They are .* at least 64 pixels a side, and no side"
    with pytest.raises(ValueError, match=message):
        Flux2KleinEditFamily().encode_sources(flux2_edit.build(), torch.zeros(1, 1, 3, height, width))
    pipeline, family = flux2_edit.build(), Flux2KleinEditFamily()
    with pytest.raises(ValueError, match=message):  # of a sample
        family.sample(pipeline, ["a"], [torch.Generator()], (height, width), [[tiny.picture(0)]])
    with pytest.raises(ValueError, match=message):  # before anything is loaded to draw
        build_sampler(GenerateConfig("tiny", "p.txt", "out", height=height, width=width), pipeline, None, True)
    with pytest.raises(ValueError, match=message):  # and before any row is read
        make_trainer(
            KLEIN.config(tmp_path, resolution=None, height=height, width=width),
            model=pipeline,
            train_dataset=KLEIN.rows(4),
        )


# ---- Which family ----


def rows_of(numbers):
    """Rows with some source images each."""
    rows = tiny.scored_rows(len(numbers))
    cells = [[tiny.picture(i) for i in range(number)] or None for number in numbers]
    return tiny.with_sources(rows, cells)


def test_the_column_decides_what_is_trained(tmp_path):
    plain, edits = tiny.scored_rows(4), KLEIN.rows(4)
    for dataset, kind in ((plain, Flux2KleinFamily), (edits, Flux2KleinEditFamily)):
        trainer = make_trainer(KLEIN.config(tmp_path / kind.__name__), model=KLEIN.build(), train_dataset=dataset)
        assert type(trainer.family) is kind
        assert trainer.family.max_sequence_length == 16
        assert (trainer.train_dataset.sources is None) == (dataset is plain)
    args = KLEIN.config(tmp_path / "named", max_sequence_length=None)
    given = Flux2KleinFamily(max_sequence_length=20)  # the user's own is as good
    trainer = make_trainer(args, model=KLEIN.build(), train_dataset=edits, family=given)
    assert trainer.family == Flux2KleinEditFamily(max_sequence_length=20)


def test_another_column_has_to_be_named_and_to_be_there(tmp_path):
    model, edits = KLEIN.build(), KLEIN.rows(4).rename_column("source_image", "before")
    assert check_datasets(config(tmp_path), model, None, edits, None, None) == RunSources(False, {})
    named = config(tmp_path, source_column="before")
    assert check_datasets(named, model, None, edits, None, None) == RunSources(True, {})
    with pytest.raises(ValueError, match=r"has no column 'before'.*; or, to train this one from prompts alone, leave"):
        check_datasets(named, model, None, tiny.scored_rows(4), None, None)


def test_a_run_is_of_edits_throughout_or_not_at_all(tmp_path):
    model, plain, edits = KLEIN.build(), tiny.scored_rows(4), KLEIN.rows(4)
    evaluated = config(tmp_path, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="`eval_dataset` has no column 'source_image' of them"):
        check_datasets(evaluated, model, None, edits, plain, None)
    with pytest.raises(ValueError, match="`train_dataset` has no column 'source_image' of them"):
        check_datasets(evaluated, model, None, plain, edits, None)
    with pytest.raises(ValueError, match=r"`train_dataset` is a stream, .* remove the column 'source_image' from all"):
        check_datasets(config(tmp_path, max_steps=1), model, None, edits.to_iterable_dataset(), None, None)
    with pytest.raises(ValueError, match=r"`sample_prompts` is set, .* Set `sample_sources`"):
        check_datasets(config(tmp_path, sample_prompts=["a"]), model, None, edits, None, None)
    tiny.picture(0).save(tmp_path / "a.png")
    files = config(tmp_path, sample_prompts=["a"], sample_sources=[str(tmp_path / "a.png")])
    with pytest.raises(ValueError, match="`train_dataset` has no column 'source_image' of them"):
        check_datasets(files, model, None, plain, None, None)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 0, 1, 1), "the source image is missing"),
        ((1, 2, 1, 1), "1, 2 source images, and those of a batch must have as many"),
        ((5, 5, 5, 5), "there are 5 source images, and the pipeline takes 4 at most"),
    ],
)
def test_rows_with_and_without_sources_are_not_mixed(numbers, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(KLEIN.config(tmp_path), model=KLEIN.build(), train_dataset=rows_of(numbers))


@pytest.mark.slow
def test_runs_of_other_rows_have_speeds_of_their_own(tmp_path):
    """Of text to image there is one; of edits, whose rows have more tokens, none."""
    model, arguments = str(tmp_path / "model"), {}
    KLEIN.build().save_pretrained(model)
    for number in (0, 1, 2):
        rows = rows_of([number] * 4) if number else tiny.scored_rows(4)
        rows.to_parquet(str(tmp_path / f"{number}.parquet"))
        arguments[number] = TrainArguments(model, str(tmp_path / f"{number}.parquet"))
    args = KLEIN.config(tmp_path / "run", encoding_cache_dir=str(tmp_path / "cache"), max_steps=3, save_strategy="no")
    for trained, has_speed in ((0, [True, False, False]), (2, [True, False, True])):
        train(arguments[trained], args)
        assert [plan(arguments[number], args).speed is not None for number in (0, 1, 2)] == has_speed


def test_samples_of_other_numbers_of_sources_are_warned_of(tmp_path, caplog):
    tiny.picture(0).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    for sources, is_warned in (([[file, file]], False), ([[file, file], [file]], True)):
        caplog.clear()
        args = KLEIN.config(tmp_path / "run", sample_prompts=["a", "b"][: len(sources)], sample_sources=sources)
        trainer = make_trainer(args, model=KLEIN.build(), train_dataset=rows_of([2] * 4))
        assert ("`sample_sources` has 1 source images for a prompt, and the rows have 2" in caplog.text) == is_warned
        assert trainer.num_sources == 2


def test_evaluation_rows_of_other_numbers_of_sources_are_warned_of(tmp_path, caplog):
    args = KLEIN.config(tmp_path / "run", eval_strategy="epoch")
    others = {"alike": rows_of([2] * 4), "fewer": rows_of([1] * 4)}
    make_trainer(args, model=KLEIN.build(), train_dataset=rows_of([2] * 4), eval_dataset=others)
    assert "Rows of the fewer data set have 1 source images, and those that are trained on have 2" in caplog.text
    assert "Rows of the alike" not in caplog.text


def test_the_card_shows_as_many_sources_as_rows_have(tmp_path):
    args = KLEIN.config(tmp_path / "run")
    make_trainer(args, model=KLEIN.build(), train_dataset=rows_of([2] * 4)).create_model_card()
    card = (args.output_path / "README.md").read_text()
    assert 'load_image("source1.png")' in card
    assert 'load_image("source2.png")' in card
    assert "source3.png" not in card


def test_drift_of_prompts_alone_is_not_measured_on_edits(tmp_path):
    """Only the prompts decide how the pipeline is called."""
    rows, name = KLEIN.rows(4), str(tmp_path / "rows.parquet")
    rows.to_parquet(name)
    columns = Columns(source="source_image")
    assert read_drift_rows(name, "train", columns, 2, Flux2KleinEditFamily()).sources[0]
    with pytest.raises(ValueError, match="has the source images 'source_image', and `prompts` have none: an adapter"):
        read_drift_rows(name, "train", columns, 2, Flux2KleinFamily())
    rows.remove_columns("source_image").to_parquet(str(tmp_path / "plain.parquet"))
    for plain, family in (("plain", Flux2KleinFamily()), ("rows", FluxFamily())):
        found = read_drift_rows(str(tmp_path / f"{plain}.parquet"), "train", columns, 2, family)
        assert found.sources == [[], []]


def test_the_family_of_edits_has_the_settings_of_the_other():
    dev = Flux2DevFamily(max_sequence_length=99, train_guidance_scale=2.5)
    assert edit_family(dev) == Flux2DevEditFamily(max_sequence_length=99, train_guidance_scale=2.5)
    assert (Flux2DevEditFamily.most_sources, Flux2KleinEditFamily.most_sources) == (6, 4)
    for other in (FluxKontextFamily(), FluxFamily(), Flux2DevEditFamily()):
        assert edit_family(other) is other


# ---- The commands ----


def prompts(folder, *, entries):
    """A file of prompts, some with a number of sources."""
    lines = []
    for i, number in enumerate(entries):
        names = [f"{i}-{j}.png" for j in range(number)]
        for j, name in enumerate(names):
            tiny.picture(i + j, (64, 64)).save(folder / name)
        lines.append(json.dumps({"prompt": PROMPTS[i], **({"source_image": names} if names else {})}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return GenerateConfig("tiny", str(folder / "prompts.jsonl"), str(folder / "out"))


@pytest.mark.parametrize("number", [0, 2])
def test_the_prompts_decide_what_is_drawn(number, tmp_path):
    generation = prompts(tmp_path, entries=(number, number))
    tasks = find_tasks(generation, Flux2KleinFamily)
    assert [len(task.sources) for task in tasks] == [number, number]
    sampler = build_sampler(generation, KLEIN.build(), None, bool(number))
    assert type(sampler.family) is (Flux2KleinEditFamily if number else Flux2KleinFamily)
    dataset = Dataset.from_json(generation.prompts)
    dataset.to_parquet(str(tmp_path / "prompts.parquet"))
    if not number:  # a table's files are found beside it
        tables = replace(generation, prompts=str(tmp_path / "prompts.parquet"))
        assert find_tasks(tables, Flux2KleinFamily) == tasks


def test_prompts_with_and_without_sources_are_not_mixed(tmp_path):
    with pytest.raises(ValueError, match="have a 'source_image', and the first has none"):
        find_tasks(prompts(tmp_path, entries=(0, 1)), Flux2KleinFamily)
    with pytest.raises(ValueError, match="has no column 'source_image'"):
        find_tasks(prompts(tmp_path, entries=(1, 0)), Flux2KleinFamily)
    set_column = replace(prompts(tmp_path, entries=(0, 0)), source_column="before")
    with pytest.raises(ValueError, match="has no column 'before'"):
        find_tasks(set_column, Flux2KleinFamily)
    (tmp_path / "prompts.txt").write_text("a red cat")
    text = replace(set_column, prompts=str(tmp_path / "prompts.txt"), source_column="source_image")
    assert find_tasks(text, Flux2KleinFamily) == [Task("a red cat")]


def test_rows_are_drawn_of_a_pipeline_that_is_passed():
    """As the stock pipeline draws them, with its sources of one prompt."""
    pipeline, (images, _) = KLEIN.build(), KLEIN.sources
    stream = [png(image) for image in images]
    options = {"size": (64, 64), "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    [row] = generate_rows(pipeline, None, ["a red cat"], sources=[tuple(stream)], **options)
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    generator = torch.Generator().manual_seed(row["seed"])
    [expected] = pipeline(prompt="a red cat", image=images, generator=generator, **call).images
    torch.testing.assert_close(row["image"], expected)
    [plain] = generate_rows(pipeline, None, ["a red cat"], **options)
    assert (plain["image"] - expected).abs().max() > 0.1


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((Flux2KleinFamily, Flux2DevFamily), SourceUse(4, False)),
        ((Flux2KleinFamily, FluxKontextFamily), SourceUse(1, True)),
        ((Flux2KleinFamily, FluxFamily), SourceUse(0, False)),
        ((Flux2KleinFamily, None), SourceUse(0, False)),  # a single file may take none
        ((FluxKontextFamily, None), SourceUse(1, True)),  # there is no other task
        ((FluxFamily, FluxFamily), SourceUse(0, False)),
    ],
)
def test_models_are_compared_on_what_all_of_them_take(kinds, expected):
    evaluation = EvaluateConfig(models=["a=a", "b=b"], prompts="p.jsonl", rewards=["pickscore"], output_dir="out")
    known = {label: SimpleNamespace(kind=kind) for label, kind in zip("ab", kinds, strict=True)}
    assert _shared_use(evaluation, known) == expected


def test_edits_are_not_measured_on_prompts_alone():
    edit, plain = Task("a", (SourceImage("key", b""),)), Task("a")
    _check_alike(edit, edit, "source_image")
    _check_alike(plain, plain, "source_image")
    with pytest.raises(ValueError, match="one has source images and the other has none: what is trained would not be"):
        _check_alike(edit, plain, "source_image")

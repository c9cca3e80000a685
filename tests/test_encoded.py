"""Map-style data: what is encoded, that it is encoded once, and that it is never stale."""

import io
import itertools
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from torch.utils.data import DataLoader

import tgo_trl.media.readers as media_module
from tgo_trl.data.collator import RowCollator
from tgo_trl.data.encoded import scan_rows
from tgo_trl.data.rows import BadRowError, BadRows
from tgo_trl.data.sampler import RowSampler, padding_like
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.media.images import image_to_tensor
from tgo_trl.media.origin import DataFile
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.trainer.preparation import DataPreparer

from .runs import config
from .tiny import PROMPTS, picture, scored_rows, stable_diffusion


class CountingEncoders(FrozenEncoders):
    """Counts the rows that it encodes."""

    num_images = num_prompts = 0

    def images(self, pixels, geometry):
        self.num_images += len(pixels)
        return super().images(pixels, geometry)

    def prompts(self, prompts):
        self.num_prompts += len(prompts)
        return super().prompts(prompts)

    @property
    def counts(self):
        return self.num_images, self.num_prompts


def preparer(folder, pipeline=None, resolution=16, dtype=torch.float32, **settings):
    """Encodes one row at a time, unless told otherwise."""
    args = config(folder, **{"encode_batch_size": 1, **settings})
    pipeline = pipeline or stable_diffusion()
    encoders = CountingEncoders(StableDiffusionFamily(), pipeline, torch.device("cpu"), dtype)
    return DataPreparer(args, encoders, [(resolution, resolution)])


def prepare(folder, dataset, pipeline=None, **settings):
    """A training set as the trainer takes it, and the encoders that encoded it."""
    prepares = preparer(folder, pipeline, **settings)
    return prepares.training_set(dataset)[0], prepares.encoders


def png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def rows(images, feature=None, prompts=None):
    """Rows with the scores 0, 1, 2, ... and images as they are given."""
    feature = feature or Image()
    features = Features({"prompt": Value("string"), "image": feature, "score": Value("float64")})
    prompts = prompts or ["a red cat"] * len(images)
    scores = [float(i) for i in range(len(images))]
    return Dataset.from_dict({"prompt": prompts, "image": images, "score": scores}, features=features)


def broken(*bad, num_rows=4):
    """Rows of which some images cannot be read."""
    images = [{"bytes": b"not an image" if i in bad else png(i), "path": None} for i in range(num_rows)]
    return rows(images)


def assert_same_images(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        for name, tensor in one[i]["image"].items():
            assert torch.equal(tensor, other[i]["image"][name]), (i, name)


# ---- Content ----


def test_a_row_holds_what_the_pipeline_makes_of_its_image_and_prompt(tmp_path):
    pipeline = stable_diffusion()
    encoded, _ = prepare(tmp_path, scored_rows(6), pipeline)
    assert len(encoded) == 6
    for i, example in enumerate(scored_rows(6)):
        pixels = image_to_tensor(example["image"], (16, 16))
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels[None]).latent_dist
            embeds, _ = pipeline.encode_prompt([example["prompt"]], "cpu", 1, False)
        row = encoded[i]
        assert (row["row"], row["epoch"], row["valid"]) == (i, 0, True)
        assert row["image"].keys() == {"mean", "std"}
        assert torch.equal(row["image"]["mean"], posterior.mean[0])
        assert torch.equal(row["image"]["std"], posterior.std[0])
        assert torch.equal(row["prompt"]["embeds"], embeds[0])


def test_a_row_holds_its_score_label_and_weight(tmp_path):
    # the median of 0, 1, 2, 3 is 1.5; weights are 1 + 2 |s - 1.5|
    encoded, _ = prepare(tmp_path, rows([picture(i) for i in range(4)]), confidence_coef=2.0)
    assert [encoded[i]["score"].item() for i in range(4)] == [0, 1, 2, 3]
    assert [encoded[i]["is_positive"].item() for i in range(4)] == [False, False, True, True]
    assert [encoded[i]["weight"].item() for i in range(4)] == [4, 2, 2, 4]
    assert {encoded[0][name].dtype for name in ("score", "weight")} == {torch.float32}


def test_prompts_keep_the_dtype_they_were_encoded_in(tmp_path):
    pipeline = stable_diffusion()
    encoded, encoders = prepare(tmp_path, scored_rows(4), pipeline, dtype=torch.bfloat16)
    assert encoded[1]["prompt"]["embeds"].dtype == torch.bfloat16
    assert torch.equal(encoded[1]["prompt"]["embeds"], encoders.prompts([PROMPTS[1]])["embeds"][0])
    assert encoded[1]["image"]["mean"].dtype == torch.float32


def test_the_batch_size_of_the_encoders_makes_no_difference(tmp_path):
    one, _ = prepare(tmp_path / "one", scored_rows(5))
    other, _ = prepare(tmp_path / "other", scored_rows(5), encode_batch_size=3)
    for i in range(5):
        torch.testing.assert_close(one[i]["image"], other[i]["image"], rtol=0, atol=1e-5)
        torch.testing.assert_close(one[i]["prompt"], other[i]["prompt"], rtol=0, atol=1e-5)


def test_an_index_carries_its_epoch_and_padding_is_marked(tmp_path):
    encoded, _ = prepare(tmp_path, scored_rows(4))
    row, padding = encoded[7, 2], encoded[7, padding_like(1)]
    assert (row["row"], row["epoch"], row["valid"]) == (2, 7, True)
    assert (padding["epoch"], padding["valid"]) == (7, False)
    assert padding["image"]["mean"].shape == row["image"]["mean"].shape
    with pytest.raises(IndexError):
        encoded[0, 4]


def test_workers_load_the_same_batches(tmp_path):
    encoded, _ = prepare(tmp_path, scored_rows(6))
    sampler = RowSampler(6, seed=0, block=4)

    def batches(dataset, num_workers):
        loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=RowCollator(), num_workers=num_workers)
        return [(batch["row"], batch["valid"].tolist(), batch["image"]["mean"]) for batch in loader]

    here, there, copied = batches(encoded, 0), batches(encoded, 2), batches(pickle.loads(pickle.dumps(encoded)), 0)
    assert [len(row_numbers) for row_numbers, _, _ in here] == [4, 4]
    for other in (there, copied):
        for (rows_, valid, mean), (other_rows, other_valid, other_mean) in zip(here, other, strict=True):
            assert (rows_, valid) == (other_rows, other_valid)
            assert torch.equal(mean, other_mean)


# ---- Positive rows ----


def test_positives_are_the_rows_above_the_threshold_and_keep_their_numbers(tmp_path):
    encoded, _ = prepare(tmp_path, scored_rows(8))  # the median of 0, ..., 7 is 3.5
    positives = encoded.select("positives")
    expected = [i for i, score in enumerate(scored_rows(8)["score"]) if score > 3.5]
    assert [positives[i]["row"] for i in range(len(positives))] == expected
    assert positives.prompt_texts == [PROMPTS[i % 4] for i in expected]
    for i, row in enumerate(expected):
        assert torch.equal(positives[i]["image"]["mean"], encoded[row]["image"]["mean"])
        assert torch.equal(positives[i]["prompt"]["embeds"], encoded[row]["prompt"]["embeds"])
        assert positives[i]["score"] == encoded[row]["score"]
        assert positives[i]["is_positive"]


def test_positives_of_a_set_with_skipped_rows(tmp_path):
    encoded, _ = prepare(tmp_path, broken(1), on_bad_row="skip")  # scores 0, 2, 3 are left, and their median is 2
    positives = encoded.select("positives")
    assert [positives[i]["row"] for i in range(len(positives))] == [2, 3]
    assert torch.equal(positives[0]["image"]["mean"], encoded[1]["image"]["mean"])
    assert positives[0]["score"] == 2


def test_sft_gets_the_positive_rows_of_training_and_evaluation_sets(tmp_path):
    training, _ = prepare(tmp_path, scored_rows(8), loss_type="sft")
    assert len(training) == 4
    rule = fit_label_rule(range(8), ["a"] * 8)
    evaluation = preparer(tmp_path, loss_type="sft").evaluation_set(scored_rows(8, seed=1), rule, "evaluation")
    assert [evaluation[i]["score"].item() > 3.5 for i in range(len(evaluation))] == [True] * 4


# ---- Encoded once ----


def test_each_image_and_each_distinct_prompt_is_encoded_once(tmp_path):
    _, encoders = prepare(tmp_path, scored_rows(8))
    assert encoders.counts == (8, 4)
    _, encoders = prepare(tmp_path, scored_rows(8))
    assert encoders.counts == (0, 0)
    _, encoders = prepare(tmp_path / "elsewhere", scored_rows(8))
    assert encoders.counts == (8, 4)


def test_scores_are_no_part_of_the_encoding(tmp_path):
    prepare(tmp_path, scored_rows(8))
    rescored = scored_rows(8).remove_columns("score").add_column("score", [float(i % 3) for i in range(8)])
    encoded, encoders = prepare(tmp_path, rescored)
    assert encoders.counts == (0, 0)
    assert [encoded[i]["score"].item() for i in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]


# ---- Never stale ----


def change_a_weight(module):
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 0.5


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda pipeline: change_a_weight(pipeline.vae), (4, 0)),
        (lambda pipeline: change_a_weight(pipeline.text_encoder), (0, 4)),
        (lambda pipeline: setattr(pipeline.tokenizer, "pad_token", "!"), (0, 4)),
        (lambda pipeline: change_a_weight(pipeline.unet), (0, 0)),
    ],
    ids=["vae", "text encoder", "tokenizer", "unet"],
)
def test_a_changed_pipeline_encodes_anew_what_it_changes(tmp_path, change, counts):
    before, _ = prepare(tmp_path, scored_rows(4))
    pipeline = stable_diffusion()
    change(pipeline)
    after, encoders = prepare(tmp_path, scored_rows(4), pipeline)
    assert encoders.counts == counts
    fresh, _ = prepare(tmp_path / "fresh", scored_rows(4), pipeline)
    assert_same_images(after, fresh)
    assert torch.equal(after[0]["prompt"]["embeds"], fresh[0]["prompt"]["embeds"])
    assert torch.equal(after[0]["image"]["mean"], before[0]["image"]["mean"]) == (counts[0] == 0)
    assert torch.equal(after[0]["prompt"]["embeds"], before[0]["prompt"]["embeds"]) == (counts[1] == 0)


def test_another_resolution_is_encoded_anew(tmp_path):
    prepare(tmp_path, scored_rows(4))
    encoded, encoders = prepare(tmp_path, scored_rows(4), resolution=8)
    assert encoders.counts == (4, 0)
    assert encoded[0]["image"]["mean"].shape == (4, 4, 4)


def test_a_changed_image_file_is_encoded_anew(tmp_path):
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.png"))
        picture(i).save(paths[i])
    before, _ = prepare(tmp_path, rows(paths))
    picture(9).save(paths[2])  # under the same name
    after, encoders = prepare(tmp_path, rows(paths))
    assert encoders.counts == (4, 0)
    fresh, _ = prepare(tmp_path / "fresh", rows([picture(seed) for seed in (0, 1, 9, 3)]))
    assert_same_images(after, fresh)
    same = [torch.equal(before[i]["image"]["mean"], after[i]["image"]["mean"]) for i in range(4)]
    assert same == [True, True, False, True]


def test_a_changed_prompt_is_encoded_anew(tmp_path):
    images = [picture(i) for i in range(3)]
    prepare(tmp_path, rows(images, prompts=["a", "b", "a"]))
    after, encoders = prepare(tmp_path, rows(images, prompts=["a", "c", "a"]))
    assert encoders.counts == (0, 2)
    embeds = encoders.prompts(["c"])["embeds"][0]
    assert torch.equal(after[1]["prompt"]["embeds"], embeds)
    assert not torch.equal(after[0]["prompt"]["embeds"], embeds)


# ---- Bad rows ----


def test_an_unreadable_image_stops_with_row_and_column(tmp_path):
    with pytest.raises(BadRowError, match=r"^Row 2, column 'image': the image cannot be read \(UnidentifiedImageError"):
        prepare(tmp_path, broken(2))
    with pytest.raises(BadRowError, match=r"^Row 0, column 'picture': the image is missing \(None\)\. Mend or drop"):
        prepare(tmp_path, rows([None, png(1)]).rename_column("image", "picture"), image_column="picture")


def test_unreadable_images_are_skipped_and_reported(tmp_path, caplog):
    encoded, _ = prepare(tmp_path, broken(1, 2), on_bad_row="skip")
    assert [encoded[i]["row"] for i in range(len(encoded))] == [0, 3]
    assert [encoded[i]["score"].item() for i in range(2)] == [0, 3]
    assert encoded.labels.scores.tolist() == [0, 3]  # the threshold is fitted on the rows that are left
    assert [encoded[i]["is_positive"].item() for i in range(2)] == [False, True]
    fresh, _ = prepare(tmp_path / "fresh", rows([png(0), png(3)], Value("binary")))
    assert_same_images(encoded, fresh)
    (message,) = [message for message in caplog.messages if "Skipped" in message]
    assert message.startswith("Skipped 2 of 4 rows of the training data set. Row 1, column 'image': the image cannot")


def test_skipped_rows_stay_skipped_and_reported_when_nothing_is_encoded_again(tmp_path, caplog):
    prepare(tmp_path, broken(1, 2), on_bad_row="skip")
    caplog.clear()
    encoded, encoders = prepare(tmp_path, broken(1, 2), on_bad_row="skip")
    assert encoders.counts == (0, 0)
    assert [encoded[i]["row"] for i in range(len(encoded))] == [0, 3]
    assert [message[:38] for message in caplog.messages] == ["Skipped 2 of 4 rows of the training da"]


def test_a_row_that_was_skipped_once_still_stops_a_run_that_does_not_skip(tmp_path):
    prepare(tmp_path, broken(2), on_bad_row="skip")
    with pytest.raises(BadRowError, match="Row 2, column 'image': the image cannot be read"):
        prepare(tmp_path, broken(2))


def test_a_mended_image_comes_back(tmp_path):
    prepare(tmp_path, broken(2), on_bad_row="skip")
    mended, _ = prepare(tmp_path, broken(), on_bad_row="skip")
    fresh, _ = prepare(tmp_path / "fresh", broken())
    assert_same_images(mended, fresh)


def test_rows_of_every_fault_are_skipped_together(tmp_path, caplog):
    dataset = rows(
        [png(0), b"broken", None, png(3), png(4), png(5)],
        Value("binary"),
        ["a", "b", "c", " ", "e", "f"],
    ).map(lambda row, i: {"score": None if i == 4 else row["score"]}, with_indices=True)
    encoded, _ = prepare(tmp_path, dataset, on_bad_row="skip")
    assert [encoded[i]["row"] for i in range(len(encoded))] == [0, 5]
    assert encoded.prompt_texts == ["a", "f"]
    (message,) = [message for message in caplog.messages if "Skipped" in message]
    assert message.startswith("Skipped 4 of 6 rows")


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"No image of the training data set can be read \(rows 0, 1, 2, 3\)"):
        prepare(tmp_path, broken(0, 1, 2, 3), on_bad_row="skip")
    with pytest.raises(ValueError, match=r"no row that can be used\. Row 0, column 'image': the image is missing"):
        prepare(tmp_path, rows([None, None]), on_bad_row="skip")
    with pytest.raises(ValueError, match=r"^The evaluation data set has no row that can be used\.$"):
        preparer(tmp_path).evaluation_set(scored_rows(2).select([]), fit_label_rule([0, 1], ["a", "a"]), "evaluation")


# ---- Ways to hold pictures ----


def test_a_file_is_opened_once_to_be_encoded(tmp_path, monkeypatch):
    """Of what is read then, the digest is compared with that of the look through all rows, which opened it before."""
    paths, opened = [str(tmp_path / f"{i}.png") for i in range(3)], []
    for i, path in enumerate(paths):
        picture(i).save(path)
    own = DataFile.open
    monkeypatch.setattr(DataFile, "open", lambda file: opened.append(Path(file.path).name) or own(file))
    prepare(tmp_path, rows(paths))
    assert Counter(opened) == {f"{i}.png": 2 for i in range(3)}


def test_every_kind_of_image_column_gives_the_same_tensors(tmp_path):
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"{i}.png"))
        picture(i).save(paths[i])
    kinds = {
        "images": rows([picture(i) for i in range(3)]),
        "paths": rows(paths, Value("string")),
        "bytes": rows([png(i) for i in range(3)], Value("binary")),
        "image files": rows(paths),
        "entries": rows(
            [{"bytes": png(i), "path": None} for i in range(3)], {"bytes": Value("binary"), "path": Value("string")}
        ),
        "undecoded": rows(paths).cast_column("image", Image(decode=False)),
        "torch format": rows(paths).with_format("torch"),
    }
    expected, _ = prepare(tmp_path / "expected", kinds["images"])
    for name, dataset in kinds.items():
        encoded, encoders = prepare(tmp_path / name, dataset)
        assert encoders.counts == (3, 1), name
        assert_same_images(encoded, expected)


def test_what_a_transform_returns_is_what_is_trained_on(tmp_path):
    def transform(batch):
        mirrored = [image.transpose(0) for image in batch["image"]]
        return {"prompt": ["a blue dog"] * len(mirrored), "image": mirrored, "score": [-s for s in batch["score"]]}

    dataset = rows([picture(i) for i in range(4)])
    dataset.set_transform(transform)
    encoded, _ = prepare(tmp_path, dataset)
    fresh, _ = prepare(tmp_path / "fresh", rows([picture(i).transpose(0) for i in range(4)]))
    assert_same_images(encoded, fresh)
    assert [encoded[i]["score"].item() for i in range(4)] == [0, -1, -2, -3]
    assert encoded.prompt_texts == ["a blue dog"] * 4


def test_a_transform_that_gives_another_image_each_time_is_refused(tmp_path):
    """Of what would be kept for other runs, the fingerprint would be that of another image."""
    dataset, calls = rows([picture(i) for i in range(3)]), []

    def transform(batch):
        calls.append(1)
        return {**batch, "image": [image.rotate(90 * (len(calls) % 4)) for image in batch["image"]]}

    dataset.set_transform(transform)
    with pytest.raises(ValueError, match=r"Row 0.*it was another one a moment ago: by a transform .* draws at random"):
        prepare(tmp_path, dataset)


def test_another_transform_is_encoded_anew(tmp_path):
    dataset = rows([picture(i) for i in range(3)])
    dataset.set_transform(lambda batch: batch)
    before, _ = prepare(tmp_path, dataset)
    dataset.set_transform(lambda batch: {**batch, "image": [image.transpose(0) for image in batch["image"]]})
    after, encoders = prepare(tmp_path, dataset)
    assert encoders.counts == (3, 0)
    assert not torch.equal(before[0]["image"]["mean"], after[0]["image"]["mean"])


# ---- Evaluation sets ----


def test_an_evaluation_set_is_labelled_by_the_training_sets_rule(tmp_path):
    prepares = preparer(tmp_path)
    _, rule = prepares.training_set(rows([picture(i) for i in range(4)]))  # scores 0 to 3, median 1.5
    evaluation = prepares.evaluation_set(rows([picture(i) for i in range(7)]), rule, "evaluation")
    assert evaluation.labels.is_positive.tolist() == [False, False, True, True, True, True, True]
    with pytest.raises(ValueError, match="The held-out data set has no column 'score'"):
        prepares.evaluation_set(scored_rows(2).remove_columns("score"), rule, "held-out")


def test_other_columns_are_not_even_looked_at(tmp_path):
    dataset = rows([png(0), png(1)], Image())
    plain, _ = prepare(tmp_path, dataset)
    thumbnails = Dataset.from_dict({"thumbnail": [b"no image"] * 2}, features=Features({"thumbnail": Image()}))
    crowded = concatenate_datasets([dataset, thumbnails], axis=1)
    encoded, _ = prepare(tmp_path, crowded)
    assert_same_images(encoded, plain)


def test_a_row_that_a_better_decoder_can_read_comes_back(tmp_path, monkeypatch):
    def no_decoder(value):
        raise ValueError("no decoder")

    with monkeypatch.context() as patch:
        patch.setattr(media_module, "load_image", no_decoder)
        with pytest.raises(ValueError, match="No image of the training data set can be read"):
            prepare(tmp_path, broken(), on_bad_row="skip")
    encoded, _ = prepare(tmp_path, broken())
    fresh, _ = prepare(tmp_path / "fresh", broken())
    assert_same_images(encoded, fresh)


# ---- Several processes ----


def scanned_by(number, dataset, folder, most_sources=0, **settings):
    """What each of some processes, which are threads here, gets of the scan, or its error; and the files read."""
    barrier, sent = threading.Barrier(number), {}

    def scan(process):
        calls = itertools.count()

        def gather(parts):
            call = next(calls)
            sent[call, process] = parts
            barrier.wait(30)
            return [*itertools.chain.from_iterable(sent[call, other] for other in range(number))]

        prepares = preparer(folder, **settings)
        source = prepares._source(dataset, "training")
        if most_sources:
            source = replace(source, columns=replace(source.columns, source="source_image"))
        reader = CountingReader()
        bad = BadRows(source.skip_bad)
        try:
            rows = scan_rows(replace(source, reader=reader), bad, False, most_sources, process, number, gather)
        except BadRowError as error:
            return str(error), reader.num_read
        return vars(rows), bad.rows, bad.reasons, reader.num_read

    with ThreadPoolExecutor(number) as threads:
        return [*threads.map(scan, range(number))]


class CountingReader(media_module.ImageReader):
    """Counts the files that it reads."""

    num_read = 0

    def content(self, value):
        self.num_read += 1
        return super().content(value)


def rows_to_share(kind):
    """Seven rows, two of which are bad, and with them what tells the kind."""
    rows = scored_rows(7)
    pictures = [{"bytes": png(i), "path": None} for i in range(9)]
    prompts = ["" if i == 2 else prompt for i, prompt in enumerate(rows["prompt"])]
    if kind == "pairs":
        columns = {"chosen": pictures[:7], "rejected": [*pictures[1:5], pictures[5], *pictures[7:]]}
        columns["rejected"][4] = pictures[4]  # the same file twice
        return Dataset.from_dict({"prompt": prompts, **columns}, features=Features(
            {"prompt": Value("string"), "chosen": Image(), "rejected": Image()}
        ))  # fmt: skip
    columns = {"prompt": prompts, "image": pictures[:7], "score": [*map(float, range(6)), float("nan")]}
    features = {"prompt": Value("string"), "image": Image(), "score": Value("float64")}
    if kind == "sources":
        columns["score"][6] = 6.0
        columns["source_image"] = [*pictures[:5], {"bytes": b"no image", "path": None}, pictures[6]]
        features["source_image"] = Image()
    return Dataset.from_dict(columns, features=Features(features))


SHARED = {
    "scores": {}, "pairs": {"loss_type": "diffusion_dpo", "pairs": "columns"}, "sources": {"most_sources": 1},
}  # fmt: skip


@pytest.mark.parametrize("number", [2, 3, 8])
@pytest.mark.parametrize("kind", SHARED)
def test_processes_scan_a_run_of_rows_each_and_find_what_one_does(tmp_path, kind, number):
    dataset = rows_to_share(kind)
    ((*one, num_read),) = scanned_by(1, dataset, tmp_path, on_bad_row="skip", **SHARED[kind])
    assert one[1] == {"scores": [2, 6], "pairs": [2, 4], "sources": [2, 5]}[kind]
    shared = scanned_by(number, dataset, tmp_path, on_bad_row="skip", **SHARED[kind])
    assert [it[:3] for it in shared] == [tuple(one)] * number
    assert sum(it[3] for it in shared) == num_read  # each file once


@pytest.mark.parametrize("kind", SHARED)
def test_every_process_stops_at_the_first_bad_row_of_all(tmp_path, kind):
    dataset = rows_to_share(kind)
    for rows in (range(7), [0, 1, 3, 4, 5, 6]):
        ((message, _),) = scanned_by(1, dataset.select(rows), tmp_path, **SHARED[kind])
        found = scanned_by(2, dataset.select(rows), tmp_path, **SHARED[kind])
        assert [said for said, _ in found] == [message] * 2

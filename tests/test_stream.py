"""Streams: the same rows as map-style data, in the stream's order, epoch after epoch."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from tgo_trl.data.batch import FIELDS
from tgo_trl.data.collator import RowCollator
from tgo_trl.data.columns import Columns
from tgo_trl.data.rows import BadRowError, BadRows, RowSource
from tgo_trl.data.stream import StreamDataset, scan_scores
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.losses import SFTLoss, TGOLoss
from tgo_trl.media.images import image_to_tensor
from tgo_trl.media.origin import OWN
from tgo_trl.media.readers import ImageReader
from tgo_trl.policy.draws import EVALUATION_EPOCH
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.trainer.preparation import DataPreparer

from .runs import config
from .tiny import PROMPTS, picture, scored_rows, stable_diffusion

RULE = fit_label_rule(range(8), ["a"] * 8)  # positive from the median 3.5 on


def stream(dataset=None, skip_bad_rows=False, **changes):
    settings = {"rule": RULE, "epoch": 0, "repeat": False, "loss": TGOLoss(temperature=1.0, beta=1.0), "block": 1}
    dataset = scored_rows(8) if dataset is None else dataset
    iterable = dataset.to_iterable_dataset() if isinstance(dataset, Dataset) else dataset
    source = RowSource(iterable, Columns(), ImageReader(), [(16, 16)], OWN, skip_bad=skip_bad_rows)
    return StreamDataset(source, **{**settings, **changes})


def broken_rows():
    """Row 1 has no score, row 2 no readable image."""
    images = [{"bytes": b"not an image", "path": None} if i == 2 else picture(i) for i in range(4)]
    return Dataset.from_dict({"prompt": ["a red cat"] * 4, "image": images, "score": [0.0, None, 2.0, 7.0]})


# ---- Content ----


def test_rows_scores_labels_and_pixels_are_those_of_the_data_set():
    rows = list(stream())
    assert [row["row"] for row in rows] == list(range(8))
    for row, example in zip(rows, scored_rows(8), strict=True):
        assert row["prompt_text"] == example["prompt"]
        assert row["score"] == example["score"]
        assert row["is_positive"] == (example["score"] > 3.5)
        assert row["weight"] == 1 + 5 * abs(example["score"] - 3.5)
        assert torch.equal(row["pixels"], image_to_tensor(example["image"], (16, 16)))
        assert (row["epoch"], row["valid"]) == (0, True)


def test_a_stream_gives_what_map_style_data_gives(tmp_path):
    encoders = FrozenEncoders(StableDiffusionFamily(), stable_diffusion(), torch.device("cpu"), torch.float32)
    preparer = DataPreparer(config(tmp_path, encode_batch_size=1), encoders, [(16, 16)])
    encoded, rule = preparer.training_set(scored_rows(8))
    streamed, stream_rule = preparer.training_set(scored_rows(8).to_iterable_dataset())
    assert isinstance(streamed, StreamDataset)
    assert stream_rule == rule
    assert (streamed.labels, streamed.example_prompt) == (None, None)
    assert (encoded.sizes, encoded.example_prompt) == ([(16, 16)] * 8, scored_rows(8)["prompt"][0])
    for i, row in enumerate(itertools.islice(streamed, 8)):
        assert {*row, *encoded[i]} == set(FIELDS) - {
            "relative_score",
            "reference_error",
            "prompt_length",
        }  # none has them
        for name in ("row", "epoch", "valid", "score", "is_positive", "weight"):
            assert row[name] == encoded[i][name]
            assert getattr(row[name], "dtype", None) == getattr(encoded[i][name], "dtype", None)
        image = encoders.images(row["pixels"][None], row["geometry"][None])
        prompt = encoders.prompts([row["prompt_text"]])
        assert torch.equal(image["mean"][0], encoded[i]["image"]["mean"])
        assert torch.equal(image["std"][0], encoded[i]["image"]["std"])
        assert torch.equal(prompt["embeds"][0], encoded[i]["prompt"]["embeds"])


def test_a_generators_images_are_read_as_they_come():
    rows = [{"prompt": "a red cat", "image": picture(i), "score": float(i)} for i in range(3)]
    read = list(stream(IterableDataset.from_generator(lambda: iter(rows))))
    assert [row["score"].item() for row in read] == [0, 1, 2]
    assert torch.equal(read[2]["pixels"], image_to_tensor(picture(2), (16, 16)))


def test_positives_only_leaves_out_the_others_and_keeps_row_numbers():
    rows = list(stream(loss=SFTLoss(temperature=1.0)))
    assert [row["row"] for row in rows] == [i for i, score in enumerate(scored_rows(8)["score"]) if score > 3.5]


# ---- Epochs and padding ----


def test_a_training_stream_starts_over_in_the_next_epoch():
    rows = list(itertools.islice(stream(scored_rows(3), repeat=True, block=4), 8))
    assert [(row["epoch"], row["row"]) for row in rows] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert torch.equal(rows[0]["pixels"], rows[3]["pixels"])
    assert all(row["valid"] for row in rows)


def test_a_shuffled_stream_is_shuffled_anew_in_every_epoch():
    shuffled = scored_rows(32).to_iterable_dataset().shuffle(seed=0, buffer_size=32)
    scores = [row["score"].item() for row in itertools.islice(stream(shuffled, repeat=True), 64)]
    assert sorted(scores[:32]) == sorted(scores[32:]) == list(range(32))
    assert scores[:32] != scores[32:]


def test_a_stream_can_be_read_twice():
    once = stream(scored_rows(3))
    assert [row["row"] for row in once] == [row["row"] for row in once] == [0, 1, 2]


def test_an_evaluation_stream_ends_and_keeps_its_epoch():
    assert [row["epoch"] for row in stream(scored_rows(3), epoch=EVALUATION_EPOCH)] == [EVALUATION_EPOCH] * 3


@pytest.mark.parametrize(("num_rows", "block", "padding"), [(5, 4, 3), (8, 4, 0), (3, 8, 5), (5, 1, 0)])
def test_the_end_is_padded_with_rows_that_do_not_count(num_rows, block, padding):
    rows = list(stream(scored_rows(num_rows), block=block))
    assert [row["valid"] for row in rows] == [True] * num_rows + [False] * padding
    for row in rows[num_rows:]:
        assert row["row"] == num_rows - 1  # the last one again, so that it has the right shapes


def test_evaluation_streams_are_padded_to_the_batches_of_all_processes(tmp_path, monkeypatch):
    encoders = FrozenEncoders(StableDiffusionFamily(), stable_diffusion(), torch.device("cpu"), torch.float32)
    args = config(tmp_path, per_device_eval_batch_size=4)
    preparer = DataPreparer(args, encoders, [(16, 16)])
    alone = preparer.evaluation_set(scored_rows(5).to_iterable_dataset(), RULE, "evaluation")
    assert len(list(alone)) == 5
    monkeypatch.setattr(args.distributed_state, "num_processes", 2)
    together = preparer.evaluation_set(scored_rows(5).to_iterable_dataset(), RULE, "evaluation")
    assert [row["valid"] for row in together] == [True] * 5 + [False] * 3


# ---- Loading ----


def test_a_loader_makes_batches_of_it():
    (batch,) = DataLoader(stream(scored_rows(3), block=4), batch_size=4, collate_fn=RowCollator(), num_workers=1)
    assert batch["row"] == [0, 1, 2, 2]
    assert batch["prompt_text"] == [*PROMPTS[:3], PROMPTS[2]]
    assert batch["pixels"].shape == (4, 3, 16, 16)
    assert batch["valid"].tolist() == [True, True, True, False]


def test_more_than_one_worker_would_mix_the_order(monkeypatch):
    # What torch tells a worker; a real one that fails takes ten seconds to end.
    monkeypatch.setattr("tgo_trl.data.stream.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match="`dataloader_num_workers=2` cannot do"):
        next(iter(stream()))


# ---- Bad rows ----


@pytest.mark.parametrize(
    ("first_row", "message"),
    [
        (0, r"Row 1, column 'score': the score is missing \(None\)"),
        (2, r"Row 0, column 'image': the image cannot be read \("),
    ],
)
def test_a_bad_row_stops_the_stream_where_it_comes(first_row, message):
    rows = iter(stream(broken_rows().select(range(first_row, 4))))
    with pytest.raises(BadRowError, match=message):
        list(rows)


def test_bad_rows_are_skipped_and_reported_in_every_pass(caplog):
    rows = list(itertools.islice(stream(broken_rows(), skip_bad_rows=True, repeat=True), 5))
    assert [(row["epoch"], row["row"]) for row in rows] == [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0)]
    assert len(caplog.messages) == 2  # the third pass is not over
    for message in caplog.messages:
        assert message.startswith("Skipped 2 of 4 rows of the streamed data set. Row 1, column 'score'")


def test_a_bad_negative_image_is_not_read_where_only_positives_are_trained_on():
    assert [row["row"] for row in stream(broken_rows().select([0, 2, 3]), loss=SFTLoss(temperature=1.0))] == [2]


@pytest.mark.parametrize("repeat", [False, True])
def test_a_stream_without_a_usable_row_does_not_run_forever(repeat):
    with pytest.raises(ValueError, match="yielded no row that can be trained on"):
        list(stream(broken_rows().select([1, 2]), skip_bad_rows=True, repeat=repeat))


# ---- The scan for the threshold ----


def test_the_scan_gives_all_scores_and_prompts():
    scores, prompts = scan_scores(scored_rows(8).to_iterable_dataset(), Columns(), BadRows(skip=False))
    assert scores == scored_rows(8)["score"][:]
    assert prompts == scored_rows(8)["prompt"][:]


def test_the_scan_does_not_read_images():
    unreadable = Dataset.from_dict({"prompt": ["a", "b"], "image": ["no-such-file.png"] * 2, "score": [1.0, 2.0]})
    assert scan_scores(unreadable.to_iterable_dataset(), Columns(), BadRows(skip=False)) == ([1.0, 2.0], ["a", "b"])


def test_the_scan_of_a_stream_of_unknown_columns():
    rows = [{"prompt": "a red cat", "image": picture(i), "score": float(i)} for i in range(3)]
    scanned = scan_scores(IterableDataset.from_generator(lambda: iter(rows)), Columns(), BadRows(skip=False))
    assert scanned == ([0.0, 1.0, 2.0], ["a red cat"] * 3)


def test_the_scan_stops_at_a_bad_row_or_skips_it():
    streamed = broken_rows().to_iterable_dataset()
    with pytest.raises(BadRowError, match="Row 1, column 'score'"):
        scan_scores(streamed, Columns(), BadRows(skip=False))
    bad = BadRows(skip=True)
    assert scan_scores(streamed, Columns(), bad)[0] == [0.0, 2.0, 7.0]
    assert bad.rows == [1]


def test_what_the_scan_skips_is_reported_as_training_data(tmp_path, caplog):
    encoders = FrozenEncoders(StableDiffusionFamily(), stable_diffusion(), torch.device("cpu"), torch.float32)
    preparer = DataPreparer(config(tmp_path, on_bad_row="skip"), encoders, [(16, 16)])
    _, rule = preparer.training_set(broken_rows().to_iterable_dataset())
    assert rule.num_rows == 3
    assert caplog.messages == [
        "Skipped 1 of 4 rows of the training data set. Row 1, column 'score': the score is missing (None)."
    ]
    with pytest.raises(ValueError, match="The training data set has no column 'score'"):
        preparer.training_set(scored_rows(2).remove_columns("score").to_iterable_dataset())

"""Streams of several shards, over processes: each shard is read once, and the rows are those of one process."""

import itertools
import json

import pytest
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from tgo_trl.data.collator import RowCollator
from tgo_trl.data.columns import Columns
from tgo_trl.data.lanes import Share, can_be_divided, choose_lanes, in_lanes, lane_of, order_of, scan_shards
from tgo_trl.data.rows import BadRowError, BadRows
from tgo_trl.data.stream import scan_scores

from .runs import assert_close, config, logged, make_trainer, trained_weights
from .test_course import Watched
from .test_stream import stream
from .tiny import picture, scored_rows, stable_diffusion

READ: list[tuple[int, int]] = []
"""Shard, and row in the shard, of all that a counted stream was asked for."""
IMAGE = picture(0)


def generate(shards, sizes, bad):
    for shard in shards:
        for row in range(sizes[shard]):
            READ.append((shard, row))
            score = None if (shard, row) in bad else float(10 * shard + row)
            yield {"prompt": f"a red cat {shard}", "image": IMAGE, "score": score}


def counted(*sizes, bad=()):
    """A stream of shards of these sizes; a row's score is ten times its shard, plus its place there."""
    kwargs = {"shards": list(range(len(sizes))), "sizes": tuple(sizes), "bad": tuple(bad)}
    return IterableDataset.from_generator(generate, gen_kwargs=kwargs)


def in_processes(num_processes, num_updates, sizes, num_lanes, batch_size=1, skip=0, of=counted):
    """Epoch, row and score of what each process trains on, by update, as its real loader gives them; and its reads."""
    num_batches = 8 // num_processes // batch_size
    updates, reads = [], []
    for process in range(num_processes):
        share = Share(process, num_processes, batch_size, num_batches)
        dataset = stream(of(*sizes), shards=sizes, share=share, num_lanes=num_lanes, repeat=True)
        dataset.skip = skip
        shard = IterableDatasetShard(dataset, batch_size, False, num_processes, process)
        READ.clear()
        loader = DataLoader(dataset if num_processes == 1 else shard, batch_size, collate_fn=RowCollator())
        batches = [*itertools.islice(loader, num_updates * num_batches)]
        reads.append([*READ])
        rows = [[*zip(it["epoch"], it["row"], it["score"].tolist(), strict=True)] for it in batches]
        updates.append([[*itertools.chain(*rows[i : i + num_batches])] for i in range(0, len(rows), num_batches)])
    return updates, reads


def together(updates):
    """The rows of each update, of all processes."""
    return [[*itertools.chain(*parts)] for parts in zip(*updates, strict=True)]


# ---- Which rows ----


def test_an_update_takes_as_many_rows_of_each_lane():
    (updates,), _ = in_processes(1, 2, (3, 3, 3, 3), 4)
    assert updates == [
        [(0, 0, 0), (0, 1, 1), (0, 3, 10), (0, 4, 11), (0, 6, 20), (0, 7, 21), (0, 9, 30), (0, 10, 31)],
        [(0, 2, 2), (1, 0, 0), (0, 5, 12), (1, 3, 10), (0, 8, 22), (1, 6, 20), (0, 11, 32), (1, 9, 30)],
    ]


@pytest.mark.parametrize("num_processes", [2, 4, 8])
@pytest.mark.parametrize("num_lanes", [1, 2, 4, 8])
def test_any_number_of_processes_trains_on_the_rows_of_one(num_processes, num_lanes):
    sizes = (5, 6, 5, 6, 5, 6, 5, 6)
    (alone,), _ = in_processes(1, 6, sizes, num_lanes, batch_size=8)
    for batch_size in {1, 8 // num_processes}:
        updates, _ = in_processes(num_processes, 6, sizes, num_lanes, batch_size=batch_size)
        assert [sorted(update) for update in together(updates)] == [sorted(update) for update in alone]
        assert all(len(set(update)) == 8 for update in together(updates))


@pytest.mark.parametrize(("num_processes", "readers"), [(1, 1), (2, 1), (4, 1), (8, 2)])
def test_a_pass_reads_each_shard_once_unless_processes_share_a_lane(num_processes, readers):
    """Four lanes of two shards with four rows in all: two updates are one pass."""
    updates, reads = in_processes(num_processes, 2, (2,) * 8, 4)
    assert all(len(set(read)) == len(read) for read in reads)
    assert [sum(shard in {of for of, _ in read} for read in reads) for shard in range(8)] == [readers] * 8
    if readers == 1:
        assert sorted(itertools.chain(*reads)) == [(shard, row) for shard in range(8) for row in range(2)]
    trained = [(epoch, row) for update in together(updates) for epoch, row, _ in update]
    assert sorted(trained) == [(0, row) for row in range(16)]  # each once, whoever reads it


def test_a_stream_in_its_order_is_read_by_every_process():
    _, reads = in_processes(2, 2, (2,) * 8, 1)
    assert [len(read) for read in reads] == [16, 16]


def test_processes_that_do_not_divide_the_lanes_share_those_at_the_seams():
    """Three processes, of two lanes: the middle one reads both."""
    shares = [Share(process, 3, batch_size=4) for process in range(3)]
    assert [[*share.lanes(2)] for share in shares] == [[0], [0, 1], [1]]
    taken = [[*itertools.islice(it.take([itertools.count(), itertools.count(100)]), 4)] for it in shares]
    assert taken == [[0, 1, 2, 3], [4, 5, 100, 101], [102, 103, 104, 105]]


def test_a_single_lane_is_the_order_of_the_stream():
    dataset = stream(scored_rows(8).to_iterable_dataset(num_shards=4), repeat=True, shards=(2,) * 4)
    assert dataset.lanes == ()
    assert [row["row"] for row in itertools.islice(dataset, 10)] == [*range(8), 0, 1]


@pytest.mark.parametrize("num_lanes", [1, 2, 4])
def test_what_is_done_is_passed_over_in_each_lane(num_lanes):
    sizes = (5, 6, 5, 6)
    (whole,), _ = in_processes(1, 6, sizes, num_lanes)
    for num_processes in (1, 2):
        updates, _ = in_processes(num_processes, 3, sizes, num_lanes, skip=3 * 8)
        assert [sorted(it) for it in together(updates)] == [sorted(it) for it in whole[3:]]


def test_a_shuffled_stream_gives_all_rows_of_each_lane_in_every_pass():
    def shuffled(*sizes):
        return counted(*sizes).shuffle(seed=0, buffer_size=10)

    (updates,), _ = in_processes(1, 4, (4, 4, 4, 4), 2, of=shuffled)
    passes = [sorted(score for _, _, score in [*updates[i], *updates[i + 1]]) for i in (0, 2)]
    assert passes[0] == passes[1] == [10 * shard + row for shard in range(4) for row in range(4)]
    assert [score for *_, score in updates[0]] != [score for *_, score in updates[2]]
    for num_processes in (2, 4):
        spread, _ = in_processes(num_processes, 4, (4, 4, 4, 4), 2, of=shuffled)
        assert [sorted(it) for it in together(spread)] == [sorted(it) for it in updates]


def test_bad_rows_are_named_as_in_the_whole_stream():
    dataset = stream(counted(3, 3, bad=[(1, 2)]), shards=(3, 3), share=Share(batch_size=2), num_lanes=2, repeat=True)
    with pytest.raises(BadRowError, match="Row 5, column 'score'"):
        [*itertools.islice(dataset, 6)]


def test_a_lane_without_a_usable_row_does_not_run_forever():
    kwargs = {"shards": (3, 3), "share": Share(batch_size=2), "num_lanes": 2, "repeat": True, "skip_bad_rows": True}
    dataset = stream(counted(3, 3, bad=[(1, 0), (1, 1), (1, 2)]), **kwargs)
    with pytest.raises(ValueError, match=r"from row 3 on, yielded no row .* Set `stream_lanes=1`"):
        [*itertools.islice(dataset, 2)]


# ---- What can be divided ----

PLAIN = scored_rows(8).to_iterable_dataset(num_shards=4)
DIVISIBLE = {
    "files": PLAIN,
    "generator": counted(1, 1),
    "shuffled": PLAIN.shuffle(seed=0, buffer_size=4),
    "mapped": PLAIN.map(lambda row: {"score": row["score"] + 1}),
    "filtered": PLAIN.filter(lambda row: row["score"] > 0),
    "columns": PLAIN.select_columns(["prompt", "score"]),
    "renamed": PLAIN.rename_column("score", "points"),
    "concatenated": concatenate_datasets([PLAIN, PLAIN]),
    "formatted": PLAIN.with_format("numpy"),
}
INDIVISIBLE = {
    "one shard": scored_rows(8).to_iterable_dataset(),
    "skip": PLAIN.skip(2),
    "take": PLAIN.take(6),
    "take, then mapped": PLAIN.take(6).map(lambda row: row),
    "indices": PLAIN.map(lambda row, i: {"score": float(i)}, with_indices=True),
    "filtered by indices": PLAIN.filter(lambda row, i: i % 3 == 0, with_indices=True),
    "batches": PLAIN.map(lambda rows: {"score": rows["score"][:1]}, batched=True, remove_columns=PLAIN.column_names),
    "interleaved": interleave_datasets([PLAIN, PLAIN]),
    "divided already": split_dataset_by_node(PLAIN, rank=0, world_size=2),
}


@pytest.mark.parametrize("name", DIVISIBLE)
def test_shards_read_one_by_one_have_the_rows_of_the_stream(name):
    dataset = DIVISIBLE[name]
    assert can_be_divided(dataset)
    column = "points" if name == "renamed" else "score"
    parts = [dataset.shard(dataset.num_shards, i) for i in range(dataset.num_shards)]
    scores = [[float(row[column]) for row in part] for part in (*parts, dataset)]
    assert sorted(itertools.chain(*scores[:-1])) == sorted(scores[-1])
    if name != "shuffled":
        assert [*itertools.chain(*scores[:-1])] == scores[-1]


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_what_would_give_other_rows_is_read_whole(name):
    assert not can_be_divided(INDIVISIBLE[name])


# ---- The scan ----


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_scan_a_part_each_and_find_what_one_does(num_processes):
    dataset, columns = counted(3, 2, 4), Columns()
    parts = []
    READ.clear()
    for process in range(num_processes):  # what each would send to the others
        scan_shards(dataset, columns, BadRows(False), process, num_processes, lambda part: parts.append(part) or part)
    assert len(READ) == 9
    found = scan_shards(dataset, columns, BadRows(False), 0, num_processes, lambda _: [*itertools.chain(*parts)])
    scores, prompts = scan_scores(dataset, columns, BadRows(False))
    assert [*itertools.chain(*(shard.scores for shard in found))] == scores
    assert [*itertools.chain(*(shard.prompts for shard in found))] == prompts
    assert [shard.num_rows for shard in found] == [3, 2, 4]


def test_a_bad_row_of_another_process_stops_the_scan_of_all():
    dataset, bad = counted(3, 2, 4, bad=[(1, 0), (2, 3)]), BadRows(False)
    with pytest.raises(BadRowError, match="Row 3, column 'score'"):
        scan_shards(dataset, Columns(), bad, 0, 1, lambda parts: parts)
    bad = BadRows(True)
    found = scan_shards(dataset, Columns(), bad, 0, 1, lambda parts: parts)
    assert bad.rows == [3, 8]
    assert [(len(shard.scores), shard.num_rows) for shard in found] == [(3, 3), (1, 2), (3, 4)]


# ---- How many lanes ----


def test_lanes_are_cut_as_datasets_cuts_them():
    sizes = [1, 2, 3, 4, 5, 6, 7]
    for num_lanes in range(1, 8):
        parts = [counted(*sizes).shard(num_lanes, lane) for lane in range(num_lanes)]
        assert in_lanes(sizes, num_lanes) == tuple(len([*part]) for part in parts)


@pytest.mark.parametrize(
    ("usable", "rows_per_update", "expected"),
    [
        ([10] * 8, 8, 8),
        ([10] * 8, 12, 4),  # of 6 lanes two would have twice the rows
        ([10] * 64, 64, 16),  # the most
        ([1000] * 8 + [30], 8, 1),  # of 9 shards in 8 lanes one has two, in 4 and 2 one has more too
        ([1000] * 7 + [930], 8, 8),
        ([1000] * 7 + [30], 8, 1),  # the last shard's rows would come 33 times as often
        ([1000] * 63 + [30], 8, 4),
        ([10, 0], 2, 1),
        ([10] * 5, 7, 1),
    ],
)
def test_there_are_as_many_lanes_as_are_even(usable, rows_per_update, expected):
    assert choose_lanes(usable, rows_per_update) == expected


# ---- Runs ----


def shards(num_rows, num_shards):
    return scored_rows(num_rows).to_iterable_dataset(num_shards=num_shards)


def watched(folder, dataset, **settings):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "lr_scheduler_type": "constant", **settings}
    trainer = Watched(stable_diffusion(), config(folder, **settings), dataset)
    trainer.used = []
    return trainer


def test_a_run_goes_on_in_its_lanes(tmp_path, capsys):
    whole = watched(tmp_path / "whole", shards(16, 4), max_steps=6, save_strategy="no")
    assert "in 4 lanes of 4 to 4 rows" in capsys.readouterr().out
    whole.train()
    assert whole.used[:8] == [(0, row) for row in (0, 4, 8, 12, 1, 5, 9, 13)]
    watched(tmp_path, shards(16, 4)).train()
    rest = watched(tmp_path, shards(16, 4), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    rest.train(resume_from_checkpoint=True)
    assert rest.used == whole.used[8:]
    assert_close(trained_weights(rest), trained_weights(whole), 1e-4)
    record = json.loads((tmp_path / "out" / "checkpoint-4" / "tgo_config.json").read_text())
    assert record["lanes"] == [4, 4, 4, 4]


def test_a_run_of_a_version_without_lanes_goes_on_in_the_streams_order(tmp_path):
    watched(tmp_path, shards(16, 4), stream_lanes=1).train()
    assert "lanes" not in json.loads((tmp_path / "out" / "checkpoint-2" / "tgo_config.json").read_text())
    rest = watched(tmp_path, shards(16, 4), max_steps=5)
    assert rest.train_dataset.num_lanes == 4
    rest.train(resume_from_checkpoint=True)
    assert rest.used == [(0, row) for row in range(8, 16)] + [(1, row) for row in range(4)]
    with pytest.raises(ValueError, match=r"was read in its order, and `stream_lanes` is 4\. Set it to 1"):
        watched(tmp_path, shards(16, 4), max_steps=6, stream_lanes=4).train(resume_from_checkpoint=True)


def test_a_run_that_would_lose_its_place_is_refused(tmp_path):
    def resumed(dataset, **settings):
        watched(tmp_path, dataset, max_steps=6, resume_with_changes=True, **settings).train(resume_from_checkpoint=True)

    watched(tmp_path, shards(16, 4)).train()
    with pytest.raises(ValueError, match=r"was read in 4 lanes, and `stream_lanes` is 2\. Set it to 4"):
        resumed(shards(16, 4), stream_lanes=2)
    with pytest.raises(ValueError, match=r"was read in 4 lanes, and an update has 6 rows now"):
        resumed(shards(16, 4), per_device_train_batch_size=6)
    with pytest.raises(ValueError, match=r"was read in 4 lanes, and `train_dataset` cannot be divided into as many"):
        resumed(shards(16, 2))
    with pytest.raises(ValueError, match=r"the lanes of the stream had \[4, 4, 4, 4\] rows, have \[6, 4, 4, 2\]"):
        watched(tmp_path, _cut(6, 4, 4, 2)).train(resume_from_checkpoint=True)
    changed = watched(
        tmp_path, shards(16, 4), max_steps=3, resume_with_changes=True, per_device_train_batch_size=8
    )  # another size of updates, of which the lanes have their part
    changed.train(resume_from_checkpoint=True)
    assert changed.used == [(0, row) for row in (2, 3, 6, 7, 10, 11, 14, 15)]


def _cut(*sizes):
    """The rows of `scored_rows(16)`, cut in another way."""
    rows = scored_rows(16)
    starts = [0, *itertools.accumulate(sizes)]
    parts = [rows.select(range(a, b)) for a, b in itertools.pairwise(starts)]
    return concatenate_datasets([part.to_iterable_dataset() for part in parts])


def test_lanes_share_the_buffer_that_a_stream_is_shuffled_in():
    dataset = counted(8, 8, 8, 8).shuffle(seed=0, buffer_size=12).map(lambda row: row)
    READ.clear()
    next(iter(dataset))
    whole = len(READ)
    lanes = [lane_of(dataset, 4, index) for index in range(4)]
    READ.clear()
    for lane in lanes:
        next(iter(lane))
    assert len(READ) == whole < 32, "with a buffer of 12 for each lane, all rows would be read at once"
    assert {shard for shard, _ in READ} == {0, 1, 2, 3}


def test_a_stream_that_is_shuffled_without_a_seed_has_an_order_of_its_own_in_each_process():
    dataset = counted(4, 4)
    assert order_of(dataset) == order_of(counted(4, 4))
    assert order_of(dataset.shuffle(seed=3)) == order_of(dataset.shuffle(seed=3))
    assert order_of(dataset.shuffle(seed=3)) != order_of(dataset.shuffle(seed=4))
    assert order_of(dataset.shuffle()) != order_of(dataset.shuffle())


@pytest.mark.slow
def test_a_shuffled_run_of_an_older_version_is_told_how_to_go_on(tmp_path):
    dataset = shards(16, 4).shuffle(seed=1, buffer_size=16)
    first = watched(tmp_path, dataset, stream_lanes=1)
    first.train()
    with pytest.raises(ValueError, match="goes on with `stream_lanes=1`"):
        watched(tmp_path, dataset, max_steps=4).train(resume_from_checkpoint=True)
    rest = watched(tmp_path, dataset, max_steps=4, stream_lanes=1)
    rest.train(resume_from_checkpoint=True)
    assert sorted(first.used + rest.used) == [(0, row) for row in range(16)]


def test_lanes_that_cannot_be_had_are_refused_before_anything_is_loaded(tmp_path):
    def refused(dataset, match, **settings):
        with pytest.raises(ValueError, match=match):
            make_trainer(config(tmp_path, **settings), model="no such model", train_dataset=dataset)

    refused(scored_rows(8), "`stream_lanes` is 2, which is of a streaming", stream_lanes=2)
    refused(shards(8, 1), "cannot be read: it has 1 shard\\. Leave it out", stream_lanes=2)
    refused(PLAIN.take(6), "its shards, read one by one, would give other rows", stream_lanes=2)
    refused(shards(9, 3), "has 4 rows", stream_lanes=3)
    refused(shards(8, 4), "gathered by size", stream_lanes=2, aspect_ratio_buckets=True)
    for value in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`stream_lanes`"):
            config(tmp_path, stream_lanes=value)


def test_lanes_of_other_lengths_are_warned_of(tmp_path, caplog):
    trainer = make_trainer(config(tmp_path, stream_lanes=2), train_dataset=_cut(12, 4))
    assert trainer.train_dataset.lanes == (12, 4)
    assert "the rows of the shortest come 3 times as often" in caplog.text
    assert make_trainer(config(tmp_path), train_dataset=_cut(12, 4)).train_dataset.lanes == ()


def test_a_lane_without_rows_for_the_loss_is_refused(tmp_path):
    """Scores rise with the row."""
    rows = Dataset.from_dict({**scored_rows(8).to_dict(), "score": [float(i) for i in range(8)]})
    rows = rows.cast_column("image", scored_rows(8).features["image"]).to_iterable_dataset(num_shards=2)
    with pytest.raises(ValueError, match="one of these lanes has no row that can be trained on"):
        make_trainer(config(tmp_path, stream_lanes=2, loss_type="sft"), train_dataset=rows)
    assert make_trainer(config(tmp_path, loss_type="sft"), train_dataset=rows).train_dataset.lanes == ()


def test_buckets_and_what_is_evaluated_are_read_whole(tmp_path):
    trainer = make_trainer(
        config(tmp_path, aspect_ratio_buckets=True), train_dataset=shards(8, 4), eval_dataset=shards(8, 4)
    )
    assert trainer.train_dataset.lanes == trainer.eval_dataset.lanes == ()
    trainer.train()
    assert all(loss == loss for loss in logged(trainer))

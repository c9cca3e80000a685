"""What must not change a run: how its batches are spread over micro-batches, processes, workers and order."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tgo_trl.data.collator import RowCollator

from . import tiny
from .devices import cpu_environment
from .marks import some_slow
from .runs import (
    CASES,
    assert_close,
    assert_equal,
    config,
    logged,
    make_trainer,
    metrics,
    run_case,
    streamed,
    trained_weights,
)

ROOT = Path(__file__).parent.parent
SLOW = {"synchronised", "sft", "qrpo", "compiled", "averaged", "evaluated before", "held to bounds"}


def assert_same_metrics(actual, expected, leave_out=()):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if name not in leave_out:
                assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A case, trained by two processes with four rows each: with all others as fast, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @functools.cache
    def run(name):
        is_slow = name in SLOW
        names = [it for it in CASES if (it in SLOW) == is_slow]
        folder = base / ("two-processes-slow" if is_slow else "two-processes")
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                run_in_processes(2, names, folder)
        return results_of(2, [name], folder)[name]

    return run


def run_in_processes(number, names, folder):
    """Trains every case by so many processes, and puts the results of each into a folder."""
    temporary = folder.with_name(f"{folder.name}-begun")
    temporary.mkdir(exist_ok=True)
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={number}", "-m", "tests.runs"]
    environment = cpu_environment(ACCELERATE_MIXED_PRECISION="bf16")  # as of TRL's profile; the settings say float32
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-m", *command, json.dumps(list(names)), str(temporary)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    temporary.rename(folder)


def results_of(number, names, folder):
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(number)] for name in names}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A case, trained by one process with batches of eight rows."""

    @functools.cache
    def run(name):
        return run_case(name, tmp_path_factory.mktemp("one-process"), per_device_train_batch_size=8)

    return run


@pytest.mark.parametrize("name", some_slow({name: name for name in CASES}, SLOW))
def test_two_processes_equal_one(two_processes, one_process, name):
    one = one_process(name)
    first, second = two_processes(name)
    assert_equal(second["weights"], first["weights"])
    assert_close(first["weights"], one["weights"], 1e-5)
    assert_same_metrics(first["log"], one["log"])
    assert_same_metrics(first["evaluations"], one["evaluations"])
    # Every row is predicted once, in order, padding left out.
    for result in (first, second):
        for (log_ratios, scores), (expected, expected_scores) in zip(
            result["predictions"], one["predictions"], strict=True
        ):
            assert scores.tolist() == expected_scores.tolist()
            torch.testing.assert_close(log_ratios, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_blocks_are_compiled_whole_in_each_process(two_processes):
    assert [it["graphs"] for it in two_processes("compiled")] == [(5, 0), (5, 0)]


@pytest.mark.slow
def test_eight_processes_that_share_four_lanes_equal_one(tmp_path, one_process):
    run_in_processes(8, ["lanes"], tmp_path / "eight")
    results = results_of(8, ["lanes"], tmp_path / "eight")["lanes"]
    assert_close(results[0]["weights"], one_process("lanes")["weights"], 1e-5)
    assert_same_metrics(results[0]["log"], one_process("lanes")["log"])


@pytest.mark.parametrize(
    "name",
    [
        "map",
        "stream",
        "lanes",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("synchronised", "full", "sft")),
    ],
)
def test_accumulated_micro_batches_equal_one_batch(tmp_path, one_process, name):
    parts = run_case(name, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_close(parts["weights"], one_process(name)["weights"], 1e-5)
    assert_same_metrics(parts["log"], one_process(name)["log"])


@pytest.mark.slow
def test_eight_micro_batches_equal_one_batch(tmp_path, one_process):
    parts = run_case("map", tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert_close(parts["weights"], one_process("map")["weights"], 1e-5)
    assert_same_metrics(parts["log"], one_process("map")["log"])


def test_the_cases_learn_something(tmp_path, one_process):
    """The comparisons above would hold for runs that stand still."""
    untrained = trained_weights(make_trainer(config(tmp_path), train_dataset=tiny.scored_rows(11)))
    trained = one_process("map")["weights"]
    assert max((trained[name] - weight).abs().max().item() for name, weight in untrained.items()) > 1e-2


def test_data_loader_workers_change_nothing(tmp_path):
    runs = []
    for workers in (0, 2):
        args = config(tmp_path, max_steps=5, dataloader_num_workers=workers)
        trainer = make_trainer(args, train_dataset=tiny.scored_rows(11), eval_dataset=tiny.scored_rows(5, seed=1))
        trainer.train()
        runs.append((metrics(trainer.state.log_history), trained_weights(trainer), metrics([trainer.evaluate()])))
    assert_equal(runs[1], runs[0])


def test_a_worker_reads_a_stream_as_the_trainer_does(tmp_path):
    runs = []
    for workers in (0, 1):
        trainer = make_trainer(
            config(tmp_path, max_steps=4, dataloader_num_workers=workers), train_dataset=streamed(tiny.scored_rows(11))
        )
        trainer.train()
        runs.append((logged(trainer), trained_weights(trainer)))
    assert_equal(runs[1], runs[0])


def test_a_stream_trains_as_the_same_rows_in_order_do(tmp_path):
    """Two epochs: eight rows fill two batches, so that the stream starts over where the map-style epoch does."""
    data = tiny.scored_rows(8)
    runs = []
    for dataset in (data, streamed(data)):
        # Adam would blow up what rounding leaves of a gradient near zero.
        settings = {"max_steps": 4, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.1}
        trainer = make_trainer(config(tmp_path, **settings), train_dataset=dataset, eval_dataset=dataset)
        trainer.train()
        runs.append((metrics(trainer.state.log_history), trained_weights(trainer), metrics([trainer.evaluate()])))
    (log, weights, evaluation), (stream_log, stream_weights, stream_evaluation) = runs
    assert_same_metrics(stream_log, log)
    assert_same_metrics(stream_evaluation, evaluation)
    assert_close(stream_weights, weights, 1e-5)


def test_the_order_of_rows_in_a_batch_changes_nothing(tmp_path):
    """The draw travels with the row, not with its place in the batch."""
    trainer = make_trainer(config(tmp_path))
    rows = [trainer.train_dataset[(3, position)] for position in range(8)]
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    trainer.model.eval()
    results = []
    for batch in (rows, [rows[position] for position in order]):
        # An adapter that is not zero any more, or every log-ratio would be.
        with torch.no_grad():
            for name, weight in trainer.policy.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.05)
            results.append(trainer.compute_loss(trainer.model, trainer.data_collator(batch), return_outputs=True))
    (loss, outputs), (other_loss, other_outputs) = results
    assert other_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(other_outputs["log_ratio"], outputs["log_ratio"][order], rtol=1e-4, atol=1e-5)
    assert outputs["log_ratio"].unique().numel() == 8


def test_every_epoch_has_its_own_order(tmp_path):
    seen = []

    def collate(rows):
        seen.append([(row["epoch"], row["row"]) for row in rows])
        return RowCollator()(rows)

    trainer = make_trainer(config(tmp_path, max_steps=4), data_collator=collate)
    trainer.train()
    epochs = [[*seen[0], *seen[1]], [*seen[2], *seen[3]]]
    assert [{epoch for epoch, _ in rows} for rows in epochs] == [{0}, {1}]
    assert all(sorted(row for _, row in rows) == list(range(8)) for rows in epochs)
    assert [row for _, row in epochs[0]] != [row for _, row in epochs[1]]


def test_every_epoch_has_its_own_noise(tmp_path):
    """The same rows in the same order, by a network that stands still."""
    args = config(tmp_path, max_steps=4, learning_rate=0.0, train_sampling_strategy="sequential")
    trainer = make_trainer(args)
    trainer.train()
    likelihoods = logged(trainer, "logps/chosen")
    assert all(abs(likelihoods[i] - likelihoods[i + 2]) > 1e-3 for i in range(2))

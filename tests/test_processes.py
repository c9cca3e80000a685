"""What becomes of the other processes when one fails: they would wait for it."""

import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from tgo_trl.storage import processes
from tgo_trl.storage.processes import OtherProcessError, Watch, failing_together

from .devices import cpu_environment

FAILURE = ValueError("Row 13, column 'image': hf_abcdefghijklmnopqrstuvwxyz0123456789")
SAID = "Process 1 of 2 has failed: ValueError: Row 13, column 'image': "
CLOSED = RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer")


@pytest.fixture
def store(monkeypatch):
    """That two processes have met at; looked at so often that nobody waits long."""
    monkeypatch.setattr(processes, "INTERVAL", 0.02)
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    monkeypatch.setattr(Watch, "number", Watch.number)
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))


@pytest.fixture
def watch(store):
    """Makes the watch of a process in one block, which notes what it would end with; all are over in the end."""
    made, number = [], Watch.number

    def make(rank, connect=lambda: store):
        Watch.number = number
        ended = []
        made.append(Watch(rank, 2, connect, end=ended.append))
        made[-1].ended = ended
        return made[-1]

    yield make
    for it in made:
        it.over.set()


def test_a_process_that_fails_ends_one_that_waits_for_it(watch, capsys):
    waiting, failing = watch(0), watch(1)
    waiting.start()
    began = time.monotonic()
    assert failing.tell(FAILURE) is None  # it is the first
    assert time.monotonic() - began < 3  # and knows that the other knows
    waiting.join(5)
    assert waiting.ended == [1]
    said = capsys.readouterr().err
    assert said.startswith(SAID)
    assert said.endswith(" This one ends too.\n")
    assert "abcdefghij" not in said


def test_one_that_ends_by_itself_is_left_alone(watch, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 5)
    waiting, failing = watch(0), watch(1)
    waiting.start()
    failing.tell(FAILURE)
    waiting.over.set()
    waiting.join(5)
    assert not waiting.is_alive()
    assert waiting.ended == []


def test_all_that_fail_alike_wait_for_nobody_and_keep_their_own_errors(watch, monkeypatch):
    monkeypatch.setattr(processes, "INTERVAL", 5)
    first, second = watch(1), watch(0)
    first.store.add(first.seen, 1)  # of the second, which is about to
    began = time.monotonic()
    assert first.tell(FAILURE) is None
    assert second.tell(ValueError("no such column")).startswith(SAID)
    assert time.monotonic() - began < 2


def test_a_failure_that_was_caught_is_no_news_in_the_next_block(watch, store):
    watch(1).tell(FAILURE)
    later = Watch(0, 2, lambda: store, end=lambda status: pytest.fail("it was ended"))
    later.start()
    time.sleep(0.3)
    assert later.is_alive()
    later.over.set()


def test_processes_that_have_not_met_and_a_store_that_is_gone_are_no_failure(watch):
    alone = watch(0, connect=lambda: None)
    alone.start()
    assert alone.tell(FAILURE) is None

    def gone():
        raise torch.distributed.DistNetworkError("Connection reset by peer")

    left = watch(0, connect=gone)
    left.start()
    left.join(5)
    assert not left.is_alive()
    assert left.tell(FAILURE) is None
    assert alone.ended == []


@pytest.mark.parametrize(("error", "expected"), [(CLOSED, OtherProcessError), (KeyError("own"), KeyError)])
def test_what_a_collective_says_of_its_other_end_is_said_in_words(watch, store, monkeypatch, error, expected):
    watch(1).tell(FAILURE)
    monkeypatch.setattr(processes, "connect", lambda: store)
    Watch.number -= 1  # in the same block of another process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(expected, match=SAID if expected is OtherProcessError else "own"), failing_together():
        raise error
    assert not Watch.is_on


def test_a_block_in_another_and_one_in_a_single_process_watch_nothing(monkeypatch):
    number = Watch.number
    with failing_together():
        assert not Watch.is_on
    monkeypatch.setenv("WORLD_SIZE", "2")
    with failing_together():
        assert Watch.is_on
        with failing_together():
            assert Watch.number == number + 1
        assert Watch.is_on
    assert not Watch.is_on


LANES = """
import os, sys, time
from pathlib import Path
import datasets
from tests.runs import config, make_trainer
from tests.tiny import scored_rows
from tgo_trl.storage import processes

processes.PATIENCE = 3
raw = datasets.Image(decode=False)
def spoil(row, i):
    return row | ({"image": {"bytes": b"no image", "path": None}} if i == 13 else {})
rows = scored_rows(16).cast_column("image", raw).map(spoil, with_indices=True).cast_column("image", raw)
args = config(Path(sys.argv[1]), per_device_train_batch_size=2, stream_lanes=4)
trainer = make_trainer(args, train_dataset=rows.to_iterable_dataset(num_shards=4))
try:
    trainer.train()
except ValueError as error:
    print(type(error).__name__, error, flush=True)
    time.sleep(60 if sys.argv[2] == "stays" else 0)
    raise
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stays", "goes"])
def test_an_image_that_one_process_cannot_read_ends_both(tmp_path, what):
    """Without a launcher that would end the other one. One that stays leaves its connections open, as NCCL may."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LANES, str(tmp_path), what], cwd=Path(__file__).parents[1], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=cpu_environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        out, errors = started[0].communicate(timeout=200)
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 1
    assert "Process 1 of 2 has failed: BadRowError: Row 13, column 'image'" in (errors if what == "stays" else out)
    assert "BadRowError Row 13, column 'image'" in started[1].communicate()[0]

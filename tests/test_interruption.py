"""Signals: what they ask for is saved and said, and the status is theirs."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tgo_trl.trainer import checkpoints
from tgo_trl.trainer.interruption import Interruption, Terminated

from .devices import cpu_environment
from .killing import execute
from .runs import assert_equal, config, make_trainer, trained_weights

ROOT = Path(__file__).parent.parent
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}

RUN = """
import os, signal, sys
from pathlib import Path
import torch
from transformers import TrainerCallback
from tests import runs
torch.set_num_threads(1)
folder, number, at, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if mode == "ignored":
    signal.signal(number, signal.SIG_IGN)
else:  # as in a terminal, whatever these tests were started from
    signal.signal(signal.SIGINT, signal.default_int_handler)
class Signal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == at - 1 and state.is_world_process_zero:
            os.kill(os.getpid(), number)
            if mode == "twice":
                os.kill(os.getpid(), number)
settings = {"max_steps": 6, "save_strategy": "no" if mode == "unsaved" else "steps", "save_steps": 4}
if "LOCAL_RANK" in os.environ:
    settings["per_device_train_batch_size"] = 2
runs.make_trainer(runs.config(folder, **settings), callbacks=[Signal()]).train()
print("ended by itself")
"""


def run(folder, number, at, mode="plain"):
    status, out, errors = execute(RUN, folder, int(number), at, mode)
    return SimpleNamespace(returncode=status, stdout=out, stderr=errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_saves_the_update_says_so_and_ends_with_its_status(tmp_path, number):
    done = run(tmp_path / "cut", number, at=3)
    assert done.returncode == 128 + number, done.stderr[-2000:]
    assert "ended by itself" not in done.stdout
    name = signal.Signals(number).name
    assert f"{name} at update 3 of 6: checkpoint-3 is the last one, no update lost." in done.stderr
    assert checkpoints.last_checkpoint(tmp_path / "cut" / "out").name == "checkpoint-3"

    resumed = make_trainer(config(tmp_path / "cut", **STEPS))
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 3
    whole = make_trainer(config(tmp_path / "whole", **STEPS))
    whole.train()
    assert_equal(trained_weights(resumed), trained_weights(whole))


@pytest.mark.slow
def test_a_run_that_saves_nothing_saves_then(tmp_path):
    done = run(tmp_path, signal.SIGTERM, at=2, mode="unsaved")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-2"


@pytest.mark.slow
def test_the_last_update_too(tmp_path):
    done = run(tmp_path, signal.SIGTERM, at=6, mode="unsaved")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-6"


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored(tmp_path):
    """`nohup` is meant."""
    done = run(tmp_path, signal.SIGHUP, at=2, mode="ignored")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ended by itself" in done.stdout


@pytest.mark.slow
def test_processes_end_together(tmp_path):
    """One of two is told; the launcher says that they failed, since they ended with a status that is not 0."""
    program = tmp_path / "program.py"
    program.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    command += [str(tmp_path), str(int(signal.SIGTERM)), "2", "plain"]
    environment = cpu_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "SIGTERM at update 3 of 6: checkpoint-3 is the last one" in done.stderr, done.stderr[-3000:]
    assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-3"


def test_ctrl_c_saves_the_update_and_the_same_command_goes_on_there(tmp_path):
    done = run(tmp_path, signal.SIGINT, at=2, mode="unsaved")
    assert done.returncode != 0
    assert "Interrupted: the run ends with a checkpoint when this update is made." in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "KeyboardInterrupt: Interrupted at update 2 of 6: checkpoint-2 is the last one, no update lost. The same "
        "command goes on there."
    )
    assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "message"),
    [
        (3, "2 of 6: there is no checkpoint, 2 updates lost. The same command begins anew."),
        (6, "5 of 6: checkpoint-4 is the last one, 1 update lost. The same command goes on there."),
    ],
)
def test_a_second_ctrl_c_ends_at_once_and_says_what_is_lost(tmp_path, at, message):
    done = run(tmp_path, signal.SIGINT, at, "twice")
    assert f"Interrupted at update {message}" in done.stderr


# ---- The context alone ----


def test_the_first_signal_is_remembered_and_the_second_is_the_systems():
    with Interruption() as interruption:
        assert interruption.name == "no signal"
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signum == signal.SIGTERM
        assert interruption.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert Terminated(signal.SIGTERM).code == 143


def test_ctrl_c_is_remembered_once_and_then_pythons_own():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it puts behind it ignore it
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signum == signal.SIGINT
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_given_back_and_those_of_the_user_left():
    def mine(signum, frame):
        pass

    before = signal.signal(signal.SIGHUP, mine)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGHUP) is mine
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_take_no_signals():
    seen = []

    def train():
        with Interruption() as interruption:
            seen.append((interruption.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(None, signal.SIG_DFL)]

"""ZeRO-2 by DeepSpeed: gradients and moments that are spread over processes train, save and go on as whole ones do."""

import shutil

import pytest
import torch

from tgo_trl.policy.deepspeed_config import OWN_VALUES

from .runs import assert_close
from .sharded_runs import (
    NEEDS_DEEPSPEED,
    OF_WHOLE_WEIGHTS,
    assert_keeps_no_cast,
    assert_like_one_process,
    assert_same_metrics,
    run_case,
    run_sharded,
    runs_of_one_process,
)

pytestmark = [*NEEDS_DEEPSPEED, pytest.mark.slow]

CASES = [
    "all weights", "moving reference", "accumulated", "evaluated before", "held to bounds", "resumed", "kto",
    "compiled", "flux", "two networks", "averaged", "reference remembered", *OF_WHOLE_WEIGHTS,
]  # fmt: skip
ROUNDED, CAST = ["bfloat16", "without autocast"], "all weights, bfloat16"
RESUMED = ["resumed", "all weights, resumed", "averaged, resumed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def one_process(folder):
    return runs_of_one_process(folder)


@pytest.fixture(scope="module")
def cases(folder):
    return run_sharded([*CASES, *ROUNDED, CAST], folder / "two", way="zero2")


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_one_process(cases, one_process, name):
    assert_like_one_process(cases[name], one_process(name))


@pytest.mark.parametrize("name", ROUNDED)
def test_trained_weights_stay_float32_and_times_are_not_rounded(cases, one_process, name):
    """DeepSpeed would make the weights bfloat16, and `Trainer` the rows: losses are then off by 1.4e-2."""
    (first, _), one = cases[name], one_process(name)
    assert first["is sharded"]
    assert {weight.dtype for weight in first["weights"].values()} == {torch.float32}
    losses, whole = ([it["loss"] for it in run["log"] if "loss" in it] for run in (first, one))
    assert losses == pytest.approx(whole, rel=1e-3)


def test_no_copy_that_autocast_makes_of_a_block_is_kept_until_the_forward_pass_ends(cases):
    assert_keeps_no_cast(cases[CAST])


DOCUMENTED = ["averaged", "all weights, resumed"]


def test_values_that_may_be_written_are_those_that_deepspeed_takes_by_itself():
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}})
    owners = {name: read.zero_config if name.startswith("zero_") else read for name in OWN_VALUES}
    assert {name: getattr(it, name.split(".")[-1]) for name, it in owners.items()} == OWN_VALUES


@pytest.fixture(scope="module")
def documented(folder):
    return run_sharded(DOCUMENTED, folder / "documented", way="documented, stage 2")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_file_of_the_documentation_of_transformers_gives_the_run_of_one_process(documented, one_process, name):
    assert_like_one_process(documented[name], one_process(name))


@pytest.fixture(scope="module")
def begun(folder):
    """Runs that two processes began, and were stopped after their third update, of which two are saved."""
    return folder / "begun", run_sharded(RESUMED, folder / "begun", phase="begin", way="deepspeed")


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_goes_on_with_and_without_deepspeed(begun, folder, one_process, name, num_processes):
    (started, results), run = begun, folder / f"on-{num_processes}-{name}"
    assert results[name][0]["is sharded"]
    shutil.copytree(started / f"run-{name}", run / f"run-{name}")
    if num_processes == 1:
        result = run_case(name, run / f"run-{name}", "go on", per_device_train_batch_size=8)
    else:
        result = run_sharded([name], run, num_processes, "go on", "deepspeed")[name][0]
    expected = one_process(name)
    assert result["is sharded"] == (num_processes > 1)
    assert_close(result["weights"], expected["weights"], 1e-5)
    assert_same_metrics(result["log"], expected["log"])
    names = {path.name for path in (run / f"run-{name}" / "out" / "checkpoint-4").iterdir()}
    assert not [it for it in names if "zero" in it or "global_step" in it], "nothing is saved by DeepSpeed"


def test_deepspeed_goes_on_with_a_run_of_one_process(folder, one_process):
    run = folder / "from-1"
    run_case("resumed", run / "run-resumed", "begin", per_device_train_batch_size=8)
    result = run_sharded(["resumed"], run, 4, "go on", "zero2")["resumed"][0]
    assert result["is sharded"]
    assert_close(result["weights"], one_process("resumed")["weights"], 1e-5)
    assert_same_metrics(result["log"], one_process("resumed")["log"])

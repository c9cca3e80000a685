"""ZeRO-3 by DeepSpeed: weights that are spread over processes train, compute, save and go on as whole ones do."""

import shutil

import pytest
import torch

from .runs import assert_close
from .sharded_runs import (
    NEEDS_DEEPSPEED,
    assert_keeps_no_cast,
    assert_like_one_process,
    assert_same_losses,
    assert_same_metrics,
    assert_saves_a_pipeline,
    cached,
    run_case,
    run_sharded,
    runs_of_one_process,
)

pytestmark = [*NEEDS_DEEPSPEED, pytest.mark.slow]

CASES = [
    "all weights", "all weights, without a reference", "moving reference", "accumulated", "evaluated before",
    "held to bounds", "averaged", "averaged, resumed", "resumed", "kto", "loaded by path", "flux", "stable_diffusion_3",
    "two networks", "left out", "reference remembered", "reference remembered, resumed", "second network remembered",
    "compiled", "compiled with gradients",
]  # fmt: skip
ROUNDED = ["bfloat16", "without autocast"]
UNEVEN, CAST = "two networks, remembered", "all weights, bfloat16"
RESUMED = ["resumed", "all weights, resumed", "averaged, resumed", "reference remembered, resumed"]
DOCUMENTED = ["averaged", "all weights, resumed"]
KEPT = ["adapter", "all weights", "averaged"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero3")


@pytest.fixture(scope="module")
def one_process(folder):
    return runs_of_one_process(folder)


@pytest.fixture(scope="module")
def cases(folder):
    names = [*CASES, *ROUNDED, UNEVEN, CAST]
    parts = (names[::2], names[1::2])  # that take half as long
    return run_sharded(parts[0], folder / "two", way="weights") | run_sharded(parts[1], folder / "two", way="weights")


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_one_process(cases, one_process, name):
    assert_like_one_process(cases[name], one_process(name))


def test_no_weight_is_kept_whole_from_the_forward_to_the_backward_pass(cases, one_process):
    """As a linear layer keeps its weight, transposed, for the gradient of its input."""
    assert not any(count for name in CASES for _, count in cases[name][0]["kept"])
    called, count = cases["accumulated"][0]["kept"][0]
    assert (called, called) == one_process("accumulated")["kept"][0]
    assert (called > 0, count) == (True, 0)


def test_no_copy_that_autocast_makes_of_a_block_is_kept_until_the_forward_pass_ends(cases):
    assert_keeps_no_cast(cases[CAST])


def test_networks_are_let_go_of(cases):
    """Of those that DeepSpeed gathers weights for, whose parts would stay on each device, and of blocks called again.

    A run with a second network has two: but where its errors are remembered, it has none of them any more.
    """
    remembered = [run for name in ("reference remembered", "second network remembered") for run in cases[name]]
    assert [(it["policies"], it["called"]) for it in remembered] == [(1, 1)] * 4
    assert [(it["policies"], it["called"]) for it in cases["all weights"]] == [(2, 2)] * 2
    assert [it["called"] for it in cases["kto"]] == [1] * 2


def test_blocks_are_compiled_whole_on_shards(cases):
    """Weights of a block are gathered before it is called: as many graphs as on FSDP2's shards, and no break."""
    assert [it["graphs"] for it in cases["compiled"]] == [(5, 0), (5, 0)]
    assert [it["graphs"] for it in cases["compiled with gradients"]] == [(11, 0), (11, 0)]


def test_a_process_that_has_computed_its_reference_errors_goes_on_for_the_others(cases, one_process):
    assert_same_losses(cases[UNEVEN], one_process(UNEVEN))


def test_what_is_saved_loads_in_stock_diffusers(cases, one_process, folder):
    assert_saves_a_pipeline(folder / "two" / "run-all weights" / "out", one_process("all weights")["weights"])


@pytest.fixture(scope="module")
def kept(folder):
    """Runs as `accelerate launch` begins them with our profile, whose small weights stay whole between the steps."""
    return run_sharded(KEPT, folder / "kept", way="zero3")


@pytest.mark.parametrize("name", KEPT)
def test_weights_that_stay_whole_between_steps_equal_one_process(kept, one_process, name):
    assert_like_one_process(kept[name], one_process(name))


@pytest.mark.parametrize("way", ["documented, stage 3", "parts"])
def test_files_of_the_documentation_of_transformers_give_the_run_of_one_process(folder, one_process, way):
    """Of the optimizer's state too, which a run that goes on reads."""
    runs = run_sharded(DOCUMENTED, folder / way, way=way)
    for name in DOCUMENTED:
        assert_like_one_process(runs[name], one_process(name))


@pytest.mark.parametrize("name", ROUNDED)
def test_trained_weights_stay_float32_and_times_are_not_rounded(cases, one_process, name):
    (first, _), one = cases[name], one_process(name)
    assert first["is sharded"]
    assert {weight.dtype for weight in first["weights"].values()} == {torch.float32}
    losses, whole = ([it["loss"] for it in run["log"] if "loss" in it] for run in (first, one))
    assert losses == pytest.approx(whole, rel=1e-3)


@pytest.fixture(scope="module")
def begun(folder):
    """Runs that two processes began, and were stopped after their third update, of which two are saved."""
    return folder / "begun", run_sharded(RESUMED, folder / "begun", phase="begin", way="weights")


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("way", ["one process", "weights", "deepspeed"])
def test_a_run_goes_on_with_and_without_shards(begun, folder, one_process, name, way):
    (started, results), run = begun, folder / f"on-{way}-{name}"
    assert results[name][0]["is sharded"]
    shutil.copytree(started / f"run-{name}", run / f"run-{name}")
    if way == "one process":
        result = run_case(name, run / f"run-{name}", "go on", per_device_train_batch_size=8)
    else:
        result = run_sharded([name], run, 2, "go on", way)[name][0]
    expected = one_process(name)
    assert result["is sharded"] == (way != "one process")
    assert_close(result["weights"], expected["weights"], 1e-5)
    assert_same_metrics(result["log"], expected["log"])
    names = {path.name for path in (run / f"run-{name}" / "out" / "checkpoint-4").iterdir()}
    assert not [it for it in names if "zero" in it or "global_step" in it], "nothing is saved by DeepSpeed"
    caches = [cached(it) for it in (started / f"run-{name}", run / f"run-{name}", folder / f"one-{name}")]
    assert caches[0] == caches[1] == caches[2], "nothing is computed twice, or otherwise"


@pytest.mark.parametrize("way", ["one process", "deepspeed"])
def test_more_shards_go_on_with_a_run_of_others(folder, one_process, way):
    """Of four processes, some hold nothing of the smallest weights; ZeRO-2 leaves out empty groups of them."""
    run = folder / f"from-{way}"
    if way == "one process":
        run_case("resumed", run / "run-resumed", "begin", per_device_train_batch_size=8)
    else:
        run_sharded(["resumed"], run, 2, "begin", way)
    result = run_sharded(["resumed"], run, 4, "go on", "weights")["resumed"][0]
    assert result["is sharded"]
    assert_close(result["weights"], one_process("resumed")["weights"], 1e-5)
    assert_same_metrics(result["log"], one_process("resumed")["log"])

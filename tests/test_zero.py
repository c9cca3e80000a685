"""ZeRO-2 by DeepSpeed: gradients and moments that are spread over processes train, save and go on as whole ones do."""

import functools
import importlib.util

import pytest

from .sharded_runs import assert_like_one_process, run_case, run_sharded

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: `make test-deepspeed`"
)

CASES = ["adapter", "all weights", "moving reference", "accumulated", "evaluated before", "left out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def one_process(folder):
    """A case, trained by one process with batches of eight rows."""

    @functools.cache
    def run(name):
        return run_case(name, folder / f"one-{name}", per_device_train_batch_size=8)

    return run


@pytest.fixture(scope="module")
def cases(folder):
    return run_sharded(CASES, folder / "two", way="zero2")


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_one_process(cases, one_process, name):
    assert_like_one_process(cases[name], one_process(name))

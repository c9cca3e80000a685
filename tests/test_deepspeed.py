"""What `make test` runs with DeepSpeed: a run of ZeRO-2 and one of ZeRO-3, of the many in `test_zero.py` and others."""

import pytest

from .sharded_runs import (
    NEEDS_DEEPSPEED,
    assert_like_one_process,
    assert_saves_an_adapter,
    run_sharded,
    runs_of_one_process,
)

pytestmark = NEEDS_DEEPSPEED


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return runs_of_one_process(tmp_path_factory.mktemp("deepspeed"))


@pytest.mark.parametrize("way", ["zero2", "weights"])
def test_an_adapter_trains_and_is_saved_as_in_one_process(tmp_path, one_process, way):
    two = run_sharded(["adapter"], tmp_path, way=way)["adapter"]
    assert_like_one_process(two, one_process("adapter"))
    assert_saves_an_adapter(tmp_path / "run-adapter" / "out", one_process("adapter")["weights"])

"""Shards on disk: named, written whole or not at all, refused for other settings; data sets opened by name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

import datasets
import pytest
from accelerate import PartialState
from datasets import Features, Value, load_dataset
from datasets import Image as ImageFeature

from tgo_trl.commands.sharded_run import rows_per_shard
from tgo_trl.messages.public import public_name
from tgo_trl.storage.files import replace_file
from tgo_trl.storage.parquet import ParquetFolder, column

from .devices import cpu_environment
from .killing import begin
from .tiny import picture

ROOT = Path(__file__).parent.parent
FEATURES = Features({"prompt": Value("string"), "image": ImageFeature()})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Nothing stays behind in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def shards_in(folder, num_shards=2, split="train"):
    return ParquetFolder(folder, "generation.json", split, num_shards)


def rows(count=3, first=0):
    return [{"prompt": f"prompt {i}", "image": picture(i)} for i in range(first, first + count)]


def files(folder):
    """Content of every file below a folder, hidden ones included, by path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run_and_kill(code, folder, num_shards=1):
    """Runs a program, and kills it as soon as there are so many shards in a folder."""
    with NamedTemporaryFile("r") as errors:
        process = begin(code, errors=errors.name)
        deadline = time.monotonic() + 120
        while len(list((folder / "data").glob("*.parquet"))) < num_shards:
            assert process.exitcode is None, errors.read()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_two_processes(code, folder):
    """Runs a program in two processes that talk to each other."""
    program = folder / "program.py"
    program.write_text(code)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = cpu_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


# ---- Shards ----


def test_shards_are_named_as_the_hub_names_them(tmp_path):
    assert shards_in(tmp_path, 12).path(3) == tmp_path / "data" / "train-00003-of-00012.parquet"
    assert shards_in(tmp_path, None, "test").path(3) == tmp_path / "data" / "test-00003.parquet"
    assert [rows_per_shard(None, False), rows_per_shard(None, True), rows_per_shard(7, True)] == [64, 4, 7]


def test_a_shard_is_the_same_bytes_every_time_and_loads(tmp_path):
    for name in ("one", "two"):
        shards_in(tmp_path / name, 2).write(0, rows(), FEATURES)
        shards_in(tmp_path / name, 2).write(1, [], FEATURES)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    loaded = load_dataset(str(tmp_path / "one"), split="train")
    assert loaded.features == FEATURES
    assert loaded["prompt"] == ["prompt 0", "prompt 1", "prompt 2"]
    assert loaded[2]["image"].tobytes() == picture(2).tobytes()
    written = shards_in(tmp_path / "one").written()
    assert list(written) == [0, 1]
    assert column(written.values(), "prompt") == ["prompt 0", "prompt 1", "prompt 2"]


def test_what_fails_or_is_killed_leaves_nothing_that_loads(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert files(tmp_path) == {"file": b"old"}

    shards = shards_in(tmp_path, 1)
    shards.write(0, rows(), FEATURES)
    left = shards.path(0).with_name(".train-00000-of-00001.parquet.0123abcd")  # of a process killed while it wrote
    left.write_bytes(b"half")
    assert load_dataset(str(tmp_path), split="train").num_rows == 3
    shards.check_complete(1)
    assert not left.exists()


def test_missing_shards_are_told(tmp_path):
    shards_in(tmp_path).write(1, rows(), FEATURES)
    with pytest.raises(ValueError, match=r"1 of 2 files are not in .* machines that do not share this folder"):
        shards_in(tmp_path).check_complete(2)


def test_a_stream_gets_its_names_when_its_end_is_known(tmp_path):
    shards = shards_in(tmp_path, None)
    for shard in range(3):
        shards.write(shard, rows(2, 2 * shard), FEATURES)
    os.replace(shards.path(0), shards_in(tmp_path, 3).path(0))  # killed while it renamed
    shards = shards_in(tmp_path, None)
    assert list(shards.written()) == [0, 1, 2]
    shards.seal(3)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f"train-0000{shard}-of-00003.parquet" for shard in range(3)
    ]
    assert load_dataset(str(tmp_path), split="train")["prompt"] == [f"prompt {i}" for i in range(6)]


# ---- Damage ----

HARM = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-40] + b"\0" + path.read_bytes()[-39:]),
    "without its entry": lambda path: (path.parent.parent / ".manifest" / "train-00001.json").unlink(),
    "with half an entry": lambda path: os.truncate(path.parent.parent / ".manifest" / "train-00001.json", 20),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_shard_is_made_again_and_named(tmp_path, harm, caplog):
    state = PartialState()
    shards = shards_in(tmp_path, 2)
    shards.begin({}, state)
    for shard in range(2):
        shards.write(shard, rows(2, 2 * shard), FEATURES)
    (tmp_path / "README.md").write_text("of a finished data set")
    before = {name: data for name, data in files(tmp_path).items() if name != "README.md"}
    assert shards.begin({}, state) == [0, 1]
    harm(shards.path(1))
    assert shards.begin({}, state) == [0]
    assert "train-00001-of-00002.parquet" in caplog.text
    assert "It is made again." in caplog.text
    assert not (tmp_path / "README.md").exists(), "the data set is not finished"
    shards.write(1, rows(2, 2), FEATURES)
    assert files(tmp_path) == before


def test_what_a_shard_was_made_of_is_remembered(tmp_path):
    shards = shards_in(tmp_path, 2)
    shards.write(0, rows(), FEATURES, "digest of its rows")
    shards.write(1, rows(), FEATURES)
    assert [shards.source(shard) for shard in range(3)] == ["digest of its rows", None, None]


# ---- Settings ----


def test_other_settings_are_refused_by_name(tmp_path):
    state = PartialState()
    settings = {"seed": 0, "call": {"steps": 2}, "size": (16, 16)}
    shards = shards_in(tmp_path)
    assert shards.begin(settings, state) == []
    shards.write(1, rows(), FEATURES)
    assert shards.begin(settings, state) == [1]
    shards.finish({"license": "mit"})
    assert json.loads((tmp_path / "generation.json").read_text()) == {
        "license": "mit",
        "settings": {"seed": 0, "call": {"steps": 2}, "size": [16, 16]},
    }
    assert shards.begin(settings, state) == [1]
    with pytest.raises(
        ValueError, match=r"`call\.steps` was 2, is 3; `seed` was 0, is None\. Set another `output_dir`"
    ):
        shards.begin({"call": {"steps": 3}, "size": (16, 16)}, state)


def test_without_shards_the_settings_are_replaced(tmp_path):
    shards_in(tmp_path).begin({"batch_size": 64}, PartialState())  # out of memory, say
    (tmp_path / "README.md").write_text("of an earlier data set")
    shards_in(tmp_path).begin({"batch_size": 4}, PartialState())
    assert json.loads((tmp_path / "generation.json").read_text()) == {"settings": {"batch_size": 4}}
    assert not (tmp_path / "README.md").exists()


def test_data_of_others_is_left_alone(tmp_path):
    shards_in(tmp_path).write(0, rows(), FEATURES)
    with pytest.raises(ValueError, match=r"holds data without generation\.json, from something else"):
        shards_in(tmp_path).begin({}, PartialState())


def test_a_folder_has_one_split(tmp_path):
    shards_in(tmp_path, 1).begin({"seed": 0}, PartialState())
    shards_in(tmp_path, 1).write(0, rows(), FEATURES)
    (tmp_path / "README.md").write_text("of train")
    before = files(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"holds 'train-00000-of-00001\.parquet', which is no file of the split 'test'.*another `output_",
    ):
        shards_in(tmp_path, 1, "test").begin({"seed": 0}, PartialState())
    assert files(tmp_path) == before


def test_public_names_tell_no_machine(tmp_path):
    assert public_name("owner/name") == "owner/name"
    assert public_name(str(tmp_path)) == tmp_path.name
    assert public_name("a" * 5000) == "a" * 5000  # no file has such a name
    assert public_name("") == ""
    assert public_name(str(tmp_path / "*.parquet")) == "*.parquet"


@pytest.mark.slow
def test_launched_processes_know_of_each_other_without_a_gpu(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from tgo_trl.storage.processes import process_state\n"
        "state = process_state()\n"
        "from pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "(folder / f'{state.process_index} of {state.num_processes}').write_text(str(state.is_main_process))\n"
    )
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = cpu_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.glob("* of *")} == {"0 of 2": "True", "1 of 2": "False"}


def test_a_file_that_several_rows_hold_is_stored_once(tmp_path):
    sources = [os.urandom(2_000_000), os.urandom(1_000_000)]
    shards = shards_in(tmp_path, 1)
    shards.begin({}, PartialState())
    files_of = [{"prompt": "a", "image": {"bytes": sources[i // 4], "path": None}} for i in range(8)]
    shards.write(0, files_of, FEATURES)
    assert 3_000_000 < shards.path(0).stat().st_size < 3_100_000

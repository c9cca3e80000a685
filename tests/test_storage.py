"""Files that are whole or as they were, folders that vouch for theirs, and one writer at a time."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tgo_trl.storage import files
from tgo_trl.storage.files import file_digest, replace_file, sweep, write_json
from tgo_trl.storage.locks import LOCK_NAME, sole_writer, taking_turns
from tgo_trl.storage.manifest import MANIFEST_NAME, file_damage, file_entry, find_damage, write_manifest

ROOT = Path(__file__).parent.parent


def run_beside(code: str, *arguments: object) -> subprocess.Popen:
    """Another process, which runs a program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# ---- Files ----


def test_the_digest_is_what_sha256sum_prints(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda temporary: temporary.write_text("old"))
    assert path.read_text() == "old"

    def fail(temporary):
        temporary.write_text("half of the ne")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_json_is_sorted_and_makes_its_folder(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"z": 1, "a": [2]})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "z": 1\n}\n'


KILLED = """
import os, sys
from pathlib import Path
from tgo_trl.storage.files import replace_file
def die(temporary):
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
    os._exit(9)
replace_file(Path(sys.argv[1]), die)
"""


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    process = run_beside(KILLED, tmp_path / "file")
    name = process.stdout.readline().strip()
    for other in (".hidden", ".file.0123abcd", "file.txt"):
        (tmp_path / other).write_text("the user's")
    sweep(tmp_path)
    assert (tmp_path / name).exists(), "its process is alive, and would rename it"
    process.kill()
    process.communicate()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.0123abcd", ".hidden", "file.txt"]


def test_another_machines_temporary_files_stay_for_a_day(tmp_path):
    new, old = (tmp_path / f".file.0123abcd-1-{ending}" for ending in ("00000000", "11111111"))
    for path in (new, old):
        path.write_text("half")
    os.utime(old, (time.time() - files.DAY - 60,) * 2)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


# ---- Manifests ----


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "optimizer.pt").write_bytes(bytes(range(256)))
    (tmp_path / "unet" / "config.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_lists_size_and_digest_of_every_file(folder):
    digest = hashlib.sha256(bytes(range(256))).hexdigest()
    assert json.loads((folder / MANIFEST_NAME).read_text()) == {
        "files": {
            "optimizer.pt": {"size": 256, "sha256": digest},
            "unet/config.json": {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        }
    }
    assert find_damage(folder) is None
    (folder / "more").write_text("what is added later is nobody's business")
    assert find_damage(folder) is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


DAMAGES = {
    "a file missing": ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
    "a file cut": ("optimizer.pt", lambda path: os.truncate(path, 128), "optimizer.pt has 128 bytes instead of 256"),
    "a file empty": ("optimizer.pt", lambda path: os.truncate(path, 0), "optimizer.pt has 0 bytes instead of 256"),
    "a bit flipped": ("optimizer.pt", flip, "optimizer.pt is not as it was written (its SHA-256 differs)"),
    "in a folder": ("unet/config.json", flip, "config.json is not as it was written (its SHA-256 differs)"),
    "no manifest": (MANIFEST_NAME, Path.unlink, "manifest.json, which is written last, is missing"),
    "half a manifest": (MANIFEST_NAME, lambda path: os.truncate(path, 30), "manifest.json cannot be read"),
    "a manifest of something else": (MANIFEST_NAME, lambda path: path.write_text("[]"), "manifest.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(folder, name, damage, message):
    damage(folder / name)
    assert find_damage(folder) == message


def test_a_files_entry_holds_for_that_file_alone(folder):
    entry = file_entry(folder / "optimizer.pt")
    assert file_damage(folder / "optimizer.pt", entry) is None
    assert file_damage(folder / "unet" / "config.json", entry) == "config.json has 2 bytes instead of 256"
    assert "instead of None" in file_damage(folder / "optimizer.pt", {})


# ---- Locks ----

HOLD = """
import sys
from pathlib import Path
from tgo_trl.storage.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    process = run_beside(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    message = r"Another process is writing to the folder .* or set another `output_dir`"
    with pytest.raises(ValueError, match=message), sole_writer(tmp_path):
        raise AssertionError
    process.communicate("")
    with sole_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_holds_nothing(tmp_path):
    process = run_beside(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    with sole_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_writer_may_ask_again(tmp_path):
    with sole_writer(tmp_path), sole_writer(tmp_path):
        (tmp_path / "file").write_text("written")
    with sole_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_nothing_was_written_to_is_not_left(tmp_path):
    with pytest.raises(KeyError), sole_writer(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_who_comes_later_waits_and_says_so(tmp_path, caplog):
    process = run_beside(HOLD.replace("sole_writer(Path(sys.argv[1]))", "taking_turns(Path(sys.argv[1]), '')").replace(
        "sole_writer", "taking_turns"), tmp_path / "x.lock")  # fmt: skip
    assert process.stdout.readline() == "held\n"
    begun = time.monotonic()
    process.stdin.close()
    with taking_turns(tmp_path / "x.lock", "Waiting for the other run."):
        waited = time.monotonic() - begun
    process.wait()
    assert not list(tmp_path.iterdir())
    if waited > 0.01:  # it may have ended before we asked
        assert "Waiting for the other run." in caplog.text or waited < 1

"""What the user can mend is said in one line; what he cannot is a fault of the program, and keeps its traceback."""

import errno
import importlib
import json
import re
import zipfile

import pyarrow as pa
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError

from tgo_trl import cli
from tgo_trl.cli import main
from tgo_trl.messages.failures import explain, is_disk_full, writing
from tgo_trl.storage.files import replace_file, write_json

from .test_cli import error_of, folder, train  # noqa: F401 (fixtures)

HTTP = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
"""The library that the Hub's client speaks through: httpx, or what has come after it."""


def response():
    return HTTP.Response(403, request=HTTP.Request("GET", "https://huggingface.co/a/b"))


def generation_error():
    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("Value is too big in row 3")
    return error


MENDABLE = {
    "a setting": (ValueError("`a` is 1;\n it must be 2."), "`a` is 1; it must be 2."),
    "without words": (ValueError(), "ValueError"),
    "JSON": (json.JSONDecodeError("Expecting value", "x", 0), "Expecting value: line 1 column 1"),
    "bytes": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
    "a missing file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), "'/a/b'"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), "Is a directory: '/a'"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/a"), "Permission denied: '/a'"),
    "weights": (SafetensorError("header too large"), "header too large"),
    "Parquet": (pa.ArrowInvalid("Parquet magic bytes not found"), "magic bytes"),
    "Arrow": (pa.ArrowNotImplementedError("no such cast"), "no such cast"),
    "rows": (generation_error(), "generating the dataset ValueError: Value is too big in row 3"),
    "an archive": (zipfile.BadZipFile("File is not a zip file"), "not a zip file"),
    "the Hub": (HfHubHTTPError("403 Forbidden", response=response()), "403 Forbidden"),
    "a gate": (GatedRepoError("Access to a/b is restricted", response=response()), "is restricted"),
    "a repository": (RepositoryNotFoundError("404 a/b", response=response()), "404 a/b"),
    "offline": (OfflineModeIsEnabled("Cannot reach: offline mode is enabled"), "offline mode"),
    "the connection": (HTTP.ConnectError("Connection refused"), "Connection refused"),
    "a time-out": (HTTP.ReadTimeout("timed out"), "timed out"),
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory. Make batches smaller"),
    "memory": (MemoryError(), "Out of memory. Make batches smaller"),
    "an extra": (ModuleNotFoundError("No module named 'av'", name="av"), r"pip install tgo_trl\[video\]"),
    "a package": (ModuleNotFoundError("No module named 'wandb.sdk'", name="wandb.sdk"), "pip install wandb`"),
    "an old package": (ImportError("requires bitsandbytes: pip install -U bitsandbytes"), "install -U bitsandbytes"),
}


@pytest.mark.parametrize(("error", "message"), MENDABLE.values(), ids=MENDABLE)
def test_what_can_be_mended_is_one_line(monkeypatch, capsys, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "run_command", fail)
    assert main(["train"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("tgo-trl train: error: ")
    assert printed.count("\n") == 1
    assert re.search(message, printed)
    with pytest.raises(type(error)):
        main(["train", "--debug"])


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("a bug"), KeyError("name"), TypeError("unsupported operand"), AttributeError("x"), IndexError(0),
        RuntimeError("shapes differ"), ZeroDivisionError(), NotImplementedError(), RecursionError(), NameError("x"),
        ModuleNotFoundError("No module named 'tgo_trl.nothing'", name="tgo_trl.nothing"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, error):
    if isinstance(error, ModuleNotFoundError):
        assert "pip install" not in (explain(error) or "")
        return
    assert explain(error) is None

    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "run_command", fail)
    with pytest.raises(type(error)):
        main(["train"])


# ---- A full disk ----


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"), errno.ENOSPC),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), errno.ENOSPC),
    ],
    ids=str,
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, error, number):
    assert is_disk_full(error)
    with pytest.raises(OSError, match="the disk is full") as raised, writing(tmp_path / "weights"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "weights"))
    assert str(tmp_path / "weights") in (explain(raised.value) or "")


def test_an_innermost_name_stays_and_other_errors_pass(tmp_path):
    with pytest.raises(OSError, match="inner") as raised, writing(tmp_path / "outer"), writing(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "inner")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("x")


def test_a_device_that_is_full_leaves_what_was_there(tmp_path):
    path = tmp_path / "settings.json"
    write_json(path, {"a": 1})

    def fill(temporary):
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(OSError, match=r"the disk is full, or a quota is used up: .*settings.json"):
        replace_file(path, fill)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["settings.json"]


# ---- Through the program ----


def test_a_damaged_pipeline_data_set_or_prompt_file_is_one_line(train, folder, tmp_path, capsys):  # noqa: F811
    arguments, _ = train
    error_of(capsys, *arguments, "--dataset_name", tmp_path / "nowhere.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 nothing")
    error_of(capsys, *arguments, "--dataset_name", tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text('{"prompt": "a", "score": ')
    error_of(capsys, *arguments, "--dataset_name", tmp_path / "rows.json")
    (tmp_path / "model").mkdir()
    error_of(capsys, *arguments, "--model_name_or_path", tmp_path / "model")
    (tmp_path / "model" / "model_index.json").write_text("{")
    error_of(capsys, *arguments, "--model_name_or_path", tmp_path / "model")
    (tmp_path / "model" / "model_index.json").write_text("{}")
    error_of(capsys, *arguments, "--model_name_or_path", tmp_path / "model")
    (tmp_path / "file").write_text("")
    error_of(capsys, *arguments, "--output_dir", tmp_path / "file" / "out")
    assert "`--config` comes twice" in error_of(capsys, *arguments, "--config", tmp_path)
    assert "Is a directory" in error_of(capsys, "train", "--config", tmp_path)
    error_of(capsys, *arguments, "--learning_rate", "fast")
    error_of(capsys, *arguments, "--optim", "adamm")
    assert "Did you mean `--lora_r`" in error_of(capsys, *arguments, "--lora_rr", "4")
    assert "are required: --output_dir" in error_of(capsys, "generate", "--model_name_or_path", "a", "--prompts", "b")

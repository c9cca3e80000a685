"""Damage of any kind to any file that is vouched for is found."""

import json

import datasets
import pytest
import torch
from accelerate import PartialState
from datasets import Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tgo_trl.storage.manifest import MANIFEST_NAME, find_damage, write_manifest
from tgo_trl.storage.parquet import ParquetFolder
from tgo_trl.storage.records import CARD_NAME, GENERATION_NAME
from tgo_trl.storage.shards import Shards, find_shard_damage, save_shard

FEATURES = Features({"prompt": Value("string"), "score": Value("float64")})


@st.composite
def damages(draw):
    """What happens to a file: a function of its bytes; None if it is deleted."""
    kind = draw(st.sampled_from(["flip", "cut", "more", "delete"]))
    share, mask = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))

    def damage(data):
        position = int(share * len(data))
        if kind == "delete":
            return None
        if kind == "more":
            return data + bytes([mask])
        if kind == "cut" or not data:
            return data[:position] if data else b"x"
        return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]

    return damage


def inflict(damage, path):
    """Damages a file; what it held before."""
    before = path.read_bytes()
    after = damage(before)
    path.unlink()
    if after is not None:
        path.write_bytes(after)
    return before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with files and folders of many sizes, empty ones too."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for i, name in enumerate(["adapter.bin", "state.json", "empty", "unet/config.json", "unet/weights", "ä b.txt"]):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(k * (i + 1) % 256 for k in range(0 if name == "empty" else 40**i % 3001)))
    write_manifest(folder)
    return folder


@settings(max_examples=200)
@given(damage=damages(), index=st.integers(0, 5))
def test_any_damage_to_a_checkpoints_file_is_found(checkpoint, damage, index):
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    assert find_damage(checkpoint) is None
    path = files[index]
    before = inflict(damage, path)
    try:
        assert path.name in find_damage(checkpoint)
    finally:
        path.write_bytes(before)


@settings(max_examples=200)
@given(damage=damages())
def test_a_damaged_manifest_vouches_for_nothing_that_is_not_so(checkpoint, damage):
    """A space that became a line break is no damage; else a clause says what is wrong."""
    path = checkpoint / MANIFEST_NAME
    names = set(json.loads(path.read_bytes())["files"])
    before = inflict(damage, path)
    try:
        found = find_damage(checkpoint)
        if found is None:
            assert set(json.loads(path.read_bytes())["files"]) == names
    finally:
        path.write_bytes(before)


@settings(max_examples=200)
@given(damage=damages())
def test_any_damage_to_encoded_rows_is_found(tmp_path_factory, damage):
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    tensors = {"latent": torch.arange(12.0).reshape(3, 4), "readable": torch.tensor([True, True, False])}
    save_shard(tensors, path)
    assert find_shard_damage(path) is None
    inflict(damage, path)
    if not path.exists() or find_shard_damage(path) is not None:
        return
    rows = Shards([path], 3)  # what was damaged says nothing
    for i in range(3):
        assert all(torch.equal(value, tensors[name][i]) for name, value in rows[i].items())


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory):
    """Two shards of a data set, finished."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


def write_rows(folder):
    """Begins, and writes what is missing, as commands do; the indices of shards that were whole."""
    datasets.disable_progress_bars()
    shards = ParquetFolder(folder, GENERATION_NAME, num_shards=2)
    written = shards.begin({"seed": 1, "names": ["a", "b"]}, PartialState(cpu=True))
    for shard in {0, 1} - set(written):
        shards.write(shard, [{"prompt": f"row {shard}", "score": 0.5 + shard}], FEATURES)
    shards.check_complete(2)
    shards.finish({"found": 2})
    (folder / CARD_NAME).write_text("card")
    return written


def attempt(folder):
    """The shards that were whole, or why the folder is refused."""
    try:
        return write_rows(folder), None
    except ValueError as error:
        return [], str(error)


def contents(folder):
    """Every file by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=150)
@given(damage=damages(), index=st.integers(0, 5))
def test_damaged_rows_are_made_again(rows_folder, damage, index):
    """Whatever is damaged, the same command gives the same files, or says what is wrong with the folder."""
    whole = contents(rows_folder)
    name = sorted(whole)[index % len(whole)]
    path = rows_folder / name
    inflict(damage, path)
    is_same = path.exists() and path.read_bytes() == whole[name]
    try:
        written, refusal = attempt(rows_folder)
        if refusal is not None:
            assert name == GENERATION_NAME
            assert str(rows_folder) in refusal
        else:
            after = contents(rows_folder)
            assert after.keys() == whole.keys()
            assert all(after[other] == whole[other] for other in whole if other != GENERATION_NAME)
            assert is_same or not name.endswith(".parquet") or len(written) == 1
    finally:
        for other, data in whole.items():
            (rows_folder / other).write_bytes(data)


def test_a_shard_whose_entry_has_a_damaged_name_is_made_again(tmp_path):
    """It stood for one that is read: without it, nobody asks what the shard was made of."""
    write_rows(tmp_path)
    whole = contents(tmp_path)
    entry = tmp_path / ".manifest" / "train-00000.json"
    entry.write_text(entry.read_text().replace("source", "snurce"))
    assert write_rows(tmp_path) == [1]
    assert contents(tmp_path) == whole

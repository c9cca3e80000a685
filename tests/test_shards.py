"""Shards: named by their content, whole or absent, the same whoever writes them."""

import copy
import hashlib
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader

from tgo_trl.storage import shards
from tgo_trl.storage.fingerprints import component_fingerprint, fingerprint
from tgo_trl.storage.shards import ROWS_PER_SHARD, ShardWriter

from .tiny import clip_tokenizer, stable_diffusion

NUM_ROWS = 3 * ROWS_PER_SHARD + 5
KEYS = [f"key {i}" for i in range(NUM_ROWS)]


class Encoder:
    """Rows as tensors of three dtypes, made from their indices; notes the batches that it was asked for."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        self.batches.append(list(rows))
        index = torch.tensor(list(rows))
        return {
            "square": (index.float()[:, None, None] ** 2).expand(-1, 2, 3),
            "third": (index / 3).bfloat16()[:, None],
            "odd": index % 2 == 1,
        }

    @property
    def shards(self):
        """The shards that the encoded rows belong to, in order."""
        return list(dict.fromkeys(row // ROWS_PER_SHARD for batch in self.batches for row in batch))

    @property
    def num_rows(self):
        return sum(map(len, self.batches))


def write(
    folder, keys=None, recipe="recipe", encoder=None, batch_size=10, process=(0, 1), wait=lambda: None, most=int,
    in_step=False,
):  # fmt: skip
    writer = ShardWriter(Path(folder), *process, wait, progress=False, most=most)
    rows = KEYS if keys is None else keys
    return writer.write(rows, encoder or Encoder(), recipe, batch_size, "Encoding", in_step=in_step)


def assert_right(read):
    """Every row holds what the encoder makes of its index."""
    assert len(read) == NUM_ROWS
    everything = Encoder()(range(NUM_ROWS))
    for row in range(NUM_ROWS):
        for name, tensor in read[row].items():
            assert tensor.dtype == everything[name].dtype
            assert torch.equal(tensor, everything[name][row]), (row, name)


# ---- Fingerprints ----


def test_a_fingerprint_is_a_hash_of_the_parts_with_their_lengths():
    text = b"\x01" + bytes(7) + b"a" + b"\x02" + bytes(7) + b"12"
    assert fingerprint("a", 12) == hashlib.blake2b(text, digest_size=20).hexdigest()
    assert fingerprint("a", b"12") == fingerprint("a", 12)


def test_different_parts_that_join_to_the_same_text_differ():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("c", "ab"), ()]
    assert len({fingerprint(*part) for part in parts}) == len(parts)


def change_one_weight(model):
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_a_model_is_known_by_its_weights(name):
    model = getattr(stable_diffusion(), name)
    before = component_fingerprint(model)
    assert component_fingerprint(getattr(stable_diffusion(), name)) == before  # built again from the same seed
    assert component_fingerprint(copy.deepcopy(model).train().requires_grad_(False)) == before
    assert component_fingerprint(copy.deepcopy(model).to(torch.bfloat16)) != before
    assert component_fingerprint(getattr(stable_diffusion(seed=1), name)) != before
    change_one_weight(model)
    assert component_fingerprint(model) != before


def test_a_model_is_known_by_its_configuration():
    model = stable_diffusion().vae
    before = component_fingerprint(model)
    model.register_to_config(scaling_factor=0.5)
    assert component_fingerprint(model) != before


def test_equal_bytes_of_another_dtype_are_another_model():
    layer = torch.nn.Linear(2, 2)
    layer.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in layer.state_dict().items()})
    half, brain = (copy.deepcopy(layer).to(dtype) for dtype in (torch.float16, torch.bfloat16))
    assert component_fingerprint(half) != component_fingerprint(brain)


def test_a_model_is_known_wherever_it_was_loaded_from(tmp_path):
    model = stable_diffusion().vae
    for folder in ("here", "there"):
        model.save_pretrained(tmp_path / folder)
    here, there = (type(model).from_pretrained(tmp_path / folder) for folder in ("here", "there"))
    assert component_fingerprint(here) == component_fingerprint(there)


def test_a_tokenizer_is_known_by_what_it_does():
    before = component_fingerprint(clip_tokenizer())
    changes = {
        "vocabulary": lambda tokenizer: tokenizer.add_tokens(["<new>"]),
        "length": lambda tokenizer: setattr(tokenizer, "model_max_length", 32),
        "padding": lambda tokenizer: setattr(tokenizer, "pad_token", "!"),
        "padding side": lambda tokenizer: setattr(tokenizer, "padding_side", "left"),
        "truncation side": lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
    }
    for name, change in changes.items():
        tokenizer = clip_tokenizer()
        change(tokenizer)
        assert component_fingerprint(tokenizer) != before, name


def test_using_a_tokenizer_does_not_change_what_it_is():
    tokenizer = clip_tokenizer()
    before = component_fingerprint(tokenizer)
    tokenizer(["a red cat"], padding="max_length", max_length=7, truncation=True)
    assert component_fingerprint(tokenizer) == before


def test_a_tokenizer_without_a_compiled_backend_is_known_by_its_vocabulary():
    class Plain:
        model_max_length, padding_side, truncation_side = 77, "right", "right"
        special_tokens_map = {"pad_token": "<pad>"}  # noqa: RUF012

        def __init__(self, *tokens):
            self.tokens = tokens

        def get_vocab(self):
            return {token: i for i, token in enumerate(self.tokens)}

    assert component_fingerprint(Plain("a", "b")) == component_fingerprint(Plain("a", "b"))
    assert component_fingerprint(Plain("a", "b")) != component_fingerprint(Plain("b", "a"))


# ---- Reading what was written ----


def test_rows_are_read_as_they_were_encoded_over_shard_borders(tmp_path):
    encoder = Encoder()
    read = write(tmp_path, encoder=encoder)
    assert len(read.paths) == 4
    assert max(map(len, encoder.batches)) == 10
    assert_right(read)
    assert_right(write(tmp_path))  # opened anew
    for row in (ROWS_PER_SHARD - 1, ROWS_PER_SHARD, NUM_ROWS - 1, 0):  # in any order
        assert read[row]["square"][0, 0] == row**2


@pytest.mark.parametrize("num_rows", [1, ROWS_PER_SHARD - 1, ROWS_PER_SHARD, ROWS_PER_SHARD + 1])
def test_any_number_of_rows(tmp_path, num_rows):
    read = write(tmp_path, KEYS[:num_rows])
    assert [read[row]["square"][0, 0].item() for row in range(num_rows)] == [row**2 for row in range(num_rows)]
    assert len(read) == num_rows


def test_a_column_is_one_tensor_of_all_rows(tmp_path):
    read = write(tmp_path)
    assert torch.equal(read.column("odd"), torch.arange(NUM_ROWS) % 2 == 1)
    assert read.column("third").dtype == torch.bfloat16


def test_the_batch_size_makes_no_difference(tmp_path):
    first, second = write(tmp_path / "a", batch_size=1), write(tmp_path / "b", batch_size=1000)
    assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in second.paths]


# ---- Encoding once ----


def test_what_is_there_is_not_encoded_again(tmp_path):
    first = write(tmp_path)
    encoder = Encoder()
    assert write(tmp_path, encoder=encoder).paths == first.paths
    assert encoder.batches == []


@pytest.mark.parametrize("row", [0, ROWS_PER_SHARD - 1, ROWS_PER_SHARD, NUM_ROWS - 1])
def test_only_the_shard_of_a_changed_row_is_encoded_again(tmp_path, row):
    before = write(tmp_path)
    encoder = Encoder()
    after = write(tmp_path, [*KEYS[:row], "changed", *KEYS[row + 1 :]], encoder=encoder)
    shard = row // ROWS_PER_SHARD
    assert encoder.shards == [shard]
    assert [old != new for old, new in zip(before.paths, after.paths, strict=True)] == [i == shard for i in range(4)]


def test_appended_rows_leave_full_shards_alone(tmp_path):
    write(tmp_path)
    encoder = Encoder()
    write(tmp_path, [*KEYS, "one more"], encoder=encoder)
    assert encoder.shards == [3]


def test_another_recipe_encodes_everything_again(tmp_path):
    before = write(tmp_path)
    encoder = Encoder()
    after = write(tmp_path, recipe="another", encoder=encoder)
    assert encoder.num_rows == NUM_ROWS
    assert not set(before.paths) & set(after.paths)


def test_rows_in_another_order_are_other_shards(tmp_path):
    assert not set(write(tmp_path).paths) & set(write(tmp_path, KEYS[::-1]).paths)


# ---- Several processes ----


def write_together(folders):
    """Two threads in the part of two processes, which wait for each other."""
    barrier = threading.Barrier(2, timeout=60)
    encoders, results = [Encoder(), Encoder()], {}

    def work(process):
        results[process] = write(folders[process], encoder=encoders[process], process=(process, 2), wait=barrier.wait)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return encoders, results


def test_two_processes_share_the_work_and_make_the_same_shards(tmp_path):
    alone = write(tmp_path / "alone")
    encoders, results = write_together([tmp_path / "shared"] * 2)
    assert [encoder.shards for encoder in encoders] == [[0, 2], [1, 3]]
    assert results[0].paths == results[1].paths
    assert [path.name for path in results[0].paths] == [path.name for path in alone.paths]
    assert [path.read_bytes() for path in results[0].paths] == [path.read_bytes() for path in alone.paths]


def test_processes_without_a_shared_disk_each_encode_everything(tmp_path):
    encoders, results = write_together([tmp_path / "one", tmp_path / "other"])
    assert [encoder.num_rows for encoder in encoders] == [NUM_ROWS, NUM_ROWS]
    for read in results.values():
        assert_right(read)


@pytest.mark.parametrize("num_shards", [1, 3, 4])
@pytest.mark.parametrize("is_shared", [True, False])
def test_processes_that_encode_in_step_call_as_often_as_each_other(tmp_path, num_shards, is_shared):
    """Each call waits for one of the other process, as it does to gather weights: with one call fewer it fails."""
    barrier, keys = threading.Barrier(2, timeout=20), KEYS[: num_shards * ROWS_PER_SHARD - 3]
    folders, numbers, results = [tmp_path / "one", tmp_path / ("one" if is_shared else "other")], [0, 0], {}
    encoders = [Encoder(), Encoder()]
    if num_shards == 3:  # one is there already, and the other process has two to encode
        write(folders[0], keys[:ROWS_PER_SHARD])

    def work(process):
        def most(number):
            numbers[process] = number
            barrier.wait()
            found = max(numbers)
            barrier.wait()
            return found

        def encode(rows):
            barrier.wait()
            return encoders[process](rows)

        results[process] = write(folders[process], keys, "recipe", encode, 10, (process, 2), barrier.wait, most, True)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoders[0].batches) == len(encoders[1].batches) > 0
    alone = write(tmp_path / "alone", keys)
    for read in results.values():
        assert [path.name for path in read.paths] == [path.name for path in alone.paths]
        assert [path.read_bytes() for path in read.paths] == [path.read_bytes() for path in alone.paths]


# ---- Padding ----


def padded(dtype=torch.float32):
    """Three rows of up to four tokens of two numbers, of which the second has a negative zero, and the last nothing."""
    tokens = torch.zeros(3, 4, 2)
    tokens[0, 0] = 1.5
    tokens[1, 2, 1] = -0.0
    return tokens.to(dtype)


def bits(tensor):
    return tensor.flatten().contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_rows_are_read_with_the_zeros_that_were_left_out(tmp_path, dtype):
    rows = {
        "tokens": padded(dtype),
        "mask": padded()[..., 0].to(dtype),
        "whole": torch.ones(3, 4),
        "one": torch.zeros(3),
    }
    shards.save_shard(shards.without_padding(rows), tmp_path / "rows.safetensors")
    stored = load_file(tmp_path / "rows.safetensors")
    assert stored["tokens/lengths"].tolist() == ([1, 3, 0] if dtype.is_floating_point else [1, 0, 0])
    assert len(stored["tokens/values"]) == stored["tokens/lengths"].sum()
    assert stored.keys() >= {"whole", "one"}  # which end in none
    read = shards.Shards([tmp_path / "rows.safetensors"], 3)
    for index in range(3):
        row = read[index]
        assert row.keys() == rows.keys()
        for name, tensor in row.items():
            assert (tensor.dtype, tensor.shape) == (rows[name].dtype, rows[name][index].shape)
            assert torch.equal(bits(tensor), bits(rows[name][index]))


def test_rows_without_a_zero_at_their_end_are_stored_as_they_are():
    rows = {"tokens": padded()[:1, :1], "none": torch.zeros(0, 4), "empty": torch.zeros(2, 0)}
    assert shards.without_padding(rows) == rows


def test_padded_rows_are_written_without_padding_and_older_shards_are_read(tmp_path):
    def encode(rows):
        return {"tokens": torch.stack([padded()[row % 3] for row in rows])}

    keys = KEYS[:7]
    old, new = tmp_path / "old", tmp_path / "new"
    writers = [ShardWriter(folder, 0, 1, lambda: None, progress=False) for folder in (old, new)]
    read = [
        writer.write(keys, encode, "recipe", 2, "Encoding", are_padded=are_padded)
        for writer, are_padded in zip(writers, (False, True), strict=True)
    ]
    assert [path.name for path in read[0].paths] == [path.name for path in read[1].paths]  # what is there is used
    assert len(load_file(read[1].paths[0])["tokens/values"]) == 3 * 1 + 2 * 3  # 7 rows: three, two and two of a kind
    for index in range(7):
        for rows in (*read, writers[0].write(keys, encode, "recipe", 2, "Encoding", are_padded=True)):
            assert torch.equal(rows[index]["tokens"], padded()[index % 3])


# ---- Data loader workers ----


def test_open_shards_can_be_pickled(tmp_path):
    read = write(tmp_path)
    assert read[0]["square"][0, 0] == 0  # opens a file
    assert_right(pickle.loads(pickle.dumps(read)))


def test_workers_read_the_same_rows(tmp_path):
    read = write(tmp_path)
    assert read[NUM_ROWS - 1]["square"][0, 0] == (NUM_ROWS - 1) ** 2  # opens a file before the workers start
    loader = DataLoader(read, batch_size=50, num_workers=2)
    assert torch.equal(torch.cat([batch["odd"] for batch in loader]), torch.arange(NUM_ROWS) % 2 == 1)


# ---- Killed processes ----


def die(folder, moment):
    """Writes shards in a process that is killed, in the third shard's encoding or in the second one's saving."""
    encoder = Encoder()

    def encode(rows):
        if moment == "encoding" and len(encoder.shards) == 3:
            os._exit(9)
        return encoder(rows)

    def save_half(tensors, path, metadata):
        data = save(tensors, metadata)
        saved.append(path)
        cut = len(data) // 2 if len(saved) == 2 else len(data)
        with open(path, "wb") as file:
            file.write(data[:cut])
            file.flush()
            if len(saved) == 2:
                os._exit(9)

    saved = []
    if moment == "saving":
        shards.save_file = save_half
    write(folder, encoder=encode)


@pytest.mark.parametrize(("moment", "num_whole"), [("encoding", 2), ("saving", 1)])
def test_a_killed_process_leaves_whole_shards_and_the_next_run_goes_on(tmp_path, moment, num_whole):
    process = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path / "killed", moment))
    process.start()
    process.join(60)
    assert process.exitcode == 9

    undisturbed = write(tmp_path / "undisturbed")
    whole = sorted((tmp_path / "killed").glob("*.safetensors"))
    assert sorted(path.name for path in whole) == sorted(path.name for path in undisturbed.paths[:num_whole])
    for path in whole:
        assert len(load_file(path)["odd"]) == ROWS_PER_SHARD
    left_over = [path for path in (tmp_path / "killed").iterdir() if path not in whole and path.suffix != ".lock"]
    assert len(left_over) == (1 if moment == "saving" else 0)  # the half file, under a name that is never read

    encoder = Encoder()
    resumed = write(tmp_path / "killed", encoder=encoder)
    assert encoder.shards == [0, 1, 2, 3][num_whole:]
    assert [path.read_bytes() for path in resumed.paths] == [path.read_bytes() for path in undisturbed.paths]
    assert_right(resumed)
    assert sorted((tmp_path / "killed").iterdir()) == sorted(resumed.paths)  # what was left over is gone


def test_an_encoder_that_fails_leaves_no_shard_and_no_temporary_file(tmp_path):
    def encode(rows):
        if rows[0] >= ROWS_PER_SHARD:
            raise RuntimeError("out of memory")
        return Encoder()(rows)

    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path, encoder=encode)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_temporary_file(tmp_path, monkeypatch):
    def save_some(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(shards, "save_file", save_some)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Encoded rows on disk, in content-addressed safetensors shards.

A shard's name is a fingerprint of everything that went into it, so one that is stale has another name. Shards are
written to a temporary file and renamed, so a process that is killed leaves no half shard, and the next run goes on at
the first missing one. Each holds a digest of its tensors: one that does not match is encoded anew.

Where rows end in zeros, as padded prompts do, a shard may hold them without: in place of a tensor `[n, L, ...]` there
are `name/values`, the rest of all rows one after the other, `name/lengths`, how much of it is each row's, int64 `[n]`,
and `name/size`, which is `L`. Older shards, which hold all of it, are read as well.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from .files import replace_file, sweep
from .fingerprints import fingerprint, tensors_digest
from .locks import taking_turns

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 64
VIDEOS_PER_SHARD = 4  # as large as some hundred images
DIGEST = "digest"
"""The entry of a shard's metadata."""
VALUES, LENGTHS, SIZE = "/values", "/lengths", "/size"
"""Behind the name of a tensor whose rows are stored without the zeros that they end in."""


class Shards:
    """Random access to the rows of a list of shards, each a safetensors file with tensors `[rows_per_shard, ...]`.

    Args:
        paths: the shards, in order; all but the last hold `rows_per_shard` rows.
        num_rows: rows in all.
        rows_per_shard: rows of a whole shard.
    """

    def __init__(self, paths: Sequence[Path], num_rows: int, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        self.paths = list(paths)
        self.num_rows = num_rows
        self.rows_per_shard = rows_per_shard
        self._open: dict[int, _OpenShard] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        shard, offset = divmod(row, self.rows_per_shard)
        try:
            if shard not in self._open:
                self._open[shard] = _OpenShard(safe_open(self.paths[shard], framework="pt"))
            return self._open[shard][offset]
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The encoded rows in {str(self.paths[shard])!r} are gone or damaged since the run began ({error}). "
                "Start it again: they are then encoded anew."
            ) from error

    def column(self, name: str) -> Tensor:
        """One tensor of all rows, `[num_rows, ...]`."""
        parts = []
        for path in self.paths:
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts)

    def remove(self, rows: Sequence[int]) -> None:
        """Deletes the shards that hold these rows, to be encoded anew."""
        for shard in {row // self.rows_per_shard for row in rows}:
            self.paths[shard].unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files do not travel to data loader workers


class _OpenShard:
    """Random access to the rows of a file that is open, as they were before zeros were left out."""

    def __init__(self, file: Any) -> None:
        self.file = file
        names = list(file.keys())
        cut = [name.removesuffix(LENGTHS) for name in names if name.endswith(LENGTHS)]
        self.whole = [name for name in names if not name.startswith(tuple(f"{it}/" for it in cut))]
        self.cut = {name: self._places(name) for name in cut}

    def _places(self, name: str) -> tuple[list[tuple[int, int]], int]:
        """Where each row's values begin and end, and how long the rows are."""
        ends = accumulate(self.file.get_tensor(name + LENGTHS).tolist(), initial=0)
        return list(pairwise(ends)), int(self.file.get_tensor(name + SIZE))

    def __getitem__(self, offset: int) -> dict[str, Tensor]:
        row = {name: self.file.get_slice(name)[offset] for name in self.whole}
        for name, (places, size) in self.cut.items():
            begin, end = places[offset]
            values = self.file.get_slice(name + VALUES)[begin:end]
            row[name] = values.new_zeros(size, *values.shape[1:])
            row[name][: end - begin] = values
        return row


class ShardWriter:
    """Encodes what is missing from a folder of shards, in turns with the other processes.

    Args:
        folder: where the shards of all data sets lie.
        process_index, num_processes: this process encodes every `num_processes`-th shard.
        wait: blocks until every process has come here.
        progress: whether to show a progress bar.
        most: the largest of the numbers that the processes come here with; only where they encode in step.

    Attributes:
        paths: of all shards that were asked for.
    """

    def __init__(
        self, folder: Path, process_index: int, num_processes: int, wait: Callable[[], None], progress: bool,
        most: Callable[[int], int] = int,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.process_index = process_index
        self.num_processes = num_processes
        self.wait = wait
        self.progress = progress
        self.most = most
        self.paths: set[Path] = set()

    @property
    def num_bytes(self) -> int:
        """What the shards take on the disk."""
        return sum(path.stat().st_size for path in self.paths)

    def write(
        self,
        keys: Sequence[str],
        encode: Callable[[Sequence[int]], dict[str, Tensor]],
        recipe: str,
        batch_size: int,
        description: str,
        rows_per_shard: int = ROWS_PER_SHARD,
        are_padded: bool = False,
        in_step: bool = False,
    ) -> Shards:
        """Shards of `len(keys)` rows, encoding those that no earlier run has encoded.

        Args:
            keys: a fingerprint of each row's content.
            encode: encodes the rows of the given indices to tensors `[n, ...]`.
            recipe: a fingerprint of how `encode` works: encoder weights, preprocessing, versions.
            batch_size: rows per call of `encode`.
            description: the label of the progress bar.
            rows_per_shard: rows that are encoded again if a process is killed.
            are_padded: whether rows end in zeros, which are left out on disk, and are there again when rows are read.
            in_step: whether `encode` takes all processes at once, each with rows of its own, as where each has a part
                of a network. One that has no more rows goes on with the first ones, for the others.
        """
        work = self._work(keys, recipe, rows_per_shard)
        paths = [path for path, _ in work]
        self.paths.update(paths)
        share = work[self.process_index :: self.num_processes]
        # of the same rows: whoever encodes others goes on meanwhile
        lock = self.folder / f".{fingerprint(*paths)}.lock"
        waiting = f"Another run encodes the same rows into {str(self.folder)!r}. Waiting for what it leaves to do."
        with taking_turns(lock, waiting) if self.process_index == 0 else nullcontext():
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            others = [entry for i, entry in enumerate(work) if i % self.num_processes != self.process_index]
            idle = range(len(keys))[:batch_size] if in_step else None
            for part in (share, others):  # these where processes share no file system
                self.wait()
                self._encode_missing(part, encode, batch_size, description, are_padded, idle)
        return Shards(paths, len(keys), rows_per_shard)

    def num_missing(self, keys: Sequence[str], recipe: str, rows_per_shard: int = ROWS_PER_SHARD) -> int:
        """How many rows [`write`] would encode, as far as one can tell without reading shards; arguments as there."""
        return sum(len(chunk) for path, chunk in self._work(keys, recipe, rows_per_shard) if not path.exists())

    def _work(self, keys: Sequence[str], recipe: str, rows_per_shard: int) -> list[tuple[Path, Sequence[int]]]:
        """Each shard, and the rows in it."""
        chunks = _chunks(range(len(keys)), rows_per_shard)
        return [(self._path(recipe, [keys[i] for i in chunk]), chunk) for chunk in chunks]

    def _path(self, recipe: str, keys: Sequence[str]) -> Path:
        return self.folder / f"{fingerprint(recipe, *keys)}.safetensors"

    def _encode_missing(
        self,
        work: Sequence[tuple[Path, Sequence[int]]],
        encode: Callable[[Sequence[int]], dict[str, Tensor]],
        batch_size: int,
        description: str,
        are_padded: bool,
        idle: Sequence[int] | None,
    ) -> None:
        missing = [(path, chunk) for path, chunk in work if not self._is_whole(path)]
        num_idle = 0
        if idle is not None:  # before the first call, within which nothing else may be exchanged
            num_calls = sum(math.ceil(len(chunk) / batch_size) for _, chunk in missing)
            num_idle = self.most(num_calls) - num_calls
        total = sum(len(chunk) for _, chunk in missing)
        with tqdm(total=total, desc=description, unit="row", disable=not self.progress or total == 0) as bar:
            for path, chunk in missing:
                parts = []
                for batch in _chunks(chunk, batch_size):
                    parts.append({name: tensor.cpu() for name, tensor in encode(batch).items()})
                    bar.update(len(batch))
                rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                save_shard(without_padding(rows) if are_padded else rows, path)
        for _ in range(num_idle):
            encode(idle or ())

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        damage = find_shard_damage(path)
        if damage is not None:
            logger.warning("The encoded rows in %s are damaged (%s); they are encoded anew.", path, damage)
        return damage is None


def without_padding(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors `[n, ...]` as a shard holds them without the zeros that rows end in, where that is less.

    Zero is what has no bit set: a row is read as it was, to the bit.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in rows.items():
        lengths = _lengths(tensor)
        if lengths is None:
            stored[name] = tensor
        else:
            kept = [row[:length] for row, length in zip(tensor, lengths.tolist(), strict=True)]
            size = torch.tensor(tensor.shape[1])
            stored.update({name + VALUES: torch.cat(kept), name + LENGTHS: lengths, name + SIZE: size})
    return stored


def _lengths(tensor: Tensor) -> Tensor | None:
    """How much of each row of `[n, L, ...]` is left without the zeros at its end, int64 `[n]`; None if that is all."""
    if tensor.dim() < 2 or not tensor.numel():
        return None
    num_rows, size = tensor.shape[:2]
    is_set = tensor.contiguous().view(torch.uint8).reshape(num_rows, size, -1).any(2)
    lengths = (is_set * torch.arange(1, size + 1)).amax(1)
    return None if lengths.min() == size else lengths


def save_shard(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file, with a digest, such that it either has all its content or does not exist."""
    contiguous = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    metadata = {DIGEST: tensors_digest(contiguous.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_file(contiguous, temporary, metadata))


def find_shard_damage(path: Path) -> str | None:
    """Why a shard is not what [`save_shard`] wrote, a clause; None if it is."""
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(DIGEST)
            actual = tensors_digest((name, file.get_tensor(name)) for name in sorted(file.keys()))
    except (OSError, SafetensorError) as error:
        return str(error)
    return None if actual == expected else "its digest does not match"


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))

"""Encoded rows on disk, in content-addressed safetensors shards.

A shard's name is a fingerprint of everything that went into it, so one that is stale has another name. Shards are
written to a temporary file and renamed, so a process that is killed leaves no half shard, and the next run goes on at
the first missing one. Each holds a digest of its tensors: one that does not match is encoded anew.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
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
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        shard, offset = divmod(row, self.rows_per_shard)
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(self.paths[shard], framework="pt")
            file = self._open[shard]
            return {name: file.get_slice(name)[offset] for name in file.keys()}  # noqa: SIM118 (not a dictionary)
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


class ShardWriter:
    """Encodes what is missing from a folder of shards, in turns with the other processes.

    Args:
        folder: where the shards of all data sets lie.
        process_index, num_processes: this process encodes every `num_processes`-th shard.
        wait: blocks until every process has come here.
        progress: whether to show a progress bar.
    """

    def __init__(
        self, folder: Path, process_index: int, num_processes: int, wait: Callable[[], None], progress: bool
    ) -> None:
        self.folder = folder
        self.process_index = process_index
        self.num_processes = num_processes
        self.wait = wait
        self.progress = progress

    def write(
        self,
        keys: Sequence[str],
        encode: Callable[[Sequence[int]], dict[str, Tensor]],
        recipe: str,
        batch_size: int,
        description: str,
        rows_per_shard: int = ROWS_PER_SHARD,
    ) -> Shards:
        """Shards of `len(keys)` rows, encoding those that no earlier run has encoded.

        Args:
            keys: a fingerprint of each row's content.
            encode: encodes the rows of the given indices to tensors `[n, ...]`.
            recipe: a fingerprint of how `encode` works: encoder weights, preprocessing, versions.
            batch_size: rows per call of `encode`.
            description: the label of the progress bar.
            rows_per_shard: rows that are encoded again if a process is killed.
        """
        work = self._work(keys, recipe, rows_per_shard)
        paths = [path for path, _ in work]
        share = work[self.process_index :: self.num_processes]
        # of the same rows: whoever encodes others goes on meanwhile
        lock = self.folder / f".{fingerprint(*paths)}.lock"
        waiting = f"Another run encodes the same rows into {str(self.folder)!r}. Waiting for what it leaves to do."
        with taking_turns(lock, waiting) if self.process_index == 0 else nullcontext():
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            self.wait()
            self._encode_missing(share, encode, batch_size, description)
            self.wait()
            others = [entry for i, entry in enumerate(work) if i % self.num_processes != self.process_index]
            self._encode_missing(others, encode, batch_size, description)  # where processes share no file system
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
    ) -> None:
        missing = [(path, chunk) for path, chunk in work if not self._is_whole(path)]
        total = sum(len(chunk) for _, chunk in missing)
        with tqdm(total=total, desc=description, unit="row", disable=not self.progress or total == 0) as bar:
            for path, chunk in missing:
                parts = []
                for batch in _chunks(chunk, batch_size):
                    parts.append({name: tensor.cpu() for name, tensor in encode(batch).items()})
                    bar.update(len(batch))
                save_shard({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, path)

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        damage = find_shard_damage(path)
        if damage is not None:
            logger.warning("The encoded rows in %s are damaged (%s); they are encoded anew.", path, damage)
        return damage is None


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

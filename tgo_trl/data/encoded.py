"""Map-style data: every row encoded once, to disk, and read from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..encoders import FrozenEncoders
from ..labels import Labels, list_rows
from .images import encoded_bytes, image_to_tensor, load_image
from .rows import BadRows, Columns, iterate_rows, undecoded
from .sampler import PADDING, Index
from .shards import Shards, ShardWriter, fingerprint

READABLE = "readable"


@dataclass(frozen=True)
class ScannedRows:
    """The good rows of a data set, before their images are decoded: parallel lists of equal length.

    Attributes:
        rows: index of each row in the data set.
        prompts: its prompt.
        scores: its score.
        keys: a fingerprint of its image file.
    """

    rows: list[int]
    prompts: list[str]
    scores: list[float]
    keys: list[str]


def scan_rows(dataset: Dataset, columns: Columns, bad: BadRows, name: str = "", progress: bool = False) -> ScannedRows:
    """Checks prompts and scores, and fingerprints the images, without decoding them.

    Args:
        dataset: the user's data set.
        columns: its columns.
        bad: what to do with bad rows.
        name: of the data set, for the progress bar.
        progress: whether to show one.
    """
    scanned = ScannedRows([], [], [], [])
    rows = iterate_rows(dataset, columns, bad)
    for row, prompt, image, score in tqdm(
        rows, total=len(dataset), desc=f"Reading {name} rows", unit="row", disable=not progress
    ):
        try:
            key = fingerprint(encoded_bytes(image))
        except ValueError as error:
            bad.add(row, columns.image, str(error))
            continue
        scanned.rows.append(row)
        scanned.prompts.append(prompt)
        scanned.scores.append(score)
        scanned.keys.append(key)
    return scanned


class EncodedDataset(TorchDataset[dict[str, Any]]):
    """Rows as the trainer takes them, read from shards of encoded images and prompts.

    Indexed by `(epoch, position)`; a plain position means epoch 0. Each row is a dictionary of `row` (index in the
    user's data set), `epoch`, `valid` (False for padding), `score`, `is_positive`, `weight`, and the encoders' tensors
    in `image` and `prompt`.
    """

    def __init__(
        self, scanned: ScannedRows, images: Shards, prompts: Shards, positions: Sequence[int], labels: Labels
    ) -> None:
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(scanned.prompts))}
        self.scanned, self.images, self.prompts, self.labels = scanned, images, prompts, labels
        self.positions = list(positions)
        self._prompt_index = [index[prompt] for prompt in scanned.prompts]

    def positives(self) -> "EncodedDataset":
        """The rows above the threshold only."""
        kept = self.labels.is_positive.nonzero().flatten().tolist()
        labels = Labels(
            *(values[kept] for values in (self.labels.scores, self.labels.is_positive, self.labels.weights))
        )
        positions = [self.positions[i] for i in kept]
        return EncodedDataset(self.scanned, self.images, self.prompts, positions, labels)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row."""
        return [self.scanned.prompts[i] for i in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Index | int) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (0, index)
        valid = position != PADDING
        position = position if valid else 0
        source = self.positions[position]
        return {
            "row": self.scanned.rows[source],
            "epoch": epoch,
            "valid": valid,
            "score": self.labels.scores[position].float(),
            "is_positive": self.labels.is_positive[position],
            "weight": self.labels.weights[position],
            "image": {name: tensor for name, tensor in self.images[source].items() if name != READABLE},
            "prompt": self.prompts[self._prompt_index[source]],
        }


def encode_images(
    dataset: Dataset, scanned: ScannedRows, columns: Columns, bad: BadRows, resolution: int, encoders: FrozenEncoders,
    writer: ShardWriter, batch_size: int, name: str,
) -> tuple[Shards, list[int]]:  # fmt: skip
    """Shards of the encoded images, and the positions of those that could be read.

    An image that cannot be read raises [`~tgo_trl.data.rows.BadRowError`], or, if bad rows are skipped, is marked in
    the shard and left out of the positions.
    """
    images = undecoded(dataset, columns.image)

    def encode(positions: Sequence[int]) -> dict[str, Tensor]:
        pixels, readable = [], []
        for position in positions:
            row = scanned.rows[position]
            try:
                pixels.append(image_to_tensor(load_image(images[row][columns.image]), resolution))
                readable.append(True)
            except ValueError as error:
                bad.add(row, columns.image, str(error))
                pixels.append(torch.zeros(3, resolution, resolution))
                readable.append(False)
        return {**encoders.images(torch.stack(pixels)), READABLE: torch.tensor(readable)}

    recipe = fingerprint(encoders.image_recipe, resolution)
    description = f"Encoding {name} images"
    shards = writer.write(scanned.keys, encode, recipe, batch_size, description)
    unread = [i for i, ok in enumerate(shards.column(READABLE).tolist()) if not ok]
    reasons = {i: _reason(images[scanned.rows[i]][columns.image]) for i in unread}
    mended = [i for i, reason in reasons.items() if reason is None]
    if mended:  # an earlier run could not read them, for want of a decoder or of memory
        shards.remove(mended)
        shards = writer.write(scanned.keys, encode, recipe, batch_size, description)
    for i, reason in reasons.items():
        if reason is not None and scanned.rows[i] not in bad.rows:  # marked by an earlier run, or by another process
            bad.add(scanned.rows[i], columns.image, reason)
    positions = [i for i in range(len(shards)) if reasons.get(i) is None]
    if not positions:
        raise ValueError(f"No image of the {name} data set can be read ({list_rows(scanned.rows)}).")
    return shards, positions


def _reason(image: Any) -> str | None:
    try:
        load_image(image)
    except ValueError as error:
        return str(error)
    return None


def encode_prompts(
    scanned: ScannedRows, encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str
) -> Shards:
    """Shards of the encoded prompts, one row per distinct prompt, in the order of first appearance."""
    distinct = list(dict.fromkeys(scanned.prompts))
    return writer.write(
        [fingerprint(prompt) for prompt in distinct],
        lambda positions: encoders.prompts([distinct[i] for i in positions]),
        encoders.prompt_recipe,
        batch_size,
        f"Encoding {name} prompts",
    )

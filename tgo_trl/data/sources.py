"""Source images of rows, which their images were made from: read, identified, and encoded once for all rows of each."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..media.embedding import ColumnError
from ..media.origin import Origin
from ..media.readers import ImageReader
from ..media.types import Size
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint
from ..storage.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD, Shards, ShardWriter
from .columns import undecoded
from .rows import CHANGES, BadRows, RowSource, as_identified, read_cell

READER = ImageReader()

Places = dict[int, tuple[Shards, int]]
"""Where each scanned row has its encoded source, by position."""


def check_same_number(subject: str, sources: Iterable[Sequence[Any]]) -> None:
    """Raises a ValueError if rows have different numbers of source images, which no batch can have.

    Args:
        subject: what has them, such as `"Rows of the training data set"`.
        sources: of each row.
    """
    numbers = sorted(set(map(len, sources)))
    if len(numbers) > 1:
        raise ValueError(
            f"{subject} have {', '.join(map(str, numbers))} source images, and those of a batch must have as many. "
            "Take the rows of one number at a time."
        )


def locate_sources(cell: Any, origin: Origin, most: int | None = None) -> list[Any]:
    """The source images of a cell, one or a list, each as it is read; raises a ValueError, with a clause.

    Args:
        cell: of a column of source images.
        origin: of the data set.
        most: how many there may be; None for any number.
    """
    images = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    if not images or any(image is None for image in images):
        raise ValueError("the source image is missing")
    if most is not None and len(images) > most:
        raise ValueError(f"there are {len(images)} source images, and the pipeline takes {most} at most")
    return [origin.locate(image) for image in images]


def scan_sources(source: RowSource, rows: Sequence[int], bad: BadRows, most: int) -> list[tuple[str, ...] | None]:
    """The fingerprints of the source images of some rows, each of which was decoded once; None of bad rows.

    Args:
        source: of the rows, with a column of source images.
        rows: their indices in the data set.
        bad: what to do with bad ones.
        most: source images of a row.
    """
    column, read = str(source.columns.source), partial(locate_sources, origin=source.origin, most=most)
    files = undecoded(source.dataset, column)
    checked: set[str] = set()
    found: dict[int, tuple[str, ...] | None] = {}
    for row in dict.fromkeys(rows):
        try:
            found[row] = tuple(read_cell(files[row], column, lambda cell: _identify(read(cell), checked)))
        except ColumnError as error:
            found[row] = None
            bad.add(row, error.column, str(error))
    return [found[row] for row in rows]


def read_pixels(images: Sequence[Any], size: Size) -> Tensor:
    """Pixels of the source images of a row, brought to its sample's size, float32 `[S, 3, H, W]` in [-1, 1]."""
    return torch.stack([READER.read(image, size)[0] for image in images])


def _identify(images: Sequence[Any], checked: set[str]) -> list[str]:
    keys = []
    for image in images:
        key = fingerprint(READER.content(image))
        if key not in checked:
            READER.load(image)  # whatever is behind the header
            checked.add(key)
        keys.append(key)
    return keys


def encode_sources(
    source: RowSource, rows: Sequence[int], sizes: Sequence[Size], keys: Sequence[tuple[str, ...]],
    kept: Sequence[int], encoders: FrozenEncoders, writer: ShardWriter, batch_size: int,
) -> Places:  # fmt: skip
    """What the networks take of the source images of scanned rows, once for all rows of the same ones.

    Args:
        source: of the rows.
        rows: their indices in the data set.
        sizes: of their samples, and so of the sources.
        keys: the fingerprints of the source images of each.
        kept: positions of those that are trained on.
        encoders: of the pipeline.
        writer: of shards.
        batch_size: rows that are encoded at once.
    """
    recipe = fingerprint(encoders.image_recipe, READER.recipe, "source")
    label = f"Encoding {source.name} sources"
    return _encode_distinct(
        source, rows, sizes, keys, keys, lambda places, pixels: encoders.sources(pixels), recipe, writer, batch_size,
        label, kept, rows_per_shard=ROWS_PER_SHARD if source.reader.kind == "image" else VIDEOS_PER_SHARD,
    )  # fmt: skip


def encode_edits(
    source: RowSource, rows: Sequence[int], sizes: Sequence[Size], keys: Sequence[tuple[str, ...]],
    texts: Mapping[int, str], encoders: FrozenEncoders, writer: ShardWriter, batch_size: int,
) -> Places:  # fmt: skip
    """The prompts of scanned rows, encoded beside their source images; of rows without a text, nothing.

    The arguments are those of [`encode_sources`] but `kept`, and `texts`, the prompt that each is trained with, by
    position.
    """
    recipe = fingerprint(encoders.prompt_recipe, READER.recipe, "edit")
    items: list[Hashable] = [(texts.get(i), key) for i, key in enumerate(keys)]

    def encode(places: Sequence[int], pixels: Tensor) -> dict[str, Tensor]:
        prompts = encoders.edits([texts[i] for i in places], pixels)
        if encoders.family.ignores_padding:
            prompts["embeds"] = prompts["embeds"].masked_fill(prompts["mask"][..., None] == 0, 0)
        return prompts

    kept = [i for i in range(len(keys)) if i in texts]
    label = f"Encoding {source.name} prompts"
    return _encode_distinct(
        source, rows, sizes, keys, items, encode, recipe, writer, batch_size, label, kept, are_padded=True
    )


def _encode_distinct(
    source: RowSource, rows: Sequence[int], sizes: Sequence[Size], keys: Sequence[tuple[str, ...]],
    items: Sequence[Hashable], encode: Any, recipe: str, writer: ShardWriter, batch_size: int, label: str,
    kept: Iterable[int], are_padded: bool = False, rows_per_shard: int = ROWS_PER_SHARD,
) -> Places:  # fmt: skip
    """A row of a shard for each distinct item of one size and number of sources."""
    column = str(source.columns.source)
    files = undecoded(source.dataset, column)
    groups: dict[tuple[Size, int], dict[Hashable, list[int]]] = {}
    for i in kept:
        groups.setdefault((sizes[i], len(keys[i])), {}).setdefault(items[i], []).append(i)
    places: Places = {}
    for (size, number), positions in groups.items():
        distinct = [these[0] for these in positions.values()]

        def encode_some(
            indices: Sequence[int], distinct: Sequence[int] = distinct, size: Size = size
        ) -> dict[str, Tensor]:
            these = [distinct[i] for i in indices]
            cells = []
            for i in these:
                cell = locate_sources(files[rows[i]][column], source.origin)
                found = [as_identified(READER, image, key) for image, key in zip(cell, keys[i], strict=False)]
                if len(cell) != len(keys[i]) or any(it is None for it in found):
                    raise ValueError(f"Row {rows[i]}, column {column!r}: {CHANGES}.")
                cells.append(found)
            pixels = torch.stack([read_pixels(cell, size) for cell in cells])
            encoded: dict[str, Tensor] = encode(these, pixels)
            return encoded

        shards = writer.write(
            [fingerprint(items[i]) for i in distinct], encode_some, fingerprint(recipe, size, number),
            batch_size, f"{label} ({size[1]} x {size[0]})", rows_per_shard, are_padded,
        )  # fmt: skip
        for row, these in enumerate(positions.values()):
            places.update((i, (shards, row)) for i in these)
    return places

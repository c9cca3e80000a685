"""Files of rows that are copied into a new data set: read under the rule of [`Origin`], checked, and held as bytes.

`datasets` would read and copy whatever a row names, in any column. So each cell gets its bytes here, before, and a
table in which a path is left without bytes is not written.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, LargeList, List
from datasets.features.features import encode_nested_example
from PIL import Image

from ..messages.values import shown_path
from .images import encoded_bytes, image_size
from .origin import DataFile, Origin, reading
from .signatures import AUDIO, HEAD, IMAGE, PDF, VIDEO, describe, media

MEDIA = {"Image": IMAGE, "Video": VIDEO, "Audio": AUDIO, "Pdf": PDF}
"""What the columns of each feature of `datasets` hold. Files of others are not copied."""


class ColumnError(ValueError):
    """A cell that cannot be used; the message is a clause.

    Attributes:
        column: that it is in.
    """

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


def embed_files(row: Mapping[str, Any], features: Features, origin: Origin) -> dict[str, Any]:
    """The row with the bytes of every file in it, in all columns that hold files.

    Raises:
        ColumnError: if one may not be read, or is not of the medium that its column holds.
    """
    embedded = dict(row)
    for name, feature in features.items():
        if name in row and _holds_files(feature):
            try:
                embedded[name] = _embedded(row[name], feature, origin)
            except ValueError as error:
                raise ColumnError(name, str(error)) from error
    return embedded


def file_bytes(value: Any, medium: str) -> bytes:
    """The bytes of a file, of which the beginning says that it is of a medium.

    Args:
        value: bytes, a dictionary of them, or a [`DataFile`].
        medium: `"image"`, `"video"`, `"audio"` or `"PDF"`.

    Raises:
        ValueError: if it is of another medium, or cannot be read.
    """
    if medium == IMAGE:
        content = encoded_bytes(value)
        image_size(content)
        return content
    if isinstance(value, DataFile):
        with reading(f"the {medium} file"):
            file = value.open()
        with file, reading(f"the {medium} file"):
            head = file.read(HEAD)
            content = head + file.read() if medium in media(head) else head
    else:
        content = value["bytes"] if isinstance(value, Mapping) else value
        if content is None:
            raise ValueError(f"the {medium} is missing (None)")
        if not isinstance(content, bytes):
            raise ValueError(f"the {medium} is a `{type(content).__name__}`, and no file")
    if medium not in media(content[:HEAD]):
        raise ValueError(f"the {medium} cannot be read: this is {describe(content[:HEAD])}")
    return content


def stored_table(rows: Sequence[Mapping[str, Any]], features: Features) -> pa.Table:
    """The rows as an Arrow table, of each path with bytes the last part.

    As `Dataset.from_dict` has it, which drops the bytes of a file if a file of its name lies in the current directory,
    and takes five times the memory of the files.
    """
    schema = features.arrow_schema
    plain = Features({name: feature for name, feature in features.items() if not _holds_files(feature)})
    others = Dataset.from_dict({name: [row.get(name) for row in rows] for name in plain}, features=plain).data.table
    arrays = [
        others[name] if name in plain
        else pa.array((_stored(row.get(name), features[name]) for row in rows), schema.field(name).type)
        for name in features
    ]  # fmt: skip
    return pa.table(arrays, schema=schema)


def check_embedded(table: pa.Table) -> None:
    """Raises a ValueError if a cell of the table names a file without holding its bytes."""
    for name, feature in Features.from_arrow_schema(table.schema).items():
        if _holds_files(feature) and any(_has_path_alone(array, feature) for array in table[name].chunks):
            raise ValueError(
                f"The column {name!r} names files that were not read, and so cannot be written. Give their bytes."
            )


def _holds_files(feature: Any) -> bool:
    return any(hasattr(leaf, "embed_storage") for leaf in _leaves(feature))


def _leaves(feature: Any) -> Iterator[Any]:
    if isinstance(feature, dict):
        for entry in feature.values():
            yield from _leaves(entry)
    elif isinstance(feature, (List, LargeList, list)):
        yield from _leaves(_entry_feature(feature))
    else:
        yield feature


def _embedded(value: Any, feature: Any, origin: Origin) -> Any:
    if value is None or not _holds_files(feature):
        return value
    if isinstance(feature, dict):
        return {name: _embedded(value.get(name), entry, origin) for name, entry in feature.items()}
    if isinstance(feature, (List, LargeList, list)):
        return [_embedded(entry, _entry_feature(feature), origin) for entry in value]
    return _embedded_cell(origin.locate(value), value, type(feature).__name__)


def _embedded_cell(located: Any, value: Any, feature: str) -> Any:
    """What becomes of a cell: its bytes and its path. Decoded objects are encoded by `datasets`, later."""
    has_bytes = isinstance(located, bytes) or (isinstance(located, Mapping) and located.get("bytes") is not None)
    if isinstance(located, Image.Image) or not (has_bytes or isinstance(located, DataFile)):
        return value
    path = located.path if isinstance(located, DataFile) else None if isinstance(value, bytes) else value.get("path")
    if feature in MEDIA:
        content = file_bytes(located, MEDIA[feature])
    elif has_bytes:
        return value
    else:
        raise ValueError(
            f"the file {shown_path(str(path))} is of a column of `{feature}`, whose files are not copied; drop it"
        )
    return {"bytes": content, "path": path}


def _stored(value: Any, feature: Any) -> Any:
    if value is None or not _holds_files(feature):
        return None if value is None else encode_nested_example(feature, value)
    if isinstance(feature, dict):
        return {name: _stored(value.get(name), entry) for name, entry in feature.items()}
    if isinstance(feature, (List, LargeList, list)):
        return [_stored(entry, _entry_feature(feature)) for entry in value]
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        content, path = value.get("bytes"), value.get("path")
        if content is not None and path is not None:  # the folder names a machine
            path = os.path.basename(path.partition("::")[0])
        return {"bytes": content, "path": path}
    return feature.encode_example(value)


def _entry_feature(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) else feature.feature


def _has_path_alone(array: Any, feature: Any) -> bool:
    """Whether a cell of an Arrow array has a path and no bytes."""
    if isinstance(feature, dict):
        return any(_has_path_alone(pc.struct_field(array, name), entry) for name, entry in feature.items())
    if isinstance(feature, (List, LargeList, list)):
        entry = _entry_feature(feature)
        return _holds_files(entry) and _has_path_alone(pc.list_flatten(array), entry)
    if not hasattr(feature, "embed_storage"):
        return False
    alone = pc.and_(pc.is_valid(pc.struct_field(array, "path")), pc.is_null(pc.struct_field(array, "bytes")))
    return bool(pc.any(alone).as_py())

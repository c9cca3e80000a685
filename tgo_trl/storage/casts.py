"""Files and runs of rows whose columns have other types than the first: cast where every value stays what it is."""

from collections.abc import Iterator, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from .text_tables import SEPARATORS, checked_text, divided_by, dtype_of, read_table, suffix_of, typed

ROWS_OF_METADATA = 10_000


class WidenedTypes:
    """In place of a builder's `_split_generators`, which takes whole numbers for all that are in later files and rows.

    Of files on this machine, a column of whole numbers in the first rows and of others later is one of float64, and a
    column that is empty in the first rows has the type of what comes.

    Args:
        builder: of `datasets`, which finds out itself what its columns hold.
        files: that it reads.
    """

    def __init__(self, builder: Any, files: Sequence[Path]) -> None:
        self.builder, self.files = builder, files

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the builder's own returns, with the types of its columns set."""
        splits = type(self.builder)._split_generators(self.builder, *args, **kwargs)
        found, info = self.builder.info.features, self.builder.info
        if found is not None:
            traits = _traits_of(self.files)
            info.features = Features(
                {name: _wider(feature, traits.get(name, set())) for name, feature in found.items()}
            )
        return splits


def _wider(feature: Any, traits: Set[str]) -> Any:
    """The feature, or one of a type that holds what it does and more."""
    kinds = traits - {"missing"}
    if not isinstance(feature, Value) or not kinds or "nested" in kinds:
        return feature
    dtype, is_whole = dtype_of(kinds), feature.dtype.lstrip("u").startswith("int")
    return Value(dtype) if feature.dtype == "null" or (is_whole and dtype == "float64") else feature


def _traits_of(files: Sequence[Path]) -> dict[str, set[str]]:
    """What the cells of each column are, in all files on this machine, as [`dtype_of`] takes it."""
    traits: dict[str, set[str]] = {}
    for file in files:
        if not file.is_file():
            continue
        of_file = checked_text(file) if suffix_of(file) in (".jsonl", ".ndjson") else _of_parquet(file)
        for name, kinds in of_file.items():
            traits.setdefault(name, set()).update(kinds)
    return traits


def _of_parquet(file: Path) -> dict[str, frozenset[str]]:
    if suffix_of(file) != ".parquet":
        return {}
    return {field.name: frozenset(_kinds(field.type)) for field in pq.read_schema(file)}


def _kinds(it: pa.DataType) -> set[str]:
    types = pa.types
    known = {
        "missing": types.is_null, "bool": types.is_boolean, "large": types.is_uint64, "int": types.is_integer,
        "float": types.is_floating, "word": types.is_string,
    }  # fmt: skip
    return {next((kind for kind, is_it in known.items() if is_it(it)), "nested")}


class TypedMetadata:
    """In place of the `_read_metadata` of a builder of folders, which takes the prompts `NA` and `None` for none.

    Tables `metadata.csv` on this machine are read as other tables are: each column has one type in all of them.

    Args:
        builder: of `datasets`, of folders of images or videos.
        files: that it reads.
    """

    def __init__(self, builder: Any, files: Sequence[Path]) -> None:
        self.builder = builder
        self.files = [file.resolve() for file in files if file.name == "metadata.csv" and file.is_file()]

    def __call__(self, metadata_file: str, metadata_ext: str = "") -> Iterator[pa.Table]:
        """Tables of the rows of a file, in order.

        Raises:
            ValueError: if the columns are divided by another mark than commas.
        """
        if metadata_ext != ".csv" or Path(metadata_file).resolve() not in self.files:
            yield from type(self.builder)._read_metadata(self.builder, metadata_file, metadata_ext=metadata_ext)
            return
        traits: dict[str, set[str]] = {}
        for file in self.files:
            for name, kinds in checked_text(file).items():
                traits.setdefault(name, set()).update(kinds)
        if len(traits) == 1:
            [name] = traits
            mark = next((mark for mark in SEPARATORS if mark in name), None)
            if mark is not None:
                raise ValueError(f"{Path(metadata_file).name!r} has one column, {name!r}. {divided_by(mark)}")
        dtypes = {name: dtype_of(kinds) for name, kinds in traits.items()}
        rows = read_table(Path(metadata_file))
        while block := list(islice(rows, ROWS_OF_METADATA)):
            values = {name: [typed(row[name], dtypes[name]) for row in block] for name in block[0]}
            yield pa.table({name: pa.array(column, dtypes[name]) for name, column in values.items()})


class CheckedCast:
    """In place of a builder's `_cast_table`, which makes True of 0.25 where the first rows hold true and false.

    Args:
        builder: of `datasets`, which takes the types of the first file, or of its first rows, for those of all.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def __call__(self, table: pa.Table, *args: Any, **kwargs: Any) -> pa.Table:
        """The table with the types of the first one.

        Raises:
            ValueError: naming the column, if values would be others, or cannot be cast.
        """
        differing = self._differing(table)
        for name, (first, other) in differing.items():
            if pa.types.is_boolean(first) and not {None, 0, 1}.issuperset(table[name].unique().to_pylist()):
                raise ValueError(_told(name, first, other))
        try:
            return type(self.builder)._cast_table(self.builder, table, *args, **kwargs)
        except (pa.ArrowInvalid, TypeError) as error:
            if not differing:
                raise
            raise ValueError(" ".join(_told(name, *types) for name, types in differing.items())) from error

    def _differing(self, table: pa.Table) -> dict[str, tuple[pa.DataType, pa.DataType]]:
        """The types of columns of one value a row, of the first table and of this one, where they are not the same."""
        features = self.builder.info.features
        types = {} if features is None else {field.name: field.type for field in features.arrow_schema}
        return {
            field.name: (types[field.name], field.type)
            for field in table.schema
            if field.name in types and types[field.name] != field.type and not pa.types.is_nested(field.type)
        }


def _told(name: str, first: pa.DataType, other: pa.DataType) -> str:
    return (
        f"The column {name!r} is {first} in the first rows and {other} in others. Write all of them alike, numbers "
        "such as 1.0 for true and 1."
    )

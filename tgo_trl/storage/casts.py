"""Files and runs of rows whose columns have other types than the first: cast where every value stays what it is."""

from typing import Any

import pyarrow as pa


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
            if pa.types.is_boolean(first) and not pa.types.is_null(other):
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

"""Columns of classes: they hold codes, whose order means nothing, for names, which are what people meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Features, LargeList, List

NAMES_SHOWN = 5


class ClassNames:
    """Turns the codes of a data set's classes into their names.

    Args:
        features: of the data set; of one without any, nothing is a code.
    """

    def __init__(self, features: Features | None) -> None:
        names = {column: class_names(feature) for column, feature in (features or {}).items()}
        self.of = {column: found for column, found in names.items() if found is not None}
        self.in_lists = {column for column in self.of if not isinstance((features or {})[column], ClassLabel)}

    def resolve(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The row with names for codes, in lists too; a missing class, -1, becomes None.

        Raises:
            ValueError: with a clause, for a code without a name.
        """
        if not self.of:
            return dict(example)
        return {
            column: _named(value, self.of[column]) if column in self.of else value for column, value in example.items()
        }


def class_names(feature: Any) -> list[str] | None:
    """The names of the classes that a column holds, alone or in lists; None for any other column."""
    while isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def check_no_classes(features: Features | None, columns: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError if prompts or scores would be read from codes of classes.

    Args:
        features: of the data set.
        columns: by the setting that names them: `"prompt_column"`, and `"score_column"` or `"score_columns"`.
    """
    for setting, column in ((setting, column) for setting, named in columns.items() for column in named):
        names = class_names((features or {}).get(column))
        if names is None:
            continue
        shown = shown_names(names)
        if setting.startswith("score_column"):
            raise ValueError(
                f"`{setting}` is {column!r}, a column of classes ({shown}): what it holds are codes, 0 for the "
                "first name and so on, and no scores. Say which name is good, `tgo-trl convert --layout labels "
                f"--annotation_columns {column} --positive_label ...`, or write numbers into a column of their own."
            )
        raise ValueError(
            f"`{setting}` is {column!r}, a column of classes ({shown}): what it holds are codes, and no text. Write "
            f"the names into a column of their own: `names = dataset.features[{column!r}].names`, then "
            f"`dataset.map(lambda row: {{'prompt': names[row[{column!r}]]}})`."
        )


def shown_names(names: list[str]) -> str:
    """The first names, for messages."""
    return ", ".join(repr(name[:60]) for name in names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_named(entry, names) for entry in value]
    if value is None or isinstance(value, str):  # a name already, from a transform
        return value
    if value == -1:  # what `datasets` has for no class
        return None
    if not 0 <= value < len(names):
        raise ValueError(f"the class {value} has no name; there are {len(names)}, {shown_names(names)}")
    return names[int(value)]

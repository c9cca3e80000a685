"""Settings of the columns that hold scores, one or several: what they mean together. Loads no heavy library."""

import math
from collections.abc import Mapping
from typing import Any

from ..labels import COMBINATIONS
from ..settings import check_choice, shown

USUAL_COLUMN = "score"
"""`score_column` where nobody sets it."""
OF_SEVERAL = ("score_combination", "score_weights", "threshold_values")
"""Settings that mean something only with several columns."""
_UNSET = {"score_combination": "sum"}


def has_several(settings: Mapping[str, Any]) -> bool:
    """Whether rows have a score in each of several columns."""
    return len(settings["score_columns"] or ()) > 1


def usual_normalization(settings: Mapping[str, Any]) -> str:
    """`score_normalization` where nobody sets it: several columns need units in which they can be added up."""
    return "zscore" if has_several(settings) else "none"


def score_names(settings: Mapping[str, Any]) -> list[str]:
    """The columns of scores, in the order of their names, in which all that is computed takes them."""
    return sorted(settings["score_columns"] or [settings["score_column"]])


def by_name(settings: Mapping[str, Any], setting: str) -> dict[str, float] | None:
    """One number for each of several columns, by its name; None if the setting is not set.

    Args:
        settings: by name, checked.
        setting: `"score_weights"` or `"threshold_values"`.
    """
    values = settings[setting]
    return None if values is None else dict(zip(settings["score_columns"], map(float, values), strict=True))


def check_score_columns(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings of score columns that cannot be had, or mean nothing together.

    Args:
        settings: `score_column`, `score_columns`, [`OF_SEVERAL`] and `threshold_value`, by name.
    """
    columns, column = settings["score_columns"], settings["score_column"]
    check_choice("score_combination", settings["score_combination"], COMBINATIONS)
    if columns is not None:
        is_list = isinstance(columns, (list, tuple)) and len(columns) > 0
        if not is_list or not all(isinstance(name, str) and name for name in columns):
            raise ValueError(f"`score_columns` is {shown(columns)}; it must be a list of names of columns.")
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise ValueError(
                f"`score_columns` has {', '.join(map(repr, repeated))} more than once. Name each column once; "
                "`score_weights` say how much each counts."
            )
        if column != USUAL_COLUMN:
            raise ValueError(
                f"`score_column` is {shown(column)} and `score_columns` is {shown(columns)}. Set one of the two: "
                "`score_columns` for several."
            )
    if not has_several(settings):
        for name in OF_SEVERAL:
            if settings[name] != _UNSET.get(name):
                raise ValueError(
                    f"`{name}` is {shown(settings[name])}, which is of several columns of scores. Name them in "
                    "`score_columns`, or leave it out."
                )
        return
    if settings["threshold_value"] is not None:
        raise ValueError(
            f"`threshold_value` is {settings['threshold_value']}, and there are {len(columns)} `score_columns`, each "
            "with a threshold of its own. Set `threshold_values`, one for each."
        )
    for name in ("score_weights", "threshold_values"):
        _check_numbers(name, settings[name], columns)


def _check_numbers(name: str, values: Any, columns: list[str]) -> None:
    if values is None:
        return
    is_list = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not is_list or len(values) != len(columns) or not all(map(math.isfinite, values)):
        raise ValueError(
            f"`{name}` is {shown(values)}; it must be a list of {len(columns)} numbers, one for each of the "
            f"`score_columns`, {', '.join(map(repr, columns))}, in their order."
        )
    if name == "score_weights" and min(values) <= 0:
        raise ValueError(
            f"`score_weights` is {shown(values)}; they must be greater than 0. Leave out a column that is not to "
            "count; of one whose low scores are the good ones, make a column of their negatives."
        )

"""What people write where a number or a boolean is meant: words for good and bad, for ties, and numbers in words."""

import re
from collections.abc import Mapping
from typing import Any

from ...data.rows import BadRowError, check_score

OPPOSITES = (
    ("true", "false"), ("yes", "no"), ("1", "0"), ("1", "-1"), ("good", "bad"), ("positive", "negative"),
    ("accepted", "rejected"), ("accept", "reject"), ("approved", "disapproved"), ("approve", "disapprove"),
    ("chosen", "rejected"), ("preferred", "rejected"), ("liked", "disliked"), ("like", "dislike"),
    ("passed", "failed"), ("thumbs up", "thumbs down"), ("thumb up", "thumb down"), ("up", "down"),
    ("upvote", "downvote"), ("win", "loss"), ("win", "lose"), ("won", "lost"), ("winner", "loser"),
    ("better", "worse"), ("👍", "👎"),
)  # fmt: skip
"""Pairs of words of which the first is the good one, in whatever case, with `_` or `-` for a space."""

TIE_WORDS = ("tie", "tied", "draw", "equal", "same", "both", "neither")

_GOOD = {good for good, _ in OPPOSITES}
_BAD = {bad for _, bad in OPPOSITES}
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:st|nd|rd|th)?\s*(?:stars?|points?|★)?")


class UnknownWordError(BadRowError):
    """A word whose meaning nobody said: raised even where bad rows are skipped, since it is in many rows."""


def spelt(value: Any) -> str:
    """A label as text: 1.0, which a column with gaps has for 1, as `"1"`."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def plain(word: str) -> str:
    """A word without what only spelling differs in: `"Thumbs_Up "` is `"thumbs up"`."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", word.strip().casefold())


def is_missing(value: Any) -> bool:
    """Whether nothing was said: None, or blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def quoted(value: Any) -> str:
    """A value in a message, cut to a sensible length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_good(value: Any, positive: str | None = None) -> bool:
    """Whether a label is the good one: `positive` if that is set, else 1 or True, or one of [`OPPOSITES`].

    Raises:
        UnknownWordError: with a clause, if that cannot be told.
        ValueError: with a clause, for what is neither text nor a finite number.
    """
    if not isinstance(value, str):
        check_score(value)
    if positive is not None:
        return spelt(value) == positive
    word = plain(spelt(value))
    if word in _GOOD:
        return True
    if word in _BAD:
        return False
    raise UnknownWordError(
        f"the label is {quoted(value)}, and neither 1 nor 0 nor a word that is known to be good or bad. Set "
        "`positive_label` to the good one; all others count as bad"
    )


def is_set(value: Any) -> bool:
    """Whether a flag is set, whatever it is written as; None is not.

    Raises:
        ValueError: with a clause, if that cannot be told.
    """
    if is_missing(value):
        return False
    word = plain(spelt(value))
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise ValueError(f"the flag is {quoted(value)}, neither true nor false")


def as_number(value: Any, values: Mapping[str, float | None] | None = None) -> float | None:
    """A rating or a rank as a number: itself, what `values` has for it, or that in `"4"`, `"4 stars"` and `"1st"`.

    None where nothing was said, or where `values` has None.

    Raises:
        UnknownWordError: with a clause, for another word.
        ValueError: with a clause, for what is no finite number.
    """
    if is_missing(value):
        return None
    if values is not None and spelt(value) in values:
        number = values[spelt(value)]
        return None if number is None else check_score(number)
    if not isinstance(value, str):
        return check_score(value)
    match = _NUMBER.fullmatch(value.strip().casefold())
    if match is None:
        raise UnknownWordError(
            f"the value is {quoted(value)}, and no number. Say what each such word is worth with `word_values`, as in "
            """'{"poor": 1, "good": 2}'; null leaves it out"""
        )
    return float(match[1])

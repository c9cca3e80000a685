"""What a model's reply says, where it was asked for a JSON object: read if it is plain, and never guessed."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_TAG = "(?:think|thinking|reasoning)>"
_THINKING = re.compile(rf"\A.*</{_TAG}|<{_TAG}.*\Z", re.DOTALL | re.IGNORECASE)
"""Up to its last end, since some servers leave out the beginning; or without an end, where tokens ran out."""
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)
_GAP = r"[\s\"'*_`]*"
"""Quotes and Markdown between a name, its colon and its value."""


_OF_TWO = r"(?![ \t]*(?:[-\u2013\u2014,&]|to\b|or\b|and\b)[ \t]*\d)"
_OF_ANOTHER_SCALE = (
    r"(?![ \t]*(?:stars?|points?)?[ \t]*(?:/|\(?(?:out[ \t]+)?of\b)[ \t]*(?!{high:g}(?:\.0+)?(?!\.?\d))\d)(?![ \t]*%)"
)
_OF_ANOTHER = _OF_TWO + _OF_ANOTHER_SCALE
NUMBER = r"[-+]?\d+(?:\.\d+)?(?!\w|[.,]\d)" + _OF_ANOTHER
"""A number in text, `8`, `8/10` or `8 out of 10`; but not the first of `1-10` or of `7 or 8`, as where the question is
repeated, nor of `8/100`, nor `8 %`."""


def not_of_another(high: float) -> str:
    """What does not come behind a number of a scale up to `high`, as a regular expression: as of [`NUMBER`]."""
    return _OF_ANOTHER.format(high=high)


def number_within(value: Any, low: float, high: float) -> float | None:
    """The number that a value of JSON's or of text is, if it is one within the range; text may have `8/10`."""
    if isinstance(value, str):
        value = re.sub(rf"(?<=\d)\s*(?:/|out\s+of)\s*{high:g}(?:\.0+)?\s*$", "", value[:40])
    try:
        is_none = isinstance(value, bool) or "_" in str(value)  # which Python takes for 10 in `1_0`
        number = float("nan" if is_none else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if low <= number <= high else None


def read_reply(
    text: str, name: str, value_pattern: str, read: Callable[[Any], T | None], may_be_bare: bool = True
) -> T | None:
    """The value that a reply gives to a name; None if it gives none, or several that differ.

    A JSON object is read first, alone or in a code fence; then, in whatever the reply is, `name: value` with or without
    quotes; then a reply that is nothing but the value. What a model thinks aloud, in `<think>`, is passed over.

    Args:
        text: the reply, which may hold anything.
        name: of the value, such as `"winner"`.
        value_pattern: a regular expression of values in text.
        read: makes a value of JSON's or of text; None for one that is not allowed.
        may_be_bare: whether a reply that is nothing but the value is one.
    """
    text = _THINKING.sub("", text).strip()
    fenced = _FENCE.match(text)
    try:
        whole = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and name in whole:
        return read(whole[name])
    found = re.findall(rf"\b{re.escape(name)}{_GAP}[:=]{_GAP}({value_pattern})", text, re.IGNORECASE)
    values = {read(value) for value in found}
    if not values and may_be_bare:
        values = {read(text.strip(" \n.*\"'`"))}
    return values.pop() if len(values) == 1 else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises if it gives a name two values, of which Python would take the last."""
    found = dict(pairs)
    if any(found[name] != value for name, value in pairs):
        raise ValueError
    return found

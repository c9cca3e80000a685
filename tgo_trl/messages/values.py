"""Values in messages, cut to a length that can be read: a cell of a data set may hold megabytes."""

import difflib
from collections.abc import Iterable

LONGEST = 200


def shown(value: object, limit: int = 60) -> str:
    """The value as a literal of at most `limit` characters."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shown_path(path: str) -> str:
    """Likewise, of a path or a URL, which says little without its end."""
    return shown(path, LONGEST)


def cut(text: str, limit: int = LONGEST) -> str:
    """The text, of which the middle is left out where it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    kept = (limit - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


def nearest(given: str, known: Iterable[str], number: int = 1) -> list[str]:
    """Those of the known names that are spelt most like one that is not known; none if nothing is near."""
    names = {name.lower(): name for name in known if isinstance(name, str)}
    return [names[name] for name in difflib.get_close_matches(given[:LONGEST].lower(), names, number)]


def did_you_mean(given: object, known: Iterable[str], mark: str = "'") -> str:
    """A sentence, with a space before it, that names what might have been meant; empty if nothing is near.

    Args:
        given: what is not known.
        known: what is.
        mark: on both sides of the name.
    """
    near = nearest(given, known) if isinstance(given, str) else []
    return f" Did you mean {mark}{near[0]}{mark}?" if near else ""


def shown_bytes(number: float) -> str:
    """A number of bytes in the unit that it is read in, of powers of 1000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size / 10:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f} bytes"


def why(error: BaseException) -> str:
    """An error's type and what it says."""
    return f"{type(error).__name__}: {cut(str(error))}"

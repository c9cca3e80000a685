"""How the two images of a pair fared: by outcomes, votes or shares of each, or by one choice between them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data.rows import check_score
from .layouts import Layout
from .tallies import Comparisons
from .words import TIE_WORDS, UnknownWordError, as_number, is_good, is_missing, plain, quoted, spelt

ROUNDING = 0.01
"""How far two shares may be from 1 together: what rounding each to two digits may do."""

_SIDES = {"a": 0, "b": 1, "first": 0, "second": 1, "left": 0, "right": 1}
_NOUN = re.compile(r"(?:image|img|picture|model|option|response)?\s?(?=.)")

Outcome = tuple[Comparisons, Comparisons]


@dataclass(frozen=True)
class PairReader:
    """Reads the pairs of a data set, all in the same way.

    Attributes:
        layout: of the data set.
        scale: of numbers for each image: `"outcomes"`, `"votes"` or `"shares"`.
        first_number: what a choice calls the first image, if it is a number: 0 or 1; None if that cannot be told.
    """

    layout: Layout
    scale: str = "outcomes"
    first_number: int | None = None

    def read(self, example: Mapping[str, Any], names: Sequence[str | None] = ()) -> Outcome | None:
        """How each image fared; None of a pair that nothing was said about.

        Args:
            example: the row, with names for codes.
            names: of its images, if they have any, or their paths.

        Raises:
            UnknownWordError: with a clause, for a choice that is none of the images.
            ValueError: with a clause, for numbers that cannot be.
        """
        said, is_choice = _cells(example, self.layout)
        if all(map(is_missing, said)):
            is_known = self.layout.first_is_better or not self.layout.annotations
            return (_won(), _lost()) if is_known else None
        if is_choice:
            return self._chosen(said[0], names)
        return _READERS[self.scale](self._numbers(said))

    def describe(self) -> str | None:
        """What was found out about numbers, in words; None if there was nothing to find out."""
        if self.scale != "outcomes":
            return f"{' and '.join(self.layout.annotations)} hold {self.scale}"
        if self.first_number is not None and len(self.layout.annotations) == 1:
            first, second = self.layout.images
            return (
                f"in {self.layout.annotations[0]!r}, {self.first_number} stands for {first!r} and "
                f"{self.first_number + 1} for {second!r}"
            )
        return None

    def _numbers(self, said: Sequence[Any]) -> tuple[float, float]:
        if len(said) != 2:
            raise ValueError(f"there are {len(said)} numbers for two images")
        if any(map(is_missing, said)):
            raise ValueError(f"the outcomes are {quoted(said[0])} and {quoted(said[1])}, so that one is missing")
        first, second = (_outcome_number(value) for value in said)
        # where the better image is known to be the first, a list of votes need not be in that order
        return (max(first, second), min(first, second)) if self.layout.first_is_better else (first, second)

    def _chosen(self, value: Any, names: Sequence[str | None]) -> Outcome:
        side = self._side(value, names)
        if side is None:
            return Comparisons(ties=1, total=1), Comparisons(ties=1, total=1)
        return (_won(), _lost()) if side == 0 else (_lost(), _won())

    def _side(self, value: Any, names: Sequence[str | None]) -> int | None:
        """0, 1, or None for a tie."""
        if self.layout.choices:
            if spelt(value) not in self.layout.choices:
                raise UnknownWordError(
                    f"the choice is {quoted(value)}, and none of `choice_labels`, {', '.join(self.layout.choices)}"
                )
            position = self.layout.choices.index(spelt(value))
            return position if position < 2 else None
        if not isinstance(value, str):
            check_score(value)  # no NaN, no list
        if list(names).count(spelt(value)) == 1:
            return list(names).index(spelt(value))
        side = _named_side(value, self.layout)
        if side is not None:
            return side
        if isinstance(value, str) and plain(value).split(" ")[0] in TIE_WORDS:  # "both bad"
            return None
        number = _side_number(value)
        if number is None or self.first_number is None or number - self.first_number not in (0, 1):
            raise UnknownWordError(
                f"the choice is {quoted(value)}, and which image that is cannot be told. Set `choice_labels` to what "
                f"stands for {self.layout.images[0]!r}, for {self.layout.images[1]!r} and, if there is such a value, "
                "for a tie"
            )
        return number - self.first_number


def find_pair_reader(layout: Layout, rows: Iterable[Mapping[str, Any]]) -> PairReader:
    """The reader of a data set, whose scale or numbering its first rows tell that leave no doubt.

    Args:
        layout: of the data set.
        rows: with names for codes; read no further than needed, and not at all if the layout says it.
    """
    if layout.scale != "auto" or layout.choices or not layout.annotations:
        return PairReader(layout, layout.scale if layout.scale != "auto" else "outcomes")
    named = [scale for scale, word in (("votes", "vote"), ("shares", "share")) if _all_have(layout.annotations, word)]
    if len(layout.annotations) == 2 and len(named) == 1:
        return PairReader(layout, named[0])
    for example in rows:
        said, is_choice = _cells(example, layout)
        if any(map(is_missing, said)):
            continue
        found = _numbering(said[0], layout) if is_choice else _scale(said)
        if found is not None:
            return replace(PairReader(layout), **found)
    return PairReader(layout)


def check_choices(layout: Layout, names: Sequence[str]) -> None:
    """Raises an [`UnknownWordError`], with a clause, for a name of a class that is no choice."""
    for name in names:
        if _side_number(name) is None:  # numbers are told by the rows
            PairReader(layout).read({layout.annotations[0]: name})


def _cells(example: Mapping[str, Any], layout: Layout) -> tuple[list[Any], bool]:
    """A number for each image, from a column each or a list in one, or a single choice, and whether it is that."""
    cells = [example[name] for name in layout.annotations]
    if len(cells) == 1 and isinstance(cells[0], (list, tuple)):
        return list(cells[0]), False
    return cells, len(cells) == 1


def _won() -> Comparisons:
    return Comparisons(wins=1, total=1)


def _lost() -> Comparisons:
    return Comparisons(total=1)


# ---- Numbers for each image ----


def _outcome_number(value: Any) -> float:
    """A number, or 1, 0.5 or 0 for a word."""
    if isinstance(value, str):
        word = plain(value)
        if word in TIE_WORDS:
            return 0.5
        if not re.fullmatch(r"[+-]?\d+(?:\.\d+)?", word):
            return float(is_good(value))
    number = as_number(value)
    assert number is not None  # the cell is not missing
    return number


def _outcomes(numbers: tuple[float, float]) -> Outcome:
    if sorted(numbers) not in ([0.0, 1.0], [0.5, 0.5]):
        raise ValueError(
            f"the outcomes are {numbers[0]:g} and {numbers[1]:g}, not 1 and 0, 0 and 1, or 0.5 each; if they are "
            "counts of votes, or shares of them, set `annotation_scale` to 'votes' or 'shares'"
            + ("; per cent are shares once they are divided by 100" if sum(numbers) == 100 else "")
        )
    first, second = Comparisons(), Comparisons()
    first.add(numbers[0])
    second.add(numbers[1])
    return first, second


def _votes(numbers: tuple[float, float]) -> Outcome | None:
    for number in numbers:
        if number < 0 or not number.is_integer():
            raise ValueError(f"the votes are {numbers[0]:g} and {numbers[1]:g}, but {number:g} is no number of votes")
    first, second = map(int, numbers)
    if first + second == 0:
        return None  # nobody was asked
    return Comparisons(wins=first, total=first + second), Comparisons(wins=second, total=first + second)


def _shares(numbers: tuple[float, float]) -> Outcome:
    total = sum(numbers)
    if not _are_parts(numbers):
        raise ValueError(
            f"the shares are {numbers[0]:g} and {numbers[1]:g}, which are not two parts of 1: their sum is {total:g}"
        )
    return Comparisons(wins=numbers[0] / total, total=1), Comparisons(wins=numbers[1] / total, total=1)


def _are_parts(numbers: Sequence[float]) -> bool:
    return min(numbers) >= 0 and abs(sum(numbers) - 1) <= ROUNDING + 1e-6  # float32 shares are not exact either


_READERS: dict[str, Callable[[tuple[float, float]], Outcome | None]] = {
    "outcomes": _outcomes,
    "votes": _votes,
    "shares": _shares,
}


def _all_have(columns: Sequence[str], word: str) -> bool:
    return all(word in column.casefold() for column in columns)


def _scale(said: Sequence[Any]) -> dict[str, Any] | None:
    """The scale, if these numbers leave no doubt; numbers that cannot be are told where rows are counted."""
    try:
        numbers = [_outcome_number(value) for value in said]
    except ValueError:
        return None
    if len(numbers) != 2:
        return None
    first, second = numbers
    if first + second == 100:  # which may be per cent
        return None
    if max(first, second) > 1 and first.is_integer() and second.is_integer():
        return {"scale": "votes"}
    if _are_parts(numbers) and not first.is_integer() and first != 0.5:
        return {"scale": "shares"}
    return None


# ---- One choice ----


def _named_side(value: Any, layout: Layout) -> int | None:
    """The image that a word names: its column, or A, first, left and their like; None for another word."""
    if not isinstance(value, str):
        return None
    word = plain(value)
    for columns in (layout.images, layout.uids):
        joined = [plain(name).replace(" ", "") for name in columns]
        if word.replace(" ", "") in joined:
            return joined.index(word.replace(" ", ""))
    return _SIDES.get(_NOUN.sub("", word, count=1))


def _side_number(value: Any) -> int | None:
    """The number of an image, as in 1, `"1"` and `"image 1"`; None for what is none, True among it."""
    if isinstance(value, str):
        digits = _NOUN.sub("", plain(value), count=1)
        return int(digits) if digits.isdecimal() else None
    is_number = hasattr(value, "__float__") and not isinstance(value, bool)
    return int(value) if is_number and float(value).is_integer() else None


def _numbering(value: Any, layout: Layout) -> dict[str, Any] | None:
    """Whether numbers begin with 0 or 1, if this choice leaves no doubt; none are expected beside words."""
    if _named_side(value, layout) is not None:
        return {}
    number = _side_number(value)
    return {0: {"first_number": 0}, 2: {"first_number": 1}}.get(number) if number is not None else None

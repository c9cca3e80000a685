"""Pairs of images of one prompt, of which one is better: which there are, and what came of the rest."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

SELECTIONS = ("auto", "columns", "best_worst", "all")
"""Where pairs come from: of `"auto"`, the columns if the data set has them, else the best and the worst image."""

DESCRIPTIONS = {
    "columns": "a row each",
    "best_worst": "best against worst image of each prompt",
    "all": "all of each prompt",
}


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set.

    Attributes:
        selection: how they were found, one of [`SELECTIONS`] but `"auto"`.
        margin: scores of a pair are further apart than this.
        positions: of the better and the worse image of each, among the images that were scanned.
        num_prompts: distinct ones of the pairs.
        left_out: how many were left out, by the reason.
        compared: what the images are compared by, as name and value of lines for tables; empty of one column of scores.
    """

    selection: str
    margin: float
    positions: list[tuple[int, int]]
    num_prompts: int
    left_out: dict[str, int] = field(default_factory=dict)
    compared: dict[str, str] = field(default_factory=dict)

    @property
    def flat(self) -> list[int]:
        """The positions in turns, the better one first."""
        return [position for pair in self.positions for position in pair]

    def describe(self) -> str:
        """How they were found, in a phrase for tables and cards."""
        margin = f", scores more than {self.margin:g} apart" if self.margin > 0 else ""
        return f"{len(self.positions):,} ({DESCRIPTIONS[self.selection]}{margin})"

    def describe_left_out(self) -> str:
        """What was left out, in a phrase; empty if nothing was."""
        return ", ".join(f"{reason}: {count:,}" for reason, count in self.left_out.items())


TIES = "pairs with equal scores"
TOO_NEAR = "pairs with scores no further apart than `pair_margin`"
SAME_FILE = "pairs of the same file twice"
TWO_SIZES = "pairs of images of two sizes"
SINGLE = "images without another of their prompt and size"
UNREADABLE = "pairs with an image that cannot be read"


def find_pairs(
    selection: str, margin: float, prompts: Sequence[str], scores: Sequence[float], keys: Sequence[str],
    sizes: Sequence[Hashable],
) -> Pairs:  # fmt: skip
    """The pairs of scored images, or of images that come in pairs; there may be none.

    Both images of a pair share one noise, so they have to be of one size; and they have to be two.

    Args:
        selection: `"columns"`: images come in turns, the better one first. `"best_worst"`: of each prompt and size, the
            first best against the first worst. `"all"`: any two of a prompt and size, in the order of its images.
        margin: at least 0; scores have to be further apart.
        prompts: of each image, `[N]`.
        scores: of each image, finite.
        keys: of each image, a fingerprint of its file.
        sizes: of each image.
    """
    left_out = dict.fromkeys((SINGLE, TIES, TOO_NEAR, SAME_FILE, TWO_SIZES), 0)
    groups: dict[Hashable, list[int]] = {}
    if selection != "columns":
        for i, group in enumerate(zip(prompts, sizes, strict=True)):
            groups.setdefault(group, []).append(i)
        left_out[SINGLE] = sum(len(group) == 1 for group in groups.values())
    positions = []
    for better, worse in _candidates(selection, groups.values(), scores):
        difference = scores[better] - scores[worse]
        if difference == 0:
            left_out[TIES] += 1
        elif difference <= margin:
            left_out[TOO_NEAR] += 1
        elif keys[better] == keys[worse]:
            left_out[SAME_FILE] += 1
        elif sizes[better] != sizes[worse]:
            left_out[TWO_SIZES] += 1
        else:
            positions.append((better, worse))
    return Pairs(selection, margin, positions, _num_prompts(positions, prompts), _counted(left_out))


def without_unreadable(pairs: Pairs, readable: set[int], prompts: Sequence[str]) -> Pairs:
    """The pairs both of whose images could be read.

    Args:
        pairs: as they were found.
        readable: positions of the images that could be read.
        prompts: of each image.
    """
    kept = [pair for pair in pairs.positions if readable.issuperset(pair)]
    left_out = {**pairs.left_out, UNREADABLE: len(pairs.positions) - len(kept)}
    return replace(pairs, positions=kept, num_prompts=_num_prompts(kept, prompts), left_out=_counted(left_out))


def _candidates(selection: str, groups: Iterable[list[int]], scores: Sequence[float]) -> Iterator[tuple[int, int]]:
    if selection == "columns":
        yield from zip(range(0, len(scores), 2), range(1, len(scores), 2), strict=True)
    for group in groups:
        if selection == "all":
            for one, other in combinations(group, 2):
                yield (one, other) if scores[one] >= scores[other] else (other, one)
        elif len(group) > 1:
            yield max(group, key=scores.__getitem__), min(group, key=scores.__getitem__)


def _num_prompts(positions: Sequence[tuple[int, int]], prompts: Sequence[str]) -> int:
    return len({prompts[better] for better, _ in positions})


def _counted(left_out: dict[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in left_out.items() if count > 0}

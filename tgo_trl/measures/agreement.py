"""How far two judges say the same of the same things."""

from collections import Counter
from collections.abc import Hashable, Sequence


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """The share of things that both say the same of.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"There are {len(first)} and {len(second)} verdicts; give as many of each, and one at least.")
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """`(p_o - p_e) / (1 - p_e)` (Cohen 1960): 1 where both always agree, 0 where they do as often as by chance.

    `p_o` is the share that agrees, `p_e` the share that would if each said what it says as often, at random. None where
    both say one and the same of everything, so that chance alone explains it.

    Raises:
        ValueError: as [`agreement`] does.
    """
    observed = agreement(first, second)
    ours, theirs = Counter(first), Counter(second)
    chance = sum(ours[name] * theirs[name] for name in ours) / len(first) ** 2
    return None if chance == 1 else (observed - chance) / (1 - chance)

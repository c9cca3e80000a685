"""Quantiles of scores, among those of their prompt or of all rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import list_rows

QUANTILE_SCOPES = ("auto", "prompt", "dataset")


@dataclass(frozen=True)
class ScoreQuantiles:
    """Empirical distributions of scores, fitted once on the training set, and where other scores lie in them.

    Attributes:
        distribution: float64 `[n]`, the scores in ascending order; or those of each prompt.
    """

    distribution: Tensor | Mapping[str, Tensor]

    @classmethod
    def fit(cls, scores: Tensor, prompts: Sequence[str], scope: str) -> "ScoreQuantiles":
        """The distributions of a training set.

        Args:
            scores: float64 `[N]`, in score units, finite.
            prompts: `N` prompts.
            scope: `"prompt"`, one distribution per prompt; `"dataset"`, a single one; or `"auto"`, the former where
                every prompt has several rows.

        Raises:
            ValueError: if there is to be one per prompt, and a prompt has a single row.
        """
        groups = _rows_of_prompts(prompts)
        if scope == "dataset" or (scope == "auto" and min(map(len, groups.values())) == 1):
            return cls(scores.sort().values)
        _check_several(groups)
        return cls({prompt: scores[rows].sort().values for prompt, rows in groups.items()})

    @property
    def scope(self) -> str:
        """`"prompt"` or `"dataset"`."""
        return "dataset" if isinstance(self.distribution, Tensor) else "prompt"

    def __call__(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        """The quantile of each score, float32 `[N]` in [0, 1].

        A prompt that was not fitted gets the distribution of its rows here.

        Args:
            scores: float64 `[N]`, in score units, finite.
            prompts: `N` prompts.

        Raises:
            ValueError: if such a prompt has a single row.
        """
        known = self.distribution
        if isinstance(known, Tensor):
            return mid_quantiles(scores, known).float()
        groups = _rows_of_prompts(prompts)
        unknown = {prompt: rows for prompt, rows in groups.items() if prompt not in known}
        _check_several(unknown, "prompts outside the training set")
        quantiles = torch.empty(len(scores))
        for prompt, rows in groups.items():
            own = scores[rows]
            quantiles[rows] = mid_quantiles(own, known[prompt] if prompt in known else own.sort().values).float()
        return quantiles


def mid_quantiles(scores: Tensor, ordered: Tensor) -> Tensor:
    """The share of a distribution that lies below each score, and half of what equals it, float64 `[N]`.

    Of its own scores the mean is 1/2, however many are equal. The share of those that are not above, which QRPO's code
    takes, is higher by half of what equals the score: `1 / 2n` where no two do.

    Args:
        scores: float64 `[N]`.
        ordered: float64 `[n]`, the distribution, in ascending order.
    """
    below, not_above = (torch.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return (below + not_above).double() / (2 * len(ordered))


def _rows_of_prompts(prompts: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    return groups


def _check_several(groups: Mapping[str, Sequence[int]], of: str = "prompts") -> None:
    single = [rows[0] for rows in groups.values() if len(rows) == 1]
    if single:
        raise ValueError(
            f"Quantiles are of each prompt's own scores, but {len(single)} of {len(groups)} {of} have a single image "
            f"({list_rows(single)}), whose quantile says nothing. Drop them, add images, or set "
            "`quantile_scope='dataset'`."
        )

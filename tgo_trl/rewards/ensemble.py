"""A weighted sum of rewards, each normalised by numbers that are fixed before: no score depends on its batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..labels import NORMALIZATIONS
from ..labels.normalization import center_and_scale
from ..settings import check_choice
from .base import Reward, check_differentiable, checked_scores, is_differentiable, reads_fps, reads_sources, reward_name


@dataclass(frozen=True)
class Member:
    """One reward of an ensemble, which counts `weight * (score - center) / scale`.

    Attributes:
        reward: the reward, or None in an ensemble that only combines scores.
        weight: may be negative, for what should be small.
        normalization: what [`Ensemble.fit`] fits: `"none"`, `"zscore"` (mean and standard deviation) or `"robust"`
            (median and interquartile range).
        center, scale: in the reward's units; given, they are kept by a fit.
    """

    reward: Reward | None = None
    weight: float = 1.0
    normalization: str = "zscore"
    center: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        if (self.center is None) != (self.scale is None):
            raise ValueError("Give both `center` and `scale`, or neither, to have them fitted.")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"`scale` is {self.scale}; scores are divided by it, so it must be above 0.")

    @property
    def is_fitted(self) -> bool:
        """Whether center and scale are known."""
        return self.normalization == "none" or self.scale is not None


class Ensemble:
    """A reward that sums others, `sum_k w_k (s_k - c_k) / d_k`.

    ```python
    members = {"pickscore": Member(load_reward("pickscore")), "aesthetic": Member(load_reward("aesthetic"), weight=0.5)}
    ensemble = Ensemble(members)
    scores = ensemble.score(prompts, images)  # of each reward
    ensemble = ensemble.fit(scores)           # on a sample, or the whole data set
    ensemble(prompts, images)                 # the sums; `ensemble.combine(scores)` without calling the rewards again
    ```

    Args:
        members: by name.
    """

    name = "ensemble"

    def __init__(self, members: Mapping[str, Member]) -> None:
        if not members:
            raise ValueError("An ensemble needs at least one member.")
        self.members = dict(members)

    @property
    def version(self) -> str:
        """The formula, with the members' versions in brackets."""
        return " + ".join(self._term(name, member) for name, member in self.members.items())

    @property
    def license(self) -> str:
        """The licences of all members."""
        licenses = {name: getattr(member.reward, "license", "not stated") for name, member in self.members.items()}
        return "; ".join(f"{name}: {license}" for name, license in licenses.items())

    @property
    def reads_sources(self) -> bool:
        """Whether any member judges edits."""
        return any(reads_sources(member.reward) for member in self.members.values() if member.reward is not None)

    @property
    def reads_fps(self) -> bool:
        """Whether any member asks for the rate of videos."""
        return any(reads_fps(member.reward) for member in self.members.values() if member.reward is not None)

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None,
        fps: float | None = None,
    ) -> list[float]:  # fmt: skip
        """The weighted sum for each row.

        Raises:
            ValueError: if a member is not fitted, has no reward, or its reward returns other than scores.
        """
        self._check_fitted()
        return self.combine(self.score(prompts, images, sources, fps))

    @property
    def differentiable(self) -> bool:
        """Whether all members are."""
        return all(is_differentiable(member.reward) for member in self.members.values())

    def score_pixels(self, prompts: Sequence[str], pixels: torch.Tensor) -> torch.Tensor:
        """The weighted sum for each row, float32 `[N]`, with the gradient of `pixels`, float `[N, 3, H, W]` in [0, 1].

        Raises:
            ValueError: if a member is not fitted, or has no gradient.
        """
        self._check_fitted()
        for member in self.members.values():
            check_differentiable(member.reward)
        members: Mapping[str, Any] = self.members
        terms = [
            member.weight
            * (member.reward.score_pixels(prompts, pixels) - (member.center or 0.0))
            / (member.scale or 1.0)
            for member in members.values()
        ]
        return torch.stack(terms).sum(0)

    def score(
        self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None,
        fps: float | None = None,
    ) -> dict[str, list[float]]:  # fmt: skip
        """The scores of each member, not normalised.

        Raises:
            ValueError: if a member has no reward, or it returns other than scores.
        """
        missing = [name for name, member in self.members.items() if member.reward is None]
        if missing:
            raise ValueError(f"Members without a reward cannot score: {', '.join(missing)}. Use `combine`.")
        return {
            name: checked_scores(member.reward, prompts, images, sources, fps)
            for name, member in self.members.items()
            if member.reward is not None
        }

    def fit(self, scores: Mapping[str, Sequence[float]]) -> "Ensemble":
        """The ensemble with centres and scales fitted, where they were not given.

        Args:
            scores: `[N]` of each member, from the rows that stand for the data.

        Raises:
            ValueError: if a member's scores are missing, too few, or all equal.
        """
        fitted = dict(self.members)
        for name, member in self.members.items():
            if not member.is_fitted:
                center, scale = _fit(name, self._scores_of(name, scores), member.normalization)
                fitted[name] = replace(member, center=center, scale=scale)
        return Ensemble(fitted)

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum for each row of scores that are known already.

        Args:
            scores: `[N]` of each member.

        Raises:
            ValueError: if a member is not fitted, or the numbers of scores differ.
        """
        self._check_fitted()
        columns = {name: self._scores_of(name, scores) for name in self.members}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The members have different numbers of scores: {lengths}. Pass those of the same rows.")
        total = torch.zeros(next(iter(lengths.values())), dtype=torch.float64)
        for name, member in self.members.items():
            total += member.weight * (columns[name] - (member.center or 0.0)) / (member.scale or 1.0)
        return [float(value) for value in total]

    def _scores_of(self, name: str, scores: Mapping[str, Sequence[float]]) -> torch.Tensor:
        if name not in scores:
            raise ValueError(f"There are no scores of {name!r}, only of {', '.join(map(repr, scores)) or 'nothing'}.")
        column = torch.as_tensor(scores[name], dtype=torch.float64)
        if not column.isfinite().all():
            raise ValueError(f"Scores of {name!r} are NaN or infinite. Drop these rows.")
        return column

    def _check_fitted(self) -> None:
        unfitted = [name for name, member in self.members.items() if not member.is_fitted]
        if unfitted:
            raise ValueError(
                f"The ensemble does not know centre and scale of {', '.join(map(repr, unfitted))}. Call "
                "`ensemble = ensemble.fit(scores)`, give `center` and `scale`, or set `normalization='none'`."
            )

    def _term(self, name: str, member: Member) -> str:
        source = "" if member.reward is None else f" [{getattr(member.reward, 'version', reward_name(member.reward))}]"
        if member.scale is None:
            return f"{member.weight:g} * {name}{source}"
        return f"{member.weight:g} * ({name}{source} - {member.center:.6g}) / {member.scale:.6g}"


def _fit(name: str, scores: torch.Tensor, normalization: str) -> tuple[float, float]:
    if len(scores) == 0:
        raise ValueError(f"There are no scores of {name!r} to fit a centre and a scale on.")
    center, scale = center_and_scale(scores, normalization)
    if scores.min() == scores.max() or not scale > 0:
        raise ValueError(
            f"The {len(scores)} scores of {name!r} have no spread to divide by ({normalization}): "
            + ("all" if scores.min() == scores.max() else "half or more")
            + " are equal. Use other rows, another normalisation, or leave the reward out."
        )
    return center, scale

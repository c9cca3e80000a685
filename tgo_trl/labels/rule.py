"""From scores to labels and weights: the rule is fitted once on the whole training set, then applied to any rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_several_images, list_rows
from .thresholds import prompt_baseline, prompt_mean
from .weights import confidence_weights

PER_PROMPT = ("prompt_mean", "prompt_baseline")
"""Types of thresholds that are one per prompt."""


@dataclass(frozen=True)
class Labels:
    """What the loss needs to know of `N` scored rows.

    Attributes:
        scores: float64 `[N]`, in the data set's score units.
        is_positive: bool `[N]`, `s >= tau`.
        weights: float32 `[N]`, confidence weights.
        relative_scores: float32 `[N]`, what the loss reads of the scores; None where it reads labels alone.
    """

    scores: Tensor
    is_positive: Tensor
    weights: Tensor
    relative_scores: Tensor | None = None

    def take(self, positions: Sequence[int]) -> "Labels":
        """Those of the rows at these positions."""
        rows = list(positions)
        relative = None if self.relative_scores is None else self.relative_scores[rows]
        return Labels(self.scores[rows], self.is_positive[rows], self.weights[rows], relative)


@dataclass(frozen=True)
class LabelRule:
    """A fitted rule `score -> (label, weight)`; the same on every rank, written to checkpoints and the model card.

    Scores are first normalised, `z = (s - center) / scale` (identity unless asked for); the threshold and the
    confidence coefficient then act on `z`.

    Attributes:
        threshold_type: how `tau` was found, as in [`~tgo_trl.labels.fitting.fit_label_rule`].
        threshold: `tau` in the data set's score units; for the per-prompt ones the mean over the rows.
        percentile: `p`, where it was used.
        confidence_coef: `c`, per normalised score unit.
        center, scale: the normalisation.
        beta: `beta` of the per-prompt baseline, in normalised score units.
        prompt_thresholds: `tau` of each prompt in the data set's score units, for the per-prompt ones only.
        num_rows, num_positive, num_prompts: of the rows it was fitted on.
        score_mean, score_std: of the rows it was fitted on, in score units.
    """

    threshold_type: str
    threshold: float
    percentile: float | None
    confidence_coef: float
    center: float
    scale: float
    beta: float
    num_rows: int
    num_positive: int
    num_prompts: int
    score_mean: float
    score_std: float
    prompt_thresholds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def at(
        cls, thresholds: Tensor, scores: Tensor, *, threshold_type: str = "value", percentile: float | None = None,
        confidence_coef: float = 5.0, center: float = 0.0, scale: float = 1.0, beta: float = 1.0, num_prompts: int = 1,
        prompt_thresholds: Mapping[str, float] | None = None,
    ) -> "LabelRule":  # fmt: skip
        """The rule of given thresholds, without any check.

        Args:
            thresholds: float64, a scalar or one per row `[N]`, in score units.
            scores: float64 `[N]`, in score units.
            threshold_type: how they were found.
            percentile: `p`, where it was used.
            confidence_coef: `c`, per normalised score unit.
            center: of the normalisation.
            scale: likewise.
            beta: of the per-prompt baseline, in normalised score units.
            num_prompts: distinct ones among the rows.
            prompt_thresholds: of each prompt, where there is one per prompt.
        """
        return cls(
            threshold_type=threshold_type,
            threshold=thresholds.mean().item(),
            percentile=percentile,
            confidence_coef=confidence_coef,
            center=center,
            scale=scale,
            beta=beta,
            num_rows=len(scores),
            num_positive=int((scores >= thresholds).sum()),
            num_prompts=num_prompts,
            score_mean=scores.mean().item(),
            score_std=scores.std(correction=0).item(),
            prompt_thresholds=dict(prompt_thresholds or {}),
        )

    @property
    def is_one_sided(self) -> bool:
        """Whether all rows that it was fitted on are positive, or all negative."""
        return self.num_positive in (0, self.num_rows)

    @property
    def is_per_prompt(self) -> bool:
        """Whether there is a threshold for each prompt, which a new one needs several images at once for."""
        return self.threshold_type in PER_PROMPT

    def apply(self, scores: Sequence[Any] | Tensor, prompts: Sequence[str]) -> Labels:
        """Labels of rows, those the rule was fitted on or others.

        With a threshold per prompt, a prompt that the rule has not seen gets that of its own rows here.

        Args:
            scores: `[N]`, in score units, finite.
            prompts: `N` prompts.

        Raises:
            ValueError: if a score or a weight is not finite, or a new prompt has a single image under a threshold per
                prompt.
        """
        raw = self._checked(scores, prompts)
        labels = self.labels(raw, prompts)
        infinite = (~labels.weights.isfinite()).nonzero().flatten().tolist()
        if infinite:
            raise ValueError(
                f"The weight of {list_rows(infinite)} is not finite in float32: the score "
                f"{raw[infinite[0]].item():.6g} lies too far from the threshold {self.threshold:.6g} for "
                f"`confidence_coef={self.confidence_coef:g}`. Lower it, or set `score_normalization`."
            )
        return labels

    def labels(self, scores: Tensor, prompts: Sequence[str]) -> Labels:
        """What [`apply`] gives, without its checks.

        Args:
            scores: float64 `[N]`, in score units.
            prompts: `N` prompts.
        """
        thresholds = self._row_thresholds(scores, prompts)
        z, z_thresholds = ((values - self.center) / self.scale for values in (scores, thresholds))
        weights = confidence_weights(z, z_thresholds, self.confidence_coef).to(torch.float32)
        return Labels(scores, scores >= thresholds, weights)

    def advantages(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        """`A = (s - tau) / sigma` of each row, float32 `[N]`, with the standard deviation of the fitted scores.

        Args:
            scores: float64 `[N]`, in score units.
            prompts: `N` prompts.
        """
        return ((scores - self._row_thresholds(scores, prompts)) / self.score_std).float()

    def distances(self, scores: Sequence[float] | Tensor, prompts: Sequence[str]) -> Tensor:
        """`(s - tau) / scale` of each row, float64 `[N]` in normalised score units, at least 0 of positive rows.

        Args:
            scores: `[N]`, in score units, finite.
            prompts: `N` prompts.

        Raises:
            ValueError: if a score is not finite, or a new prompt has a single image under a threshold per prompt.
        """
        raw = self._checked(scores, prompts)
        return (raw - self._row_thresholds(raw, prompts)) / self.scale

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelRule":
        """The inverse of [`to_dict`]."""
        return cls(**values)

    def equals(self, other: "LabelRule") -> bool:
        """Whether both rules label alike, up to the rounding of sums, which depends on the number of threads."""
        return _same(self.to_dict(), other.to_dict())

    def describe(self) -> str:
        """One phrase for tables and cards."""
        name = {
            "percentile": f"{_percentile_name(self.percentile)} of the scores",
            "mean": "mean of the scores",
            "value": "given value",
            "prompt_mean": "per-prompt mean, mean over rows",
            "prompt_baseline": "per-prompt baseline, mean over rows",
        }[self.threshold_type]
        return f"{self.threshold:.6g} ({name})"

    def details(self) -> dict[str, str]:
        """More lines for tables and cards, by name; none of a single column of scores."""
        return {}

    def _checked(self, scores: Sequence[float] | Tensor, prompts: Sequence[str]) -> Tensor:
        raw = check_finite(scores)
        check_several_images(prompts, self._unseen(prompts), self.threshold_type)
        return raw

    def _unseen(self, prompts: Sequence[str]) -> list[int]:
        """The rows that need a threshold of their own and have none yet."""
        if self.threshold_type not in PER_PROMPT:
            return []
        return [i for i, prompt in enumerate(prompts) if prompt not in self.prompt_thresholds]

    def _row_thresholds(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.threshold_type not in PER_PROMPT:
            return torch.tensor(self.threshold, dtype=torch.float64)
        unseen, beta = self._unseen(prompts), self.beta * self.scale
        own = prompt_thresholds(scores, prompts, unseen, self.threshold_type, beta) if unseen else {}
        known = self.prompt_thresholds | own
        return torch.tensor([known[prompt] for prompt in prompts], dtype=torch.float64)


def prompt_thresholds(
    scores: Tensor, prompts: Sequence[str], rows: Sequence[int], threshold_type: str, beta: float
) -> dict[str, float]:
    """The threshold of each prompt of some rows, in score units.

    Args:
        scores: float64 `[N]`, in score units.
        prompts: `N` prompts.
        rows: those that count.
        threshold_type: one of [`PER_PROMPT`].
        beta: `beta` of the per-prompt baseline, in score units.
    """
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts[i] for i in rows))}
    groups = torch.tensor([index[prompts[i]] for i in rows])
    chosen = scores[list(rows)]
    thresholds = (
        prompt_mean(chosen, groups) if threshold_type == "prompt_mean" else prompt_baseline(chosen, groups, beta)
    )
    return dict(zip((prompts[i] for i in rows), thresholds.tolist(), strict=True))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def _percentile_name(percentile: float | None) -> str:
    if percentile is None or math.isclose(percentile, 50):
        return "median"
    return f"percentile {percentile:g}"

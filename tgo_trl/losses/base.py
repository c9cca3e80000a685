"""What a loss is: which rows it takes, what it reads of them, and what it makes of them. One file per loss.

A loss knows no model, no data set and no trainer. It says in class attributes what it needs, and the trainer brings it:

| loss | `rows` | `needs_reference` | `reads_predictions` | `has_statistic` | `prompt` | `relative_score` |
|---|---|---|---|---|---|---|
| TGO, repelling | scored | yes | | | | |
| TGO, mirrored negatives | scored | yes | yes: the target is mirrored at the reference's prediction | | | |
| SFT | positives | no | | | | |
| CSFT | scored | no | | | says how good the image is | |
| Diffusion-KTO | scored | yes | | mean log-ratio, clamped at 0, as the reference point | | |
| NFT | scored | yes | yes: as mirrored negatives | | | advantage |
| QRPO | scored | yes | | | | quantile |
| Diffusion-DPO | pairs | yes | | | | |
| DSPO | pairs | yes | yes: the distance to the reference's prediction | | | |

Of a pair, both rows come in one batch, the better one first, with one draw between them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from .likelihood import log_ratio, over_draws

Rows = Literal["scored", "positives", "pairs"]
"""All rows; those at the threshold or above it; or pairs, the better and the worse image of a prompt in turns."""
RelativeScore = Literal["advantage", "quantile"]
"""A score beside others: its distance to the threshold in standard deviations, or the share of scores below it."""


@dataclass(frozen=True)
class Predictions:
    """What the networks said of `K` draws of `B` rows, in their native target.

    Attributes:
        policy: `[K, B, ...]`; holds gradient.
        reference: `[K, B, ...]`, without gradient; None without a reference.
        target: float32 `[K, B, ...]`, what they should have said.
    """

    policy: Tensor
    reference: Tensor | None
    target: Tensor


@dataclass(frozen=True)
class RowErrors:
    """Errors of `K` draws of `B` rows.

    Attributes:
        policy: float32 `[K, B]`; holds gradient.
        reference: float32 `[K, B]`, without gradient; None without a reference.
        predictions: what the errors are of, for losses that read them.
        prediction_difference: float32 `[K, B]`, `<(v_theta - v_ref)^2>`, the mean over the numbers of a draw, without
            gradient, for the metrics; None without a reference, or where its predictions are not there to subtract.
    """

    policy: Tensor
    reference: Tensor | None
    predictions: Predictions | None = None
    prediction_difference: Tensor | None = None


@dataclass(frozen=True)
class LossInputs:
    """What a loss is given of `B` rows.

    Attributes:
        errors: of policy and reference.
        is_positive: bool `[B]`, the label `l = [s >= tau]`.
        weight: float32 `[B]`, the confidence weight `w >= 1`.
        statistic: a scalar, the mean of [`Loss.row_statistic`] over all rows of the whole update; None without
            [`Loss.has_statistic`], and in an evaluation, which has no updates.
        relative_score: float32 `[B]`, the score as [`Loss.relative_score`] says; None where that is None.
    """

    errors: RowErrors
    is_positive: Tensor
    weight: Tensor
    statistic: Tensor | None = None
    relative_score: Tensor | None = None


@dataclass(frozen=True)
class RowLosses:
    """What a loss makes of `B` rows.

    The mean over rows is the loss; it is left to the trainer, who knows how many rows an accumulated batch has.

    Attributes:
        loss: float32 `[B]`; holds gradient.
        output: float32 `[B]`, what is predicted of each row in evaluation: its log-ratio, or its log-likelihood.
        reward: float32 `[B]`, the implicit reward, for the metrics; None without a reference.
    """

    loss: Tensor
    output: Tensor
    reward: Tensor | None = None


@dataclass(frozen=True)
class Loss(ABC):
    """A loss. Its fields are its settings, named as in [`~tgo_trl.TGOConfig`], which sets them.

    Attributes:
        temperature: `T > 0` of the log-likelihood surrogate, in error units, resolved.
    """

    method: ClassVar[str]
    """How it trains, in words that follow "trained with" on the model card; `{media}` stands for image or video, and
    likewise a setting's name for its value."""
    rows: ClassVar[Rows] = "scored"
    """Which rows it takes."""
    needs_reference: ClassVar[bool] = True
    """Whether the reference is asked too."""
    has_statistic: ClassVar[bool] = False
    """Whether it needs a mean over the whole update, which takes another forward pass over its rows beforehand."""
    relative_score: ClassVar[RelativeScore | None] = None
    """What it reads of a row's score beside its label; None for nothing."""
    weighs_rows: ClassVar[bool] = True
    """Whether rows count by their confidence weight, which pairs do not have."""
    usual_temperature: ClassVar[float | None] = None
    """`T` where `temperature` is "auto"; None for that of the noise process, which is the paper's."""
    paper: ClassVar[tuple[str, str] | None] = None
    """Title and arXiv id, or address, of where it is from; None for the paper of TGO, or for none."""

    temperature: float

    @classmethod
    def usual_beta(cls, settings: Mapping[str, Any]) -> float:
        """`beta` where nothing else sets it.

        Args:
            settings: by name, not checked yet.
        """
        return 1.0

    @property
    def reads_predictions(self) -> bool:
        """Whether it reads predictions beside errors, which takes memory; logits of tokens have no target."""
        return False

    @property
    def reads_relative_errors(self) -> bool:
        """Whether an error is taken for the variance of a Gaussian, which that of a token model is not."""
        return False

    @property
    def negative_prompt(self) -> str | None:
        """What samples are drawn away from, by classifier-free guidance; None unless the loss has taught it."""
        return None

    def prompt(self, prompt: str, is_positive: bool) -> str:
        """The prompt that a row is trained with: the data set's, unless the loss tells the network of the label.

        Samples are drawn with the prompt of a positive row.
        """
        return prompt

    def log_ratio(self, errors: RowErrors) -> Tensor:
        """`log pi_theta - log pi_ref` of each row, its errors averaged over the draws, float32 `[B]`."""
        assert errors.reference is not None
        return log_ratio(over_draws(errors.policy), over_draws(errors.reference), self.temperature)

    def row_statistic(self, errors: RowErrors) -> Tensor:
        """What is averaged over the whole update for [`LossInputs.statistic`], float32 `[B]`, without gradient."""
        raise NotImplementedError

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> RowLosses:
        """The loss of each row, which depends on no other but for its pair and the statistic."""

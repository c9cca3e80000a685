"""Conditional supervised fine-tuning: the denoising error of all rows, whose prompts say how good they are."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Rows
from .sft import SFTLoss


@dataclass(frozen=True)
class CSFTLoss(SFTLoss):
    """The error of each row, trained with a prompt that begins with its quality.

    There are two published forms. HPS v1 (arXiv 2303.14420, the default here) marks negative rows only, and draws its
    samples with that mark as the negative prompt. Diffusion-KTO (arXiv 2404.04465, its baseline) marks the rows of both
    sides, and draws with the mark of the positive ones.

    Attributes:
        positive_prefix: what the prompts of positive rows, and of samples, begin with.
        negative_prefix: what those of negative rows begin with.
    """

    method: ClassVar[str] = (
        "conditional supervised fine-tuning (CSFT) on scored {media}s, whose prompts say whether they scored above a "
        "threshold"
    )
    rows: ClassVar[Rows] = "scored"
    paper: ClassVar[tuple[str, str] | None] = (
        "Better Aligning Text-to-Image Models with Human Preference", "2303.14420",
    )  # fmt: skip

    positive_prefix: str = ""
    negative_prefix: str = "Weird image. "

    @property
    def negative_prompt(self) -> str | None:
        """The mark of negative rows, where it is the only one."""
        return None if self.positive_prefix.strip() else self.negative_prefix.strip()

    def prompt(self, prompt: str, is_positive: bool) -> str:
        """The mark of the row's side, then the prompt."""
        return (self.positive_prefix if is_positive else self.negative_prefix) + prompt

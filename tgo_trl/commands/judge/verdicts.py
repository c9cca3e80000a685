"""From answers to verdicts: who wins each comparison, and what becomes of answers that do not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...rewards.chat import Answer
from .config import TIE
from .questions import FIRST, SECOND, Question, read_verdict
from .samples import Comparison

UNREADABLE, REFUSED, FAILED = "unreadable", "refused", "failed"
"""Why a comparison has no verdict: the reply does not say; the server refused; no attempt got an answer."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says about a comparison.

    Attributes:
        comparison: of two models' images.
        winner: `"first"` or `"second"`, of the comparison's models, or `"tie"`; None if there is no verdict.
        missing: why there is none; None if there is one.
        is_inconsistent: whether the two orders gave different verdicts, which makes a tie.
        shown_first: of each order's verdict that is no tie, whether it is for the image that was shown first.
        replies: of the model, in the order in which they were asked for.
    """

    comparison: Comparison
    winner: str | None
    missing: str | None
    is_inconsistent: bool
    shown_first: tuple[bool, ...]
    replies: tuple[str, ...]

    def row(self, names: Sequence[str]) -> dict[str, Any]:
        """As it is written: with names of models."""
        comparison = self.comparison
        winners = {FIRST: names[comparison.first], SECOND: names[comparison.second], TIE: TIE, None: None}
        return {
            "prompt": comparison.prompt,
            "sample_index": comparison.sample_index,
            **({} if comparison.category is None else {"category": comparison.category}),
            "first": names[comparison.first],
            "second": names[comparison.second],
            "winner": winners[self.winner],
            "missing": self.missing,
            "is_inconsistent": self.is_inconsistent,
            "replies": list(self.replies),
        }


def find_verdicts(questions: Sequence[Question], answers: Mapping[str, Answer]) -> list[Verdict]:
    """A verdict for each comparison, in order; of two orders, only who wins both times wins."""
    of_comparison: dict[Comparison, list[Question]] = {}
    for question in questions:
        of_comparison.setdefault(question.comparison, []).append(question)
    return [_verdict(comparison, asked, answers) for comparison, asked in of_comparison.items()]


def _verdict(comparison: Comparison, asked: Sequence[Question], answers: Mapping[str, Answer]) -> Verdict:
    found = [answers.get(question.key) for question in asked]
    said = [None if answer is None else read_verdict(answer.text) for answer in found]
    winners = {
        _of_models(verdict, question.is_swapped)
        for verdict, question in zip(said, asked, strict=True)
        if verdict is not None
    }
    missing = next((_why(answer) for answer, verdict in zip(found, said, strict=True) if verdict is None), None)
    is_inconsistent = missing is None and len(winners) > 1
    winner = None if missing is not None else TIE if is_inconsistent else winners.pop()
    return Verdict(
        comparison, winner, missing, is_inconsistent,
        shown_first=tuple(verdict == FIRST for verdict in said if verdict in (FIRST, SECOND)),
        replies=tuple("" if answer is None else answer.text for answer in found),
    )  # fmt: skip


def _of_models(verdict: str, is_swapped: bool) -> str:
    """A verdict on the images as shown, as one on the models."""
    return {FIRST: SECOND, SECOND: FIRST}.get(verdict, verdict) if is_swapped else verdict


def _why(answer: Answer | None) -> str:
    if answer is None:
        return FAILED
    return UNREADABLE if answer.refusal is None else REFUSED

"""From answers to verdicts: who wins each comparison, and what becomes of answers that do not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...rewards.chat import Answer
from .config import TIE
from .questions import FIRST, SECOND, Question, read_verdict
from .samples import Comparison

UNREADABLE, CUT, REFUSED, FAILED = REASONS = "unreadable", "cut", "refused", "failed"
"""Why a comparison has no verdict: the reply does not say, or ended before it did; the server refused; no attempt got
an answer."""


@dataclass(frozen=True)
class Reading:
    """What the judge said to one question.

    Attributes:
        is_swapped: whether the second model's image was shown first.
        said: `"first"` or `"second"`, as shown, or `"tie"`; None if it cannot be read.
        reply: its words; empty if there is no answer.
    """

    is_swapped: bool
    said: str | None
    reply: str

    @property
    def winner(self) -> str | None:
        """The verdict on the models instead of the images as shown."""
        return {FIRST: SECOND, SECOND: FIRST}.get(self.said or "", self.said) if self.is_swapped else self.said


@dataclass(frozen=True)
class Verdict:
    """What the judge says about a comparison.

    Attributes:
        comparison: of two models' images.
        winner: `"first"` or `"second"`, of the comparison's models, or `"tie"`; None if there is no verdict.
        missing: why there is none; None if there is one.
        is_inconsistent: whether the two orders gave different verdicts, which makes a tie.
        readings: one, or one of each order.
    """

    comparison: Comparison
    winner: str | None
    missing: str | None
    is_inconsistent: bool
    readings: tuple[Reading, ...]

    @property
    def num_first(self) -> int:
        """Readings for the image that was shown first."""
        return sum(reading.said == FIRST for reading in self.readings)

    @property
    def num_decided(self) -> int:
        """Readings that are no ties."""
        return sum(reading.said in (FIRST, SECOND) for reading in self.readings)

    def row(self, names: Sequence[str]) -> dict[str, Any]:
        """As it is written: with names of models."""
        comparison = self.comparison
        winners = {FIRST: names[comparison.first], SECOND: names[comparison.second], TIE: TIE, None: None}
        return {
            "prompt": comparison.subject.prompt,
            **({"sources": list(comparison.subject.sources)} if comparison.subject.sources else {}),
            "sample_index": comparison.sample_index,
            **({} if comparison.category is None else {"category": comparison.category}),
            "first": names[comparison.first],
            "second": names[comparison.second],
            "winner": winners[self.winner],
            "missing": self.missing,
            "is_inconsistent": self.is_inconsistent,
            "replies": [
                {"shown_first": names[comparison.second if found.is_swapped else comparison.first], "text": found.reply}
                for found in self.readings
            ],
        }


def find_verdicts(questions: Sequence[Question], answers: Mapping[str, Answer]) -> list[Verdict]:
    """A verdict for each comparison, in order; of two orders, only who wins both times wins."""
    of_comparison: dict[Comparison, list[Question]] = {}
    for question in questions:
        of_comparison.setdefault(question.comparison, []).append(question)
    return [_verdict(comparison, asked, answers) for comparison, asked in of_comparison.items()]


def _verdict(comparison: Comparison, asked: Sequence[Question], answers: Mapping[str, Answer]) -> Verdict:
    readings, missing = [], None
    for question in asked:
        answer = answers.get(question.key)
        reply = "" if answer is None else answer.text
        readings.append(Reading(question.is_swapped, read_verdict(reply), reply))
        if readings[-1].said is None:
            missing = missing or _why(answer)
    winners = {reading.winner for reading in readings}
    is_inconsistent = missing is None and len(winners) > 1
    winner = None if missing is not None else TIE if is_inconsistent else winners.pop()
    return Verdict(comparison, winner, missing, is_inconsistent, tuple(readings))


def _why(answer: Answer | None) -> str:
    if answer is None:
        return FAILED
    if answer.refusal is not None:
        return REFUSED
    return CUT if answer.finish_reason == "length" else UNREADABLE

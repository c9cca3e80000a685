"""EditScore: how well an edit follows its instruction and how natural it looks, in a model's words (arXiv 2509.23909).

Covers the question to a served model and the score; the files of the prompts are EditScore's, under the licence beside
them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..messages.public import public_name
from .base import load_images
from .chat import Answer
from .chat_reward import ChatReward, Question
from .replies import number_within, read_reply

SCALE = 25
"""The highest number that is asked for; scores are brought to 0 to 10, as by the original."""

FOLLOWING, QUALITY = (
    Path(__file__).with_name(f"editscore_{name}_prompt.txt").read_text(encoding="utf-8")
    for name in ("following", "quality")
)


@dataclass(eq=False)
class EditScore(ChatReward):
    r"""`\sqrt{\min(s_1, s_2) \min(q_1, q_2)}`, 0 to 10, of two questions with two numbers each.

    `s` are the success of the edit and how little else was changed, asked of both images; `q` naturalness and freedom
    from artefacts, asked of the edited one alone. The answers are at temperature 0, where the original draws them at
    0.7. Where it puts a random number for a reply that it cannot read, the row has no score here.
    """

    name: ClassVar[str] = "editscore"
    prompts: ClassVar[tuple[str, str]] = (FOLLOWING, QUALITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.license = f"Apache-2.0 (prompts); of the weights, see the terms of {public_name(self.model)}"

    @property
    def reads_sources(self) -> bool:
        """It compares an image with the one that it was made from."""
        return True

    def _questions(self, prompt: str, image: Any, sources: Sequence[Any]) -> list[Question]:
        if len(sources) != 1:
            raise ValueError(
                f"A row has {len(sources)} source images, and {self.name!r} compares an edit with the one image that "
                "it was made from. Score rows with one source image each."
            )
        following, quality = self.prompts
        before, after = load_images([*sources, image])
        return [Question([before, after, following.replace("{instruction}", prompt)]), Question([after, quality])]

    def _read(self, answers: Sequence[Answer], of_video: bool) -> float | None:
        following, quality = (read_pair(answer.text) for answer in answers)
        if following is None or quality is None:
            return None
        return math.sqrt(min(following) * min(quality)) * 10 / SCALE

    def _asked(self) -> tuple[str, str]:
        return self.prompts

    def _wanted(self) -> str:
        return f"two numbers from 0 to {SCALE} to each question"


@dataclass(eq=False)
class UnifiedRewardEdit(EditScore):
    """The same of a UnifiedReward-Edit model, whose prompts are EditScore's up to a comma and some line breaks.

    Its authors publish the questions; that their numbers are put together as EditScore's is our choice.
    """

    name: ClassVar[str] = "unifiedreward_edit"
    prompts: ClassVar[tuple[str, str]] = tuple(
        prompt.replace('{\n"', '{\n\n"').replace("[...]\n", "[...],\n").replace("instruction: {", "instruction:{")
        for prompt in EditScore.prompts
    )  # type: ignore[assignment]


def read_pair(text: str) -> tuple[float, float] | None:
    """The two numbers, 0 to 25, of the list that a reply gives as its `score`; None if there are no such two."""
    return read_reply(text, "score", r"\[[^\[\]]{0,60}\]", _pair)


def _pair(value: Any) -> tuple[float, float] | None:
    try:
        values = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(values, list) or len(values) != 2:
        return None
    first, second = (number_within(it, 0, SCALE) for it in values)
    return None if first is None or second is None else (first, second)

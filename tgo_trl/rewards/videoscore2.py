"""VideoScore2: a served model thinks about a video and gives three digits, weighed by their probability (2509.22799).

Covers the question and the score; the file of the prompt is VideoScore2's, under the licence beside it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..messages.public import public_name
from ..settings import check_types
from .base import NoScore
from .chat import Answer, Token, Video
from .chat_reward import ChatReward, Question, checked_axes, is_video, load_frames, spread
from .replies import not_of_another

AXES = {
    "quality": "visual quality",
    "alignment": "text-to-video alignment",
    "physics": "physical/common-sense consistency",
}
"""What the model calls each axis."""

DIGITS = range(1, 6)
TEMPERATURE = 0.7
"""Of the published code, whose probabilities are those of the tokens at this temperature."""

SAMPLED_FPS, MIN_FRAMES, MAX_FRAMES = 2.0, 4, 768
"""Frames per second that the model sees of a video, and how many at least and at most."""

TASK = Path(__file__).with_name("videoscore2_prompt.txt").read_text(encoding="utf-8")

_DIGIT = rf"(?:(?!\(\d\))[^\d\n]){{0,200}}([1-5])(?!\.?\d){not_of_another(max(DIGITS))}"
"""After an axis on its line; the model repeats words of the question between. A `(2)` begins the next axis."""


@dataclass(eq=False)
class VideoScore2(ChatReward):
    r"""The mean over axes of `k^* p_{k^*} / \sum_k p_k`, `k` the digits 1 to 5 and `k^*` the likeliest of them.

    `p_k` are the probabilities at temperature 0.7 where the model writes the axis's digit, made of those that the
    server sends, at temperature 1 and before penalties for repetition, which the original's have in them. The answer
    itself is the likeliest one, where the original draws it. That three scores are averaged is our choice.

    Attributes:
        fps: frames per second of the videos that it is called with. Two frames per second are sent, at least 4.
        axes: those that count, of `"quality"`, `"alignment"` and `"physics"`; all if not set.
    """

    fps: float | None = field(default=None, kw_only=True)
    axes: list[str] | None = field(default=None, kw_only=True)
    max_tokens: int = field(default=1024, kw_only=True)

    name: ClassVar[str] = "videoscore2"
    reads_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, ["fps", "axes"])
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"`fps` is {self.fps}; it must be above 0.")
        self._axes = checked_axes(self.axes, tuple(AXES))
        extra: Any = self.extra_body
        all_frames = {"num_frames": -1, "fps": SAMPLED_FPS}  # or vLLM takes the first 32, as of one second each
        self.extra_body = {"media_io_kwargs": {"video": all_frames}, **extra}
        self.license = f"Apache-2.0 (prompt); of the weights, see the terms of {public_name(self.model)}"

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None
    ) -> list[float | NoScore]:
        """The score of each video, as [`ChatReward`] has it.

        Raises:
            ValueError: if `fps` is not known, or what is scored is no video, or has fewer than 2 frames.
        """
        if self.fps is None:
            raise ValueError(
                "The videos are lists of frames, which do not tell how fast they are shown. Give the reward their "
                "frames per second: `fps=16` beside `base_url` and `model`."
            )
        if not all(map(is_video, images)):
            raise ValueError("The reward 'videoscore2' judges videos, lists of frames, and was given an image.")
        return super().__call__(prompts, images, sources)

    def _questions(self, prompt: str, image: Any, sources: Sequence[Any]) -> list[Question]:
        assert self.fps is not None
        frames = load_frames(image, sampled_frames(len(image), self.fps))
        return [Question([Video(frames), TASK.replace("{prompt}", prompt)])]

    def _read(self, answers: Sequence[Answer], of_video: bool) -> float | None:
        tokens = answers[0].tokens
        scores = [soft_score(digit_token(tokens, AXES[axis])) for axis in self._axes]
        return None if None in scores else sum(score for score in scores if score is not None) / len(scores)

    def _asked(self) -> list[Any]:
        return [TASK, self.fps, *self._axes]

    def _wanted(self) -> str:
        return "digit from 1 to 5 for each axis"


def digit_token(tokens: Sequence[Token], name: str) -> Token | None:
    """The token of the digit that an answer gives to an axis, the last time if several; None if it gives none.

    Args:
        tokens: of the answer. What it thinks before, in `<think>`, is passed over.
        name: of the axis, as the model writes it.
    """
    text = "".join(token.text for token in tokens)
    thought = text.rfind("</think>")
    if thought < 0 and "<think>" in text:
        return None
    found = list(re.finditer(re.escape(name) + _DIGIT, text[max(0, thought) :], re.IGNORECASE))
    if not found:
        return None
    place = max(0, thought) + found[-1].start(1)
    for token in tokens:
        if place < len(token.text):
            return token
        place -= len(token.text)
    raise AssertionError("the place is within the text")


def soft_score(token: Token | None) -> float | None:
    """The likeliest digit, times its share of the digits' probability; None if the token is no digit."""
    if token is None or token.text.strip() not in map(str, DIGITS):
        return None
    shares = digit_shares(token.log_probs)
    best = max(shares, key=lambda digit: shares[digit], default=None)
    return None if best is None else best * shares[best] / sum(shares.values())


def digit_shares(log_probs: Mapping[str, float]) -> dict[int, float]:
    """Of each digit among the likeliest tokens, what its probability at [`TEMPERATURE`] is to the best one's."""
    found = {digit: log_probs.get(str(digit), -math.inf) / TEMPERATURE for digit in DIGITS}
    found = {digit: value for digit, value in found.items() if math.isfinite(value)}
    return {digit: math.exp(value - max(found.values())) for digit, value in found.items()}


def sampled_frames(num_frames: int, fps: float) -> list[int]:
    """The frames that VideoScore2 sees: evenly spread from the first to the last, an even number of them.

    Raises:
        ValueError: if there are fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"The video has {num_frames} frames; VideoScore2 needs at least 2.")
    number = int(min(max(num_frames / fps * SAMPLED_FPS, MIN_FRAMES), MAX_FRAMES, num_frames)) // 2 * 2
    return spread(num_frames, number)

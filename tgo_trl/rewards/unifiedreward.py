"""UnifiedReward 2: a served model's numbers for a generated image or video on three axes (arXiv 2503.05236).

Covers the question and how the reply is read; the file of the prompt is UnifiedReward's, under the licence beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..messages.public import public_name
from ..messages.values import shown
from ..settings import check_types
from .base import load_images
from .chat import Answer
from .chat_reward import ChatReward, Question, checked_axes, is_video, load_frames
from .replies import NUMBER, number_within, read_reply

LOW, HIGH = 1.0, 5.0
IMAGE_AXES = ("alignment", "coherence", "style")
VIDEO_AXES = ("alignment", "physics", "style")

TASK = Path(__file__).with_name("unifiedreward2_prompt.txt").read_text(encoding="utf-8")
_COHERENCE = next(line for line in TASK.splitlines() if line.startswith("- Coherence Score:"))
VIDEO_TASK = (
    TASK.replace(_COHERENCE, "- Physics Score: How plausible motion, contact and the pull of gravity are.")
    .replace("Coherence", "Physics")
    .replace("aesthetically", "visually")
    .replace("image", "video")
)
"""The published question about videos in all but the words on physics, which are ours."""


@dataclass(eq=False)
class UnifiedReward2(ChatReward):
    """The mean of three numbers, each 1 to 5: alignment, coherence (of videos: physics) and style.

    The model is asked as it was trained: images before the text, no system message. Its authors publish the three
    numbers; the mean of them is our choice.

    Attributes:
        axes: those that count, of `"alignment"`, `"coherence"` (of images), `"physics"` (of videos) and `"style"`; all
            three if not set.
        num_frames: of a video that are sent, or fewer, if it has fewer; evenly spread, beginning with the first.
    """

    axes: list[str] | None = field(default=None, kw_only=True)
    num_frames: int = field(default=16, kw_only=True)

    name: ClassVar[str] = "unifiedreward2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, ["axes", "num_frames"])
        if not 1 <= self.num_frames <= 256:
            raise ValueError(f"`num_frames` is {shown(self.num_frames)}; it must be 1 to 256.")
        if self.axes is not None:
            checked_axes(self.axes, ("alignment", "coherence", "physics", "style"))
        self.license = f"MIT (prompt); of the weights, see the terms of {public_name(self.model)}"

    def _questions(self, prompt: str, image: Any, sources: Sequence[Any]) -> list[Question]:
        self._counted(is_video(image))
        task = (VIDEO_TASK if is_video(image) else TASK).replace("{prompt}", prompt)
        if not is_video(image):
            return [Question([*load_images([image]), task])]
        number = min(self.num_frames, len(image))
        return [Question([*load_frames(image, [i * len(image) // number for i in range(number)]), task])]

    def _read(self, answers: Sequence[Answer], of_video: bool) -> float | None:
        text = answers[0].text.replace(f"({LOW:g}-{HIGH:g})", "")
        axes = self._counted(of_video)
        numbers = [read_axis(text, axis) for axis in axes]
        return None if None in numbers else sum(number for number in numbers if number is not None) / len(axes)

    def _counted(self, of_video: bool) -> tuple[str, ...]:
        """The axes that count; raises a ValueError if one of them is not asked for."""
        return checked_axes(self.axes, VIDEO_AXES if of_video else IMAGE_AXES)

    def _asked(self) -> list[Any]:
        return [TASK, VIDEO_TASK, self.num_frames, None if self.axes is None else sorted(set(self.axes))]

    def _wanted(self) -> str:
        return f"number from {LOW:g} to {HIGH:g} for each axis"


def read_axis(text: str, axis: str) -> float | None:
    """The number, 1 to 5, that a reply gives to an axis; None if it gives none, or several that differ."""
    pattern = NUMBER.format(high=HIGH)
    return read_reply(text, f"{axis} score", pattern, lambda value: number_within(value, LOW, HIGH), may_be_bare=False)

"""What the rewards of a chat endpoint share: questions for each row, a few rows at once, and what becomes of them.

Covers any server with OpenAI's protocol. What is asked, and how a number is read off the answers, says each reward.
"""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from ..messages.public import public_name
from ..messages.values import shown
from .base import NoScore, check_rows, load_images
from .chat import Answer, ChatClient, Part
from .chat_settings import ChatSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked in one request.

    Attributes:
        parts: texts, RGB images and videos, in order.
        system: what the model is to do; None sends no such message, as models want that were trained without.
    """

    parts: Sequence[Part]
    system: str | None = None


@dataclass(eq=False)
class ChatReward(ChatSettings, ABC):
    """A number that a model gives each row, on any server with OpenAI's protocol.

    Prompts and images are sent to that server. A row of whose replies no number can be read has no score: it is a bad
    row of `score`. So is one that the server refuses to look at. Images are opened when their row is asked for, so that
    no more than `max_concurrent` rows' are in memory.
    """

    name: ClassVar[str]
    reads_tokens: ClassVar[bool] = False
    """Whether the probabilities of the answers' tokens are asked for."""
    unrecorded_settings: ClassVar[tuple[str, ...]] = (
        "base_url", "api_key_variable", "timeout", "max_retries", "max_concurrent",
    )  # fmt: skip
    """What scores do not depend on, so that another run may go on with other ones: the model is known by its name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.license = f"see the terms of {public_name(self.model)}"
        self._client: ChatClient | None = None

    @property
    def reads_sources(self) -> bool:
        """Whether it judges edits, and so is called with the images that each row's was made from."""
        return False

    @property
    def version(self) -> str:
        """The model's name, with a digest of what is asked and of the request's other fields."""
        asked = [self._asked(), self.max_image_side, self.image_format, self.max_tokens, self.extra_body]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        return f"{public_name(self.model)}, prompt@sha256:{digest}"

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], sources: Sequence[Sequence[Any]] | None = None
    ) -> list[float | NoScore]:
        """The number of each row, or why it has none.

        Args:
            prompts: `N` prompts.
            images: `N` images, as [`~tgo_trl.media.images.load_image`] takes them, or lists of frames.
            sources: `N` lists of images that those were made from, for a reward that [`reads_sources`].

        Raises:
            ValueError: if an image cannot be read, or `sources` are missing or of no use.
            EndpointError: if the server does not answer.
        """
        check_rows(prompts, images)
        if not prompts:
            return []
        if sources is None and self.reads_sources:
            raise ValueError(
                f"The reward {self.name!r} rates edits, and there are no `sources`, the images that they were made "
                "from. Pass a list of them for each row."
            )
        if sources is not None and not self.reads_sources:
            raise ValueError(
                f"The reward {self.name!r} rates images by themselves. Leave `sources` out, or take a reward of edits: "
                "'editscore', or 'vlm' with `edits`."
            )
        client = self._connected()
        with ThreadPoolExecutor(self.max_concurrent) as pool:
            rows = [
                pool.submit(self._score, client, *row)
                for row in zip(prompts, images, sources or [()] * len(prompts), strict=True)
            ]
            try:
                return [row.result() for row in rows]
            except BaseException:
                client.stop()
                pool.shutdown(cancel_futures=True)
                self._client = None
                raise

    @property
    def _schema(self) -> Mapping[str, Any] | None:
        """JSON schema of the answers, asked for where the server takes it; None asks for free text."""
        return None

    @abstractmethod
    def _questions(self, prompt: str, image: Any, sources: Sequence[Any]) -> Sequence[Question]:
        """What is asked of a row."""

    @abstractmethod
    def _read(self, answers: Sequence[Answer], of_video: bool) -> float | None:
        """The number that the answers to all questions of a row say; None if there is none."""

    @abstractmethod
    def _asked(self) -> Any:
        """What all questions have in common, as JSON holds it, for the version."""

    @abstractmethod
    def _wanted(self) -> str:
        """What a reply was to say, as a noun for messages."""

    def _connected(self) -> ChatClient:
        if self._client is None:
            logger.warning("Prompts and images are sent to %s, to be rated by %s.", self.host, self.model)
            client = ChatClient(self)
            client.check(self._schema, self.reads_tokens)
            self._client = client
        return self._client

    def _score(self, client: ChatClient, prompt: str, image: Any, sources: Sequence[Any]) -> float | NoScore:
        answers = []
        for question in self._questions(prompt, image, sources):
            answer = client.ask(question.system, question.parts, self._schema, reads_tokens=self.reads_tokens)
            if answer.refusal is not None:
                return NoScore(f"{self.host} refuses to rate it ({answer.refusal.rstrip('.')})")
            answers.append(answer)
        score = self._read(answers, is_video(image))
        if score is None:
            said = " and ".join(shown(answer.text) for answer in answers)
            is_cut = any(answer.finish_reason == "length" for answer in answers)
            ending = ", which ended for want of `max_tokens`" if is_cut else ""
            return NoScore(f"the reply has no {self._wanted()}: {said}{ending}")
        return score


def is_video(image: Any) -> bool:
    """Whether what a reward is called with is a list of frames."""
    return isinstance(image, (list, tuple))


def load_frames(video: Sequence[Any], indices: Sequence[int]) -> list[Image.Image]:
    """These frames of a video, RGB.

    Raises:
        ValueError: if it has none, or one cannot be read.
    """
    if not video:
        raise ValueError("A video has no frames. Leave its row out.")
    return load_images([video[index] for index in indices])


def spread(length: int, number: int) -> list[int]:
    """The places of `number` frames, or of all, evenly spread from the first to the last; the middle one of one."""
    number = min(number, length)
    return [length // 2] if number == 1 else [round(i * (length - 1) / (number - 1)) for i in range(number)]


def checked_axes(axes: Any, known: Sequence[str]) -> tuple[str, ...]:
    """The axes that count, all of them if None; raises a ValueError if they are none of the known ones."""
    chosen = known if axes is None else axes
    if isinstance(chosen, str) or not chosen or not {*chosen} <= {*known}:
        raise ValueError(f"`axes` is {shown(axes)}; it must be a list of some of {', '.join(known)}.")
    return tuple(axis for axis in known if axis in chosen)

"""A chat endpoint that sees images: any server with OpenAI's protocol, asked patiently and within bounds.

huggingface_hub's client speaks the protocol. Here are attempts, pauses, and what a failure means: one that may pass is
waited for, one that ends the run is said in a line, and one that is of a single question is an answer without a text.
"""

import base64
import email.utils
import io
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status, httpx  # type: ignore[attr-defined]
from PIL import Image

from ..messages.public import HIDDEN, public_text
from ..messages.values import cut, shown
from .chat_settings import ChatSettings

LONGEST_PAUSE = 60.0
"""Seconds between two attempts, unless the server asks for more."""
LONGEST_ASKED = 300.0
"""Seconds that a server may ask to wait; a request that is to wait longer has failed."""
MOST_BYTES = 10_000_000
"""Of a server's answer."""
OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")
"""Headers of an answer's bytes, which are not those of its text."""
LONGEST_REPLY = 20_000
"""Characters of an answer that are kept."""
PASSING = (408, 425, 429)
"""Statuses besides 5xx that may be otherwise in a moment."""
ENDING = {
    401: "The key is missing, wrong or expired: put the right one into the environment variable {variable}.",
    402: "The account has no money left: mend that, and run the same command again.",
    404: "There is no such address or model: look at `base_url` (it mostly ends with /v1) and `model`.",
}
"""Statuses that no other question would have another answer to, with what to do."""
SHORTEST_KEY = 8
"""Letters of a key that is a secret."""
NO_KEY = "none"
"""Sent where there is no key: huggingface_hub would send the user's own token of the Hub."""
BROKEN = (ValueError, TypeError, AttributeError, KeyError, IndexError)
"""What comes of an answer that is none of the protocol, as of a gateway's page."""
NUM_ALTERNATIVES = 20
"""Tokens at each place whose probabilities are asked for, as many as OpenAI's protocol allows."""


class EndpointError(OSError):
    """Nothing can be asked any more; the message is for the user."""


class RequestFailedError(EndpointError):
    """One question was not answered in all attempts; the next one may be."""


@dataclass(frozen=True)
class Video:
    """A part of a question: a video, in the form that vLLM takes beyond OpenAI's protocol.

    Attributes:
        frames: RGB images of one size; they are sent as JPEG.
    """

    frames: Sequence[Image.Image]


Part: TypeAlias = str | Image.Image | Video


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: of the token.
        log_probs: of the likeliest tokens at its place, by their texts.
    """

    text: str
    log_probs: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What came back for a question.

    Attributes:
        text: of the model, at most [`LONGEST_REPLY`] characters; empty if the server refused.
        prompt_tokens, completion_tokens: as the server counts them; None if it does not.
        finish_reason: why the text ends: `"length"` where `max_tokens` were used up.
        refusal: why the server does not answer this question, with the status; None if it does.
        tokens: of the text, what the model thinks aloud included, if they were asked for and the server sends them.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    tokens: tuple[Token, ...] = ()


class _BoundedClient(InferenceClient):
    """huggingface_hub's client, which asks one server alone, and takes neither longer nor more than agreed."""

    def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        """The body of the answer. huggingface_hub's own would follow to any server, with the images."""
        timeout, content = float(self.timeout or LONGEST_ASKED), bytearray()
        deadline = time.monotonic() + timeout
        request = {"json": request_parameters.json, "headers": request_parameters.headers}
        try:
            with get_session().stream(
                "POST", request_parameters.url, **request, timeout=timeout, follow_redirects=False
            ) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise ValueError
                    if time.monotonic() > deadline:  # httpx's own is of each chunk
                        raise httpx.ReadTimeout("")
        except httpx.TimeoutException as error:
            raise InferenceTimeoutError("") from error
        headers = {name: value for name, value in response.headers.items() if name not in OF_THE_WIRE}
        whole = httpx.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)
        if whole.has_redirect_location:
            raise EndpointError(
                f"{response.request.url.host} sends to {shown(public_text(whole.headers['location']), 200)}, where "
                "nothing is sent. If that is right, set `base_url` to it, without /chat/completions."
            )
        hf_raise_for_status(whole)
        return whole.content


class ChatClient:
    """Asks one model; several threads may share it.

    Args:
        settings: which model, and how.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self._key = os.environ.get(settings.api_key_variable, "").strip()
        self._client = _BoundedClient(base_url=settings.base_url, api_key=self._key or NO_KEY, timeout=settings.timeout)
        self._is_stopped = threading.Event()
        self._asks_for_json = True

    def check(self, schema: Mapping[str, Any] | None, reads_tokens: bool = False) -> None:
        """Asks a small question with an image, and finds out whether the server takes a schema of answers.

        Args:
            schema: JSON schema of the answers that will be asked for, if there is one.
            reads_tokens: whether the probabilities of tokens will be asked for.

        Raises:
            EndpointError: in a line, if the server cannot be reached, does not answer, or sends no probabilities.
        """
        question: list[Part] = ["What is this? Answer in one word, as JSON."]
        question.append(Image.new("RGB", (64, 64), "white"))
        answer = self.ask("You look at images.", question, schema, is_first=True, reads_tokens=reads_tokens)
        if answer.refusal is not None and schema is not None:  # many servers know no schemas
            self._asks_for_json = False
            answer = self.ask("You look at images.", question, schema, is_first=True, reads_tokens=reads_tokens)
        if answer.refusal is not None:
            raise EndpointError(
                f"{self.settings.host} does not answer a question with an image ({answer.refusal}). Name a `model` "
                f"that sees images, and look at `extra_body`, `max_tokens` and the key in "
                f"{self.settings.api_key_variable}."
            )
        if reads_tokens and not answer.tokens:
            raise EndpointError(
                f"{self.settings.host} sends no probabilities of tokens (`logprobs`), and this reward is made of them. "
                "Serve the model with vLLM, and leave `logprobs` out of `extra_body`."
            )

    def ask(
        self,
        system: str | None,
        parts: Sequence[Part],
        schema: Mapping[str, Any] | None,
        *,
        is_first: bool = False,
        reads_tokens: bool = False,
    ) -> Answer:
        """The model's answer at temperature 0.

        Args:
            system: what it is to do; None sends no such message.
            parts: texts, RGB images and videos of the question, in order.
            schema: JSON schema of the answer, asked for where the server takes it; None asks for free text.
            is_first: whether the server has not been heard of: where no connection is made, it is not tried again.
            reads_tokens: asks for the probabilities of the answer's tokens too.

        Raises:
            EndpointError: if no question would be answered.
            RequestFailedError: if this one was not, in all attempts.
        """
        messages: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": list(map(self._part, parts))})
        response_format = None if schema is None or not self._asks_for_json else _response_format(schema)
        for attempt in range(self.settings.max_retries + 1):
            if self._is_stopped.is_set():
                break
            try:
                return self._answer(messages, response_format, reads_tokens)
            except HfHubHTTPError as error:
                if not _may_pass(error):
                    return Answer("", refusal=self._refusal(error))
                failure: Exception = error
                pause = _asked_pause(error)
            except OfflineModeIsEnabled as error:
                raise EndpointError(
                    "HF_HUB_OFFLINE is set, with which huggingface_hub's client asks no server, a local one neither. "
                    "Unset it for this command."
                ) from error
            except (InferenceTimeoutError, httpx.RequestError, *BROKEN) as error:
                failure, pause = error, 0.0
                is_unconnected = any(
                    isinstance(it, (httpx.ConnectError, httpx.ConnectTimeout)) for it in (error, error.__cause__)
                )
                if is_first and is_unconnected:
                    break
            if pause > LONGEST_ASKED or attempt == self.settings.max_retries:
                break
            # as long as the server asks for, and no two threads at once
            self._is_stopped.wait(max(pause, min(2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)))
        else:
            raise AssertionError("the last attempt returns or breaks")
        if self._is_stopped.is_set():
            raise RequestFailedError("The run was stopped.")
        raise RequestFailedError(f"{self.settings.host} does not answer: {self._said(failure)}")

    def stop(self) -> None:
        """Lets no attempt begin any more; those that wait for an answer still get it."""
        self._is_stopped.set()

    def _answer(self, messages: list[Any], response_format: Any, reads_tokens: bool) -> Answer:
        extra: Any = self.settings.extra_body
        output = self._client.chat_completion(
            messages, model=self.settings.model, temperature=0.0, max_tokens=self.settings.max_tokens,
            response_format=response_format, logprobs=reads_tokens or None,
            top_logprobs=NUM_ALTERNATIVES if reads_tokens else None, extra_body=extra or None,
        )  # fmt: skip
        choice = output.choices[0]
        content: Any = choice.message.content
        if isinstance(content, list):  # of parts, as in a question
            content = "".join(str(part["text"]) for part in content if part.get("type") == "text")
        usage: Any = getattr(output, "usage", None)
        return Answer(
            self._without_key(str(content or ""))[:LONGEST_REPLY],
            _count(getattr(usage, "prompt_tokens", None)),
            _count(getattr(usage, "completion_tokens", None)),
            None if choice.finish_reason is None else str(choice.finish_reason)[:40],
            tokens=_tokens(choice) if reads_tokens else (),
        )

    def _refusal(self, error: HfHubHTTPError) -> str:
        """Why the server does not answer this question; raises an [`EndpointError`] if it would answer no other."""
        advice = ENDING.get(error.response.status_code)
        if advice is None:
            return self._said(error)
        advice = advice.format(variable=self.settings.api_key_variable)
        # without the error itself, in which some servers repeat the key
        raise EndpointError(f"{self.settings.host} answers {self._said(error)} {advice}") from None

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, Video):
            return {"type": "video_url", "video_url": {"url": video_url(part, self.settings.max_image_side)}}
        url = image_url(part, self.settings.max_image_side, self.settings.image_format)
        return {"type": "image_url", "image_url": {"url": url}}

    def _without_key(self, text: str) -> str:
        """A text of the server's, which may repeat what it was sent. A key such as `EMPTY` is none, and a word."""
        return text.replace(self._key, HIDDEN) if len(self._key) >= SHORTEST_KEY else text

    def _said(self, error: Exception) -> str:
        """What went wrong, in one line, without the key."""
        if isinstance(error, HfHubHTTPError):
            text = f"{error.response.status_code}, {_server_message(error) or error.response.reason_phrase}"
        elif isinstance(error, InferenceTimeoutError):
            text = f"nothing came within {self.settings.timeout:g} seconds (`timeout`)"
        elif isinstance(error, httpx.RequestError):
            text = f"{type(error).__name__}, {error}; is `base_url` right, and does the server run?"
        else:
            text = f"what came is none of the protocol ({type(error).__name__})"
        text = cut(public_text(self._without_key(" ".join(text.split()))), 300)
        return text if text.endswith((".", "?", "!")) else f"{text}."


def image_url(image: Image.Image, max_side: int, image_format: str) -> str:
    """The image as a data URL, made smaller (Lanczos) if a side is longer than `max_side` pixels.

    Args:
        image: RGB.
        max_side: in pixels.
        image_format: `"png"` or `"jpeg"`.
    """
    sent = image.copy()
    sent.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    sent.save(file, image_format.upper(), **({"quality": 90} if image_format == "jpeg" else {}))
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"


def video_url(video: Video, max_side: int) -> str:
    """The video as the data URL that vLLM takes apart into frames; those are made smaller as by [`image_url`]."""
    frames = (image_url(frame, max_side, "jpeg").partition("base64,")[2] for frame in video.frames)
    return f"data:video/jpeg;base64,{','.join(frames)}"


def _response_format(schema: Mapping[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}


def _tokens(choice: Any) -> tuple[Token, ...]:
    """Tokens and their alternatives; none where the server sends none."""
    content = getattr(choice.logprobs, "content", None) or ()
    return tuple(
        Token(str(token.token), {str(other.token): float(other.logprob) for other in token.top_logprobs or ()})
        for token in content
    )


def _may_pass(error: HfHubHTTPError) -> bool:
    return error.response.status_code >= 500 or error.response.status_code in PASSING


def _asked_pause(error: HfHubHTTPError) -> float:
    """Seconds that the server asks to wait, in `Retry-After`, as a number or a date; 0 if it does not."""
    asked = error.response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _server_message(error: HfHubHTTPError) -> str:
    """What the server says itself, which OpenAI's protocol has one level deeper than the Hub's."""
    try:
        body = error.response.json()["error"]
        return str(body["message"] if isinstance(body, Mapping) else body)
    except (RuntimeError, *BROKEN):
        return str(error.server_message or "")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

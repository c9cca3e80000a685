"""How a chat endpoint is asked; what the judge and the rubric reward have in common. Loads no heavy library."""

import os
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..messages.public import is_secret_name
from ..settings import as_dictionary, check_choice, check_types, shown

IMAGE_FORMATS = ("png", "jpeg")
BOUNDS = {
    "max_retries": (0, 100), "max_concurrent": (1, 256), "max_image_side": (16, 16_384), "max_tokens": (1, 1_000_000),
}  # fmt: skip


@dataclass
class ChatSettings:
    """Which model is asked, and how; any server with OpenAI's chat protocol that takes images.

    Attributes:
        base_url: of the server, such as `http://localhost:8000/v1`. Prompts and images are sent there.
        model: its name at that server.
        api_key_variable: the environment variable that holds the key, which is read nowhere else and never written.
            If there is none of that name, no key is sent.
        timeout: seconds without an answer after which a request has failed.
        max_retries: further attempts where a failure may pass: no answer, no JSON, 408, 425, 429, 5xx.
        max_concurrent: requests that wait for an answer at the same time.
        max_image_side: images with a longer side are made smaller, in pixels; smaller ones are sent as they are.
        image_format: `"png"`, exact, or `"jpeg"`, some ten times smaller.
        max_tokens: of an answer; a model that thinks aloud needs some thousand.
        extra_body: more fields of the request's body, which replace those that are here: `{"seed": 1}`, or for a server
            that wants another name, `{"max_tokens": null, "max_completion_tokens": 2000}`.
    """

    base_url: str = field(metadata={"help": "Address of an OpenAI-compatible server; images are sent there."})
    model: str = field(metadata={"help": "Name of the model at that server."})
    _: KW_ONLY
    api_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the key, if there is one."}
    )
    timeout: float = field(default=120.0, metadata={"help": "Seconds without an answer until a request has failed."})
    max_retries: int = field(default=5, metadata={"help": "Further attempts where a failure may pass."})
    max_concurrent: int = field(default=8, metadata={"help": "Requests that wait for an answer at the same time."})
    max_image_side: int = field(default=1024, metadata={"help": "Longer sides are made smaller, in pixels."})
    image_format: str = field(default="png", metadata={"help": "How images are sent.", "choices": list(IMAGE_FORMATS)})
    max_tokens: int = field(default=512, metadata={"help": "Tokens of an answer."})
    extra_body: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More fields of the request's body, as JSON."}
    )

    def __post_init__(self) -> None:
        names = [
            "base_url", "model", "api_key_variable", "timeout", "max_retries", "max_concurrent", "max_image_side",
            "image_format", "max_tokens",
        ]  # fmt: skip
        check_types(self, names)
        self._check_address()
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"`{name}` is {shown(getattr(self, name))}; it must be {least} to {most:,}.")
        if not 0 < self.timeout <= 86_400:
            raise ValueError(f"`timeout` is {shown(self.timeout)}; it must be above 0 seconds and at most a day.")
        check_choice("image_format", self.image_format, IMAGE_FORMATS)
        self.extra_body = as_dictionary("extra_body", self.extra_body)
        secret = next((name for name in self.extra_body if is_secret_name(name)), None)
        if secret is not None:
            raise ValueError(
                f"`extra_body` has {shown(secret)}, and settings are written down. Put a key into the environment "
                "variable that `api_key_variable` names."
            )

    @property
    def host(self) -> str:
        """Where requests go, for people: host and port."""
        return urlsplit(str(self.base_url)).netloc

    def _check_address(self) -> None:
        try:
            parts = urlsplit(str(self.base_url))
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            is_plain = not (parts.username or parts.password or parts.query)
        except ValueError:  # of a port, or of brackets
            is_address, is_plain = False, True
        if not is_address:
            raise ValueError("`base_url` is no address of a server. Write one such as http://localhost:8000/v1.")
        if not is_plain:
            raise ValueError(
                "`base_url` holds a password or a query, and settings are written down. Put a key into the environment "
                "variable that `api_key_variable` names, and leave it out of the address."
            )
        if not str(self.model).strip():
            raise ValueError("`model` is empty. Name a model of the server.")


def text_or_file(name: str, value: str) -> str:
    """The text that a setting is, or that stands in the `.txt` or `.md` file that it names.

    Raises:
        ValueError: if the file is not there or is no text, or the text is empty.
    """
    text = str(value)
    if text.endswith((".txt", ".md")) and len(text.splitlines()) == 1:
        if not os.path.isfile(text):
            raise ValueError(f"`{name}` is {shown(text)}, and there is no such file. Write the text, or name a file.")
        try:
            text = Path(text).read_text("utf-8")
        except ValueError as error:
            raise ValueError(f"`{name}` is {shown(value)}, which is no text in UTF-8.") from error
    if not text.strip():
        raise ValueError(f"`{name}` is empty. Write what to look at, or leave it out.")
    return text.strip()

"""A server with OpenAI's chat protocol that looks at the images it gets, and misbehaves where a test asks for it."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from .hub_server import Server

SECRET = "sk-this-is-the-key-0123456789"


@dataclass(frozen=True)
class Reply:
    """What the server sends: an answer of the model, or whatever else; at once, or `chunk` bytes every 0.1 s."""

    text: Any = ""
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    chunk: int = 0
    finish_reason: str = "stop"
    tokens: list[tuple[str, dict[str, float]]] | None = None  # and the likeliest ones' log probabilities
    usage: Any = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110})


@dataclass(frozen=True)
class Asked:
    """A request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.body["messages"][-1]["content"]

    @property
    def texts(self) -> list[str]:
        return [part["text"] for part in self.parts if part["type"] == "text"]

    @property
    def prompt(self) -> str:
        return json.loads(self.texts[0].removeprefix("Prompt: "))

    @property
    def images(self) -> list[Image.Image]:
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        return [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) for url in urls]

    @property
    def is_check(self) -> bool:
        return "What is this?" in self.texts[0]


class Endpoint:
    """The server: `behave` makes a reply of each request."""

    def __init__(self, behave: Callable[[Asked], Reply]) -> None:
        self.behave = behave
        self.requests: list[Asked] = []
        self.url = ""
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @property
    def questions(self) -> list[Asked]:
        return [asked for asked in self.requests if not asked.is_check]


def brighter(asked: Asked) -> Reply:
    """The brighter image wins; a tie within 2 of 255."""
    if asked.is_check:
        return Reply("white")
    first, second = (float(np.asarray(image.convert("L"), dtype=float).mean()) for image in asked.images)
    winner = "tie" if abs(first - second) < 2 else "first" if first > second else "second"
    return Reply(json.dumps({"reason": f"{first:.0f} and {second:.0f}", "winner": winner}))


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = Asked(json.loads(body), dict(self.headers))
        endpoint = self.endpoint
        with endpoint.lock:
            endpoint.requests.append(asked)
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
        reply = endpoint.behave(asked) if self.path == "/v1/chat/completions" else Reply(status=404, body=b"{}")
        time.sleep(reply.delay)
        with endpoint.lock:
            endpoint.at_once -= 1
        data = reply.body if reply.body is not None else json.dumps(_completion(reply)).encode()
        with contextlib.suppress(ConnectionError):  # a client that no longer waits
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for start in range(0, len(data), reply.chunk or len(data) or 1):
                self.wfile.write(data[start : start + (reply.chunk or len(data))])
                time.sleep(0.1 if reply.chunk else 0)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


def _completion(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"message": reply.text, "type": "error"}}
    message = {"role": "assistant", "content": reply.text}
    choices: list[dict[str, Any]] = [{"index": 0, "message": message, "finish_reason": reply.finish_reason}]
    if reply.tokens is not None:
        content = [
            {"token": text, "logprob": 0.0, "top_logprobs": [{"token": o, "logprob": p} for o, p in likeliest.items()]}
            for text, likeliest in reply.tokens
        ]
        choices[0]["logprobs"] = {"content": content}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "seer", "choices": choices,
            "usage": reply.usage}  # fmt: skip


@contextlib.contextmanager
def serving(behave: Callable[[Asked], Reply] = brighter) -> Iterator[Endpoint]:
    """A server that answers as long as the context lasts."""
    endpoint = Endpoint(behave)
    server = Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"endpoint": endpoint}))
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets huggingface_hub's client ask servers, with a key, and without pauses between attempts."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tgo_trl.rewards.chat.LONGEST_PAUSE", 0.001)
    huggingface_hub.close_session()

"""What of a run's settings may be written down: no secrets, and nothing that names a machine. Loads no heavy library.

Everything that is recorded of settings passes through here: the records beside weights and data, cards, what reporters
are given, and what is printed.
"""

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|pass|pwd|credentials?|authorization|auth|bearer|cookies?|headers?|prox(y|ies)|"
    r"(api|access|private|secret|account|storage|subscription)_?keys?|key|sas|signature|storage_options)$"
)
"""The end of a setting's name whose value is nobody else's business."""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
"""`user:password@` of an address."""
_QUERY = re.compile(
    r"([?&;][^=&;#\s]*(?:token|secret|password|key|sig|signature|credential|auth)[^=&;#\s]*=)[^&;#\s]+", re.IGNORECASE
)
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16})\b")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{12,}")


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: `hub_token`, `proxies`, `api_key`, `X-Api-Key`, `HTTPHeaders`."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return _SECRET_NAME.search(re.sub(r"[^a-z0-9]+", "_", snake.lower()).strip("_")) is not None


def without_secrets(value: Any) -> Any:
    """The value with what is secret in it replaced by `***`, through mappings and lists.

    Secret are the values of names such as `token` and `proxies`, and in any text users and passwords of addresses,
    tokens in their queries, and what looks like a token of a known service.
    """
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if is_secret_name(str(name)) and entry is not None else without_secrets(entry)
            for name, entry in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [without_secrets(entry) for entry in value]
        return entries if isinstance(value, (set, frozenset)) else type(value)(entries)
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """A text without the secrets in it."""
    text = _CREDENTIALS.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", text))


def public_name(name: str) -> str:
    """A Hub id as it is, and an address without secrets.

    Of a file, a folder or a pattern, which name a machine, only the last part.
    """
    if os.path.exists(name) or (glob.has_magic(name) and "://" not in name):  # `Path.exists` raises for a long text
        return Path(name).resolve().name
    return public_text(name)


def public_value(value: Any) -> Any:
    """The value without secrets, and with the last part of each path in it."""
    return _with_names(without_secrets(value))


def _with_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_names(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_names(entry) for entry in value]
    return public_name(str(value)) if isinstance(value, (str, Path)) else value

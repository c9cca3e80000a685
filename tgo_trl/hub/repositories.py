"""Repositories on the Hub: opened, looked into, and asked again where a failure may pass.

huggingface_hub asks again by itself where it uploads files, but not where it creates a repository, looks into it or
commits, and it waits for an answer for ever. Both are mended here, and nothing is asked twice as often.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAITS = (1, 2, 4, 8, 16)
"""Seconds before each further attempt; longer if the Hub says so."""
LONGEST_WAIT = 300
"""Seconds that the Hub may ask to wait (its limits are counted over five minutes)."""
SILENCE = 120.0
"""Seconds without a byte in either direction after which a request has failed."""
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
"""What may be otherwise in a moment: 409 and 412 say that somebody else has just committed."""
RETRIED_BY_CLIENT = re.compile(r"/preupload/|/tree/|/info/lfs/objects/batch")


class UploadError(OSError):
    """An upload has failed for good; the message is for the user."""


@dataclass(frozen=True)
class Destination:
    """A repository that can be written to.

    Attributes:
        repo_id: with its owner.
        repo_type: `"model"` or `"dataset"`.
        token: None for the one that is logged in.
        revision: the branch; None for the main one.
    """

    repo_id: str
    repo_type: str
    token: str | None = None
    revision: str | None = None

    @property
    def api(self) -> HfApi:
        """A client with the token."""
        return HfApi(token=self.token, library_name="tgo_trl")

    @property
    def head(self) -> str:
        """The newest commit."""
        where = {"repo_type": self.repo_type, "revision": self.revision}
        return str(self.api.repo_info(self.repo_id, timeout=SILENCE, **where).sha)  # type: ignore[arg-type]

    def files(self, commit: str) -> list[str]:
        """Paths of the files in a commit."""
        return list(self.api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=commit))

    def text(self, path: str, commit: str) -> str:
        """A file of a commit; from the Hub, never from the cache."""
        api = self.api
        url = hf_hub_url(self.repo_id, path, repo_type=self.repo_type, revision=commit, endpoint=api.endpoint)
        response = get_session().get(url, headers=build_hf_headers(token=self.token))
        hf_raise_for_status(response)
        return str(response.content.decode("utf-8"))

    def __str__(self) -> str:
        branch = f" (`{self.revision}`)" if self.revision else ""
        return f"{'data set' if self.repo_type == 'dataset' else 'model'} {self.repo_id}{branch}"


def open_repository(
    name: str, repo_type: str, token: str | None, private: bool | None, revision: str | None, setting: str
) -> Destination:
    """A repository, created if it is not there, that was found to take what is uploaded.

    Args:
        name: with or without its owner.
        repo_type: `"model"` or `"dataset"`.
        token: None for the one that is logged in.
        private: whether it becomes private, if it is created.
        revision: a branch, created too; None for the main one.
        setting: the name of the setting that `name` comes from.

    Raises:
        UploadError: if it cannot be written to, in one line.
    """
    api = Destination(name, repo_type, token).api

    def attempt() -> Destination:
        url = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True)
        where = {"repo_id": url.repo_id, "repo_type": repo_type}
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(branch=revision, exist_ok=True, **where)
        # A token that only reads gets this far where the repository is there already; not where files are announced.
        sample = CommitOperationAdd("README.md", b"\n")
        api.preupload_lfs_files(additions=[sample], free_memory=False, revision=revision, **where)  # type: ignore[arg-type]
        return Destination(url.repo_id, repo_type, token, revision)

    try:
        return persistently(attempt)
    except Exception as error:
        raise UploadError(
            f"Nothing can be uploaded to the {Destination(name, repo_type, None, revision)}, so nothing was begun: "
            f"{explain(error)} Mend that, set another `{setting}`, or leave out `push_to_hub`."
        ) from error


def persistently(attempt: Callable[[], T]) -> T:
    """What the first attempt gives that succeeds, of as many as [`WAITS`] has entries and one."""
    for wait_time in (*WAITS, None):
        _bound_requests()
        try:
            return attempt()
        except (HfHubHTTPError, httpx.TransportError, json.JSONDecodeError) as error:
            pause = None if wait_time is None else _pause(error, wait_time)
            if pause is None:
                raise
            logger.warning("%s Trying again in %g seconds.", explain(error), pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def explain(error: BaseException) -> str:
    """What went wrong and what to do about it, in one line, without the signatures and passwords of addresses."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__  # of an error that only says which file it was
    if isinstance(cause, LocalTokenNotFoundError):
        return "There is no token: log in with `hf auth login`, or set `hub_token`."
    if isinstance(cause, json.JSONDecodeError):
        return "The answer was no JSON, as of a gateway on the way to the Hub."
    if isinstance(cause, HfHubHTTPError):
        advice = {
            401: "The token is missing, wrong or expired: log in with `hf auth login`, or set `hub_token`.",
            403: "The token may not write there: make one that may, at huggingface.co/settings/tokens.",
        }.get(cause.response.status_code, "")
        return f"{_one_line(f'{cause.response.status_code}, {cause.server_message or cause}')} {advice}".rstrip()
    return _one_line(f"{type(cause).__name__}: {cause}")


def _pause(error: "HfHubHTTPError | httpx.TransportError | json.JSONDecodeError", wait_time: float) -> float | None:
    """Seconds until the next attempt; None if there is to be none."""
    if isinstance(error, json.JSONDecodeError):  # a page of some gateway's, which the client took for an answer
        return wait_time
    if not isinstance(error, HfHubHTTPError):
        return None if _was_retried(error) else wait_time
    if error.response.status_code not in PASSING or _was_retried(error):
        return None
    asked = error.response.headers.get("Retry-After", "")
    pause = max(wait_time, float(asked)) if asked.isdecimal() else wait_time
    return pause if pause <= LONGEST_WAIT else None


def _was_retried(error: HfHubHTTPError | httpx.TransportError) -> bool:
    try:
        request = error.response.request if isinstance(error, HfHubHTTPError) else error.request
    except RuntimeError:  # an error that knows no request
        return False
    return RETRIED_BY_CLIENT.search(str(request.url)) is not None


def _bound_requests() -> None:
    """Gives requests that would wait for ever an end; a user's own client keeps its own."""
    client = get_session()
    if client.timeout.read is None:
        client.timeout = httpx.Timeout(SILENCE)


def _one_line(text: str) -> str:
    text = re.sub(r"\(Request ID: [^)]*\)|(?<=\?)[^\s'\"]*=[^\s'\"]*|(?<=//)[^\s/@]*@", "", text)
    text = " ".join(text.split())
    return f"{text[:297]}..." if len(text) > 300 else f"{text.rstrip('.')}."

"""The one way to the Hub: an upload, of a model or a data set, is one commit; retried, bounded in time, and told of."""

import atexit
import contextlib
import functools
import logging
import shlex
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from .repositories import Destination, UploadError, explain, persistently

logger = logging.getLogger(__name__)

Operation = CommitOperationAdd | CommitOperationDelete

LEAST_TIME, LEAST_SPEED = 900.0, 100_000
"""An upload is given up after so many seconds, and one more for so many bytes."""
TOLD_AFTER = 5.0
"""Seconds of waiting that need no explanation."""


@dataclass(frozen=True)
class Upload:
    """One commit to come.

    Attributes:
        destination: where to.
        operations: what to commit on top of a commit; asked at each attempt, so that a commit whose answer was lost is
            not made again, and one that somebody else made meanwhile is looked at.
        message: of the commit.
        num_bytes: of all files, roughly.
        remedy: what the user does if it fails: a sentence.
        target: what it brings up to date, so that a later success makes up for a failure.
        cleanup: called at the end, however it ends.
    """

    destination: Destination
    operations: Callable[[str], list[Operation]]
    message: str
    num_bytes: int
    remedy: str
    target: str = ""
    cleanup: Callable[[], object] = lambda: None

    def run(self, is_given_up: Callable[[], bool]) -> CommitInfo:
        """Uploads the files and commits; not if it was given up meanwhile.

        Raises:
            UploadError: if that fails for good.
        """
        api, to = self.destination.api, self.destination

        def attempt() -> CommitInfo:
            head = to.head
            operations = self.operations(head)
            additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
            where = {"repo_id": to.repo_id, "repo_type": to.repo_type, "revision": to.revision}
            api.preupload_lfs_files(additions=additions, free_memory=False, **where)  # type: ignore[arg-type]
            if is_given_up():  # a late commit would put older files over newer ones
                raise UploadError("given up")
            return api.create_commit(  # type: ignore[call-overload,no-any-return]
                operations=operations, commit_message=self.message, parent_commit=head, **where
            )

        try:
            return persistently(attempt)
        except UploadError:  # said already
            raise
        except Exception as error:
            raise UploadError(f"The upload to the {to} failed: {explain(error)} {self.remedy}") from error
        finally:
            self.cleanup()

    @property
    def patience(self) -> float:
        """Seconds after which it is given up."""
        return LEAST_TIME + self.num_bytes / LEAST_SPEED


class Uploads:
    """Uploads in the background, one after the other. One that fails is told at once, and kept for the end.

    Attributes:
        failures: by target, of those that no later upload made up for.

    They run in threads that do not keep a process alive, unlike those of `run_as_future`; at its end, a process waits
    for them as long as their patience lasts.
    """

    def __init__(self) -> None:
        self._latest: Future[CommitInfo] | None = None
        self._noted: Future[None] | None = None  # of the latest; a future wakes those that wait before it calls back
        self.failures: dict[str, BaseException] = {}

    @property
    def is_busy(self) -> bool:
        """Whether an upload has not ended yet."""
        return self._latest is not None and not self._latest.done()

    def start(self, upload: Upload, is_awaited: bool = False) -> "Future[CommitInfo]":
        """Begins an upload as soon as the earlier ones have ended.

        Args:
            upload: what to do.
            is_awaited: the caller looks at the result: a failure is not told here.
        """
        earlier, future, noted = self._noted, Future[CommitInfo](), Future[None]()
        if earlier is None:
            atexit.register(self.finish)
        self._latest, self._noted = future, noted
        future.add_done_callback(functools.partial(self._note, upload, is_awaited, noted))
        threading.Thread(target=_work, args=(upload, earlier, future), name="upload", daemon=True).start()
        return future

    def finish(self) -> None:
        """Waits for what has begun; every upload ends, by giving up if need be."""
        if self._noted is None:
            return
        if wait([self._noted], timeout=TOLD_AFTER).not_done:
            logger.warning("Waiting for an upload to the Hub; it ends, or is given up, by itself.")
            wait([self._noted])

    def _note(self, upload: Upload, is_awaited: bool, noted: "Future[None]", future: "Future[CommitInfo]") -> None:
        error = future.exception()
        try:
            if error is None:
                self.failures.pop(upload.target, None)
                return
            self.failures[upload.target] = error
            if not is_awaited:
                logger.warning("%s", error)
        finally:
            noted.set_result(None)


def _work(upload: Upload, earlier: "Future[None] | None", future: "Future[CommitInfo]") -> None:
    if earlier is not None:
        wait([earlier])
    minutes = f"{upload.patience / 60:.0f} minutes" if upload.patience >= 120 else f"{upload.patience:g} seconds"
    late = UploadError(f"The upload to the {upload.destination} did not end within {minutes}. {upload.remedy}")
    timer = threading.Timer(upload.patience, _settle, (future, late))
    timer.daemon = True
    timer.start()
    try:
        _settle(future, upload.run(future.done))
    except BaseException as error:
        _settle(future, error)
    finally:
        timer.cancel()


def _settle(future: "Future[CommitInfo]", result: CommitInfo | BaseException) -> None:
    """Ends a future, unless it has ended before."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


def folder_operations(
    folder: Path, path_in_repo: str = "", ignore: Sequence[str] = (), allow: Sequence[str] | None = None
) -> list[Operation]:
    """Additions of a folder's files.

    Args:
        folder: on disk.
        path_in_repo: where it goes.
        ignore: patterns of files that are left out.
        allow: patterns, of which a file must have one; None for all files.
    """
    names = folder_files(folder, ignore)
    kept = filter_repo_objects(names, allow_patterns=None if allow is None else list(allow))
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    return [CommitOperationAdd(f"{prefix}{name}", str(folder / name)) for name in kept]


def folder_files(folder: Path, ignore: Sequence[str] = ()) -> list[str]:
    """Relative paths of a folder's files, in order, without those of an ignored pattern.

    Ignored folders are not looked into: others may be about to remove them.
    """
    entries = filter_repo_objects([path.name for path in folder.iterdir()], ignore_patterns=list(ignore))
    paths = [path for name in entries for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return list(filter_repo_objects(names, ignore_patterns=list(ignore)))


def upload_command(to: Destination, folder: Path, path_in_repo: str = ".", ignore: Sequence[str] = ()) -> str:
    """The command line that uploads a folder."""
    words = ["hf", "upload", to.repo_id, str(folder), path_in_repo]
    words += [word for pattern in ignore for word in ("--exclude", pattern)]
    words += ["--revision", to.revision] if to.revision else []
    return shlex.join(words)

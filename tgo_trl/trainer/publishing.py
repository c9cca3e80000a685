"""Uploads of a run while it trains and at its end."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.repositories import Destination, open_repository
from ..hub.uploads import Upload, Uploads, folder_files, folder_operations, upload_command
from .tgo_config import TGOConfig

SCRAPS = ("_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*")
"""What a run has in its folder besides what it is to be used with."""
SNAPSHOT_PREFIX = "_pushing-"
LARGE = 1 << 20
"""Bytes of a file that is linked rather than copied."""


def open_model_repository(args: TGOConfig, token: str | None = None, private: bool | None = None) -> Destination:
    """The repository that a run is pushed to; arguments as in [`~transformers.Trainer.init_hf_repo`].

    Raises:
        UploadError: if it cannot be written to.
    """
    name = args.hub_model_id or args.output_path.resolve().name
    private = args.hub_private_repo if private is None else private
    return open_repository(name, "model", token or args.hub_token, private, args.hub_revision, "hub_model_id")


def folder_upload(
    uploads: Uploads, destination: Destination, run: Path, folder: Path, message: str, path_in_repo: str = "",
    is_background: bool = False,
) -> Upload:  # fmt: skip
    """The upload of a run's folder, without its checkpoints and what begins with `_` or a dot, or of a checkpoint.

    Args:
        uploads: of the run, among which it will be.
        destination: where to.
        run: the run's folder.
        folder: what is uploaded: the same, or a checkpoint.
        message: of the commit.
        path_in_repo: of a checkpoint.
        is_background: the run goes on meanwhile, so that it is a snapshot that is uploaded.
    """
    ignored = () if path_in_repo else SCRAPS
    command = upload_command(destination, folder, path_in_repo or ".", ignored)
    source = _snapshot(uploads, run, folder, ignored) if is_background else folder
    return Upload(
        destination,
        lambda head: folder_operations(source, path_in_repo, ignored),
        message,
        num_bytes=sum((source / name).stat().st_size for name in folder_files(source, ignored)),
        remedy=f"The files are safe in {str(folder)!r}; this uploads them: {command}",
        target=path_in_repo,
        cleanup=(lambda: shutil.rmtree(source, ignore_errors=True)) if is_background else lambda: None,
    )


def sum_up(failures: Mapping[str, BaseException]) -> str | None:
    """What is not on the Hub although it was to be, and what to do; None if there is nothing."""
    if not failures:
        return None
    return f"{len(failures)} of what was to be pushed is not on the Hub. {' '.join(map(str, failures.values()))}"


def _snapshot(uploads: Uploads, run: Path, folder: Path, ignored: Sequence[str]) -> Path:
    """A folder of the files as they are now: the run goes on to replace them, and to delete checkpoints.

    Large files are linked where that can be done; they are never written in place.
    """
    if not uploads.is_busy:
        for left in run.glob(f"{SNAPSHOT_PREFIX}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    target = Path(tempfile.mkdtemp(prefix=SNAPSHOT_PREFIX, dir=run))
    for name in folder_files(folder, ignored):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(folder / name, copy)
    return target


def _link_or_copy(source: Path, target: Path) -> None:
    if source.stat().st_size >= LARGE:
        with contextlib.suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)

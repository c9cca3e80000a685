"""Which files the rows of a data set may name. Every reader of data opens what a row names here, and nowhere else.

A data set comes from strangers, and what is read of it is shown to models, copied and uploaded. So a path in it must
lead, all symbolic links followed, to a regular file inside the data set's own folder, or inside `image_dir`, and a URL
is fetched only if `allow_urls` says so. That the file is of the medium it is taken for, its readers check before they
read it. The exception is a data set that was made in the user's own Python, which may name any regular file.
"""

import glob
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from datasets import Dataset, IterableDataset
from datasets import config as datasets_config
from datasets.utils.file_utils import xopen
from huggingface_hub.constants import HF_HUB_CACHE

from ..messages.values import shown, shown_path, why
from .signatures import text_encoding

MAX_FILE_BYTES = 2**31 - 1
"""What a cell of a data set can hold."""
MAX_PATH_LENGTH = 32767
"""Characters of a path, on Windows; other systems stop before."""
REMOTE = ("http", "https", "hf", "s3", "gs", "gcs", "az", "abfs", "abfss")
"""Protocols that `allow_urls` allows."""
ARCHIVES = ("zip", "gzip", "bz2", "xz", "lz4", "zstd")
"""Protocols of files inside a file, as `datasets` writes them: `zip://a.png::/folder/images.zip`."""
FOLDER_BUILDERS = ("imagefolder", "videofolder", "audiofolder")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")


class RefusedFileError(ValueError):
    """A file that a row must not name; the message is a clause."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever a library raises over a broken file into a ValueError."""
    try:
        yield
    except (MemoryError, RefusedFileError):
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, RuntimeError, ...
        raise ValueError(f"{what} cannot be read ({why(error)})") from error


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, and with that which files its rows may name.

    Attributes:
        base: where relative paths begin.
        roots: folders, resolved, inside which the files must be; None for anywhere on this machine.
        own_urls: a pattern of the URLs that name the data set's own files.
        allow_urls: whether other URLs are fetched.
    """

    base: Path = Path()
    roots: tuple[Path, ...] | None = None
    own_urls: str | None = None
    allow_urls: bool = False

    def locate(self, value: Any) -> Any:
        """The value of a cell with each path in it as a file that is opened under the rule; nothing is read."""
        path = value
        if isinstance(value, Mapping) and value.get("bytes") is None:
            path = value.get("path")
        if isinstance(path, (str, os.PathLike)):
            return DataFile(os.fspath(path), self)
        if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, list)):
            return [self.locate(entry) for entry in value]  # frames, but no numbers
        return value

    def open(self, path: str) -> BinaryIO:
        """The file, opened for reading.

        Raises:
            RefusedFileError: if the rule forbids it.
            Exception: whatever the file system raises.
        """
        if "\0" in path:
            raise RefusedFileError(f"the path {shown_path(path)} has a null byte in it")
        self._check_encoding(path)
        *members, place = path.split("::") if _URL.match(path) else [path]
        for member in members:
            if not member.startswith(tuple(f"{protocol}://" for protocol in ARCHIVES)):
                raise RefusedFileError(f"{shown_path(path)} is no file in an archive ({', '.join(ARCHIVES)})")
        if _URL.match(place):
            self._check_url(place)
        else:
            place = str(self._real(place))
        if members or _URL.match(place):
            return xopen("::".join([*members, place]), "rb")  # type: ignore[no-any-return]
        return open(place, "rb")

    def _check_encoding(self, path: str) -> None:
        encoding = text_encoding(path)
        if encoding is not None:
            content = "value" if encoding == "base64" else "value.partition(',')[2]"
            raise RefusedFileError(
                f"the value is no path but {encoding} text ({len(path):,} characters, {shown(path, 30)}); store the "
                f"bytes themselves, `base64.b64decode({content})`"
            )

    def _check_url(self, url: str) -> None:
        protocol = url.partition("://")[0].lower()
        if self.own_urls is not None and re.match(self.own_urls, url) and ".." not in re.split(r"[/\\]", unquote(url)):
            return
        if self.roots is None and self.allow_urls:  # the user's own
            return
        if protocol not in REMOTE:
            raise RefusedFileError(f"{shown_path(url)} is no kind of URL that is read here ({', '.join(REMOTE)})")
        if not self.allow_urls:
            raise RefusedFileError(
                f"{shown_path(url)} is a URL, which a data set cannot have fetched by itself; if you trust it, set "
                "`allow_urls`"
            )

    def _real(self, path: str) -> Path:
        """Where a path leads; raises unless to a regular file that rows may name."""
        if len(path) > MAX_PATH_LENGTH:  # to follow a million folders takes minutes
            raise RefusedFileError(f"the path {shown_path(path)} has {len(path):,} characters, as no file system has")
        real = (self.base / path).resolve()
        if self.roots is not None and not any(real.is_relative_to(root) for root in self.roots):
            raise RefusedFileError(
                f"the path {shown_path(path)} leads outside the data set's folder; move the file there, or set "
                "`image_dir` to a folder that may be read"
            )
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise RefusedFileError(f"the path {shown_path(path)} leads to no regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise RefusedFileError(f"the file {shown_path(path)} has {found.st_size:,} bytes; up to 2 GiB can be read")
        return real


@dataclass(frozen=True)
class DataFile:
    """A file that a row names.

    Attributes:
        path: as the row has it.
        origin: of the data set.
    """

    path: str
    origin: Origin

    def open(self) -> BinaryIO:
        """The file; see [`Origin.open`]."""
        return self.origin.open(self.path)

    def with_suffix(self, suffix: str) -> "DataFile":
        """The file whose name goes on with `suffix`."""
        return DataFile(f"{self.path}{suffix}", self.origin)


OWN = Origin(allow_urls=True)
"""Of values that the user's own Python passes to a function: any file, any URL."""

_ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()


def remember_origin(dataset: Dataset | IterableDataset, origin: Origin) -> None:
    """Notes where a data set that a command opened is from, which the object itself does not know."""
    _ORIGINS[dataset] = origin


def source_folder(name: str) -> Path | None:
    """The folder that files of a data set are in; None of a Hub repository."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    plain = tuple(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*plain) if len(plain) < len(path.parts) else None


def named_origin(name: str, image_dir: str | None = None, allow_urls: bool = False) -> Origin:
    """The origin of a data set that is opened by name: a file, a pattern of files, a folder or a Hub id.

    Raises:
        ValueError: if `image_dir` is no folder.
    """
    roots, urls, base = [], None, Path()
    path = Path(name)
    folder = source_folder(name)
    if folder is not None:
        base = folder
        target = path.resolve()  # a file that is linked to has its images beside the link, or beside itself
        roots = [*_reached_from(base), *([target if target.is_dir() else target.parent] if path.exists() else [])]
    else:
        roots = [Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"), _downloads()]
        urls = rf"hf://datasets/{re.escape(name)}[@/]"
    if image_dir is not None:
        base = _checked_folder(image_dir)
        roots += _reached_from(base)
    return Origin(base, tuple(root.resolve() for root in roots), urls, allow_urls)


def find_origin(
    dataset: Dataset | IterableDataset, image_dir: str | None = None, allow_urls: bool = False, copies: bool = False
) -> Origin:
    """The origin of a data set at hand: as a command noted it, or as far as the object tells.

    A data set that was made in Python names what files the user's own code chose. So may one that `load_dataset` read,
    of which no object knows the folder, for training, which shows files to nobody; to be copied, they must be below
    the current directory, in the Hugging Face caches, or in `image_dir`, unless the loader itself has found them in the
    folder that it was given (`imagefolder`).

    Args:
        dataset: the object.
        image_dir: where paths are relative to, and must lead.
        allow_urls: whether URLs are fetched.
        copies: whether files become part of a new data set.

    Raises:
        ValueError: if `image_dir` is no folder.
    """
    if dataset in _ORIGINS:
        return _ORIGINS[dataset]
    builder = dataset.info.builder_name
    urls = None
    if builder in FOLDER_BUILDERS and dataset.info.dataset_name:
        urls = rf"hf://datasets/[^/@:]+/{re.escape(dataset.info.dataset_name)}[@/]"
    if image_dir is not None:
        base = _checked_folder(image_dir)
        return Origin(base, tuple(root.resolve() for root in _reached_from(base)), urls, allow_urls)
    is_made = builder == "generator" or (builder is None and isinstance(dataset, Dataset))  # streams forget where from
    if copies and not is_made and builder not in FOLDER_BUILDERS:
        roots = (Path(), Path(HF_HUB_CACHE), _downloads())
        return Origin(Path(), tuple(root.resolve() for root in roots), urls, allow_urls)
    return Origin(Path(), None, urls, allow_urls)


def _checked_folder(image_dir: str) -> Path:
    if not os.path.isdir(image_dir):
        raise ValueError(
            f"`image_dir` is {shown_path(image_dir)}, which is no folder. Name the one that the images are in."
        )
    return Path(image_dir)


def _downloads() -> Path:
    return Path(datasets_config.DOWNLOADED_DATASETS_PATH)


def _reached_from(folder: Path) -> list[Path]:
    """The folder and, of a snapshot in the Hub's cache, the folder of the files that it links to."""
    above = [folder.absolute(), *folder.absolute().parents]
    blobs = [parent.parent.parent / "blobs" for parent in above if parent.parent.name == "snapshots"]
    return [folder, *(path for path in blobs if path.is_dir())]

"""What is drawn: prompts, and the images that they are carried out on, which stay files until a sample needs them."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ...families.base_sources import shown_sources
from ...media.embedding import file_bytes
from ...media.images import load_image
from ...media.origin import DataFile
from ...messages.values import shown_path
from ...storage.fingerprints import fingerprint, task_of

IN_MEMORY = 256_000_000
"""Bytes of the source images in the rows of a data set that stay there; with more, all go to a temporary file."""


class SourceStore:
    """Files that are in the rows of a data set, kept until samples are drawn: on disk, once they are many."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (open as long as something reads it)

    def add(self, content: bytes) -> "StoredFile":
        """The file, to be read again."""
        start = self.file.seek(0, 2)
        self.file.write(content)
        return StoredFile(self, start, len(content))


@dataclass(frozen=True)
class StoredFile:
    """A part of a [`SourceStore`].

    Attributes:
        store: that it is in.
        start, length: in bytes.
    """

    store: SourceStore
    start: int
    length: int

    def read(self) -> bytes:
        """The file."""
        self.store.file.seek(self.start)
        return self.store.file.read(self.length)


@dataclass(frozen=True)
class SourceImage:
    """An image that others are made from: a file that is named, where the data names one, and else its bytes.

    Attributes:
        key: the fingerprint of the file, by which two are the same.
        value: that file, or the bytes, or where they are stored.
    """

    key: str
    value: DataFile | StoredFile | bytes = field(compare=False, repr=False)

    def read(self) -> bytes:
        """The file; raises a ValueError if it is no longer there, or what it was."""
        if isinstance(self.value, StoredFile):
            return self.value.read()
        path = shown_path(getattr(self.value, "path", ""))
        try:
            content = file_bytes(self.value, "image")
        except ValueError as error:
            raise ValueError(f"The source image {path} was there when prompts were read, and now {error}.") from error
        if fingerprint(content) != self.key:
            raise ValueError(
                f"The source image {path} has changed since the prompts were read. Run the same command again, with "
                "another `output_dir` if samples of it are there."
            )
        return content


@dataclass(frozen=True)
class Task:
    """A prompt, and the images that it is carried out on.

    Attributes:
        prompt: the text.
        sources: none, for pipelines that make images from prompts alone.
    """

    prompt: str
    sources: tuple[SourceImage, ...] = ()

    @property
    def name(self) -> str:
        """What tells it from others, and gives its samples their seeds: the prompt itself, without sources."""
        return task_of(self.prompt, [source.key for source in self.sources])


def tasks_fingerprint(tasks: Iterable[Task]) -> str:
    """A digest of tasks in their order; of prompts alone, that of the prompts."""
    return fingerprint(*(task.name for task in tasks))


def source_pictures(tasks: Sequence[Task], samples: Sequence[Image.Image]) -> dict[str, list[Image.Image]]:
    """What [`~tgo_trl.families.base_sources.shown_sources`] makes of some tasks and a sample of each."""
    return shown_sources([[load_image(source.read()) for source in task.sources] for task in tasks], samples)

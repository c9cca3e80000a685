"""Images of prompts from a pipeline, each from a seed of its own."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ...families import Family
from ...media.images import load_image
from ...media.types import Size
from ...policy.draws import stable_seed
from ...policy.sampling import cpu_generators, negating, quiet
from ...settings import shown
from .config import SOURCE_COLUMN
from .tasks import SourceImage, Task


@dataclass(frozen=True)
class Request:
    """One image to sample.

    Attributes:
        task: its prompt, and the source images where the pipeline reads them.
        prompt_index: of the task among the distinct ones.
        sample_index: of the image among those of its task.
        seed: 63 bits; `torch.Generator().manual_seed(seed)` samples the image again.
    """

    task: Task
    prompt_index: int
    sample_index: int
    seed: int


@dataclass(frozen=True)
class Sampler:
    """A pipeline, and how it is called.

    Attributes:
        pipeline: sampled from as it is, and where it is.
        family: of the pipeline.
        size: height and width in pixels.
        batch_size: images per call of the pipeline.
        call: more arguments of that.
    """

    pipeline: DiffusionPipeline
    family: Family
    size: Size
    batch_size: int
    call: Mapping[str, Any]

    @property
    def medium(self) -> str:
        """`"image"` or `"video"`, and the column of either."""
        return self.family.medium

    @property
    def fps(self) -> float | None:
        """Frames per second of its videos; None of images."""
        video_format = self.family.video_format
        return None if video_format is None else video_format.fps

    def rows(self, requests: Iterable[Request]) -> Iterator[dict[str, Any]]:
        """A row of each request, as it is sampled, with PIL images."""
        call = dict(self.call)
        called = negating(self.pipeline, call.pop("negative_prompt", None))
        files: dict[SourceImage, bytes] = {}
        for batch in _batches(requests, self.batch_size):
            generators = cpu_generators([request.seed for request in batch])
            with _sampling(self.pipeline, batch[0].seed):
                files = _read_sources(batch, files)
                given = [[load_image(files[source]) for source in request.task.sources] for request in batch]
                sources = {"sources": given} if self.family.most_sources else {}
                try:
                    samples = self.family.sample(
                        called, [request.task.prompt for request in batch], generators, self.size, **sources, **call
                    )
                except TypeError as error:
                    raise ValueError(f"The pipeline cannot be called with {shown(call)}: {error}.") from error
            for request, sample in zip(batch, samples, strict=True):
                task, numbers = request.task, ("prompt_index", "sample_index", "seed")
                edit = {SOURCE_COLUMN: [{"bytes": files[it], "path": None} for it in task.sources]}
                row = {"prompt": task.prompt, self.medium: sample, **(edit if task.sources else {})}
                yield row | {name: getattr(request, name) for name in numbers}


def find_requests(
    tasks: Sequence[Task], rows: Iterable[int], num_images_per_prompt: int, seed: int
) -> Iterator[Request]:
    """The requests of some rows of the data set, whose tasks come in order, each with its images."""
    for row in rows:
        prompt_index, sample_index = divmod(row, num_images_per_prompt)
        task = tasks[prompt_index]
        yield Request(task, prompt_index, sample_index, image_seed(seed, task.name, sample_index))


def image_seed(seed: int, task: str, sample_index: int) -> int:
    """The seed of one image of a task, 63 bits, a pure function of the arguments.

    Args:
        seed: of the run.
        task: the prompt; of an edit, which depends on its source images too, the name of the [`Task`].
        sample_index: of the image among those of its task.
    """
    digest = hashlib.blake2b(task.encode(), digest_size=16).digest()
    return stable_seed(seed, int.from_bytes(digest, "big"), sample_index)


def _read_sources(requests: Iterable[Request], before: Mapping[SourceImage, bytes]) -> dict[SourceImage, bytes]:
    """The file of each distinct source image of some requests, of which some may be there from the ones before."""
    distinct = {source for request in requests for source in request.task.sources}
    return {source: before[source] if source in before else source.read() for source in distinct}


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _sampling(pipeline: DiffusionPipeline, seed: int) -> Iterator[None]:
    """The pipeline in evaluation, and without a progress bar of its own.

    What a sampler draws without the generators that it is given comes from `seed`.
    """
    training = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and part.training]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    for part in training:
        part.eval()
    try:
        with quiet(pipeline), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        for part in training:
            part.train()

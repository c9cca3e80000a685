"""Images of prompts from a pipeline, each from a seed of its own."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from ...storage.fingerprints import task_of

SOURCE_COLUMN = "source_image"
"""Of the data sets that are written."""


@dataclass(frozen=True)
class Request:
    """One image to sample.

    Attributes:
        prompt: of the image.
        prompt_index: of the prompt among the distinct ones.
        sample_index: of the image among those of its prompt.
        seed: 63 bits; `torch.Generator().manual_seed(seed)` samples the image again.
        sources: the files of the source images, for pipelines that read them.
    """

    prompt: str
    prompt_index: int
    sample_index: int
    seed: int
    sources: tuple[bytes, ...] = ()


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

    def rows(self, requests: Iterable[Request]) -> Iterator[dict[str, Any]]:
        """A row of each request, as it is sampled, with PIL images."""
        call = dict(self.call)
        called = negating(self.pipeline, call.pop("negative_prompt", None))
        for batch in _batches(requests, self.batch_size):
            generators = cpu_generators([request.seed for request in batch])
            with _sampling(self.pipeline, batch[0].seed):
                given = [[load_image(file) for file in request.sources] for request in batch]
                sources = {"sources": given} if self.family.most_sources else {}
                try:
                    samples = self.family.sample(
                        called, [request.prompt for request in batch], generators, self.size, **sources, **call
                    )
                except TypeError as error:
                    raise ValueError(f"The pipeline cannot be called with {shown(call)}: {error}.") from error
            for request, sample in zip(batch, samples, strict=True):
                row = asdict(request)
                files = [{"bytes": file, "path": None} for file in row.pop("sources")]
                edit = {SOURCE_COLUMN: files} if files else {}
                yield {"prompt": row.pop("prompt"), self.medium: sample, **edit, **row}


def find_requests(
    prompts: Sequence[str], rows: Iterable[int], num_images_per_prompt: int, seed: int,
    sources: Sequence[tuple[bytes, ...]] = (),
) -> Iterator[Request]:  # fmt: skip
    """The requests of some rows of the data set, whose prompts come in order, each with its images.

    The seed of an edit depends on its source images too.
    """
    for row in rows:
        prompt_index, sample_index = divmod(row, num_images_per_prompt)
        prompt = prompts[prompt_index]
        files = sources[prompt_index] if sources else ()
        yield Request(prompt, prompt_index, sample_index, image_seed(seed, task_of(prompt, files), sample_index), files)


def image_seed(seed: int, prompt: str, sample_index: int) -> int:
    """The seed of one image of a prompt, 63 bits, a pure function of the arguments."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=16).digest()
    return stable_seed(seed, int.from_bytes(digest, "big"), sample_index)


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

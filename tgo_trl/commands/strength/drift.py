"""Drift: how well the network with its adapter still denoises what the base draws, or real images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...data.columns import Columns, check_columns, undecoded
from ...data.rows import check_prompt, read_cell
from ...data.sources import READER, check_same_number, locate_sources, read_pixels
from ...families import EDIT_FAMILIES, Family
from ...families.base import present
from ...media.embedding import ColumnError
from ...media.origin import named_origin
from ...media.readers import ImageReader, MediaReader, VideoReader
from ...media.types import Size
from ...policy.denoising import Denoiser
from ...policy.draws import EVALUATION_EPOCH, draw_rows
from ...policy.encoders import FrozenEncoders
from ...policy.errors import row_errors
from ...policy.loading import set_adapter_scale
from ...policy.policy import Policy
from ...precision import compute_dtype
from ...storage.fingerprints import fingerprint
from ...storage.sources import open_dataset
from ..generate.sampling import Sampler

QUARTILES = 4


@dataclass(frozen=True)
class DriftRows:
    """Rows that drift is measured on.

    Attributes:
        indices: of the rows in their data set, which give them their draws.
        prompts: of each.
        media: the cell of each image or video, not decoded.
        reader: of those.
        sources: the source images of each, not decoded; none of families that make samples from prompts alone.
    """

    indices: list[int]
    prompts: list[str]
    media: list[Any]
    reader: MediaReader
    sources: list[list[Any]]

    @property
    def fingerprint(self) -> str:
        """A digest of prompts, images or videos, and source images."""
        contents = map(self.reader.content, self.media)
        parts = [part for row in zip(self.indices, self.prompts, contents, strict=True) for part in row]
        return fingerprint(*parts, *(READER.content(image) for images in self.sources for image in images))


def read_drift_rows(name: str, split: str, columns: Columns, num_rows: int, family: Family) -> DriftRows:
    """Some rows of a data set, spread evenly over it.

    Args:
        name: as [`~tgo_trl.storage.sources.open_dataset`] takes it.
        split: of it.
        columns: of its prompts and its images or videos, and of its source images, which a family of edits reads.
        num_rows: all of them if there are no more.
        family: of the pipeline.

    Raises:
        ValueError: if a column is missing, or a row cannot be read; it names the row. And if rows have source images
            that a pipeline could take which draws without.
    """
    dataset: Any = open_dataset(name, None, split)
    video_format = family.video_format
    reader = ImageReader() if video_format is None else VideoReader(video_format)
    of_sources = [str(columns.source)] if family.most_sources else []
    wanted = [columns.prompt, columns.media, *of_sources]
    settings = ["`prompt_column`", f"`{family.medium}_column`", *("`source_column`" for _ in of_sources)]
    check_columns(f"The data set {name!r}", dataset.column_names, wanted, f"Set {' or '.join(settings)}.")
    if type(family) in EDIT_FAMILIES and columns.source in dataset.column_names:
        raise ValueError(
            f"The data set {name!r}, on whose rows drift is measured, has the source images {columns.source!r}, and "
            "`prompts` have none: an adapter that was trained on edits would be measured on another task. Give the "
            f"prompts a column {columns.source!r} too, or, to measure without source images, remove it from the data "
            "set."
        )
    origin = named_origin(name, None, False)
    files: Any = undecoded(dataset, *wanted)
    count = min(num_rows, len(files))
    if not count:
        raise ValueError(f"The data set {name!r} has no rows to measure drift on.")
    rows = DriftRows([index * len(files) // count for index in range(count)], [], [], reader, [])
    for index in rows.indices:
        try:
            row = files[index]
            rows.prompts.append(read_cell(row, columns.prompt, check_prompt))
            rows.media.append(read_cell(row, columns.media, origin.locate))
            read_cell({columns.media: rows.media[-1]}, columns.media, reader.load)  # now, not when all is drawn
            rows.sources.append([])
            for column in of_sources:
                located = read_cell(row, column, lambda cell: locate_sources(cell, origin, family.most_sources))
                read_cell({column: located}, column, lambda images: list(map(READER.load, images)))
                rows.sources[-1] = located
        except ColumnError as error:
            raise ValueError(f"Row {index} of {name!r}, column {error.column!r}: {error}.") from error
    check_same_number(f"Rows of {name!r}", rows.sources)
    return rows


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows.

    Attributes:
        indices: as in [`DriftRows`].
        images: the image encoder's tensors of each, `[1, ...]`, on the CPU.
        prompts: the prompt encoder's, likewise.
    """

    indices: list[int]
    images: list[dict[str, Tensor]]
    prompts: list[dict[str, Tensor]]


def encode_drift_rows(
    rows: DriftRows, sampler: Sampler, device: torch.device | None, scales: Sequence[float]
) -> dict[float, EncodedRows]:
    """The encoded rows of each scale; the adapter is left at one of them.

    Images are encoded once, with the adapter off: all scales are to denoise the same. So are prompts, unless the
    adapter reaches an encoder of them: what it changes there is part of its drift, and each scale has its own. Rows are
    encoded one after the other, so that the batch size changes nothing; encoders are cast as in training.

    Args:
        rows: to encode.
        sampler: of the pipeline, and of the size that images or videos, and source images, are brought to.
        device: where the pipeline was put to sample, and its networks are to be; None leaves all where it is.
        scales: of the adapter.
    """
    pipeline, networks = sampler.pipeline, sampler.family.networks(sampler.pipeline)
    first = next(iter(networks.values()))
    if device is not None:
        pipeline.remove_all_hooks()  # of offloading: what works is put on the device here, one after the other
    encoders = FrozenEncoders(sampler.family, pipeline, device or first.device, compute_dtype(first))
    set_adapter_scale(pipeline, 0)
    images = []
    for value, sources in zip(rows.media, rows.sources, strict=True):
        pixels, geometry = rows.reader.read(value, sampler.size)
        image = encoders.images(pixels[None], geometry[None])
        if sources:
            image |= encoders.sources(read_pixels(sources, sampler.size)[None])
        images.append(_on_cpu(image))
    encoded = {}
    for scale in scales if _has_prompt_adapter(sampler) else [0.0]:
        set_adapter_scale(pipeline, scale)
        encoded[scale] = EncodedRows(rows.indices, images, _encode_prompts(rows, encoders, sampler.size))
    if device is not None:
        encoders.release()
        for network in networks.values():
            if network.device != device:
                network.to(device)
    return {scale: encoded.get(scale) or encoded[0.0] for scale in scales}


def _encode_prompts(rows: DriftRows, encoders: FrozenEncoders, size: Size) -> list[dict[str, Tensor]]:
    """The encoded prompt of each row, once for all rows of the same one; beside its sources if encoders see them."""
    if encoders.family.prompts_see_sources:
        tasks = zip(rows.prompts, rows.sources, strict=True)
        return [_on_cpu(encoders.edits([prompt], read_pixels(sources, size)[None])) for prompt, sources in tasks]
    of_prompt = {prompt: _on_cpu(encoders.prompts([prompt])) for prompt in dict.fromkeys(rows.prompts)}
    return [of_prompt[prompt] for prompt in rows.prompts]


def _has_prompt_adapter(sampler: Sampler) -> bool:
    encoders = present(sampler.pipeline, sampler.family.prompt_encoders).values()
    modules = (encoder.modules() for encoder in encoders if isinstance(encoder, nn.Module))
    return any(isinstance(layer, LoraLayer) for layers in modules for layer in layers)


@torch.no_grad()
def denoising_errors(sampler: Sampler, rows: EncodedRows, seed: int) -> list[float]:
    """Mean error of the networks as they are, by quartile of the time.

    Every row has a draw in each quartile, `quantile = (quartile + u) / 4` with `u` uniform, and the same one whatever
    the networks are: errors of two scales differ by nothing else.

    Args:
        sampler: of the pipeline, and of the number of samples per call.
        rows: encoded.
        seed: of the draws.

    Returns:
        Four means over rows, in the units of the noise process: of a squared prediction, or nats per token.
    """
    pipeline, family = sampler.pipeline, sampler.family
    networks = family.networks(pipeline)
    policy = Policy(family, networks, None)
    denoiser = Denoiser(family, pipeline, family.process(pipeline))
    device = next(iter(networks.values())).device
    total = torch.zeros(QUARTILES, dtype=torch.float64)
    step = max(1, sampler.batch_size // QUARTILES)
    for start in range(0, len(rows.indices), step):
        chosen = slice(start, start + step)
        image, prompt = (_joined(part[chosen], device) for part in (rows.images, rows.prompts))
        indices = rows.indices[chosen]
        epochs, shape = [EVALUATION_EPOCH] * len(indices), family.latent_shape(image)
        draw = draw_rows(seed, epochs, indices, shape, QUARTILES, device, family.reads_posterior_noise)
        quartile = torch.arange(QUARTILES).repeat_interleave(len(indices))
        corrupted = denoiser.corrupt(image, prompt, replace(draw, quantile=(quartile + draw.quantile) / QUARTILES))
        total += row_errors(policy, None, corrupted).policy.double().cpu().sum(1)
    means: list[float] = (total / len(rows.indices)).tolist()
    return means


def _joined(parts: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}

"""From prompts to images: a data set drawn from a pipeline, each image from a seed of its own.

The seed of image `k` of a prompt is a function of the run's seed, the prompt's text and `k`, and of nothing else:
neither the order of the prompts, nor the number of processes, nor a run that was killed changes it. A prompt that comes
twice is drawn once.
"""

import hashlib
import importlib.metadata
import inspect
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ...cards.dataset_card import write_card
from ...cards.model_card import base_license
from ...data.rows import check_prompt
from ...families import Family, build_family
from ...hub.dataset_upload import check_destination, publish
from ...media.types import Sample, Size
from ...messages.public import public_name, without_secrets
from ...policy.draws import stable_seed
from ...policy.loading import adapter_scales, attach_adapter, load_pipeline
from ...precision import as_dtype, default_dtype
from ...settings import shown
from ...storage.fingerprints import component_fingerprint, config_fingerprint, fingerprint
from ...storage.parquet import GENERATION_NAME, ParquetFolder, locks_output_dir, process_state, rows_per_shard
from ...trainer.arguments import check_size
from ...trainer.sample_grids import cpu_generators
from .prompts import read_prompts

if TYPE_CHECKING:
    from .config import GenerateConfig

logger = logging.getLogger(__name__)

PACKAGES = ("diffusers", "torch", "transformers")
"""Whose versions change what is drawn."""


@dataclass(frozen=True)
class Request:
    """One image to draw.

    Attributes:
        prompt: of the image.
        prompt_index: of the prompt among the distinct ones.
        sample_index: of the image among those of its prompt.
        seed: 63 bits; `torch.Generator().manual_seed(seed)` draws the image again.
    """

    prompt: str
    prompt_index: int
    sample_index: int
    seed: int


@locks_output_dir
def generate(config: "GenerateConfig", pipeline: DiffusionPipeline | None = None, family: Family | None = None) -> Path:
    """Draws a data set; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share the work.

    Args:
        config: what is drawn, and how.
        pipeline: drawn from as it is, and where it is, instead of the one that `config` names.
        family: of a pipeline that the table of families does not know.

    Returns:
        The folder, `config.output_dir`. Columns: `prompt`; `image`, PNG, or `video`, a list of frames; `prompt_index`,
        `sample_index` and `seed` as in [`Request`].

    Raises:
        ValueError: for settings that cannot work, or a folder that holds data made with other settings.
    """
    state = process_state()
    prompts = read_prompts(
        config.prompts, config.prompt_column, config.dataset_config, config.dataset_split, config.max_prompts
    )
    check_destination(config, config.output_dir, state)
    is_ours = pipeline is None
    if pipeline is None:
        pipeline = _load(config, family, state)
    family = _family(config, family, pipeline)
    if config.adapter_name_or_path is not None:
        attach_adapter(pipeline, family, config.adapter_name_or_path)
    size, call = _size(config, family, pipeline), _call(config, pipeline)

    num_rows = len(prompts) * config.num_images_per_prompt
    shard_rows = rows_per_shard(config.rows_per_shard, family.video_format is not None)
    num_shards = math.ceil(num_rows / shard_rows)
    shards = ParquetFolder(Path(config.output_dir), GENERATION_NAME, num_shards=num_shards)
    written = shards.begin(_settings(config, pipeline, family, prompts, size, call, shard_rows), state)
    if is_ours:
        _place(config, pipeline, state)

    def requests(shard: int) -> list[Request]:
        rows = range(shard * shard_rows, min((shard + 1) * shard_rows, num_rows))
        return [_request(prompts, row, config.num_images_per_prompt, config.seed) for row in rows]

    missing = sorted(set(range(num_shards)) - set(written))
    work = {shard: requests(shard) for shard in missing[state.process_index :: state.num_processes]}
    show_progress = state.is_main_process and not config.disable_tqdm
    _write_missing(shards, work, pipeline, family, size, config.batch_size, call, show_progress)

    state.wait_for_everyone()
    if state.is_main_process:
        shards.check_complete(num_shards)
        shards.finish({"model_license": base_license(config.model_name_or_path)})
        write_card(shards, config)
        if config.push_to_hub:
            publish(shards.folder, config)
    state.wait_for_everyone()
    return shards.folder


def _write_missing(
    shards: ParquetFolder, work: Mapping[int, Sequence[Request]], pipeline: DiffusionPipeline, family: Family,
    size: Size, batch_size: int, call: Mapping[str, Any], show_progress: bool,
) -> None:  # fmt: skip
    media = _media(family)
    total = sum(map(len, work.values()))
    num_blank = 0
    with (
        tqdm(total=total, desc="Drawing", unit=media, disable=not show_progress or not total) as progress,
        ThreadPoolExecutor() as pool,
    ):
        for shard, requests in work.items():
            encoded = []
            for row in _draw(pipeline, family, requests, size, batch_size, call):
                num_blank += _is_blank(row[media])
                encoded.append((row, pool.submit(_encode, row.pop(media))))  # while the next are drawn
                progress.update()
            rows = [{**row, media: files.result()} for row, files in encoded]
            shards.write(shard, rows, _features(media))
    if num_blank:
        logger.warning(
            "%d of the images have a single colour. A pipeline's safety checker blacks out what it objects to "
            "(`model_init_kwargs={'safety_checker': None}` loads it without), and so does an overflow in float16 "
            "(set `dtype`). Their scores would teach nothing about the prompts.",
            num_blank,
        )


def generate_rows(
    pipeline: DiffusionPipeline, family: Family | None, prompts: Iterable[str], *, num_images_per_prompt: int = 1,
    seed: int = 42, size: Size | None = None, batch_size: int = 4, **call_kwargs: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of the data set that [`generate`] writes, as they are drawn, with PIL images.

    Args:
        pipeline: drawn from as it is, and where it is.
        family: of the pipeline; looked up if None.
        prompts: those that are repeated are drawn once.
        num_images_per_prompt: of each prompt.
        seed: with prompt and index, gives the seed of each image.
        size: height and width in pixels; what the pipeline was trained at if None.
        batch_size: images per call of the pipeline.
        call_kwargs: for the pipeline's call.
    """
    family = family or build_family(type(pipeline), {})
    distinct = list(dict.fromkeys(map(check_prompt, prompts)))
    requests = (
        _request(distinct, row, num_images_per_prompt, seed) for row in range(len(distinct) * num_images_per_prompt)
    )
    _check_arguments(pipeline, call_kwargs)
    yield from _draw(pipeline, family, requests, size or family.default_size(pipeline), batch_size, call_kwargs)


def image_seed(seed: int, prompt: str, sample_index: int) -> int:
    """The seed of one image of a prompt, 63 bits, a pure function of the arguments."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=16).digest()
    return stable_seed(seed, int.from_bytes(digest, "big"), sample_index)


def _request(prompts: Sequence[str], row: int, num_images_per_prompt: int, seed: int) -> Request:
    prompt_index, sample_index = divmod(row, num_images_per_prompt)
    prompt = prompts[prompt_index]
    return Request(prompt, prompt_index, sample_index, image_seed(seed, prompt, sample_index))


# ---- Drawing ----


def _draw(
    pipeline: DiffusionPipeline, family: Family, requests: Iterable[Request], size: Size, batch_size: int,
    call: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    media = _media(family)
    call = dict(call)
    negative_prompt = call.pop("negative_prompt", None)
    called: Any = pipeline if negative_prompt is None else _Negating(pipeline, negative_prompt)
    for batch in _batches(requests, batch_size):
        generators = cpu_generators([request.seed for request in batch])
        with _drawing(pipeline, batch[0].seed):
            try:
                samples = family.sample(called, [request.prompt for request in batch], generators, size, **call)
            except TypeError as error:
                raise ValueError(f"The pipeline cannot be called with {shown(call)}: {error}.") from error
        for request, sample in zip(batch, samples, strict=True):
            row = asdict(request)
            yield {"prompt": row.pop("prompt"), media: sample, **row}


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Negating:
    """A pipeline with a negative prompt for each prompt of a call: some repeat a single one, and others do not."""

    def __init__(self, pipeline: DiffusionPipeline, negative_prompt: str) -> None:
        self._pipeline = pipeline
        self._negative_prompt = negative_prompt

    def __call__(self, prompt: str | list[str], **kwargs: Any) -> Any:
        negative = self._negative_prompt if isinstance(prompt, str) else [self._negative_prompt] * len(prompt)
        return self._pipeline(prompt, negative_prompt=negative, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


@contextmanager
def _drawing(pipeline: DiffusionPipeline, seed: int) -> Iterator[None]:
    """The pipeline in evaluation, and without a progress bar of its own.

    What a sampler draws without the generators that it is given is drawn from `seed`.
    """
    quiet = dict(getattr(pipeline, "_progress_bar_config", {}))
    training = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and part.training]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    pipeline.set_progress_bar_config(disable=True)
    for part in training:
        part.eval()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        for part in training:
            part.train()
        pipeline.set_progress_bar_config(**quiet)


def _media(family: Family) -> str:
    return "image" if family.video_format is None else "video"


def _features(media: str) -> Features:
    number = Value("int64")
    media_feature = ImageFeature() if media == "image" else List(ImageFeature())
    return Features(
        {
            "prompt": Value("string"),
            media: media_feature,
            "prompt_index": number,
            "sample_index": number,
            "seed": number,
        }
    )


def _encode(sample: Sample) -> dict[str, Any] | list[dict[str, Any]]:
    """The PNG file of an image, or those of a video's frames, as `datasets` stores them."""
    if isinstance(sample, list):
        return [_png(frame) for frame in sample]
    return _png(sample)


def _png(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _is_blank(sample: Sample) -> bool:
    frames = sample if isinstance(sample, list) else [sample]
    return all(frame.getcolors(1) is not None for frame in frames)


# ---- The pipeline ----


def _load(config: "GenerateConfig", family: Family | None, state: PartialState) -> DiffusionPipeline:
    kwargs = dict(config.model_init_kwargs or {}) if isinstance(config.model_init_kwargs, Mapping) else {}
    names = {"dtype", "torch_dtype"} & kwargs.keys()
    if names and config.dtype is not None:
        raise ValueError(f"`dtype` is set, and `model_init_kwargs` has `{names.pop()}`. Set one of them.")
    if not names:
        kwargs["torch_dtype"] = default_dtype(state.device) if config.dtype is None else as_dtype(config.dtype)
    return load_pipeline(config.model_name_or_path, kwargs, None, family)


def _family(config: "GenerateConfig", family: Family | None, pipeline: DiffusionPipeline) -> Family:
    named = {name: getattr(config, name) for name in ("num_frames", "max_sequence_length")}
    settings = {name: value for name, value in named.items() if value is not None}
    if family is not None and settings:
        raise ValueError(
            f"A `family` was passed, and the settings have {', '.join(f'`{name}`' for name in settings)}, which it "
            "would not see. Set them in the family object, or leave `family` out."
        )
    return family or build_family(type(pipeline), settings)


def _place(config: "GenerateConfig", pipeline: DiffusionPipeline, state: PartialState) -> None:
    if config.enable_model_cpu_offload:
        pipeline.enable_model_cpu_offload(device=state.device)
    else:
        pipeline.to(state.device)


def _size(config: "GenerateConfig", family: Family, pipeline: DiffusionPipeline) -> Size:
    if config.height is None or config.width is None:
        return family.default_size(pipeline)
    size = (config.height, config.width)
    check_size(size, family.size_multiple(pipeline))
    return size


def _call(config: "GenerateConfig", pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The arguments of the pipeline's call that the settings set."""
    named = {name: getattr(config, name) for name in ("num_inference_steps", "guidance_scale", "negative_prompt")}
    given = {name: value for name, value in named.items() if value is not None}
    assert not isinstance(config.call_kwargs, str)
    given |= config.call_kwargs or {}
    _check_arguments(pipeline, given)
    return given


def _check_arguments(pipeline: DiffusionPipeline, given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(pipeline.__call__).parameters
    unknown = [name for name in given if name not in parameters]
    if unknown:
        known = sorted(set(parameters) - {"self", "kwargs"})
        raise ValueError(
            f"A `{type(pipeline).__name__}` cannot be called with {', '.join(map(repr, unknown))}. Leave it out; what "
            f"it takes are {', '.join(known)}."
        )


# ---- What the images depend on ----


def _settings(
    config: "GenerateConfig", pipeline: DiffusionPipeline, family: Family, prompts: Sequence[str], size: Size,
    call: Mapping[str, Any], shard_rows: int,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the shards are a function of, and what a reader of the card wants to know of it."""
    parameters = inspect.signature(pipeline.__call__).parameters
    defaults = {
        name: parameters[name].default for name in ("num_inference_steps", "guidance_scale") if name in parameters
    }
    network = next(iter(family.networks(pipeline).values()))
    return {
        "task": family.task,
        "model": public_name(config.model_name_or_path),
        "adapter": None if config.adapter_name_or_path is None else public_name(config.adapter_name_or_path),
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "dtype": str(network.dtype).removeprefix("torch."),
        "prompts": {
            "source": public_name(config.prompts),
            "number": len(prompts),
            "fingerprint": fingerprint(*prompts),
        },
        "num_images_per_prompt": config.num_images_per_prompt,
        "seed": config.seed,
        "height": size[0],
        "width": size[1],
        "family": {name: value for name, value in asdict(family).items() if name not in family.training_settings},
        "call": without_secrets(json.loads(json.dumps({**defaults, **call}, default=str))),
        "batch_size": config.batch_size,
        "rows_per_shard": shard_rows,
        "fingerprints": pipeline_fingerprints(pipeline),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def pipeline_fingerprints(pipeline: DiffusionPipeline) -> dict[str, str]:
    """A digest of each part of a pipeline, weights and settings, and of the adapters that act in it."""
    digests = {
        name: component_fingerprint(part) for name, part in sorted(pipeline.components.items()) if part is not None
    }
    own = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    digests["pipeline"] = config_fingerprint(type(pipeline).__name__, own)
    digests["adapters"] = fingerprint(json.dumps(adapter_scales(pipeline), sort_keys=True))
    return digests

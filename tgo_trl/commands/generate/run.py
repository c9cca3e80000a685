"""From prompts to images: a data set sampled from a pipeline, each image from a seed of its own.

The seed of image `k` of a prompt is a function of the run's seed, the prompt's text and source images, and `k`, and of
nothing else: neither the order of the prompts, nor the number of processes, nor a run that was killed changes it. A
prompt that comes twice, with the same sources, is sampled once.
"""

import importlib.metadata
import inspect
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from diffusers import DiffusionPipeline, ModularPipeline
from PIL import Image

from ...cards.dataset_card import build_card
from ...cards.model_card import base_license
from ...data.rows import check_prompt
from ...families import Family, build_family, edit_class, edit_family
from ...media.sizes import check_size
from ...media.types import Sample, Size
from ...messages.public import public_name, without_secrets
from ...policy.loading import adapter_scales, attach_adapter, load_pipeline, set_adapter_scale
from ...policy.modular import as_standard
from ...policy.pipeline_class import check_instance
from ...precision import as_dtype, default_dtype
from ...settings import with_pipeline_class
from ...storage.fingerprints import component_fingerprint, config_fingerprint, fingerprint
from ...storage.parquet import ParquetFolder
from ...storage.processes import process_state
from ...storage.records import GENERATION_NAME
from ..sharded_run import ShardedRun, check_destination, locks_output_dir, rows_per_shard, write_dataset
from .config import SOURCE_COLUMN, GenerateConfig, SamplingSettings
from .known import Known, look_up
from .prompts import PROMPTS_ALONE, SourceUse, read_tasks
from .sampling import Request, Sampler, find_requests
from .tasks import SourceImage, Task, tasks_fingerprint

logger = logging.getLogger(__name__)

PACKAGES = ("diffusers", "torch", "transformers")
"""Whose versions change what is sampled."""


@locks_output_dir
def generate(
    config: GenerateConfig, pipeline: DiffusionPipeline | ModularPipeline | None = None, family: Family | None = None
) -> Path:
    """Samples a data set; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share the work.

    Args:
        config: what is sampled, and how.
        pipeline: sampled from as it is, and where it is, instead of the one that `config` names.
        family: of a pipeline that the table of families does not know.

    Returns:
        The folder, `config.output_dir`. Columns: `prompt`; `image`, PNG, or `video`, a list of frames; `prompt_index`,
        the prompt's place among the distinct ones; `sample_index`, the image's among those of its prompt; and `seed`:
        `torch.Generator().manual_seed(seed)` samples the image again.

    Raises:
        ValueError: for settings that cannot work, or a folder that holds data made with other settings.
    """
    state, pipeline = process_state(), as_standard(pipeline)
    folder = Path(config.output_dir)
    known = look_up(config, pipeline, family)
    tasks = find_tasks(config, known.kind)
    check_destination(folder, config, state)
    is_ours = pipeline is None
    sampler = build_sampler(config, pipeline, family, bool(tasks[0].sources), known)
    if config.adapter_scale != 1:
        set_adapter_scale(sampler.pipeline, config.adapter_scale)
    return write_samples(config, tasks, sampler, state.device if is_ours else None)


def find_tasks(config: GenerateConfig, kind: type[Family] | None) -> list[Task]:
    """What is drawn, no two alike: prompts, with their source images where the pipeline reads them.

    Args:
        config: that names them.
        kind: of the pipeline, as [`look_up`] finds it.

    Raises:
        ValueError: if they cannot be read, or the pipeline needs source images and there are none.
    """
    use = source_use(config, kind)
    return list(
        read_tasks(
            config.prompts, config.prompt_column, None, config.dataset_config, config.dataset_split,
            config.max_prompts, config.source_column, use,
        )
    )  # fmt: skip


def source_use(config: SamplingSettings, kind: type[Family] | None) -> SourceUse:
    """What a pipeline makes of source images; raises a ValueError if it takes none and a column is set.

    One that takes some or none takes them where there is a column of them; a column that is set has to be there.

    Args:
        config: that names the column.
        kind: of the pipeline, as [`look_up`] finds it.
    """
    if kind is None:
        return PROMPTS_ALONE
    is_set, most = config.source_column != SOURCE_COLUMN, edit_class(kind).most_sources
    if is_set and not most:
        raise ValueError(
            f"`source_column` is {config.source_column!r}, and `{kind.__name__}` makes images from prompts alone. "
            "Leave it out, or name a pipeline of edits."
        )
    return SourceUse(most, is_set or kind.most_sources > 0)


def build_sampler(
    config: GenerateConfig, pipeline: DiffusionPipeline | None, family: Family | None, has_sources: bool = False,
    known: Known | None = None, weights: bool = True,
) -> Sampler:  # fmt: skip
    """The pipeline of the settings with its adapter, whose scale is left at 1, and how it is called.

    Args:
        config: what is sampled, and how.
        pipeline: taken instead of the one that `config` names, and given the adapter.
        family: of a pipeline that the table of families does not know.
        has_sources: whether each prompt has source images.
        known: of the pipeline, where it has been looked up; looked up if None.
        weights: False for a pipeline that is only asked what it refuses, and has none.

    Raises:
        ValueError: for settings that this pipeline cannot take, or an adapter that does not fit it; also for one that
            makes images from others where there are none, if possible before it is loaded.
    """
    known = known or look_up(config, pipeline, family)
    if known.kind is not None:
        _check_has_sources(known.kind, has_sources)
    check_call(config, known)
    if pipeline is None:
        pipeline = _load(config, family, process_state(), known, weights)
    else:
        check_instance(pipeline, with_pipeline_class(None, config.pipeline_class))
    family = _family(config, family, pipeline, has_sources)
    if known.kind is None:  # of a single file, too, which does not say sooner what it is
        _check_has_sources(type(family), has_sources)
    if config.adapter_name_or_path is not None:
        attach_adapter(pipeline, family, config.adapter_name_or_path)
    size, call = _size(config, family, pipeline), _call(config)
    _check_arguments(type(pipeline), type(family), call)  # of a single file, too
    return Sampler(pipeline, family, size, config.batch_size, call)


def check_call(config: GenerateConfig, known: Known) -> None:
    """Raises a ValueError, before anything is loaded, for an argument that the pipeline's call does not take.

    Of a single file nothing is known yet, nor of what cannot be had, of which loading says more.
    """
    if known.kind is not None and known.pipeline_class is not None:
        _check_arguments(known.pipeline_class, known.kind, _call(config))


def _check_has_sources(kind: type[Family], has_sources: bool) -> None:
    kind = edit_class(kind) if has_sources else kind
    if bool(kind.most_sources) == has_sources:
        return
    if has_sources:
        raise ValueError(f"`{kind.__name__}` makes images from prompts alone, and here they have source images.")
    raise ValueError(
        f"`{kind.__name__}` makes images from source images, and prompts were read alone. Name the pipeline's folder "
        "or Hub id and not a single file, which does not say beforehand what it is."
    )


def check_tasks(sampler: Sampler, tasks: Iterable[Task]) -> None:
    """Raises a ValueError for a prompt that will not be encoded, as far as tokenizers tell, which need no weights."""
    of_numbers: dict[int, list[str]] = {}
    for task in tasks:
        of_numbers.setdefault(len(task.sources), []).append(task.prompt)
    for num_sources, prompts in of_numbers.items():
        sampler.family.check_prompts(sampler.pipeline, prompts, num_sources)


def write_samples(config: GenerateConfig, tasks: Sequence[Task], sampler: Sampler, device: torch.device | None) -> Path:
    """Samples a data set as [`generate`] does, from a pipeline as it is; the caller has the folder to itself.

    Args:
        config: recorded as what made the samples.
        tasks: the distinct ones, all with source images or none.
        sampler: of the images.
        device: where the pipeline is put before it works; None leaves it where it is.

    Raises:
        ValueError: for a prompt that the pipeline cannot be called with, or a folder that holds something else.
    """
    check_tasks(sampler, tasks)
    run = _Generation(config, tasks, sampler, device)
    return write_dataset(run, Path(config.output_dir), config, process_state())


def generate_rows(
    pipeline: DiffusionPipeline, family: Family | None, prompts: Iterable[str], *, num_images_per_prompt: int = 1,
    seed: int = 42, size: Size | None = None, batch_size: int = 4, sources: Sequence[tuple[bytes, ...]] = (),
    **call_kwargs: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of the data set that [`generate`] writes, as they are sampled, with PIL images.

    Args:
        pipeline: sampled from as it is, and where it is.
        family: of the pipeline; looked up if None.
        prompts: those that are repeated, with the same sources if there are any, are sampled once.
        num_images_per_prompt: of each prompt.
        seed: with prompt and index, gives the seed of each image.
        size: height and width in pixels; what the pipeline was trained at if None.
        batch_size: images per call of the pipeline.
        sources: the files of the source images of each prompt, for pipelines that read them.
        call_kwargs: for the pipeline's call.

    Raises:
        ValueError: if there are sources, and not those of each prompt, or for a prompt or an argument that the
            pipeline cannot be called with.
    """
    family = family or build_family(type(pipeline), {})
    family = (edit_family(family) if sources else family).fitted_to(pipeline)
    distinct = [check_prompt(prompt) for prompt in prompts]
    if sources and len(sources) != len(distinct):
        raise ValueError(f"There are {len(distinct)} prompts and sources of {len(sources)}. Give those of each prompt.")
    of_each = [tuple(SourceImage(fingerprint(file), file) for file in files) for files in sources]
    tasks = list(dict.fromkeys(map(Task, distinct, of_each or [()] * len(distinct))))
    requests = find_requests(tasks, range(len(tasks) * num_images_per_prompt), num_images_per_prompt, seed)
    _check_arguments(type(pipeline), type(family), call_kwargs)
    sampler = Sampler(pipeline, family, size or family.default_size(pipeline), batch_size, call_kwargs)
    check_tasks(sampler, tasks)
    yield from sampler.rows(requests)


@dataclass
class _Generation(ShardedRun[Request]):
    """Images of prompts.

    Attributes:
        config: of the command.
        tasks: the distinct ones.
        sampler: of the images.
        device: where the sampler's pipeline is put before it works; None leaves it where it is.
    """

    config: GenerateConfig
    tasks: Sequence[Task]
    sampler: Sampler
    device: torch.device | None

    record_name = GENERATION_NAME
    verb = "Drawing"

    def __post_init__(self) -> None:
        self.unit = self.sampler.medium
        self.num_rows = len(self.tasks) * self.config.num_images_per_prompt
        self.shard_rows = rows_per_shard(self.config.rows_per_shard, self.sampler.medium == "video")
        self.num_sources = max(len(task.sources) for task in self.tasks)
        self.features = features_of_samples(self.sampler.medium, self.num_sources)
        self.num_blank = 0

    def settings(self) -> dict[str, Any]:
        config, pipeline, family = self.config, self.sampler.pipeline, self.sampler.family
        parameters = inspect.signature(pipeline.__call__).parameters
        defaults = {
            name: parameters[name].default for name in ("num_inference_steps", "guidance_scale") if name in parameters
        }
        network = next(iter(family.networks(pipeline).values()))
        return {
            "task": family.task,
            "model": public_name(config.model_name_or_path),
            "adapter": None if config.adapter_name_or_path is None else public_name(config.adapter_name_or_path),
            # left out at 1, as in the folders of before there was a choice
            **({} if config.adapter_scale == 1 else {"adapter_scale": config.adapter_scale}),
            "pipeline": type(pipeline).__name__,
            "scheduler": type(pipeline.scheduler).__name__,
            "dtype": str(network.dtype).removeprefix("torch."),
            "prompts": {
                "source": public_name(config.prompts),
                "number": len(self.tasks),
                "fingerprint": tasks_fingerprint(self.tasks),
            },
            "num_images_per_prompt": config.num_images_per_prompt,
            "seed": config.seed,
            "height": self.sampler.size[0],
            "width": self.sampler.size[1],
            "family": {name: value for name, value in asdict(family).items() if name not in family.training_settings},
            "call": without_secrets(json.loads(json.dumps({**defaults, **self.sampler.call}, default=str))),
            "batch_size": config.batch_size,
            "rows_per_shard": self.shard_rows,
            "fingerprints": pipeline_fingerprints(pipeline),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def blocks(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Request]]]:
        for place, (shard, rows) in enumerate(self.ranges(wanted)):
            if place == 0:  # where all is drawn, it stays where it is
                self._place()
            number, seed = self.config.num_images_per_prompt, self.config.seed
            yield shard, list(find_requests(self.tasks, rows, number, seed))

    def _place(self) -> None:
        if self.device is not None:
            if self.config.enable_model_cpu_offload:
                self.sampler.pipeline.enable_model_cpu_offload(device=self.device)
            else:
                self.sampler.pipeline.to(self.device)

    def rows(self, shard: int, items: Sequence[Request], progress: Callable[[int], object]) -> list[dict[str, Any]]:
        medium = self.sampler.medium
        encoded = []
        with ThreadPoolExecutor() as pool:
            for row in self.sampler.rows(items):
                self.num_blank += _is_blank(row[medium])
                if self.num_sources == 1:
                    row[SOURCE_COLUMN] = row[SOURCE_COLUMN][0]
                encoded.append((row, pool.submit(_encode, row.pop(medium))))  # while the next are sampled
                progress(1)
        return [{**row, medium: files.result()} for row, files in encoded]

    def warn(self) -> None:
        if self.num_blank:
            logger.warning(
                "%d of the images have a single colour. A pipeline's safety checker blacks out what it objects to "
                "(`model_init_kwargs={'safety_checker': None}` loads it without), and so does an overflow in float16 "
                "(set `dtype`). Their scores would teach nothing about the prompts.",
                self.num_blank,
            )

    def facts(self, folder: ParquetFolder) -> dict[str, Any]:
        return {"model_license": base_license(self.config.model_name_or_path)}

    def card(self, folder: ParquetFolder, facts: Mapping[str, Any]) -> str:
        return str(build_card(folder, self.config.hub_dataset_id, self.config.license))


def features_of_samples(medium: str, num_sources: int) -> Features:
    """The columns of the data set: of images or videos, and of the source images, of which a prompt has so many."""
    number = Value("int64")
    files = ImageFeature() if medium == "image" else List(ImageFeature())
    numbers = {"prompt_index": number, "sample_index": number, "seed": number}
    source = ImageFeature() if num_sources == 1 else List(ImageFeature())
    sources = {SOURCE_COLUMN: source} if num_sources else {}
    return Features({"prompt": Value("string"), medium: files, **sources, **numbers})


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


def _load(
    config: GenerateConfig, family: Family | None, state: PartialState, known: Known, weights: bool
) -> DiffusionPipeline:
    kwargs = dict(known.init_kwargs)
    names = {"dtype", "torch_dtype"} & kwargs.keys()
    if names and config.dtype is not None:
        raise ValueError(f"`dtype` is set, and `model_init_kwargs` has `{names.pop()}`. Set one of them.")
    if not names:
        kwargs["dtype"] = default_dtype(state.device) if config.dtype is None else as_dtype(config.dtype)
    return load_pipeline(config.model_name_or_path, kwargs, None, family, weights=weights, index=known.index)


def _family(config: GenerateConfig, family: Family | None, pipeline: DiffusionPipeline, has_sources: bool) -> Family:
    named = {name: getattr(config, name) for name in ("num_frames", "max_sequence_length")}
    settings = {name: value for name, value in named.items() if value is not None}
    if family is not None and settings:
        raise ValueError(
            f"A `family` was passed, and the settings have {', '.join(f'`{name}`' for name in settings)}, which it "
            "would not see. Set them in the family object, or leave `family` out."
        )
    family = family or build_family(type(pipeline), settings)
    return (edit_family(family) if has_sources else family).fitted_to(pipeline)


def _size(config: GenerateConfig, family: Family, pipeline: DiffusionPipeline) -> Size:
    if config.height is None or config.width is None:
        return family.default_size(pipeline)
    size = (config.height, config.width)
    check_size(size, family.size_multiple(pipeline))
    family.check_size(pipeline, size)
    return size


def _call(config: GenerateConfig) -> dict[str, Any]:
    """The arguments of the pipeline's call that the settings set."""
    named = {name: getattr(config, name) for name in ("num_inference_steps", "guidance_scale", "negative_prompt")}
    given = {name: value for name, value in named.items() if value is not None}
    assert not isinstance(config.call_kwargs, str)
    return {**given, **(config.call_kwargs or {})}


def _check_arguments(pipeline: type[DiffusionPipeline], family: type[Family], given: Mapping[str, Any]) -> None:
    family.check_call(pipeline.__name__, given)
    parameters = inspect.signature(pipeline.__call__).parameters
    unknown = [name for name in given if name not in parameters and name not in family.translated_arguments]
    if unknown:
        known = sorted(set(parameters) - {"self", "kwargs"})
        raise ValueError(
            f"A `{pipeline.__name__}` cannot be called with {', '.join(map(repr, unknown))}. Leave it out; what it "
            f"takes are {', '.join(known)}."
        )


# ---- What the images depend on ----


def pipeline_fingerprints(pipeline: DiffusionPipeline) -> dict[str, str]:
    """A digest of each part of a pipeline, weights and settings, and of the adapters that act in it."""
    digests = {
        name: component_fingerprint(part) for name, part in sorted(pipeline.components.items()) if part is not None
    }
    own = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    digests["pipeline"] = config_fingerprint(type(pipeline).__name__, own)
    digests["adapters"] = fingerprint(json.dumps(adapter_scales(pipeline), sort_keys=True))
    return digests

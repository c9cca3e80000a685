"""Checks of what a user passes to the trainer: before anything is loaded, and then against the pipeline."""

import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from diffusers import DiffusionPipeline
from transformers import TrainingArguments

from ..data.lanes import can_be_divided
from ..families import Family, build_family, edit_family
from ..losses import LOSSES
from ..media.sizes import aspect_ratio_sizes, by_aspect_ratio, check_size
from ..media.types import Size
from ..noise import NoiseProcess
from ..policy.alterations import check_networks, unwrap_networks
from ..policy.attention import check_backend
from ..policy.launch import check_strategy
from ..policy.policy import Policy
from .objective import of_recipe, unresolved_loss
from .pair_sources import check_pair_source
from .tgo_config import TGOConfig

logger = logging.getLogger(__name__)


ORDER = (
    "The order of arguments is `TGOTrainer(model, args, train_dataset, eval_dataset)`; pass everything else, "
    "`ref_model` included, by keyword."
)


def default_args(model: str | DiffusionPipeline) -> TGOConfig:
    """The configuration of a trainer that was given none, named after the model."""
    return TGOConfig(run_name_of(model, "TGO"))


def run_name_of(model: str | DiffusionPipeline, method: str) -> str:
    """The folder of a run that was given none: the model's name, and the method's."""
    name = model if isinstance(model, str) else str(model.config.get("_name_or_path") or type(model).__name__)
    return f"{name.rstrip('/').split('/')[-1]}-{method}"


def check_arguments(
    args: object, model: object, ref_model: object, train_dataset: object, eval_dataset: object
) -> None:
    """Raises a TypeError or ValueError for arguments that cannot work."""
    if not isinstance(args, TGOConfig):
        raise TypeError(f"`args` must be a `TGOConfig`, got `{type(args).__name__}`. {ORDER}")
    check_folders(args)
    if ref_model is not None and ref_model is model and not isinstance(model, str):
        raise ValueError(
            "`model` and `ref_model` cannot be the same object. In most cases you should omit `ref_model`: the "
            "reference is then the policy as it is before training."
        )
    if ref_model is not None:
        _check_reference(args)
    if train_dataset is None:
        raise ValueError("`train_dataset` is required")
    named = named_datasets(train_dataset, eval_dataset)
    check_launch(args)
    if isinstance(train_dataset, IterableDataset):
        _check_stream(args)
        _check_lanes(args, train_dataset)
    elif args.stream_lanes is not None:
        raise ValueError(
            f"`stream_lanes` is {args.stream_lanes}, which is of a streaming `train_dataset`, and this one is not. "
            "Leave it out."
        )
    if LOSSES[args.loss_type].rows == "pairs":
        _check_pairs(args, named)
    streams = [name for name, dataset in named.items() if isinstance(dataset, IterableDataset)]
    if args.precompute_ref_log_probs and streams:
        raise ValueError(
            f"`precompute_ref_log_probs` is True, and `{streams[0]}` is a stream, whose rows are encoded in the step. "
            "Load it without `streaming=True`, or leave `precompute_ref_log_probs` out."
        )
    if args.dataloader_num_workers > 1 and any(isinstance(dataset, IterableDataset) for dataset in named.values()):
        raise ValueError(
            f"A streaming data set is read in order, which `dataloader_num_workers={args.dataloader_num_workers}` "
            "cannot do. Set it to 0 or 1, or load the data set without `streaming=True`."
        )


def check_folders(args: TGOConfig) -> None:
    """Raises a ValueError if nothing can be written where the settings say, before hours are spent on it."""
    for name in ("output_dir", "encoding_cache_dir"):
        given = getattr(args, name)
        path = None if given is None else Path(given).expanduser().absolute()
        there = None if path is None else next(it for it in (path, *path.parents) if it.exists())
        if there is None:
            continue
        if not there.is_dir():
            raise ValueError(f"`{name}` is {given!r}, and {str(there)!r} is a file. Name a folder.")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"`{name}` is {given!r}, and {str(there)!r} cannot be written to. Name another folder.")


def named_datasets(train_dataset: object, eval_dataset: object) -> dict[str, Any]:
    """The data sets by the argument that they are; raises a TypeError for what is none."""
    named: dict[str, Any] = {"train_dataset": train_dataset}
    if isinstance(eval_dataset, Mapping):
        named |= {f"eval_dataset[{name!r}]": dataset for name, dataset in eval_dataset.items()}
    elif eval_dataset is not None:
        named["eval_dataset"] = eval_dataset
    for name, dataset in named.items():
        if not isinstance(dataset, (Dataset, IterableDataset)):
            hint = ""
            if isinstance(dataset, TrainingArguments):
                hint = f" {ORDER}"
            elif isinstance(dataset, Mapping) and dataset:
                hint = f" Take one of its splits: `dataset[{next(iter(dataset))!r}]`."
            raise TypeError(f"`{name}` must be a `Dataset` or `IterableDataset`, got `{type(dataset).__name__}`.{hint}")
    return named


def _check_reference(args: TGOConfig) -> None:
    if not LOSSES[args.loss_type].needs_reference:
        raise ValueError(f"`loss_type={args.loss_type!r}` uses no reference; leave `ref_model` out.")
    if args.sync_ref_model and args.use_peft:
        raise ValueError(
            "`sync_ref_model=True` mixes the policy's weights into the reference's, but a `ref_model` has no adapter "
            "to mix the policy's adapter into. Leave `ref_model` out, or set `use_peft=False`."
        )


def _check_stream(args: TGOConfig) -> None:
    if args.max_steps <= 0:
        raise ValueError(
            "A streaming `train_dataset` has no length, so the number of updates is unknown. Set `max_steps`."
        )
    if args.positive_ratio is not None:
        raise ValueError(
            f"`positive_ratio` is {args.positive_ratio}{of_recipe(vars(args), 'positive_ratio')}, which leaves out "
            "other rows in each epoch, and a streaming `train_dataset` is read in order. Leave it out, or load the "
            "data set without `streaming=True`."
        )
    if args.sync_ref_model and args.ref_model_sync_strategy == "epoch":
        raise ValueError(
            "`ref_model_sync_strategy='epoch'` moves the reference between epochs, and a streaming `train_dataset` is "
            "one long epoch to `Trainer`. Use 'steps' and `ref_model_sync_steps`."
        )


def _check_lanes(args: TGOConfig, stream: IterableDataset) -> None:
    """That as many lanes as the user asks for can be had."""
    number = args.stream_lanes
    if number is None or number == 1:
        return
    why = None
    if args.aspect_ratio_buckets:
        why = "with `aspect_ratio_buckets=True` rows are gathered by size in the order of the whole stream"
    elif number > stream.num_shards:
        why = f"it has {stream.num_shards} shard{'s' * (stream.num_shards > 1)}"
    elif not can_be_divided(stream):
        why = (
            "its shards, read one by one, would give other rows (after `skip`, `take`, `interleave_datasets`, "
            "`split_dataset_by_node`, or `map` and `filter` by batches or indices)"
        )
    elif args.rows_per_update % number:
        why = f"every update takes as many rows of each lane, and has {args.rows_per_update} rows"
    if why is not None:
        raise ValueError(
            f"`stream_lanes` is {number}, in which `train_dataset` cannot be read: {why}. Leave it out, or set 1, "
            "which reads the stream in its order."
        )


def _check_pairs(args: TGOConfig, datasets: Mapping[str, Dataset | IterableDataset]) -> None:
    for name, dataset in datasets.items():
        check_pair_source(args, dataset, f"`{name}`")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(args, name) % 2:
            raise ValueError(
                f"`{name}` is {getattr(args, name)}, but `loss_type={args.loss_type!r}` takes pairs, and both rows of "
                "a pair come in one batch. Set an even number."
            )


def check_launch(args: TGOConfig) -> None:
    """Raises a ValueError for ways of training that no trainer here has."""
    check_strategy(args)
    accelerator_config: Any = args.accelerator_config
    if accelerator_config.dispatch_batches:
        raise ValueError(
            "`dispatch_batches=True` concatenates batches over processes, which the rows do not allow. Leave "
            "it unset in `accelerator_config`."
        )
    for name, (value, unset, why) in _unsupported(args).items():
        if value != unset:
            raise ValueError(f"`{name}={value!r}` is not supported: {why}. Leave it at {unset!r}.")
    if args.attention_backend is not None:
        try_attention(args, args.attention_backend)
    # What "unset" means for accelerate with a stream is True, and a stream may be passed to `evaluate` later.
    accelerator_config.dispatch_batches = False


def _unsupported(args: TGOConfig) -> dict[str, tuple[Any, Any, str]]:
    accelerator_config: Any = args.accelerator_config
    return {
        "label_smoothing_factor": (args.label_smoothing_factor, 0.0, "the rows have no class labels"),
        "neftune_noise_alpha": (args.neftune_noise_alpha, None, "the network has no word embeddings"),
        "include_num_input_tokens_seen": (args.include_num_input_tokens_seen, "no", "the rows have no tokens"),
        "ignore_data_skip": (args.ignore_data_skip, False, "rows that are done are passed over without being read"),
        "auto_find_batch_size": (
            args.auto_find_batch_size, False, "where memory runs out it goes on with updates of fewer rows, which is "
            "another run; set `per_device_train_batch_size` and `gradient_accumulation_steps`",
        ),
        "dataloader_drop_last": (
            args.dataloader_drop_last, False, "an epoch visits every row, however batches are laid out",
        ),
        "bf16_full_eval": (args.bf16_full_eval, False, "it would put the trained weights into bfloat16 for good"),
        "fp16_full_eval": (args.fp16_full_eval, False, "it would put the trained weights into float16 for good"),
        "split_batches": (accelerator_config.split_batches, False, "batches are counted per process"),
        "num_steps": (
            (accelerator_config.gradient_accumulation_kwargs or {}).get("num_steps"), None, "`accelerator_config` has "
            "it, which is read when rows are laid out already; set `gradient_accumulation_steps`",
        ),
        "use_liger_kernel": (args.use_liger_kernel, False, "its kernels are of language models"),
        "enable_jit_checkpoint": (
            args.enable_jit_checkpoint, False, "SIGTERM ends a run with a checkpoint anyway, and would be ignored "
            "after training",
        ),
    }  # fmt: skip


def try_attention(args: TGOConfig, name: str, with_mask: bool = False) -> None:
    """Raises a ValueError if a back end of attention does not work as this run will call it."""
    autocasts = bool(args.bf16 and args.bf16_autocast)
    check_backend(name, args.device, training_dtype(args), autocasts, with_mask)


def training_dtype(args: TGOConfig) -> torch.dtype:
    """What frozen weights are put into and training computes in: of `bf16` and `fp16`."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def resolve_family(
    args: TGOConfig, family: Family | None, pipeline: DiffusionPipeline, has_sources: bool = False
) -> Family:
    """The pipeline's family with the settings of `args`, or the user's own, for which its networks are unwrapped.

    What is left out is as the model was trained.

    Args:
        args: the run's settings.
        family: the user's, or None to look it up.
        pipeline: of the run.
        has_sources: whether rows have source images, of pipelines that take some or none.

    Raises:
        ValueError: if they do not fit, or a network is not what it seems.
    """
    settings = args.family_settings
    if family is not None and settings:
        raise ValueError(
            f"A `family` was passed, and the `TGOConfig` sets {', '.join(f'`{name}`' for name in settings)}, which it "
            "would not see. Set them in the family object, or leave `family` out."
        )
    family = family or build_family(type(pipeline), settings)
    family = (edit_family(family) if has_sources else family).fitted_to(pipeline)
    unwrap_networks(pipeline, family.network_names)
    family.check(pipeline)
    check_networks(pipeline, family, args.use_peft)
    return family


def check_loss(args: TGOConfig, process: NoiseProcess) -> None:
    """Raises a ValueError for a loss that reads what the network's predictions do not have."""
    if process.has_target:
        return
    loss = unresolved_loss(vars(args))
    if loss.reads_predictions:
        raise ValueError(
            f"`loss_type={args.loss_type!r}` subtracts predictions from their target, and this pipeline predicts "
            "tokens, which have none. Use a loss that reads errors alone, without `negatives='mirror'` or "
            "`trust_region`."
        )
    if loss.reads_relative_errors:
        raise ValueError(
            "`error_scale='relative'` takes the reference's error for a variance, and that of this pipeline is a "
            "negative log-likelihood of tokens already. Leave it 'absolute'; `negative_weight`, `negative_margin`, "
            "`label_smoothing`, `sft_weight` and `time_range` exist for tokens too."
        )


def resolve_size(args: TGOConfig, family: Family, pipeline: DiffusionPipeline) -> Size:
    """Height and width in pixels; raises a ValueError if the pipeline cannot take them."""
    if args.resolution is not None:
        size = (args.resolution, args.resolution)
    elif args.height is not None and args.width is not None:
        size = (args.height, args.width)
    else:
        size = family.default_size(pipeline)
    check_size(size, family.size_multiple(pipeline), is_square=args.resolution is not None)
    family.check_size(pipeline, size)
    return size


def resolve_sizes(args: TGOConfig, size: Size, family: Family, pipeline: DiffusionPipeline) -> list[Size]:
    """The sizes that images are brought to: `size` alone, or buckets of about as many pixels.

    Raises:
        ValueError: if the pipeline does not take one of them.
    """
    if not args.aspect_ratio_buckets:
        return [size]
    sizes = aspect_ratio_sizes(size, family.size_multiple(pipeline), args.max_aspect_ratio)
    kept = by_aspect_ratio(family.kept_size(pipeline, it) for it in sizes)
    for bucket in kept:
        try:
            family.check_size(pipeline, bucket)
        except ValueError as error:
            raise ValueError(
                f"`aspect_ratio_buckets` of {size[1]} x {size[0]} pixels have one of {bucket[1]} x {bucket[0]}, which "
                f"this pipeline does not take. {error} Buckets have about as many pixels as that size, and never more: "
                "set it larger, or set `max_aspect_ratio` lower, or leave `aspect_ratio_buckets` out."
            ) from error
    return kept


def check_optimizer(optimizer: torch.optim.Optimizer | None, policy: Policy) -> None:
    """Raises a ValueError if the user's optimizer trains nothing of the policy; warns if it trains a part of it."""
    if optimizer is None:
        return
    trained = {name: id(parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad}
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for name, parameter in trained.items() if parameter not in given]
    if len(left_out) == len(trained):
        raise ValueError(
            "The optimizer in `optimizers` holds none of the trained parameters, so nothing would be learned: the "
            "adapter is created by the trainer. Pass `optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': 1e-4})` "
            "instead, or add the adapter to the pipeline before you make the optimizer."
        )
    if left_out:
        logger.warning(
            "The optimizer in `optimizers` holds %d of %d trained weights: the others stay as they are, such as `%s`.",
            len(trained) - len(left_out), len(trained), left_out[0],
        )  # fmt: skip


def check_samples_of_loss(args: TGOConfig, pipeline: DiffusionPipeline) -> None:
    """Raises a ValueError for a loss whose samples need a negative prompt, of a pipeline that takes none."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    if unresolved_loss(vars(args)).negative_prompt is not None and "negative_prompt" not in takes:
        raise ValueError(
            f"`loss_type={args.loss_type!r}` trains a prompt that samples are guided away from, and a "
            f"`{type(pipeline).__name__}` takes no `negative_prompt`. Set `positive_prefix`, to mark good images too."
        )


def warn_of_distilled_steps(family: Family, pipeline: DiffusionPipeline) -> None:
    """Warns of a pipeline that was distilled to few steps, naming what to train in its place."""
    undistilled = family.step_distilled_from(pipeline)
    if undistilled is not None:
        logger.warning(
            "This pipeline was distilled to draw in few steps, which the loss of denoising does not teach: its samples "
            "may grow blurry. Train its undistilled counterpart, %s, and load the adapter on this one.",
            undistilled,
        )


def warn_of_unused_settings(args: TGOConfig, adapter_name: str) -> None:
    """Warns of settings of a new adapter, where training goes on with one that has settings of its own."""
    defaults = {item.name: item.default for item in fields(TGOConfig) if item.name.startswith("lora_")}
    unused = [name for name, default in defaults.items() if getattr(args, name) != default]
    if unused:
        logger.warning(
            "Training goes on with the pipeline's adapter %r, which has settings of its own: %s will be ignored.",
            adapter_name,
            ", ".join(f"`{name}`" for name in unused),
        )

"""What a run would take, told before hours are spent and without weights: rows, updates, disk and memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from transformers.trainer_utils import SaveStrategy

from ..data.encoded import num_missing
from ..families import Family
from ..labels.rule import LabelRule
from ..losses import LOSSES
from ..media.types import Size
from ..policy.draws import Draw
from ..policy.encoders import FrozenEncoders
from ..policy.known_digests import recall_digests
from ..policy.launch import sharding_of
from ..policy.memory import Footprint, device_memory, fixed_bytes, footprint, has_usual_adapter, quantization_saves
from ..policy.policy import Policy, build_policy
from ..policy.recomputation import checked_interval
from ..policy.shapes_and_numbers import as_numbers
from ..policy.skeleton import encoded_shapes
from .arguments import training_dtype
from .feasibility import check_best_metric_of, check_drift_of
from .loading import TrainedPipeline
from .measured_speed import Speed, Subject, recall_speed, speed_key
from .preparation import DataPreparer, SurveyedRows, shard_writer, training_sampler
from .refusals import load_unweighted
from .tgo_config import TGOConfig

ADAM = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose state is known: two moments of each weight."""


@dataclass(frozen=True)
class EncodingsPlan:
    """What is encoded before the first update, and kept.

    Attributes:
        folder: where.
        num_images, num_prompts: different ones, of training and evaluation.
        image_bytes: of all images and their sources on disk.
        prompt_bytes: of all prompts on disk, at most: zeros that they end in are left out.
        missing: images and prompts that are still to be encoded; None where only the weights tell.
    """

    folder: Path
    num_images: int
    num_prompts: int
    image_bytes: int
    prompt_bytes: int
    missing: tuple[int, int] | None


@dataclass(frozen=True)
class MemoryPlan:
    """What is in the memory of each device.

    Attributes:
        fixed: bytes, of weights, gradients and the optimizer's averages.
        peak: bytes at most in a step; None where that is not known.
        why_unknown: a clause, where it is not.
        every: of each kind, the first block and every so many after it are recomputed; None for no block.
        encoders: bytes of the weights that are there together while rows are encoded.
        device: bytes that the device has; None of no GPU.
    """

    fixed: int
    peak: int | None
    why_unknown: str | None
    every: int | None
    encoders: int
    device: int | None


@dataclass(frozen=True)
class RunPlan:
    """What a run would take.

    Attributes:
        num_rows: of the training set; None of a stream.
        training: those that can be used; None of a stream, which is not encoded before.
        rule: fitted on them; None of pairs.
        updates: of the run.
        updates_per_epoch: None of a stream.
        checkpoints: how many are saved; None where metrics decide.
        checkpoint_bytes: of each, without the optimizer's state where [`ADAM`] is not used.
        encodings: None of a stream.
        memory: of each device.
        speed: of a run like it on this machine; None if there was none.
    """

    num_rows: int | None
    training: SurveyedRows | None
    rule: LabelRule | None
    updates: int
    updates_per_epoch: int | None
    checkpoints: int | None
    checkpoint_bytes: int
    encodings: EncodingsPlan | None
    memory: MemoryPlan
    speed: Speed | None


def plan_run(
    model: Any,
    subject: Subject,
    args: TGOConfig,
    train_dataset: Any,
    eval_dataset: Any,
    quantization_config: Any = None,
) -> RunPlan:
    """The plan of a run of `TGOTrainer`; raises as that does, but not of the settings of a run that would go on.

    Args:
        model: Hub id, folder or file of the pipeline, or a pipeline without weights.
        subject: what would be trained.
        args: the run's settings.
        train_dataset: of the rows.
        eval_dataset: likewise; None for no evaluation.
        quantization_config: that the networks would be loaded with.
    """
    trained = load_unweighted(model, args, train_dataset, eval_dataset, quantization_config)
    dtype = training_dtype(args)

    # Its rows, with encoders that have no weights, and perhaps the digests of some.
    writer = shard_writer(args)
    encoders = FrozenEncoders(trained.family, trained.pipeline, args.device, dtype if args.use_peft else torch.float32)
    digests = recall_digests(writer.folder, subject.model, args.model_init_dict, encoders.networks)
    encoders.digests.update(digests)
    preparer = DataPreparer(args, encoders, trained.sizes)
    training, evaluation, rule = _survey(preparer, train_dataset, eval_dataset)
    check_best_metric_of(args, evaluation)
    check_drift_of(args, evaluation)
    surveys = [rows for rows in (training, evaluation) if rows is not None]

    # What is made of them.
    shapes = _shapes(trained, preparer, surveys)
    encodings = None
    if training is not None:
        missing = None
        if digests.keys() == encoders.networks.keys() and training.source.columns.source is None:
            counts = [num_missing(preparer.reader, it.scanned, it.texts, encoders, writer) for it in surveys]
            missing = (sum(images for images, _ in counts), sum(prompts for _, prompts in counts))
        encodings = _encodings(writer.folder, surveys, shapes, missing, trained.family.prompts_see_sources)
    encoder_bytes = _encoder_bytes(encoders)
    num_sources = 0 if training is None else training.scanned.num_sources
    policy = build_policy(trained.pipeline, trained.family, args, None, dtype)[0]
    updates, per_epoch = _updates(args, training, len(trained.sizes))
    return RunPlan(
        None if training is None else len(train_dataset), training, rule, updates, per_epoch,
        _num_checkpoints(args, updates, per_epoch), _checkpoint_bytes(args, policy), encodings,
        _memory(args, trained, policy, shapes, subject.bits, encoder_bytes, training is None),
        recall_speed(writer.folder, speed_key(args, subject, trained.size, type(trained.family), num_sources)),
    )  # fmt: skip


def _survey(
    preparer: DataPreparer, train_dataset: Any, eval_dataset: Any
) -> tuple[SurveyedRows | None, SurveyedRows | None, LabelRule | None]:
    if isinstance(train_dataset, IterableDataset):
        training, rule = None, preparer.training_set(train_dataset)[1]
    else:
        training, rule = preparer.survey(train_dataset, "training")
    if isinstance(eval_dataset, IterableDataset):
        preparer.evaluation_set(eval_dataset, rule, "evaluation")  # of which no row is read yet
    if eval_dataset is None or isinstance(eval_dataset, IterableDataset):
        return training, None, rule
    return training, preparer.survey(eval_dataset, "evaluation", rule)[0], rule


def _updates(args: TGOConfig, training: SurveyedRows | None, num_sizes: int) -> tuple[int, int | None]:
    """Updates of the run, and of an epoch, as `Trainer` counts them."""
    if training is None:
        return args.max_steps, None
    batches = math.ceil(len(training_sampler(args, training, num_sizes)) / (args.train_batch_size * args.world_size))
    per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch), per_epoch


def _num_checkpoints(args: TGOConfig, updates: int, per_epoch: int | None) -> int | None:
    if args.save_strategy == SaveStrategy.NO:
        return 0
    if args.save_strategy == SaveStrategy.EPOCH:
        return 1 if per_epoch is None else math.ceil(updates / per_epoch)
    if args.save_strategy == SaveStrategy.STEPS:
        every = args.save_steps if args.save_steps >= 1 else math.ceil(updates * args.save_steps)
        return math.ceil(updates / every)  # the last update is saved too
    return None


def _checkpoint_bytes(args: TGOConfig, policy: Policy) -> int:
    """Of the trained weights, their copies, and two moments of each."""
    weights = sum(weight.nbytes for weight in policy.trained_weights())
    if policy.adapter_name is None:  # with what is left frozen
        weights = sum(weight.nbytes for weight in policy.parameters())
    copies = 1 + bool(args.sync_ref_model)
    if args.save_only_model:
        return copies * weights
    return (copies + (args.ema_decay is not None) + 2 * has_adam(args)) * weights


def has_adam(args: TGOConfig) -> bool:
    """Whether the optimizer is one of [`ADAM`]."""
    return str(getattr(args.optim, "value", args.optim)) in ADAM


# ---- What is encoded ----


@dataclass(frozen=True)
class _Shapes:
    """What is encoded of a row of the largest size: tensors `[1, ...]` on the meta device."""

    size: Size
    image: dict[str, Tensor]
    prompt: dict[str, Tensor]
    sources: dict[str, Tensor]


def _shapes(trained: TrainedPipeline, preparer: DataPreparer, surveys: Sequence[SurveyedRows]) -> _Shapes:
    sizes = [size for rows in surveys for size in rows.scanned.sizes] or trained.sizes
    size = max(sizes, key=math.prod)
    text = max((text for rows in surveys for text in rows.texts.values()), key=len, default="a photograph")
    num_sources = surveys[0].scanned.num_sources if surveys else 0
    pixels, geometry = preparer.reader.blank(size)
    image, prompt, sources = encoded_shapes(trained.family, trained.pipeline, pixels, geometry, text, num_sources)
    return _Shapes(size, image, prompt, sources)


def _encodings(
    folder: Path, surveys: Sequence[SurveyedRows], shapes: _Shapes, missing: tuple[int, int] | None, sees_sources: bool
) -> EncodingsPlan:
    """Of images of other sizes, as many bytes as of the largest in proportion to their pixels."""
    pixels = sum(math.prod(size) for rows in surveys for size in rows.scanned.sizes)
    num_sources = sum(_num_sources(rows) for rows in surveys)
    of_each = sum(it.nbytes for it in shapes.image.values()) + 1  # and whether it could be read
    image_bytes = of_each * pixels // math.prod(shapes.size)
    image_bytes += sum(it.nbytes for it in shapes.sources.values()) * num_sources
    num_prompts = sum(_num_prompts(rows, sees_sources) for rows in surveys)
    return EncodingsPlan(
        folder, sum(len(rows.scanned.rows) for rows in surveys), num_prompts, image_bytes,
        num_prompts * sum(it.nbytes for it in shapes.prompt.values()), missing,
    )  # fmt: skip


def _num_sources(rows: SurveyedRows) -> int:
    """Of a data set, different ones, each at each size."""
    scanned = rows.scanned
    return len({(scanned.sources[i], scanned.sizes[i]) for i in rows.texts}) if scanned.sources else 0


def _num_prompts(rows: SurveyedRows, sees_sources: bool) -> int:
    """Different prompts of a data set; where they are encoded beside their sources, each with each at each size."""
    scanned = rows.scanned
    if not sees_sources:
        return len({*rows.texts.values()})
    return len({(text, scanned.sources[i], scanned.sizes[i]) for i, text in rows.texts.items()})


# ---- Memory ----


def _encoder_bytes(encoders: FrozenEncoders) -> int:
    """Of the larger group: those of images and those of prompts are not on the device together."""
    family, networks = encoders.family, encoders.networks
    groups = (family.image_encoders, family.prompt_encoders)
    return max(_nbytes(networks[name] for name in group if name in networks) for group in groups)


def _nbytes(networks: Iterable[nn.Module]) -> int:
    return sum(weight.nbytes for network in networks for weight in network.parameters())


def _memory(
    args: TGOConfig, trained: TrainedPipeline, policy: Policy, shapes: _Shapes, bits: int, encoders: int,
    is_stream: bool,
) -> MemoryPlan:  # fmt: skip
    networks = [*policy.networks.values()]
    saved = quantization_saves(networks, bits) if bits else 0
    loss, has_copy = LOSSES[args.loss_type], policy.adapter_name is None and not args.precompute_ref_log_probs
    copy = _nbytes(networks) if has_copy and loss.needs_reference else 0
    fixed = fixed_bytes(networks, args.world_size) + copy - saved
    recomputes = args.gradient_checkpointing or getattr(args, "activation_checkpointing", None)
    options: Any = args.gradient_checkpointing_kwargs or getattr(args, "activation_checkpointing_kwargs", None)
    every = checked_interval(options or {}) if recomputes else None
    device = device_memory(args.device)
    why = "the encoders of a stream stay beside it" if is_stream else _why_unknown(args, policy)
    if not shapes.prompt:
        why = "its prompts are encoded beside images, whose size only weights tell"
    found = None if why else _footprint(trained, policy, shapes, fixed)
    if found is None:
        return MemoryPlan(fixed, None, why or "this network's blocks are not known", every, encoders, device)
    rows = args.train_batch_size * args.num_likelihood_samples
    return MemoryPlan(fixed, found.peak(rows, every), None, every, encoders, device)


def _why_unknown(args: TGOConfig, policy: Policy) -> str | None:
    if sharding_of(args) is not None:
        return "weights are sharded"
    if args.ema_decay is not None or not has_usual_adapter(policy):
        return "it was measured with an adapter on the usual modules alone, without `ema_decay`"
    return None


@torch.no_grad()
def _footprint(trained: TrainedPipeline, policy: Policy, shapes: _Shapes, fixed: int) -> Footprint | None:
    family = trained.family
    image = {name: as_numbers(it) for name, it in {**shapes.image, **shapes.sources}.items()}
    lengths = {"lengths": tuple(shapes.prompt["mask"].sum(1).tolist())} if _reads_lengths(family, shapes) else {}
    prompt: dict[str, Any] = {name: as_numbers(it) for name, it in shapes.prompt.items()}
    noise = torch.zeros(1, *family.latent_shape(image))
    posterior = noise if family.reads_posterior_noise else noise.new_empty(1, 0)
    corrupted = trained.denoiser.corrupt(image, {**prompt, **lengths}, Draw(torch.full((1,), 0.5), noise, posterior))
    return footprint(policy, corrupted, fixed)


def _reads_lengths(family: Family, shapes: _Shapes) -> bool:
    return family.reads_lengths and "mask" in shapes.prompt

"""A run's model card, and its uploads while it trains and at its end."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SchedulerType

from ..cards.model_card import CardContent, build_card, shown_path
from ..data.encoded import EncodedDataset
from ..hub.repositories import Destination, UploadError, open_repository
from ..hub.uploads import Upload, folder_files, folder_operations, upload_command
from ..messages.public import public_text
from ..policy.policy import Policy
from .plots import SCORE_HISTOGRAM_NAME
from .sample_grids import last_grid

if TYPE_CHECKING:
    from .base_trainer import BaseTrainer
    from .tgo_config import TGOConfig

SCRAPS = ("_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*")
"""What a run has in its folder besides what it is to be used with."""
SNAPSHOT_PREFIX = "_pushing-"
LARGE = 1 << 20
"""Bytes of a file that is linked rather than copied."""


def write_card(
    trainer: "BaseTrainer",
    model_name: str | None,
    dataset_name: str | None,
    tags: tuple[str, ...],
    license: str | None,
) -> None:
    """Writes `README.md` to the run's output directory; arguments as in [`BaseTrainer.create_model_card`]."""
    folder = trainer.args.output_path
    folder.mkdir(parents=True, exist_ok=True)
    grid = last_grid(folder)
    weights = trainer.hub_model_id or trainer.args.hub_model_id or shown_path(str(folder))
    content = CardContent(
        model_name=model_name or (trainer.args.hub_model_id or folder.name).split("/")[-1],
        base_model=public_text(str(trainer.pipeline.config.get("_name_or_path") or "")),
        pipeline_class=type(trainer.pipeline).__name__,
        pipeline_package=type(trainer.pipeline).__module__.partition(".")[0],
        weights=weights,
        loading_code=trainer.family.loading_code(trainer.pipeline, weights),
        loading_arguments="".join(f", {name}=None" for name in trainer.family.left_out(trainer.pipeline)),
        video_format=trainer.family.video_format,
        task=trainer.family.task,
        is_adapter=trainer.policy.adapter_name is not None,
        rank_and_alpha=_rank_and_alpha(trainer.policy),
        loss_type=trainer.args.loss_type,
        rule=trainer.label_rule,
        hyperparameters=hyperparameters(trainer),
        prompt=_example_prompt(trainer),
        grid=None if grid is None else grid.relative_to(folder).as_posix(),
        histogram=SCORE_HISTOGRAM_NAME if (folder / SCORE_HISTOGRAM_NAME).is_file() else None,
        dataset_name=None if dataset_name is None else public_text(dataset_name),
        license=license,
        tags=tags,
    )
    build_card(content).save(folder / "README.md")


def hyperparameters(trainer: "BaseTrainer") -> dict[str, Any]:
    """Name and value of each line of the card's table."""
    args, policy = trainer.args, trainer.policy
    shown = {
        "loss": args.loss_type,
        "beta": args.beta,
        "temperature": f"{trainer.temperature:.6g}",
        "confidence coefficient": args.confidence_coef,
        "score normalisation": args.score_normalization,
        "likelihood samples": args.num_likelihood_samples,
        "resolution": f"{trainer.size[1]} x {trainer.size[0]}"
        + (", in buckets of aspect ratios" if len(trainer.sizes) > 1 else ""),
        "learning rate": args.learning_rate,
        "schedule": SchedulerType(args.lr_scheduler_type).value,
        "batch size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "updates": trainer.state.global_step,
        "seed": args.seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    }
    if trainer.family.video_format is not None:
        shown["frames"] = f"{trainer.family.video_format.num_frames} at {trainer.family.video_format.fps:g} per second"
    if policy.adapter_name is not None:
        config = next(iter(policy.networks.values())).peft_config[policy.adapter_name]
        shown["LoRA rank, alpha"] = f"{config.r}, {config.lora_alpha}"
    if trainer.changes:
        shown["changed on the way"] = "; ".join(trainer.changes)
    return shown


def _rank_and_alpha(policy: Policy) -> tuple[int, float] | None:
    if policy.adapter_name is None:
        return None
    config = next(iter(policy.networks.values())).peft_config[policy.adapter_name]
    return None if config.rank_pattern or config.alpha_pattern or config.use_rslora else (config.r, config.lora_alpha)


def open_model_repository(args: "TGOConfig", token: str | None = None, private: bool | None = None) -> Destination:
    """The repository that a run is pushed to; arguments as in [`~transformers.Trainer.init_hf_repo`].

    Raises:
        UploadError: if it cannot be written to.
    """
    name = args.hub_model_id or args.output_path.absolute().name
    private = args.hub_private_repo if private is None else private
    return open_repository(name, "model", token or args.hub_token, private, args.hub_revision, "hub_model_id")


def push_checkpoint(trainer: "BaseTrainer", checkpoint: Path) -> None:
    """Uploads weights, card and pictures in the background, and the checkpoint itself if `hub_strategy` asks for it.

    Only a checkpoint holds files that are no safetensors, JSON or pictures: the optimizer's, which a resume needs.
    """
    args = trainer.args
    if args.hub_strategy == HubStrategy.END or (trainer.uploads.is_busy and not args.hub_always_push):
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(args.output_dir, _internal_call=True)
    message = f"Training in progress, step {trainer.state.global_step}"
    trainer.uploads.start(_upload(trainer, args.output_path, message, is_background=True))
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        name = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        trainer.uploads.start(_upload(trainer, checkpoint, f"{message}, checkpoint", name, is_background=True))


def push_model(
    trainer: "BaseTrainer", message: str, blocking: bool, token: str | None = None, revision: str | None = None
) -> "CommitInfo | Future[CommitInfo]":
    """Uploads what [`push_checkpoint`] does without the checkpoint, after what is under way; the commit, or its future.

    Raises:
        UploadError: if it fails, and `blocking`.
    """
    upload = _upload(trainer, trainer.args.output_path, message, is_background=not blocking)
    to = upload.destination
    to = replace(to, token=token or to.token, revision=revision or to.revision)
    future = trainer.uploads.start(replace(upload, destination=to), is_awaited=blocking)
    return future.result() if blocking else future


def sum_up_failures(trainer: "BaseTrainer") -> str | None:
    """What is not on the Hub although it was to be, and what to do; None if there is nothing."""
    failures = trainer.uploads.failures
    if not failures:
        return None
    return f"{len(failures)} of what was to be pushed is not on the Hub. {' '.join(map(str, failures.values()))}"


def check_pushed(trainer: "BaseTrainer") -> None:
    """Raises an UploadError if something that was to be on the Hub, such as the last checkpoint, is not there."""
    trainer.uploads.finish()
    failures = sum_up_failures(trainer)
    if failures is not None:
        raise UploadError(failures)


def _upload(
    trainer: "BaseTrainer", folder: Path, message: str, path_in_repo: str = "", is_background: bool = False
) -> Upload:
    """The upload of a folder: the run's without its checkpoints and what begins with `_` or a dot, or a checkpoint."""
    destination, ignored = trainer.destination, () if path_in_repo else SCRAPS
    assert destination is not None
    command = upload_command(destination, folder, path_in_repo or ".", ignored)
    source = _snapshot(trainer, folder, ignored) if is_background else folder
    return Upload(
        destination,
        lambda head: folder_operations(source, path_in_repo, ignored),
        message,
        num_bytes=sum((source / name).stat().st_size for name in folder_files(source, ignored)),
        remedy=f"The files are safe in {str(folder)!r}; this uploads them: {command}",
        target=path_in_repo,
        cleanup=(lambda: shutil.rmtree(source, ignore_errors=True)) if is_background else lambda: None,
    )


def _snapshot(trainer: "BaseTrainer", folder: Path, ignored: Sequence[str]) -> Path:
    """A folder of the files as they are now: the run goes on to replace them, and to delete checkpoints.

    Large files are linked where that can be done; they are never written in place.
    """
    parent = trainer.args.output_path
    if not trainer.uploads.is_busy:
        for left in parent.glob(f"{SNAPSHOT_PREFIX}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    target = Path(tempfile.mkdtemp(prefix=SNAPSHOT_PREFIX, dir=parent))
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


def _example_prompt(trainer: "BaseTrainer") -> str:
    if trainer.args.sample_prompts:
        return str(trainer.args.sample_prompts[0])
    dataset = trainer.train_dataset
    return dataset.prompt_texts[0] if isinstance(dataset, EncodedDataset) else "a photo"

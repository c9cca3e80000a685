"""A run's model card, and its uploads while it trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import upload_folder
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SchedulerType
from transformers.utils.hub import PushInProgress

from .data.encoded import EncodedDataset
from .model_card import CardContent, build_card, shown_path
from .plots import SCORE_HISTOGRAM_NAME
from .policy import Policy
from .public import public_text
from .sampling import last_grid

if TYPE_CHECKING:
    from .trainer import TGOTrainer


def write_card(
    trainer: "TGOTrainer",
    model_name: str | None,
    dataset_name: str | None,
    tags: tuple[str, ...],
    license: str | None,
) -> None:
    """Writes `README.md` to the run's output directory; arguments as in [`TGOTrainer.create_model_card`]."""
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
        clip=trainer.family.clip,
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


def hyperparameters(trainer: "TGOTrainer") -> dict[str, Any]:
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
    if trainer.family.clip is not None:
        shown["frames"] = f"{trainer.family.clip.num_frames} at {trainer.family.clip.fps:g} per second"
    if policy.adapter_name is not None:
        config = next(iter(policy.networks.values())).peft_config[policy.adapter_name]
        shown["LoRA rank, alpha"] = f"{config.r}, {config.lora_alpha}"
    return shown


def _rank_and_alpha(policy: Policy) -> tuple[int, float] | None:
    if policy.adapter_name is None:
        return None
    config = next(iter(policy.networks.values())).peft_config[policy.adapter_name]
    return None if config.rank_pattern or config.alpha_pattern or config.use_rslora else (config.r, config.lora_alpha)


def push_checkpoint(trainer: "TGOTrainer", checkpoint: Path) -> None:
    """Uploads weights, card and pictures in the background, and the checkpoint itself if `hub_strategy` asks for it.

    Only a checkpoint holds files that are no safetensors, JSON or pictures: the optimizer's, which a resume needs.
    """
    args = trainer.args
    running: Any = trainer.push_in_progress
    is_busy = running is not None and not running.is_done()
    if args.hub_strategy == HubStrategy.END or (is_busy and not args.hub_always_push):
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(args.output_dir, _internal_call=True)
    message = f"Training in progress, step {trainer.state.global_step}"
    common: dict[str, Any] = {
        "repo_id": trainer.hub_model_id,
        "token": args.hub_token,
        "revision": args.hub_revision,
        "run_as_future": True,
    }
    ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]
    jobs = [upload_folder(folder_path=args.output_path, commit_message=message, ignore_patterns=ignored, **common)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        name = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        message = f"{message}, checkpoint"
        jobs.append(upload_folder(folder_path=checkpoint, path_in_repo=name, commit_message=message, **common))
    earlier = running.jobs if is_busy else []
    trainer.push_in_progress = PushInProgress(earlier + jobs)  # type: ignore[assignment,arg-type]


def _example_prompt(trainer: "TGOTrainer") -> str:
    if trainer.args.sample_prompts:
        return str(trainer.args.sample_prompts[0])
    dataset = trainer.train_dataset
    return dataset.prompt_texts[0] if isinstance(dataset, EncodedDataset) else "a photo"

"""What a run is refused for, in the order in which it can be known: of its settings, its data sets, its pipeline.

`TGOTrainer` and `tgo-trl plan` ask the same, so that what the one accepts the other does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from peft import PeftConfig

from ..families import Family, edit_class
from ..losses import LOSSES
from ..policy.adapters import check_policy, check_start
from ..policy.index import Index, find_family_class, loaded_class, readable_index
from ..policy.launch import check_shardable
from ..rewards.base import DRAWN_FOR, Reward, check_rates
from .arguments import (
    check_arguments,
    check_loss,
    check_samples_of_loss,
    named_datasets,
    training_dtype,
    warn_of_distilled_steps,
)
from .callbacks import check_callbacks
from .early_scores import check_scores
from .eval_samples import load_eval_rewards, rate_of
from .feasibility import check_best_metric_for, check_feasible
from .loading import TrainedPipeline, load_for_training
from .pair_sources import check_all_columns
from .sources import RunSources, SampleSources, check_drawn_prompts, of_evaluations, read_sample_sources, reads_sources
from .tgo_config import TGOConfig


def check_settings(
    args: TGOConfig, model: Any, ref_model: Any, train_dataset: Any, eval_dataset: Any, quantization_config: Any = None,
    compute_metrics: Callable[..., Any] | None = None, callbacks: Any = None, optimizers: Sequence[Any] = (None, None),
    optimizer_cls_and_kwargs: Any = None,
) -> dict[str, Reward]:  # fmt: skip
    """The rewards of evaluations; raises a TypeError or ValueError for arguments of `TGOTrainer` that cannot work."""
    check_arguments(args, model, ref_model, train_dataset, eval_dataset)
    check_feasible(args, eval_dataset, compute_metrics, optimizers, optimizer_cls_and_kwargs)
    check_shardable(args, quantization_config or (args.model_init_dict or {}).get("quantization_config"))
    check_callbacks(args, callbacks)
    return load_eval_rewards(args.eval_rewards, getattr(args, of_evaluations(args)) is not None)


def check_datasets(
    args: TGOConfig, model: str | DiffusionPipeline, family: Family | None, train_dataset: Any, eval_dataset: Any,
    index: Index | None,
) -> RunSources:  # fmt: skip
    """What the run makes of source images.

    Args:
        args: the run's settings.
        model: Hub id, folder or file of the pipeline, or the pipeline.
        family: given by the user, or None to look it up.
        train_dataset: of `TGOTrainer`.
        eval_dataset: likewise.
        index: of the model, if it is named and has one.

    Raises:
        ValueError: if no family is known, samples cannot be drawn as the settings say, or the data sets lack a column
            that the family or the loss reads, or hold scores that nothing can be trained on.
    """
    family_class = find_family_class(model, args.model_init_dict, family, index)
    found = None if family_class is None else loaded_class(model, args.model_init_dict, index, family_class)
    if family_class is not None and found is not None:
        family_class.check_call(found.__name__, {"guidance_scale": args.sample_guidance_scale})
    is_video = family_class is not None and family_class.task.endswith("-to-video")
    read = check_all_columns(args, train_dataset, eval_dataset, "video" if is_video else None)
    datasets = named_datasets(train_dataset, eval_dataset)
    are_read = reads_sources(args, family_class, datasets)
    check_scores(args, read, are_read or (family_class is not None and family_class.most_sources > 0))
    if family_class is None:
        return RunSources(are_read, None)
    family_class = edit_class(family_class) if are_read else family_class
    return RunSources(are_read, read_sample_sources(args, family_class, datasets))


def load_unweighted(
    model: str | DiffusionPipeline, args: TGOConfig, train_dataset: Any, eval_dataset: Any = None,
    quantization_config: Any = None,
) -> TrainedPipeline:  # fmt: skip
    """The pipeline of a run, without weights; raises what `TGOTrainer` would, in its order, until it reads a row.

    Args:
        model: of `TGOTrainer`.
        args: the run's settings.
        train_dataset: of `TGOTrainer`.
        eval_dataset: likewise.
        quantization_config: that the networks would be loaded with.
    """
    eval_rewards = check_settings(args, model, None, train_dataset, eval_dataset, quantization_config)
    index = readable_index(model, args.model_init_dict)
    sources = check_datasets(args, model, None, train_dataset, eval_dataset, index)
    config = quantization_config if isinstance(model, str) else None
    trained = load_for_training(
        model, args, training_dtype(args), quantization_config=config, weights=False, has_sources=sources.are_read,
        index=index,
    )  # fmt: skip
    check_pipeline(args, trained, sources.of_samples, train_dataset, eval_dataset, eval_rewards=eval_rewards)
    return trained


def check_pipeline(
    args: TGOConfig, trained: TrainedPipeline, sources: SampleSources | None, train_dataset: Any, eval_dataset: Any,
    peft_config: PeftConfig | None = None, has_reference: bool = False,
    eval_rewards: Mapping[str, Reward] | None = None,
) -> SampleSources:  # fmt: skip
    """The source images of samples; warns of a distilled pipeline.

    Args:
        args: the run's settings.
        trained: the pipeline, with or without weights.
        sources: those of samples that [`check_datasets`] returned.
        train_dataset: of `TGOTrainer`.
        eval_dataset: likewise.
        peft_config: of the adapter.
        has_reference: whether a reference model was passed.
        eval_rewards: that see what evaluations draw, by name.

    Raises:
        ValueError: if the pipeline does not go with settings and data sets.
    """
    pipeline, family, process = trained.pipeline, trained.family, trained.denoiser.noise_process
    if sources is None:  # of a single file, too
        sources = read_sample_sources(args, type(family), named_datasets(train_dataset, eval_dataset))
    check_drawn_prompts(args, pipeline, family)
    check_rates(eval_rewards or {}, rate_of(family), DRAWN_FOR)
    check_shardable(args, None, family.networks(pipeline))
    check_loss(args, process)
    check_samples_of_loss(args, pipeline)
    if args.sample_guidance_scale is not None:  # which some pipelines do not take
        family.call_options(pipeline, family.default_size(pipeline), guidance_scale=args.sample_guidance_scale)
    warn_of_distilled_steps(family, pipeline)
    check_best_metric_for(args, eval_dataset, process)
    check_policy(pipeline, family, args, peft_config)
    is_off = LOSSES[args.loss_type].needs_reference and not has_reference and not args.sync_ref_model
    if peft_config is not None and is_off:  # else the reference is a copy, or another model
        check_start(peft_config, args.bf16 or args.fp16)
    return sources

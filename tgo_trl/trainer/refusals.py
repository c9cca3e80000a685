"""What a run is refused for, in the order in which it can be known: of its settings, its data sets, its pipeline.

`TGOTrainer` and `tgo-trl plan` ask the same, so that what the one accepts the other does.
"""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from peft import PeftConfig

from ..families import Family
from ..policy.adapters import check_policy
from ..policy.launch import check_unquantized
from ..policy.loading import find_family_class
from ..rewards.base import Reward
from ..rewards.base import check_sources as check_sources_of_rewards
from .arguments import check_arguments, check_loss, check_samples_of_loss, named_datasets, warn_of_distilled_steps
from .callbacks import check_callbacks
from .eval_samples import load_eval_rewards
from .feasibility import check_best_metric_for, check_feasible
from .loading import TrainedPipeline
from .pair_sources import check_all_columns
from .sources import check_sources, sources_of
from .tgo_config import TGOConfig


def check_settings(
    args: TGOConfig, model: Any, ref_model: Any, train_dataset: Any, eval_dataset: Any, quantization_config: Any = None,
    compute_metrics: Callable[..., Any] | None = None, callbacks: Any = None, optimizers: Sequence[Any] = (None, None),
    optimizer_cls_and_kwargs: Any = None,
) -> dict[str, Reward]:  # fmt: skip
    """The rewards of evaluations; raises a TypeError or ValueError for arguments of `TGOTrainer` that cannot work."""
    check_arguments(args, model, ref_model, train_dataset, eval_dataset)
    check_feasible(args, eval_dataset, compute_metrics, optimizers, optimizer_cls_and_kwargs)
    check_unquantized(args, quantization_config or (args.model_init_dict or {}).get("quantization_config"))
    check_callbacks(args, callbacks)
    eval_rewards = load_eval_rewards(args.eval_rewards)
    remedy = "Set `eval_sources`, of a pipeline of edits, or take another reward."
    check_sources_of_rewards(eval_rewards, sources_of(args) is not None, remedy)
    return eval_rewards


def check_datasets(
    args: TGOConfig, model: str | DiffusionPipeline, family: Family | None, train_dataset: Any, eval_dataset: Any
) -> type[Family] | None:
    """The class of the pipeline's family, where it is known before anything is loaded.

    Raises:
        ValueError: if no family is known, or the data sets lack a column that it or the loss reads.
    """
    try:
        family_class = find_family_class(model, args.model_init_dict, family)
    except OSError:  # loading says more of what is wrong
        family_class = None
    is_video = family_class is not None and family_class.task.endswith("-to-video")
    check_all_columns(args, train_dataset, eval_dataset, "video" if is_video else None)
    if family_class is not None:
        check_sources(args, family_class, named_datasets(train_dataset, eval_dataset))
    return family_class


def check_pipeline(
    args: TGOConfig, trained: TrainedPipeline, was_known: bool, train_dataset: Any, eval_dataset: Any,
    peft_config: PeftConfig | None = None,
) -> None:  # fmt: skip
    """Raises a ValueError if the pipeline does not go with settings and data sets, and warns of a distilled one.

    Args:
        args: the run's settings.
        trained: the pipeline, with or without weights.
        was_known: whether [`check_datasets`] has looked at the data sets with its family.
        train_dataset: of `TGOTrainer`.
        eval_dataset: likewise.
        peft_config: of the adapter.
    """
    pipeline, family, process = trained.pipeline, trained.family, trained.denoiser.noise_process
    if not was_known:  # of a single file, too
        check_sources(args, type(family), named_datasets(train_dataset, eval_dataset))
    check_unquantized(args, None, family.networks(pipeline))
    check_loss(args, process)
    check_samples_of_loss(args, pipeline)
    warn_of_distilled_steps(family, pipeline)
    check_best_metric_for(args, eval_dataset, process)
    check_policy(pipeline, family, args, peft_config)

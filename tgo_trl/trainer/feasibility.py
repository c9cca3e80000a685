"""What would fail in the middle of a run, or at its end, is refused before anything is loaded."""

import copy
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy, SchedulerType

from ..losses import LOSSES
from ..messages.failures import EXTRAS
from ..messages.values import did_you_mean, nearest
from ..noise import NoiseProcess
from ..policy.deepspeed_config import names_optimizer
from ..policy.launch import OPTIMIZER_CLASSES, sharding_of
from ..settings import shown
from .quartiles import check_quartile
from .selection import sample_metrics
from .tgo_config import TGOConfig

logger = logging.getLogger(__name__)

SIDES = tuple(f"{kind}/{side}" for kind in ("logps", "rewards", "saturation") for side in ("chosen", "rejected"))
FEW_OF_DRIFT = 50
"""Positive rows, below which a drift by quartile of the time says little."""
DRIFT = tuple(f"drift/quartile_{i}" for i in (1, 2, 3, 4))
ERROR_DIFFERENCE = tuple(f"error_difference/quartile_{i}" for i in (1, 2, 3, 4))
DIFFERENCE = "prediction_difference"
METRICS = (
    "loss", *SIDES, "rewards/margins", "rewards/accuracies", "rewards/displaced", DIFFERENCE, *DRIFT, "weights/balance",
    *ERROR_DIFFERENCE, "runtime", "samples_per_second", "steps_per_second",
)  # fmt: skip
"""What an evaluation reports, `compute_metrics` aside."""
OF_A_REFERENCE = ("rewards/", "saturation/", "error_difference/", "drift/", "weights/", DIFFERENCE)
"""How the names of those begin that a loss without a reference does not have."""
OF_NEGATIVES = ("logps/rejected", "rewards/rejected", "saturation/rejected", "rewards/margins")
"""Those that take negative rows."""
LESS_IS_BETTER = ("rewards/displaced", DIFFERENCE, *DRIFT)
NEEDED_SIDES = {
    **{name: {name.endswith("chosen")} for name in SIDES},
    "rewards/margins": {True, False},
    **{name: {True} for name in ("rewards/displaced", "weights/balance", *DRIFT)},
}
"""Labels of the rows without which there is no such metric."""

OF_THE_WHOLE_MODEL = {"galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim"}
"""Optimizers that transformers makes only when it has the model, by a part of their names, and their packages."""


def check_feasible(
    args: TGOConfig, eval_dataset: object, compute_metrics: Callable[..., Any] | None, optimizers: Sequence[Any],
    optimizer_cls_and_kwargs: Any,
) -> None:  # fmt: skip
    """Raises a ValueError for settings that would only fail later."""
    _check_evaluation(args, eval_dataset, compute_metrics)
    if needs_best_metric(args):
        sets = list(eval_dataset) if isinstance(eval_dataset, Mapping) else None
        _check_best_metric(args, sets, compute_metrics is not None)
        if args.greater_is_better and _is_one_of(args, LESS_IS_BETTER, sets):
            logger.warning(
                "`metric_for_best_model` is %r, of which less is better, and `greater_is_better` is True, as it is by "
                "default for all but losses: the worst would be taken for the best. Set `greater_is_better=False`.",
                args.metric_for_best_model,
            )
    if args.max_drift is not None and args.sync_ref_model:
        logger.warning(
            "`max_drift` bounds the distance to a reference that `sync_ref_model=True` moves: after each move it "
            "begins anew. `min_variety` and `eval_rewards` stay with the reference that the run begins with."
        )
    check_run(args, optimizers, optimizer_cls_and_kwargs)


def _check_optimizers(optimizers: Any) -> None:
    is_pair = isinstance(optimizers, Sequence) and len(optimizers) == 2
    made = is_pair and (optimizers[0] is None or isinstance(optimizers[0], torch.optim.Optimizer))
    if not made or (optimizers[0] is None and optimizers[1] is not None):
        raise TypeError(
            f"`optimizers` is {shown(optimizers)}; it must be an optimizer that was made and its schedule, or None for "
            "a schedule of the settings: `(optimizer, None)`. For a class, pass `optimizer_cls_and_kwargs=("
            "torch.optim.AdamW, {'lr': 1e-4})`; for a schedule alone, set `lr_scheduler_type`."
        )


def check_run(args: TGOConfig, optimizers: Sequence[Any], optimizer_cls_and_kwargs: Any) -> None:
    """Raises a ValueError for an optimizer, a schedule or reporters that cannot be had, whatever is trained.

    Raises:
        TypeError: if `optimizers` are no optimizer and its schedule.
    """
    _check_optimizers(optimizers)
    optimizer, sharding = optimizers[0], sharding_of(args)
    if sharding is not None and any(given is not None for given in optimizers):
        raise ValueError(
            f"`optimizers` were passed, and {sharding} is asked for: an optimizer that is there holds weights that are "
            "whole, and these are sharded later. Pass `optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': 1e-4})` "
            "instead."
        )
    if optimizer is None:
        optimizer = _check_optimizer(args, optimizer_cls_and_kwargs)
    if sharding is not None and optimizer_cls_and_kwargs is not None and optimizer not in OPTIMIZER_CLASSES:
        raise ValueError(
            f"`optimizer_cls_and_kwargs` has {getattr(optimizer, '__name__', 'another class')}, and {sharding} is "
            "asked for, on whose shards it was not tried. Pass `torch.optim.AdamW` or `torch.optim.SGD`."
        )
    if sharding == "DeepSpeed" and optimizer_cls_and_kwargs is not None and names_optimizer(args):
        raise ValueError(
            "`optimizer_cls_and_kwargs` was passed, and DeepSpeed's configuration has an `optimizer` too. Leave one of "
            "the two out."
        )
    if args.ema_decay is not None:
        _check_average(args, optimizer)
    if optimizers[1] is None:
        _check_schedule(args)
    for name in args.report_to or ():
        _check_reporter(name)
    if 0 < args.max_steps < args.get_warmup_steps(max(args.max_steps, 1)):
        logger.warning(
            "The warm-up takes %s updates, and the run ends after %s: the learning rate never gets to `learning_rate`.",
            args.get_warmup_steps(args.max_steps),
            args.max_steps,
        )


def needs_best_metric(args: TGOConfig) -> bool:
    """Whether a run looks for `metric_for_best_model` among the metrics of its evaluations."""
    by_metric = (SchedulerType.REDUCE_ON_PLATEAU, getattr(SchedulerType, "GREEDY", None))
    is_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    return args.metric_for_best_model is not None and (is_best or args.lr_scheduler_type in by_metric)


def check_sample_metric(args: TGOConfig) -> None:
    """Raises a ValueError if evaluations that draw samples, and do nothing else, lack `metric_for_best_model`."""
    known = sample_metrics(vars(args))
    if needs_best_metric(args) and _bare(args) not in known:
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, and an evaluation measures "
            f"{', '.join(map(repr, known)) or 'nothing'}. Set it to one of them; `eval_rewards` adds some."
        )


def check_best_metric_for(args: TGOConfig, eval_dataset: object, process: NoiseProcess) -> None:
    """Raises a ValueError if a pipeline with this noise process cannot give `metric_for_best_model`."""
    sets = list(eval_dataset) if isinstance(eval_dataset, Mapping) else None
    if needs_best_metric(args) and not process.has_target and _is_one_of(args, [DIFFERENCE], sets):
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, and this pipeline predicts tokens, whose "
            "logits are not subtracted. Set another metric, such as 'drift/quartile_4'."
        )


def check_drift_of(args: TGOConfig, prepared: Any) -> None:
    """Raises a ValueError if no labelled evaluation row has the drift that `max_drift` bounds; warns of few.

    Args:
        args: the run's settings.
        prepared: the evaluation set, or several by name.
    """
    sets = list(prepared.values()) if isinstance(prepared, dict) else [prepared]
    labels = [dataset.labels for dataset in sets if dataset is not None and dataset.labels is not None]
    if args.max_drift is None or len(labels) < len(sets):  # a stream is labelled as it is read
        return
    num_positive = sum(int(it.is_positive.sum()) for it in labels)
    if not num_positive:
        raise ValueError(
            f"`max_drift` is {args.max_drift}, and `eval_dataset` has no positive row, whose drift it bounds. Add rows "
            "that score above the threshold, or leave it out."
        )
    if num_positive < FEW_OF_DRIFT:
        logger.warning(
            "`max_drift` bounds the drift in each quartile of the time, and `eval_dataset` has %d positive rows for "
            "all four: chance decides, and a quartile without a row is not bounded. Add rows, to %d positive ones.",
            num_positive,
            FEW_OF_DRIFT,
        )


def check_best_metric_of(args: TGOConfig, prepared: Any) -> None:
    """Raises a ValueError if the labelled evaluation rows cannot give `metric_for_best_model`.

    Args:
        args: the run's settings.
        prepared: the evaluation set, or several by name.
    """
    if not needs_best_metric(args):
        return
    sets = prepared if isinstance(prepared, dict) else {"": prepared}
    for name, dataset in sets.items():
        metric = _bare(args).removeprefix(f"{name}_" if name else "")
        if dataset is None or dataset.labels is None or not _of(name, args):  # a stream is labelled as it is read
            continue
        if metric in NEEDED_SIDES:
            missing = NEEDED_SIDES[metric] - set(dataset.labels.is_positive.tolist())
            if missing:
                side = "positive" if missing == {True} else "negative"
                raise ValueError(
                    f"`metric_for_best_model` is {args.metric_for_best_model!r}, but the evaluation data set"
                    f"{f' {name!r}' if name else ''} has no {side} row, which it is made of. Set another metric, "
                    "such as 'loss', or add such rows."
                )
        if metric in (*DRIFT, *ERROR_DIFFERENCE):
            check_quartile(args, metric, name, dataset)


def _of(name: str, args: TGOConfig) -> bool:
    return not name or _bare(args).startswith(f"{name}_")


def _is_one_of(args: TGOConfig, metrics: Sequence[str], sets: Sequence[str] | None) -> bool:
    return _bare(args) in (metrics if sets is None else [f"{name}_{metric}" for name in sets for metric in metrics])


def _bare(args: TGOConfig) -> str:
    return str(args.metric_for_best_model).removeprefix("eval_")


def _check_evaluation(args: TGOConfig, eval_dataset: object, compute_metrics: Callable[..., Any] | None) -> None:
    if args.eval_on_start and eval_dataset is None:
        raise ValueError("`eval_on_start` is True, and there is no `eval_dataset`. Pass one, or leave it out.")
    if args.save_strategy == SaveStrategy.BEST and args.metric_for_best_model is None:
        raise ValueError(
            "`save_strategy` is 'best', and `metric_for_best_model` does not say by which metric. Set it, such as "
            "'loss', or another `save_strategy`."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"`eval_strategy` is {getattr(args.eval_strategy, 'value', args.eval_strategy)!r}, and there is no "
            "`eval_dataset`. Pass one, or set `eval_strategy='no'`."
        )
    if isinstance(eval_dataset, Mapping) and not eval_dataset:
        raise ValueError("`eval_dataset` is an empty dictionary. Leave it out, or put a data set in.")
    if args.include_for_metrics:
        raise ValueError(
            f"`include_for_metrics` is {args.include_for_metrics!r}, but `compute_metrics` gets the log-ratio and the "
            "score of each row: rows are no single tensor, and their losses are summed on the device. Leave it out."
        )
    parameters = {} if compute_metrics is None else inspect.signature(compute_metrics).parameters
    if args.batch_eval_metrics and compute_metrics is not None and "compute_result" not in parameters:
        raise ValueError(
            "`batch_eval_metrics=True` calls `compute_metrics` for each batch, with `compute_result=True` for the last "
            "one, which this function does not take. Add the argument, or leave `batch_eval_metrics` out."
        )


def _check_best_metric(args: TGOConfig, sets: Sequence[str] | None, has_more: bool) -> None:
    """Whether there will be such a metric, as far as it does not depend on the rows."""
    metric, known = _bare(args), list(METRICS)
    loss = LOSSES[args.loss_type]
    if not loss.needs_reference:
        known = [name for name in known if not name.startswith(OF_A_REFERENCE)]
    if args.precompute_ref_log_probs:  # its predictions are not kept
        known.remove(DIFFERENCE)
    if loss.rows == "positives":
        known = [name for name in known if name not in OF_NEGATIVES]
    if not loss.weighs_rows:
        known = [name for name in known if name != "weights/balance"]
    if sets is not None:
        known = [f"{name}_{metric}" for name in sets for metric in known]
    known = sample_metrics(vars(args)) + known  # of no data set
    if metric in known or (has_more and (sets is None or any(metric.startswith(f"{name}_") for name in sets))):
        return
    near = nearest(metric, known, 2) or known[:3]
    of = "" if sets is None else f" of the evaluation sets {', '.join(map(repr, sets))}, whose names come first"
    raise ValueError(
        f"`metric_for_best_model` is {args.metric_for_best_model!r}, and an evaluation has no such metric{of}. Set it "
        f"to {' or '.join(map(repr, near))}, say; there are {', '.join(map(repr, known[:12]))}."
    )


def _check_average(args: TGOConfig, optimizer: Any) -> None:
    """Whether the average of the weights is the only one."""
    if all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")):
        name = (optimizer if isinstance(optimizer, type) else type(optimizer)).__name__
        raise ValueError(
            f"`ema_decay` is {args.ema_decay}, and {name} stands for an average of its own (it has `train()` and "
            "`eval()`, as schedule-free optimizers do). Leave `ema_decay` out, or set another optimizer, such as "
            "`optim='adamw_torch'`."
        )


def _check_optimizer(args: TGOConfig, given: Any) -> Any:
    """The optimizer's class; None if it can only be made with the model."""
    setting = "optim_args"
    if given is not None:
        setting = "optimizer_cls_and_kwargs"
        if not isinstance(given, (tuple, list)) or len(given) != 2 or not isinstance(given[1], Mapping):
            raise ValueError(f"`{setting}` must be a class and a dictionary of its arguments, such as `(AdamW, {{}})`.")
        optimizer_class, kwargs = given
    else:
        name = str(getattr(args.optim, "value", args.optim))
        package = next((it for part, it in OF_THE_WHOLE_MODEL.items() if part in name), None)
        if package is not None:
            _check_installed(name, package)
            return None
        optimizer_class, kwargs = _optimizer_of(args)
        _check_effect_of_options(args, kwargs)
    try:
        inspect.signature(optimizer_class).bind([], **kwargs)
    except TypeError as error:
        raise ValueError(
            f"`{setting}` does not fit {getattr(optimizer_class, '__name__', optimizer_class)} ({error})."
        ) from error
    return optimizer_class


def _check_installed(optim: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"`optim` is {optim!r}, which cannot be had here: `{package}` is not installed. Run `pip install "
            f"{package.replace('_', '-')}`, or set another optimizer, such as `optim='adamw_torch'`."
        )


def _optimizer_of(args: TGOConfig) -> tuple[Any, dict[str, Any]]:
    name = getattr(args.optim, "value", args.optim)
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"`optim` is {name!r}, which cannot be had here: {error}") from error
    except (TypeError, ValueError) as error:
        given = f" with `optim_args={args.optim_args!r}` (write 'name=value,name=value')" if args.optim_args else ""
        raise ValueError(f"`optim` is {name!r}{given}, which cannot be made: {error}") from error


def _check_effect_of_options(args: TGOConfig, kwargs: Mapping[str, Any]) -> None:
    """Refuses an option of `optim_args` that transformers does not read for this optimizer."""
    options = str(args.optim_args or "").replace(" ", "").split(",")
    for option in filter(None, options):
        others = copy.copy(args)
        others.optim_args = ",".join(it for it in options if it != option) or None
        if _optimizer_of(others)[1] == kwargs and not _states_default(option, kwargs):
            raise ValueError(
                f"`optim_args` has {option!r}, which changes nothing of what transformers makes of "
                f"`optim={getattr(args.optim, 'value', args.optim)!r}`. Leave it out; rate, decay, betas and epsilon "
                "have settings of their own, and `optimizer_cls_and_kwargs` takes any argument."
            )


def _states_default(option: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether an option says what the optimizer gets anyway, so that leaving it out changes nothing."""
    name, _, text = option.partition("=")
    value = kwargs.get(name)
    if isinstance(value, (bool, str)) or value is None:
        return name in kwargs and str(value).lower() == text.lower()
    try:
        return bool(float(value) == float(text))
    except (TypeError, ValueError):
        return False


def _check_schedule(args: TGOConfig) -> None:
    """Makes the schedule for a weight of its own, and takes a step."""
    steps = args.max_steps if args.max_steps > 0 else 1000
    kind = SchedulerType(args.lr_scheduler_type)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate or 0.0)
    try:
        schedule = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            optimizer.step()
            schedule.step()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`lr_scheduler_type` is {kind.value!r}, which cannot be made with `lr_scheduler_kwargs="
            f"{args.lr_scheduler_kwargs!r}` ({error}). Mend the names and the types of its arguments."
        ) from error


def _check_reporter(name: str) -> None:
    if name not in INTEGRATION_TO_CALLBACK:
        meant = did_you_mean(name, INTEGRATION_TO_CALLBACK)
        raise ValueError(
            f"`report_to` has {name!r}, which is none of {', '.join(INTEGRATION_TO_CALLBACK)}.{meant} Set 'none' for "
            "no reports."
        )
    try:
        INTEGRATION_TO_CALLBACK[name]()
    except (ImportError, RuntimeError) as error:
        package = EXTRAS.get(name, name)
        raise ValueError(
            f"`report_to` has {name!r}, which is not installed ({str(error).strip()}). Run `pip install {package}`, or "
            "leave it out."
        ) from error

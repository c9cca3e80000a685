"""In which quartiles of the time an evaluation has rows: known before the first one, as every one draws the same."""

import torch

from ..data.encoded import EncodedDataset
from ..losses import LOSSES
from ..policy.draws import EVALUATION_EPOCH, DrawPlan
from .metrics import QUARTILES
from .preparation import SurveyedRows
from .tgo_config import TGOConfig


def check_quartile(args: TGOConfig, metric: str, name: str, dataset: EncodedDataset | SurveyedRows) -> None:
    """Raises a ValueError if no row is drawn in the quartile that `metric_for_best_model` is of.

    Args:
        args: the run's settings.
        metric: `drift/quartile_1..4`, of positive rows, or `error_difference/quartile_1..4`, of all.
        name: of the evaluation set, if there are several.
        dataset: that is evaluated, or would be.
    """
    is_drift = metric.startswith("drift/")
    rows = [dataset.scanned.rows[position] for position in dataset.positions]
    # what else a run sets of its draws changes none of an evaluation's quantiles
    plan = DrawPlan(args.seed, args.num_likelihood_samples, LOSSES[args.loss_type].rows == "pairs")
    draw = plan.place(plan.draw([EVALUATION_EPOCH] * len(rows), rows, (0,)), torch.device("cpu"))
    first, last = args.time_range or (0, 1)
    quartiles = ((first + (last - first) * draw.quantile) * QUARTILES).long().reshape(-1, len(rows)) + 1
    taken = dataset.labels.is_positive if is_drift else torch.ones(len(rows), dtype=torch.bool)
    there = sorted(set(quartiles[:, taken].flatten().tolist()))
    if int(metric[-1]) not in there:
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, and no {'positive ' * is_drift}row of the "
            f"evaluation data set{f' {name!r}' if name else ''} is drawn in that quartile of the time: they are in "
            f"{', '.join(map(str, there))}. Add rows, set `num_likelihood_samples` higher, or set another metric."
        )

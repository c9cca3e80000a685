"""What prompts and scores alone tell is wrong with data sets: asked before a pipeline is loaded; no file is opened."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import IterableDataset

from ..data.columns import Columns, known_columns
from ..data.pairs import find_pairs
from ..data.rows import BadRows, Score
from ..data.score_columns import has_several
from ..data.stream import scan_scores
from ..labels.rule import PER_PROMPT
from ..losses import LOSSES
from .label_rules import check_ratio, fit_rule
from .pair_sources import no_pairs, pair_selection
from .tgo_config import TGOConfig


def check_scores(args: TGOConfig, datasets: Mapping[str, tuple[Any, Columns]], have_sources: bool) -> None:
    """Raises what encoding would of prompts and scores, as far as they tell it without images.

    Streams are looked through later, once; so are data sets with a transform, which may take long for each row.

    Args:
        args: the run's settings.
        datasets: of training, `"training"`, and of evaluation, with their columns.
        have_sources: whether scores are compared among images of the same prompt and source images.

    Raises:
        BadRowError: for a row without a prompt or a score, unless such rows are skipped.
        ValueError: if no rule or no pair can be had of the training set.
    """
    for name, (dataset, columns) in datasets.items():
        if isinstance(dataset, IterableDataset) or known_columns(dataset) is None or columns.rejected is not None:
            continue
        bad = BadRows(args.on_bad_row == "skip")
        scores, prompts = scan_scores(dataset, columns, bad)
        if name == "training" and scores:
            _check_told_apart(args, dataset, scores, prompts, have_sources)


def _check_told_apart(
    args: TGOConfig, dataset: Any, scores: Sequence[Score], prompts: Sequence[str], have_sources: bool
) -> None:
    """What holds of these rows, of which some may be left out for their images, and prompts have several sources."""
    is_per_prompt = args.threshold_type in PER_PROMPT
    is_final = args.on_bad_row != "skip" and not (have_sources and is_per_prompt)
    are_pairs = LOSSES[args.loss_type].rows == "pairs"
    if are_pairs and not has_several(vars(args)):
        of_one = [0] * len(scores)
        selection = pair_selection(args, dataset)
        numbers = [float(score) for score in scores if not isinstance(score, tuple)]
        pairs = find_pairs(selection, args.pair_margin, prompts, numbers, [*map(str, range(len(scores)))], of_one)
        if not pairs.positions:
            raise ValueError(no_pairs(args.loss_type, "training", pairs))
    elif is_final or _has_equal(scores):
        rule = fit_rule(args, scores, prompts, warns=False)
        check_ratio(args, rule)


def _has_equal(scores: Sequence[Score]) -> bool:
    """Whether a column holds one number alone."""
    columns = zip(*(score if isinstance(score, tuple) else (score,) for score in scores), strict=True)
    return any(len({*column}) == 1 for column in columns)

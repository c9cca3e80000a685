"""The rule that a training set's scores become labels by, as the settings of a run say."""

from collections.abc import Sequence
from typing import Any

from ..data.sampler import rows_at_ratio
from ..data.score_columns import by_name, has_several
from ..labels.fitting import fit_combined_rule, fit_label_rule
from ..labels.rule import LabelRule
from .objective import of_recipe
from .tgo_config import TGOConfig


def fit_rule(args: TGOConfig, scores: Sequence[Any], prompts: Sequence[str], warns: bool = True) -> LabelRule:
    """The rule of a training set, fitted as the settings say; as [`fit_label_rule`], also in what it raises.

    Args:
        args: the run's settings.
        scores: of each row, or its scores in the order of `args.score_names`, if these are several.
        prompts: of each row.
        warns: of a lopsided split.
    """
    settings: dict[str, Any] = {
        "threshold_type": args.threshold_type,
        "percentile": args.threshold_percentile,
        "beta": args.beta,
        "confidence_coef": args.confidence_coef,
        "normalization": args.score_normalization,
        "warns": warns,
    }
    if not has_several(vars(args)):
        return fit_label_rule(scores, prompts, value=args.threshold_value, **settings)
    return fit_combined_rule(
        {name: [row[i] for row in scores] for i, name in enumerate(args.score_names)},
        prompts,
        combination=args.score_combination,
        weights=by_name(vars(args), "score_weights"),
        values=by_name(vars(args), "threshold_values"),
        **settings,
    )


def check_ratio(args: TGOConfig, rule: LabelRule) -> None:
    """Raises a ValueError if `positive_ratio` would leave rows of one side only."""
    ratio = args.positive_ratio
    positive, negative = rule.num_positive, rule.num_rows - rule.num_positive
    if ratio is not None and 0 in rows_at_ratio(positive, negative, ratio):
        raise ValueError(
            f"`positive_ratio` is {ratio}{of_recipe(vars(args), 'positive_ratio')}, which takes rows of one "
            f"side only from the {positive} positive and {negative} negative rows. Set one nearer to 0.5, or "
            "another threshold."
        )

"""Settings of the objective: named recipes of them, and which go together."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..data.score_columns import has_several, usual_normalization
from ..labels.quantiles import QUANTILE_SCOPES
from ..losses import LOSSES, Loss, build_loss
from ..losses.diffusion_kto import UTILITIES
from ..losses.dspo import DSPO_BETAS
from ..losses.tgo import ERROR_SCALES, NEGATIVES
from ..settings import check_choice, shown

BALANCED = "balanced"

PAPER: dict[str, Any] = {"error_scale": "absolute", "negative_weight": 1.0, "beta": 1.0}
"""What holds where neither the user nor a recipe says otherwise; some losses have a `beta` of their own."""

RECIPES: dict[str, dict[str, Any]] = {
    "robust": {"error_scale": "relative", "negative_weight": "balanced", "beta": 0.3},
    "diffusion_kto_paper": {"loss_type": "diffusion_kto", "beta": 5.0, "positive_ratio": 0.8},
    "diffusion_kto_code": {"loss_type": "diffusion_kto", "beta": 1.0, "positive_ratio": 0.8},
}
"""Settings that were measured together, by name, of those that are None until then; what the user sets stays.

A `loss_type` among them is the one that they are of, else `"tgo"`, and is the user's to set.
"""

OFF: dict[str, Any] = {
    field.name: field.default for loss in LOSSES.values() for field in fields(loss) if field.default is not MISSING
}
"""Settings of losses as they are by default."""
OF_A_THRESHOLD = ("threshold_type", "threshold_percentile", "threshold_value")
"""Settings of labels, which pairs do not have, unless several columns of scores make them."""
OF_THE_OBJECTIVE = (
    *dict.fromkeys((*PAPER, *OFF)), "recipe", "loss_type", "temperature", "confidence_coef", *OF_A_THRESHOLD,
)  # fmt: skip
"""What the loss, labels and weights are made of, once."""
OF_PAIRS = ("pairs", "pair_margin", "chosen_column", "rejected_column")

MOST_SMOOTHING = 0.5
USUAL_DRAWS = 4
"""`num_ref_draws`, where errors of the reference are computed before training."""


def recipe_settings(recipe: str | None) -> dict[str, Any]:
    """The settings of [`PAPER`] as a recipe has them, and those that it has besides.

    Args:
        recipe: a key of [`RECIPES`]; None for none.

    Raises:
        ValueError: for another name.
    """
    if recipe is None:
        return PAPER
    check_choice("recipe", recipe, tuple(RECIPES))
    return {name: value for name, value in (PAPER | RECIPES[recipe]).items() if name != "loss_type"}


def check_effect_of_recipe(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for a recipe beside all of whose settings what holds without it is given.

    Args:
        settings: by name, with None for what is not given.
    """
    recipe = settings["recipe"]
    own = {} if recipe is None else {it: value for it, value in RECIPES[recipe].items() if it != "loss_type"}
    given = {name: settings[name] for name in own}
    if own and all(given[name] == PAPER.get(name, value) != value for name, value in own.items()):
        named = ", ".join(f"`{name}={value!r}`" for name, value in given.items())
        raise ValueError(
            f"`recipe` is {recipe!r}, and beside each setting of it what holds without a recipe is given, "
            f"{named}: it would have no effect. Leave one of the two out; `dataclasses.replace` hands on all settings "
            "that a configuration has, so that one with a recipe has to be made anew."
        )


def unresolved_loss(settings: Mapping[str, Any]) -> Loss:
    """The loss of the settings, with 1 for what only the data tell: the temperature, and the balance of weights.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
    """
    return build_loss(settings["loss_type"], {**settings, "temperature": 1.0, "negative_weight": 1.0})


def negative_weight(value: Any) -> float | str:
    """`alpha` as a number, or `"balanced"`.

    Raises:
        ValueError: if it is neither, or below 0.
    """
    if value == BALANCED:
        return BALANCED
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`negative_weight` is {shown(value)}; it must be a number, or {BALANCED!r}.") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"`negative_weight` is {value}; it must be at least 0 and finite.")
    return number


def has_beta(settings: Mapping[str, Any]) -> bool:
    """Whether `beta` does anything: in the loss, or in the threshold.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
    """
    return "beta" in _own(settings) or settings["threshold_type"] == "prompt_baseline"


def of_recipe(settings: Mapping[str, Any], name: str) -> str:
    """Where a setting is from, for a message, in brackets; empty if no recipe has it like this.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
        name: of the setting.
    """
    recipe = settings["recipe"]
    found = name in RECIPES.get(recipe, {}) and RECIPES[recipe][name] == settings[name]
    return f" (of `recipe={recipe!r}`)" if found else ""


def check_objective(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings of the objective that are out of range, or mean nothing together.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
        defaults: what they are where nobody sets them.
    """
    check_choice("error_scale", settings["error_scale"], ERROR_SCALES)
    check_choice("negatives", settings["negatives"], NEGATIVES)
    check_choice("dspo_form", settings["dspo_form"], tuple(DSPO_BETAS))
    check_choice("utility", settings["utility"], UTILITIES)
    check_choice("quantile_scope", settings["quantile_scope"], QUANTILE_SCOPES)
    for name in ("trust_region", "sft_weight"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"`{name}` is {settings[name]}; it must be at least 0 and finite.")
    if not 0 <= settings["label_smoothing"] < MOST_SMOOTHING:
        raise ValueError(
            f"`label_smoothing` is {settings['label_smoothing']}, the share of labels that may be wrong; it must be at "
            "least 0 and below 0.5, where labels say nothing."
        )
    _check_times(settings["time_range"])
    _check_used(settings, defaults)
    _check_prefixes(settings)
    _check_ratio(settings)
    if settings["negatives"] == "mirror":
        for name, unset in (("negative_margin", None), ("label_smoothing", 0.0)):
            if settings[name] != unset:
                raise ValueError(
                    f"`{name}` is {settings[name]}, which holds back how hard negative rows push away. With "
                    f"`negatives='mirror'` they pull, to their mirror image. Set one of the two."
                )
    elif settings["mirror_strength"] != 1 and "negatives" in _own(settings):
        raise ValueError(
            f"`mirror_strength` is {settings['mirror_strength']}, which only mirrored negatives have. Set "
            "`negatives='mirror'` too, or leave it out."
        )


def check_precomputing(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError if errors of the reference cannot be computed before training, or draws not be repeated.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`], the objective's checked.
    """
    loss = unresolved_loss(settings)
    of = f"`loss_type={settings['loss_type']!r}`"
    if settings["num_ref_draws"] is not None and not loss.needs_reference:
        raise ValueError(
            f"`num_ref_draws` is {settings['num_ref_draws']}, draws that are repeated for the reference's sake, and "
            f"{of} has no reference. Leave it out."
        )
    if not settings["precompute_ref_log_probs"]:
        if settings["precompute_ref_batch_size"] is not None:
            raise ValueError(
                f"`precompute_ref_batch_size` is {settings['precompute_ref_batch_size']}, and nothing is precomputed. "
                "Set `precompute_ref_log_probs=True` too, or leave it out."
            )
        return
    why = None
    if not loss.needs_reference:
        why = f"{of} has no reference"
    elif loss.reads_predictions:
        by = [f"`{name}={settings[name]!r}`" for name in ("trust_region", "negatives") if settings[name] != OFF[name]]
        why = f"{' and '.join([of, *by])} reads the reference's predictions, and errors alone are kept"
    elif settings["sync_ref_model"]:
        why = "`sync_ref_model=True` moves the reference, which then has other errors"
    elif not settings["disable_dropout"]:
        why = "with `disable_dropout=False` the reference may have other errors at every step"
    elif loss.rows == "pairs" and (settings["precompute_ref_batch_size"] or 2) % 2:
        why = f"`precompute_ref_batch_size={settings['precompute_ref_batch_size']}` would part pairs; it has to be even"
    if why is not None:
        raise ValueError(f"`precompute_ref_log_probs` is True, and {why}. Change that, or leave it out.")


def _check_times(times: Any) -> None:
    if times is None:
        return
    is_pair = isinstance(times, (list, tuple)) and len(times) == 2
    if not is_pair or not all(isinstance(time, (int, float)) for time in times) or not 0 <= times[0] < times[1] <= 1:
        raise ValueError(
            f"`time_range` is {shown(times)}; it must be two shares of the way from data to noise, such as [0.3, 1.0]."
        )


def _own(settings: Mapping[str, Any]) -> set[str]:
    """The settings that the loss has."""
    return {field.name for field in fields(LOSSES[settings["loss_type"]])}


def _check_prefixes(settings: Mapping[str, Any]) -> None:
    positive, negative = settings["positive_prefix"], settings["negative_prefix"]
    if "positive_prefix" in _own(settings) and positive.strip() == negative.strip():
        raise ValueError(
            f"`positive_prefix` is {shown(positive)} and `negative_prefix` {shown(negative)}, so that prompts do not "
            "tell good rows from bad ones. Set two that differ."
        )


def _check_ratio(settings: Mapping[str, Any]) -> None:
    """That the sampler can hold to `positive_ratio`."""
    ratio, loss_type = settings["positive_ratio"], settings["loss_type"]
    if ratio is None:
        return
    if not 0 < ratio < 1:
        raise ValueError(f"`positive_ratio` is {ratio}, a share of rows; it must be between 0 and 1, such as 0.8.")
    if LOSSES[loss_type].rows != "scored":
        raise ValueError(
            f"`positive_ratio` is {ratio}, and `loss_type={loss_type!r}` does not take positive and negative rows each "
            "by itself. Leave it out."
        )
    if settings["negative_weight"] == BALANCED:
        raise ValueError(
            f"`positive_ratio` is {ratio}, and `negative_weight` is {BALANCED!r}"
            f"{of_recipe(settings, 'negative_weight')}, of all rows: both even out the sides. Set one of the two."
        )
    if settings["train_sampling_strategy"] == "sequential":
        raise ValueError(
            f"`positive_ratio` is {ratio}{of_recipe(settings, 'positive_ratio')}, which leaves out other rows in each "
            "epoch, and `train_sampling_strategy='sequential'` takes all of them in order. Set one of the two."
        )


def _check_used(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """That what the loss has no use for is as it is by default."""
    loss_type, recipe = settings["loss_type"], settings["recipe"]
    of = loss_type if recipe is None else RECIPES[recipe].get("loss_type", "tgo")
    if of != loss_type:
        raise ValueError(
            f"`recipe` is {recipe!r}, which `loss_type={loss_type!r}` has no use for. Set `loss_type={of!r}` too, or "
            "leave it out."
        )
    unset = {**defaults, **PAPER, "score_normalization": usual_normalization(settings)}
    for name in _without_use(settings):
        if settings[name] != unset[name]:
            of_pairs = " or ".join(repr(it) for it, loss in LOSSES.items() if loss.rows == "pairs")
            remedy = f", or set `loss_type` to {of_pairs}" if name in OF_PAIRS else ""
            raise ValueError(
                f"`{name}` is {shown(settings[name])}, which `loss_type={loss_type!r}` has no use for. Leave it "
                f"out{remedy}."
            )


def _without_use(settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings of objective and rows that change nothing of a run with this loss."""
    loss = LOSSES[settings["loss_type"]]
    yield from (name for name in OFF if name not in _own(settings))
    if loss.rows != "pairs":
        yield from OF_PAIRS
    elif not has_several(settings):  # which are compared by their distances to thresholds
        yield from OF_A_THRESHOLD
    if loss.relative_score != "quantile":
        yield "quantile_scope"
    if not has_beta(settings):
        yield "beta"
    if not loss.weighs_rows and settings["confidence_coef"] != 0:
        yield "confidence_coef"
    # the baseline's `beta` is in these units, and several columns are added up in them
    are_units_used = settings["threshold_type"] == "prompt_baseline" or has_several(settings)
    if not loss.weighs_rows and not are_units_used:
        yield "score_normalization"

"""Settings of the objective: named recipes of them, and which go together."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..losses import LOSSES
from ..losses.dspo import DSPO_BETAS
from ..losses.tgo import ERROR_SCALES, NEGATIVES
from ..settings import check_choice, shown

BALANCED = "balanced"

PAPER: dict[str, Any] = {"error_scale": "absolute", "negative_weight": 1.0, "beta": 1.0}
"""What holds where neither the user nor a recipe says otherwise; some losses have a `beta` of their own."""

RECIPES: dict[str, dict[str, Any]] = {
    "robust": {"error_scale": "relative", "negative_weight": "balanced", "beta": 0.3},
}
"""Settings that were measured together, by name, of those in [`PAPER`]; what the user sets stays."""

MOST_SMOOTHING = 0.5


def recipe_settings(recipe: str | None) -> dict[str, Any]:
    """The settings of [`PAPER`] as a recipe has them.

    Args:
        recipe: a key of [`RECIPES`]; None for none.

    Raises:
        ValueError: for another name.
    """
    if recipe is None:
        return PAPER
    check_choice("recipe", recipe, tuple(RECIPES))
    return PAPER | RECIPES[recipe]


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


def check_objective(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings of the objective that are out of range, or mean nothing together.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
    """
    check_choice("error_scale", settings["error_scale"], ERROR_SCALES)
    check_choice("negatives", settings["negatives"], NEGATIVES)
    check_choice("dspo_form", settings["dspo_form"], tuple(DSPO_BETAS))
    for name in ("trust_region", "sft_weight"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"`{name}` is {settings[name]}; it must be at least 0 and finite.")
    if not 0 <= settings["label_smoothing"] < MOST_SMOOTHING:
        raise ValueError(
            f"`label_smoothing` is {settings['label_smoothing']}, the share of labels that may be wrong; it must be at "
            "least 0 and below 0.5, where labels say nothing."
        )
    _check_times(settings["time_range"])
    _check_used(settings)
    if settings["negatives"] == "mirror":
        for name, unset in (("negative_margin", None), ("label_smoothing", 0.0)):
            if settings[name] != unset:
                raise ValueError(
                    f"`{name}` is {settings[name]}, which holds back how hard negative rows push away. With "
                    f"`negatives='mirror'` they pull, to their mirror image. Set one of the two."
                )
    elif settings["mirror_strength"] != 1:
        raise ValueError(
            f"`mirror_strength` is {settings['mirror_strength']}, which only mirrored negatives have. Set "
            "`negatives='mirror'` too, or leave it out."
        )


def _check_times(times: Any) -> None:
    if times is None:
        return
    is_pair = isinstance(times, (list, tuple)) and len(times) == 2
    if not is_pair or not all(isinstance(time, (int, float)) for time in times) or not 0 <= times[0] < times[1] <= 1:
        raise ValueError(
            f"`time_range` is {shown(times)}; it must be two shares of the way from data to noise, such as [0.3, 1.0]."
        )


def _check_used(settings: Mapping[str, Any]) -> None:
    """That the loss has the settings that are not as they are by default."""
    loss_type = settings["loss_type"]
    own = {field.name for field in fields(LOSSES[loss_type])}
    for field in (field for loss in LOSSES.values() for field in fields(loss)):
        if field.name in own or field.name in ("temperature", "beta"):
            continue
        if settings[field.name] != field.default:
            raise ValueError(
                f"`{field.name}` is {settings[field.name]!r}, which `loss_type={loss_type!r}` has no use for. Leave it "
                "out."
            )

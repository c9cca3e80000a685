"""Which columns a data set is read by, and where its pairs come from: columns, or scores."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from ..data.columns import Columns, column_names, known_columns
from ..data.pairs import Pairs
from ..losses import LOSSES
from ..settings import shown
from .tgo_config import DEFAULTS, TGOConfig

NAMES_OF_PAIRS = ("chosen_column", "rejected_column")


def check_pair_source(args: TGOConfig, dataset: Dataset | IterableDataset, name: str) -> None:
    """Raises a ValueError if a loss of pairs cannot take a data set, or has no use for a setting with it.

    Args:
        args: the run's settings, whose loss takes pairs.
        dataset: of the rows.
        name: of the data set, for the message.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`loss_type={args.loss_type!r}` takes pairs, which are found among all rows of a data set, and the {name} "
            "is a stream. Load it without `streaming=True`."
        )
    if pair_selection(args, dataset) != "columns":
        for setting in NAMES_OF_PAIRS:
            if getattr(args, setting) != DEFAULTS[setting]:
                raise ValueError(
                    f"`{setting}` is {shown(getattr(args, setting))}, which `pairs={args.pairs!r}` does not read: it "
                    "makes pairs of scored images. Leave one of the two out."
                )
        return
    for setting in ("pair_margin", "score_column", "score_columns", "image_column", "video_column"):
        value = getattr(args, setting)
        if value != DEFAULTS[setting]:
            raise ValueError(
                f"`{setting}` is {shown(value)}, which has no meaning for the {name}: its columns "
                f"{args.chosen_column!r} and {args.rejected_column!r} are the pairs, without scores. Leave it out, or "
                "set `pairs` to 'best_worst' or 'all' to make pairs of scored images."
            )


def pair_selection(args: TGOConfig, dataset: Dataset | IterableDataset) -> str:
    """How the pairs of a data set are found, one of [`~tgo_trl.data.pairs.SELECTIONS`] but `"auto"`."""
    if args.pairs != "auto":
        return args.pairs
    are_named = any(getattr(args, name) != DEFAULTS[name] for name in NAMES_OF_PAIRS)
    are_there = {args.chosen_column, args.rejected_column} <= {*column_names(dataset)}
    return "columns" if are_named or are_there else "best_worst"


def no_pairs(loss_type: str, name: str, pairs: Pairs) -> str:
    """What is said of a data set, by its name, of which no pair is left."""
    left_out = f" Left out were {pairs.describe_left_out()}." if pairs.left_out else ""
    return (
        f"`loss_type={loss_type!r}` compares images of one prompt, and no prompt of the {name} data set has two of "
        f"different scores that can be compared.{left_out}"
    )


def columns_of(args: TGOConfig, dataset: Dataset | IterableDataset, kind: str) -> Columns:
    """The columns that a data set is read by.

    Args:
        args: the run's settings.
        dataset: of the rows.
        kind: `"image"` or `"video"`.
    """
    if LOSSES[args.loss_type].rows == "pairs" and pair_selection(args, dataset) == "columns":
        return Columns(args.prompt_column, args.chosen_column, "", "chosen_column", args.rejected_column)
    argument = f"{kind}_column"
    names = args.score_names
    several = tuple(names) if len(names) > 1 else ()
    return Columns(args.prompt_column, getattr(args, argument), names[0], argument, scores=several)


def checked_columns(args: TGOConfig, dataset: Dataset | IterableDataset, name: str, kind: str) -> Columns:
    """As [`columns_of`]; raises a ValueError if one is missing, or the loss cannot take the data set.

    Args:
        args: the run's settings.
        dataset: of the rows.
        name: of the data set, for the message.
        kind: `"image"` or `"video"`.
    """
    if LOSSES[args.loss_type].rows == "pairs":
        check_pair_source(args, dataset, f"{name} data set")
    columns = columns_of(args, dataset, kind)
    columns.check(dataset, name, column_hint(args, dataset, kind))
    return columns


def check_all_columns(
    args: TGOConfig, train_dataset: Any, eval_dataset: Any, kind: str | None = None
) -> dict[str, tuple[Any, Columns]]:
    """Each data set that there is and its columns, by its name for messages, before anything is loaded.

    Args:
        args: the run's settings.
        train_dataset: of the rows.
        eval_dataset: likewise, or several by name, or None.
        kind: `"image"` or `"video"`; None for whichever a data set has, where it is not known what the pipeline makes.

    Raises:
        ValueError: if a column is missing.
    """
    checked = {}
    several = eval_dataset if isinstance(eval_dataset, Mapping) else {"evaluation": eval_dataset}
    for name, dataset in {"training": train_dataset, **several}.items():
        if dataset is not None:
            columns = known_columns(dataset) or ()
            is_video = args.video_column in columns and args.image_column not in columns
            columns_read = checked_columns(args, dataset, name, kind or ("video" if is_video else "image"))
            checked[name] = (dataset, columns_read)
    return checked


def column_hint(args: TGOConfig, dataset: Dataset | IterableDataset, kind: str) -> str:
    """What else there is to do about a missing column, as a sentence; empty if nothing.

    The arguments are those of [`columns_of`].
    """
    if LOSSES[args.loss_type].rows == "pairs":
        return (
            f"`loss_type={args.loss_type!r}` takes rows of a prompt, a chosen and a rejected {kind}, or makes pairs of "
            f"rows of a prompt, {kind} and score."
        )
    if {args.chosen_column, args.rejected_column} <= {*(known_columns(dataset) or ())}:
        return (
            f"Its columns {args.chosen_column!r} and {args.rejected_column!r} are pairs: train on them with "
            "`loss_type='diffusion_dpo'`, or make scores of them with `tgo-trl convert`."
        )
    return ""

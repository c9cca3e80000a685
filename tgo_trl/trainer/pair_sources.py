"""Where the pairs of a data set come from: its columns, or its scores."""

from datasets import Dataset, IterableDataset

from ..data.columns import Columns, column_names, known_columns
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
    for setting in ("pair_margin", "score_column", "image_column", "video_column"):
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
    return Columns(args.prompt_column, getattr(args, argument), args.score_column, argument)


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

"""Checks of scores and prompts, which say which rows are wrong."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_FLOAT32 = torch.finfo(torch.float32).max


def check_finite(scores: Sequence[float] | Tensor) -> Tensor:
    """The scores as float64 `[N]`.

    Raises:
        ValueError: if there are none, or if any is NaN or infinite in float32, which the loss is computed in, naming
            how many and which rows.
    """
    tensor = torch.as_tensor(scores, dtype=torch.float64)
    if len(tensor) == 0:
        raise ValueError("There is no scored row, so no threshold can be fitted. Pass a data set with rows.")
    bad = (~tensor.float().isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(tensor)} scores are NaN or infinite: {list_rows(bad)}. A threshold over them is "
            "meaningless. Drop these rows, score them again, or set `on_bad_row='skip'`."
        )
    return tensor


def check_several_images(prompts: Sequence[str], rows: Sequence[int], threshold_type: str) -> None:
    """Raises a ValueError if a prompt, for a threshold of its own, has a single image among the rows."""
    counts = Counter(prompts[i] for i in rows)
    single = [i for i in rows if counts[prompts[i]] == 1]
    if single:
        raise ValueError(
            f"`threshold_type='{threshold_type}'` estimates a threshold from several images of one prompt, but "
            f"{len(single)} of {len(counts)} prompts have a single image ({list_rows(single)}); their threshold would "
            "be their own score. Drop them, add images, or use 'percentile'."
        )


def list_rows(rows: Sequence[int], most: int = 10) -> str:
    """`"row 4"`, `"rows 4, 7"` or `"rows 4, 7, ... and 90 more"`."""
    shown = ", ".join(map(str, rows[:most]))
    more = f", ... and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"

"""Which blocks are recomputed in the backward pass, as transformers has it set."""

from collections.abc import Mapping
from typing import Any

from ..settings import shown


def checked_interval(options: Mapping[str, Any], offload: bool = False) -> int:
    """`every_n_layers` of the options of activation checkpointing, 1 if it is not among them.

    Raises:
        ValueError: for other options.
    """
    others = {name: value for name, value in options.items() if name != "every_n_layers"}
    every = options.get("every_n_layers", 1)
    if others.pop("use_reentrant", False) or others or offload:
        raise ValueError(
            "diffusers checkpoints blocks non-reentrant, without offloading; `activation_checkpointing_kwargs` cannot "
            "change that. Leave it unset, or set `every_n_layers` alone."
        )
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"`every_n_layers` of `activation_checkpointing_kwargs` is {shown(every)}; it must be a whole number, at "
            "least 1."
        )
    return every

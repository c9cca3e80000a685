"""Networks of transformers with all of their weights, also from another layout, and the pixels that CLIP's take."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from .base import hub_file

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def load_complete(model_class: Any, model_id: str, revision: str | None) -> tuple[Any, str | None]:
    """A network of transformers, float32, on the CPU, in evaluation mode, and the commit it is from if known.

    Raises:
        ValueError: if the repository lacks weights, which transformers would draw at random.
    """
    _, commit = hub_file(model_id, "config.json", revision)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # or a tower that is not used is reported, weight by weight
    try:
        model, report = model_class.from_pretrained(
            model_id, revision=commit or revision or "main", dtype=torch.float32, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise ValueError(
            f"{model_id!r} lacks weights of a `{model_class.__name__}`, such as {min(report['missing_keys'])!r}. Name "
            "a model of that kind."
        )
    return model, commit


def network_from_weights(
    network_class: Any,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Any:
    """The network with exactly these weights, on the CPU, in evaluation mode, without gradient.

    Args:
        network_class: a `PreTrainedModel`.
        config: its configuration.
        weights: under the names that the class has.
        dtype: what they are cast to.
        kwargs: for the constructor, beside `config`.

    Raises:
        ValueError: if a weight is missing, left over, or of another shape.
    """
    network, report = network_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report too, which is easier to read than the exception
        **kwargs,
    )
    for state in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(name if isinstance(name, str) else name[0] for name in report[state])
        if names:
            raise ValueError(
                f"These are not the weights of the expected `{network_class.__name__}` ({state.replace('_', ' ')}: "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''})."
            )
    return network.requires_grad_(False).eval()


def normalize(pixels: Tensor) -> Tensor:
    """CLIP's input of `[3, height, width]` in [0, 1]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels - mean) / std

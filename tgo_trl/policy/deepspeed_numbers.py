"""What DeepSpeed's configuration leaves to the weights: numbers for `"auto"`, by the width of the networks."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from .compilation import blocks_of
from .deepspeed_config import DROPPED

MOST_IN_A_BUCKET = 500_000_000
"""Numbers of gradients that are reduced at once, where the configuration does not say; DeepSpeed's own default."""


def settle(config: dict[str, Any], networks: Iterable[nn.Module], num_trained: int) -> None:
    """Puts numbers for what depends on the weights, and takes out what the settings do.

    `"auto"` is what transformers makes of it, from the width of a text model.

    Args:
        config: of DeepSpeed, which was checked; changed in place.
        networks: that are trained.
        num_trained: how many numbers of their weights are.
    """
    for name in DROPPED:
        config.pop(name, None)
    zero, width = config["zero_optimization"], max(map(width_of, networks))
    zero.setdefault("reduce_bucket_size", min(num_trained, MOST_IN_A_BUCKET))  # it is allocated whole
    automatic = {
        "reduce_bucket_size": width**2,
        "stage3_prefetch_bucket_size": int(0.9 * width**2),
        "stage3_param_persistence_threshold": 10 * width,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    zero.update({name: value for name, value in automatic.items() if zero.get(name) == "auto"})


def width_of(network: nn.Module) -> int:
    """How many numbers the widest block of a network has for a token or a pixel: `hidden_size` of a text model.

    That is the largest of the smaller sides of its linear layers, which widen it or narrow it down; of a network
    without named blocks, of all linear layers.
    """
    for parts in (blocks_of(network), [network]):
        layers = [it for part in parts for it in part.modules() if isinstance(it, nn.Linear)]
        if layers:
            return max(min(it.in_features, it.out_features) for it in layers)
    return 1

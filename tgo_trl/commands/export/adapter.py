"""An adapter's files: its weights, and the scale that each pair of factors acts with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft.utils.other import get_pattern_key
from torch import Tensor

from ...families import Family
from ...messages.values import shown_path
from ..strength.card import check_adapter, local_folder

FILES = "pytorch_lora_weights*.safetensors"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to the weight of a module: `scale * up @ down`.

    Attributes:
        down: `[rank, in]`, of a convolution `[rank, in, height, width]`.
        up: `[out, rank]`, of a convolution `[out, rank, 1, 1]`.
        scale: `alpha / rank`, as the adapter was trained.
    """

    down: Tensor
    up: Tensor
    scale: float


def adapter_folder(adapter: str) -> Path:
    """The folder of an adapter, fetched from the Hub if it is there.

    Raises:
        ValueError: if it holds none.
    """
    check_adapter(adapter)
    folder = local_folder(adapter) or Path(snapshot_download(adapter, allow_patterns=[FILES]))
    if not any(folder.glob(FILES)):
        raise ValueError(
            f"{shown_path(adapter)} has no `{FILES}`, as training and diffusers' `save_lora_weights` write it."
        )
    return folder


def read_factors(folder: Path, family: Family) -> dict[str, dict[str, Factors]]:
    """The factors of each module, of each network.

    Raises:
        ValueError: if the adapter holds nothing for the family's networks, or more than two factors of each module.
    """
    parts = {}
    configs = family.load_adapter_configs(folder)
    for network, weights in family.load_adapter(folder).items():
        modules = sorted(name.removesuffix(DOWN) for name in weights if name.endswith(DOWN))
        other = weights.keys() - {module + factor for module in modules for factor in (DOWN, UP)}
        if other or not modules:
            raise ValueError(
                f"The adapter's weights of `{network}` are no plain LoRA"
                f"{f' ({min(other)!r} is among them)' if other else ''}, which is all that other programs read. Set "
                "`format` to 'merged'."
            )
        parts[network] = {
            module: Factors(down, weights[module + UP], _scale(configs.get(network, {}), module, len(down)))
            for module in modules
            for down in [weights[module + DOWN]]
        }
    if not parts:
        raise ValueError(f"The adapter holds no weights of {', '.join(family.network_names)}. It is of another base.")
    return parts


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """`alpha / rank`, or `alpha / sqrt(rank)` of rank-stabilised ones (arXiv 2312.03732); 1 if nothing is noted."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.get("lora_alpha", rank))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

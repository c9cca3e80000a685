"""An adapter's files: its weights, and the scale that each pair of factors acts with."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...families import Family
from ...messages.values import shown, shown_path
from ..strength.card import check_adapter

FILES = "pytorch_lora_weights*.safetensors"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
_NAME = re.compile(r"[\w.]+")


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
        ValueError: if it holds none, or there is no such folder.
    """
    check_adapter(adapter)
    folder = Path(adapter)
    if folder.is_file():
        raise ValueError(
            f"`adapter_name_or_path` is the file {shown_path(adapter)}. Name the folder that a training run has saved "
            "to: all files of an adapter belong together."
        )
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(adapter, allow_patterns=[FILES]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise ValueError(
                f"`adapter_name_or_path` is {shown_path(adapter)}, which is no folder here, and cannot be fetched from "
                f"the Hub ({type(error).__name__}). Check the name."
            ) from error
    if not any(folder.glob(FILES)):
        raise ValueError(
            f"{shown_path(adapter)} has no `{FILES}`, as training and diffusers' `save_lora_weights` write it."
        )
    return folder


def read_factors(folder: Path, family: Family, networks: Sequence[str]) -> dict[str, dict[str, Factors]]:
    """The factors of each module, of each network.

    Args:
        folder: of the adapter.
        family: of the base.
        networks: that the base has, which all have to be there.

    Raises:
        ValueError: if the adapter holds anything else than two factors of each module, of these networks.
    """
    weights = load_weights(folder, family, networks)
    configs = family.load_adapter_configs(folder)
    return {network: _factors(network, part, configs.get(network, {})) for network, part in weights.items()}


def load_weights(folder: Path, family: Family, networks: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The weights of an adapter, by network, of all networks that the base has.

    Raises:
        ValueError: if there are none of one of them, or others too.
    """
    num_stored = sum(_num_tensors(path) for path in folder.glob(FILES))
    try:
        weights = family.load_adapter(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The adapter in {shown_path(str(folder))} is damaged, or not whole ({error}).") from error
    if sorted(weights) != sorted(networks):
        raise ValueError(
            f"The adapter holds weights of {', '.join(sorted(weights)) or 'none of its networks'}, and the base has "
            f"{', '.join(sorted(networks))}. It is of another base, or a file of it is missing."
        )
    num_read = sum(len(part) for part in weights.values())
    if num_read != num_stored:
        raise ValueError(
            f"Of the adapter's {num_stored} weights, {num_stored - num_read} are not of {', '.join(networks)}: of a "
            "text encoder, or of another base. They would be left out. Load it with diffusers, and merge it with "
            "`fuse_lora`."
        )
    return weights


def _factors(network: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Factors]:
    modules = sorted(name.removesuffix(DOWN) for name in weights if name.endswith(DOWN))
    other = weights.keys() ^ {module + factor for module in modules for factor in (DOWN, UP)}
    if other or not modules:
        raise ValueError(
            f"The adapter's weights of `{network}` are no plain LoRA"
            f"{f' (see {shown(min(other), 150)})' if other else ''}, which is all that other programs read. Set "
            "`format` to 'merged'."
        )
    found = {}
    for module in modules:
        down, up = weights[module + DOWN], weights[module + UP]
        is_whole = (
            down.is_floating_point() and up.is_floating_point() and bool(down.isfinite().all() & up.isfinite().all())
        )
        if down.dim() < 2 or up.dim() != down.dim() or up.shape[1] != len(down) or not len(down) or not is_whole:
            raise ValueError(
                f"The adapter's weights of `{shown(module, 150)}` are no two factors of finite numbers (of shapes "
                f"{tuple(down.shape)} and {tuple(up.shape)}): the file is damaged, or training has failed."
            )
        found[module] = Factors(down, up, _scale(config, module, len(down)))
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """`alpha / rank`, or `alpha / sqrt(rank)` of rank-stabilised ones (arXiv 2312.03732); 1 if nothing is noted."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or not all(isinstance(it, str) and _NAME.fullmatch(it) for it in patterns):
        raise ValueError(
            f"The adapter's `alpha_pattern` is {shown(patterns, 150)}, which is not names of modules alone. Set "
            "`format` to 'merged'."
        )
    named = (alpha for name, alpha in patterns.items() if f".{module}".endswith(f".{name}"))
    alpha = next(named, config.get("lora_alpha", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"The adapter's `lora_alpha` is {shown(alpha)}, which is no number: its header is damaged.")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _num_tensors(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return len(list(file.keys()))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The adapter's file {shown_path(str(path))} is damaged ({error}).") from error

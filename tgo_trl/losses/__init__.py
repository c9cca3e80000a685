"""Losses, one file each: errors of rows to a loss, equation by equation. Torch only."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .base import Loss, LossInputs, Predictions, RelativeScore, RowErrors, RowLosses, Rows
from .csft import CSFTLoss
from .diffusion_dpo import DiffusionDPOLoss
from .diffusion_kto import DiffusionKTOLoss
from .dspo import DSPOLoss
from .nft import NFTLoss
from .qrpo import QRPOLoss
from .sft import SFTLoss
from .tgo import TGOLoss

LOSSES: dict[str, type[Loss]] = {
    "tgo": TGOLoss,
    "sft": SFTLoss,
    "csft": CSFTLoss,
    "diffusion_kto": DiffusionKTOLoss,
    "nft": NFTLoss,
    "qrpo": QRPOLoss,
    "diffusion_dpo": DiffusionDPOLoss,
    "dspo": DSPOLoss,
}
"""The losses by their `loss_type`."""


def build_loss(loss_type: str, settings: Mapping[str, Any]) -> Loss:
    """The loss of a name, with those of the settings that it has.

    Args:
        loss_type: a key of `LOSSES`.
        settings: by name; others than the loss's are passed over.
    """
    loss = LOSSES[loss_type]
    return loss(**{field.name: settings[field.name] for field in fields(loss) if field.name in settings})


__all__ = [
    "LOSSES", "CSFTLoss", "DSPOLoss", "DiffusionDPOLoss", "DiffusionKTOLoss", "Loss", "LossInputs", "NFTLoss",
    "Predictions", "QRPOLoss", "RelativeScore", "RowErrors", "RowLosses", "Rows", "SFTLoss", "TGOLoss", "build_loss",
]  # fmt: skip

"""How long updates took, kept beside the encodings, so that a plan with the same settings can tell of more of them."""

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..media.types import Size
from ..storage.files import write_json
from ..storage.fingerprints import fingerprint
from .tgo_config import TGOConfig

FOLDER = "speeds"
OF_A_STEP = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "loss_type", "num_likelihood_samples",
    "negatives", "trust_region", "precompute_ref_log_probs", "use_peft", "lora_r", "lora_target_modules", "ema_decay",
    "optim", "bf16", "fp16", "bf16_autocast", "speed", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "compile_repeated_blocks", "torch_compile", "torch_compile_mode", "attention_backend", "aspect_ratio_buckets",
    "dataloader_num_workers", "model_init_kwargs", "pipeline_class", "family_settings", "fsdp", "deepspeed",
    "sync_ref_model", "eval_strategy", "eval_steps", "eval_prompts", "eval_rewards", "sample_prompts", "sample_steps",
)  # fmt: skip
"""Settings that decide how long an update takes, with what is evaluated and sampled on the way."""


class Speed(NamedTuple):
    """What was measured.

    Attributes:
        updates: that were made.
        seconds: that they took, with whatever was evaluated, sampled and saved meanwhile.
    """

    updates: int
    seconds: float


def remember_speed(folder: Path, run: str, speed: Speed) -> None:
    """Keeps a measurement, unless one of more updates is there.

    Args:
        folder: of the encodings.
        run: what [`speed_key`] says of it.
        speed: that was measured.
    """
    known = recall_speed(folder, run)
    if known is None or speed.updates >= known.updates:
        write_json(folder / FOLDER / f"{run}.json", speed._asdict())


def recall_speed(folder: Path, run: str) -> Speed | None:
    """What was measured of such a run; None if nothing was."""
    try:
        values: dict[str, Any] = json.loads((folder / FOLDER / f"{run}.json").read_text("utf-8"))
        return Speed(int(values["updates"]), float(values["seconds"]))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def speed_key(args: TGOConfig, model: str, bits: int, size: Size) -> str:
    """A digest of what decides how long an update takes: settings, model, size of the images, device."""
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    else:
        device = f"{args.device.type} {platform.machine()} {torch.get_num_threads()}"
    settings = [(name, str(getattr(args, name))) for name in OF_A_STEP]
    return fingerprint(model, bits, size, device, torch.__version__, *settings)

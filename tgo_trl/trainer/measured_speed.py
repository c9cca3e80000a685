"""How long updates took, kept beside the encodings, so that a plan with the same settings can tell of more of them."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..families import Family
from ..media.types import Size
from ..storage.files import write_json
from ..storage.fingerprints import fingerprint
from .tgo_config import TGOConfig

FOLDER = "speeds"
OF_A_STEP = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "loss_type", "num_likelihood_samples",
    "negatives", "trust_region", "precompute_ref_log_probs", "use_peft", "lora_r", "lora_dropout",
    "lora_target_modules", "ema_decay", "optim", "optim_args", "bf16", "fp16", "tf32", "bf16_autocast", "speed",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "compile_repeated_blocks", "torch_compile", "torch_compile_mode",
    "torch_compile_backend", "attention_backend", "aspect_ratio_buckets", "dataloader_num_workers",
    "dataloader_prefetch_factor", "model_init_kwargs", "pipeline_class", "family_settings", "fsdp", "fsdp_config",
    "deepspeed", "sync_ref_model", "stream_lanes",
)  # fmt: skip
"""Settings that decide how long an update takes."""


class Subject(NamedTuple):
    """What is trained, and how its rows come, where that is no setting of [`TGOConfig`].

    Attributes:
        model: Hub id or folder of the pipeline.
        bits: of each frozen weight, where these are quantised; 0 where they are not.
        adapter: that training goes on with.
        ref_model: Hub id or folder of the reference; None where that is the policy as it was.
        is_streamed: whether rows are encoded as they come.
    """

    model: str
    bits: int = 0
    adapter: str | None = None
    ref_model: str | None = None
    is_streamed: bool = False


class Speed(NamedTuple):
    """What was measured.

    Attributes:
        updates: that were made.
        seconds: that they took, without whatever was evaluated, sampled and saved meanwhile.
    """

    updates: int
    seconds: float


class UpdateClock:
    """Measures updates from the end of the first, in which code is compiled and memory found, to that of the last."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what was measured."""
        self._since: tuple[int, float] | None = None
        self._aside = 0.0
        self._is_aside = False

    def tick(self, step: int) -> None:
        """Says that an update is made, or has been for long."""
        if self._since is None:
            self._since, self._aside = (step, _now()), 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, time is not that of updates."""
        if self._is_aside:
            yield
            return
        self._is_aside, start = True, _now()
        try:
            yield
        finally:
            self._is_aside = False
            self._aside += _now() - start

    def read(self, step: int) -> Speed | None:
        """Up to an update, the last one so far; None if it is the first."""
        if self._since is None or step <= self._since[0]:
            return None
        first, start = self._since
        return Speed(step - first, _now() - start - self._aside)


def _now() -> float:
    """Seconds, when all that was asked of the GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


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


def speed_key(args: TGOConfig, subject: Subject, size: Size, family: type[Family], num_sources: int) -> str:
    """A digest of what decides how long an update takes: settings, model, images of a row and their size, device.

    Args:
        args: of the run, as they were given.
        subject: what is trained.
        size: of the images, height and width in pixels.
        family: of the pipeline, which data sets decide where it takes source images or none.
        num_sources: source images of each row.
    """
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    else:
        device = f"{args.device.type} {platform.machine()} {torch.get_num_threads()}"
    settings = [(name, str(getattr(args, name))) for name in OF_A_STEP]
    rows = (family.__name__, num_sources, size)
    return fingerprint(*map(str, subject), *rows, device, torch.__version__, *settings)

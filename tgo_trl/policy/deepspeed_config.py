"""What of DeepSpeed's configuration works here, ZeRO-2 and ZeRO-3 as they were tried; all else is refused early."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env
from packaging.specifiers import SpecifierSet
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

VERSIONS = SpecifierSet(">=0.19.8,<0.20")
"""Of DeepSpeed: what is called of it is not all public, and older ones give a gradient of NaN the norm 1."""
TRIED = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16.enabled", "fp16.enabled", "steps_per_print", "zero_allow_untested_optimizer",
    "zero_optimization.stage", "zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size",
    # where there is nothing to offload or to gather, accelerate says so
    "zero_optimization.offload_optimizer.device", "zero_optimization.offload_optimizer.nvme_path",
    "zero_optimization.offload_param.device", "zero_optimization.offload_param.nvme_path",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_param_persistence_threshold", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_max_live_parameters", "zero_optimization.stage3_max_reuse_distance",
}  # fmt: skip
"""What may be in it."""
NEEDED = "train_micro_batch_size_per_gpu"
"""What has to be in it, so that DeepSpeed knows how many rows an update has."""


def check_deepspeed(args: TrainingArguments) -> None:
    """Raises a ValueError for a configuration, or a version, of DeepSpeed that is not supported."""
    config = dict(_leaves(_config(args)))
    if zero_stage(args) == 3 and parse_flag_from_env("ACCELERATE_DEEPSPEED_ZERO3_INIT"):
        raise ValueError(
            "`zero3_init_flag` of accelerate's configuration is on: text encoders, which DeepSpeed's engine never "
            "calls, would be sharded when they are loaded. Set it to false."
        )
    for name, value in config.items():
        why = _why_refused(name, value)
        if why is not None:
            raise ValueError(f"`{name}` of DeepSpeed's configuration is {value!r}: {why}")
    for name, (setting, value) in _of_settings(args).items():
        given = config.get(name, None if name == NEEDED else value)
        if given not in ("auto", value):
            raise ValueError(
                f"`{name}` of DeepSpeed's configuration is {given!r}, and {setting} {value!r}. Set it to 'auto' there, "
                f"and {setting} to what you want."
            )
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None or version not in VERSIONS:
        found = "there is none" if version is None else f"{version} is installed"
        raise ValueError(
            f"DeepSpeed is asked for, of a version {VERSIONS}, and {found}. Install `tgo_trl[deepspeed]`, or shard "
            "with FSDP2 (`--accelerate_config fsdp2`)."
        )


def zero_stage(args: TrainingArguments) -> int:
    """2 if DeepSpeed spreads gradients and what belongs to the optimizer, 3 if the weights too; 0 if nothing."""
    return int(_config(args).get("zero_optimization", {}).get("stage", 0))


def whole_when_loaded(args: TrainingArguments) -> None:
    """Keeps transformers from sharding what it loads: only what the trainer itself shards is gathered to be called."""
    if args.deepspeed_plugin is not None:
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _config(args: TrainingArguments) -> Mapping[str, Any]:
    config: Mapping[str, Any] = (args.deepspeed_plugin or DeepSpeedPlugin()).deepspeed_config
    return config


def _why_refused(name: str, value: Any) -> str | None:
    if name == "zero_optimization.stage" and value not in (2, 3):
        return "gradients would be whole in each process. Set it to 2 or 3, or leave DeepSpeed out (`multi_gpu`)."
    if name.startswith("zero_optimization.stage3_") and value == "auto":
        return "it would follow from a width that only text models have. Set a number, or leave it out."
    if name.endswith(".device") and value not in (None, "none"):
        return "which was not tried: a step reads the weights on the device. Set it to 'none'."
    if name == "fp16.enabled" and value not in (False, "auto"):
        return "gradients that are spread over processes were not scaled yet. Set it to false, and `bf16=True`."
    if name.partition(".")[0] in ("optimizer", "scheduler"):
        return "optimizer and schedule are those of the settings (`optim`, `lr_scheduler_type`). Leave it out."
    return None if name in TRIED else "which was not tried. Leave it out."


def _of_settings(args: TrainingArguments) -> dict[str, tuple[str, Any]]:
    """What the settings decide, by DeepSpeed's name: their name, and their value."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "train_micro_batch_size_per_gpu": ("`per_device_train_batch_size`", args.per_device_train_batch_size),
        "train_batch_size": ("the rows of an update", rows),
        "gradient_accumulation_steps": ("`gradient_accumulation_steps`", args.gradient_accumulation_steps),
        "gradient_clipping": ("`max_grad_norm`", args.max_grad_norm),
        "bf16.enabled": ("`bf16`", args.bf16),
    }


def _leaves(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration, by its names with dots between them."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{inside}{name}.")
        else:
            yield f"{inside}{name}", value

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
FREE = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16.enabled", "fp16.enabled", "steps_per_print", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization.stage", "zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size",
    "zero_optimization.overlap_comm", "zero_optimization.sub_group_size",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",  # what is saved is whole, with and without it
    "zero_optimization.stage3_param_persistence_threshold", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_max_live_parameters", "zero_optimization.stage3_max_reuse_distance",
}  # fmt: skip
"""What may be in it, with any value that nothing below speaks against."""
OWN_VALUES: dict[str, Any] = {
    "dump_state": False,
    "wall_clock_breakdown": False,
    "prescale_gradients": False,
    "zero_optimization.allgather_partitions": True,
    "zero_optimization.contiguous_gradients": True,
    "zero_optimization.reduce_scatter": True,
    "zero_optimization.round_robin_gradients": False,
    "zero_optimization.ignore_unused_parameters": True,
}
"""What may be in it with the value that DeepSpeed takes by itself."""
OFFLOADING = ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")
MAY_BE_AUTO = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16.enabled", "fp16.enabled", "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_param_persistence_threshold", "zero_optimization.stage3_prefetch_bucket_size",
}  # fmt: skip
"""What transformers puts a value to."""
NEEDED = "train_micro_batch_size_per_gpu"
"""What has to be in it, so that DeepSpeed knows how many rows an update has."""
SCHEDULES = {"warmuplr": "constant_with_warmup", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}
"""Of DeepSpeed, by the nearest `lr_scheduler_type`. Its own warm up by a logarithm, where those go up in a line."""
OF_PYTORCH = ("params.torch_adam", "params.adam_w_mode")
"""What AdamW of PyTorch is, in a configuration's optimizer."""
DROPPED = ("optimizer", "scheduler")
"""What is left to the settings, once it is known to say no more than they do."""


def check_deepspeed(args: TrainingArguments) -> None:
    """Raises a ValueError for a configuration, or a version, of DeepSpeed that is not supported.

    It names all that is to be changed at once.
    """
    if zero_stage(args) == 3 and parse_flag_from_env("ACCELERATE_DEEPSPEED_ZERO3_INIT"):
        raise ValueError(
            "`zero3_init_flag` of accelerate's configuration is on: text encoders, which DeepSpeed's engine never "
            "calls, would be sharded when they are loaded. Set it to false."
        )
    refused = [*_refused(args)]
    if refused:
        lines = "".join(f"\n- `{name}` is {value!r}: {why}" for name, value, why in refused)
        raise ValueError(f"DeepSpeed's configuration asks for what cannot be done here:{lines}")
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
    return int((_config(args).get("zero_optimization") or {}).get("stage", 0))


def names_optimizer(args: TrainingArguments) -> bool:
    """Whether the configuration has an optimizer, which the settings are to make just so."""
    return bool(_config(args).get("optimizer"))


def whole_when_loaded(args: TrainingArguments) -> None:
    """Keeps transformers from sharding what it loads: only what the trainer itself shards is gathered to be called."""
    if args.deepspeed_plugin is not None:
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _config(args: TrainingArguments) -> Mapping[str, Any]:
    config: Mapping[str, Any] = (args.deepspeed_plugin or DeepSpeedPlugin()).deepspeed_config
    return config


def _refused(args: TrainingArguments) -> Iterator[tuple[str, Any, str]]:
    """What cannot be done: its name, its value, and why, with what to write instead."""
    config = dict(_leaves({name: it for name, it in _config(args).items() if name not in DROPPED}))
    for name, value in {"zero_optimization.stage": None, **config}.items():
        why = _why_refused(name, value, config)
        if why is not None:
            yield name, value, why
    for name, (setting, value) in _of_settings(args).items():
        given = config.get(name, None if name == NEEDED else value)
        if given not in ("auto", value):
            yield name, given, f"{setting} is {value!r}. Set it to 'auto', and {setting} to what you want."
    yield from _refused_of_optimizer(args, _config(args).get("optimizer") or {})
    kind = (_config(args).get("scheduler") or {}).get("type")
    if kind is not None:
        near = SCHEDULES.get(kind.lower(), "linear")
        yield (
            "scheduler.type", kind,
            f"the schedule is that of the settings. Leave `scheduler` out, and set `lr_scheduler_type={near!r}` and "
            "`warmup_steps`, for one.",
        )  # fmt: skip


def _why_refused(name: str, value: Any, config: Mapping[str, Any]) -> str | None:
    if value == "auto" and name not in MAY_BE_AUTO:
        return "nobody puts a value for that. Set one, or leave it out."
    if name == "zero_optimization.stage" and value not in (2, 3):
        return "gradients would be whole in each process. Set it to 2 or 3, or leave DeepSpeed out (`multi_gpu`)."
    if name == "fp16.enabled" and value not in (False, "auto"):
        return "gradients that are spread over processes were not scaled yet. Set it to false, and `bf16=True`."
    block, _, key = name.rpartition(".")
    if block in OFFLOADING or name in OFFLOADING:
        is_off = value in (None, "none") or (block in OFFLOADING and key != "device")
        return None if is_off else "a step reads the weights on the device, and that was not tried. Set it to 'none'."
    if name in OWN_VALUES:
        own = OWN_VALUES[name]
        return None if value == own else f"it was not tried. Set it to {str(own).lower()}, or leave it out."
    if block in ("activation_checkpointing", "amp") and not value:
        return None  # it is off
    if block == "activation_checkpointing":
        return "blocks are recomputed by diffusers. Leave it out, and set `gradient_checkpointing=True`."
    if name == "checkpoint.use_node_local_storage" and value:
        return "`save_on_each_node` asks for that, and it was not tried. Leave it out."
    is_idle = block == "fp16" and config.get("fp16.enabled", False) in (False, "auto")  # of a scaler that is not there
    return None if name in FREE or is_idle else "it was not tried. Leave it out."


def _refused_of_optimizer(args: TrainingArguments, block: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """What differs from the settings, which make the optimizer, in what the configuration says of it."""
    if not block:
        return
    optimizer, kind = str(getattr(args.optim, "value", args.optim)), block.get("type")
    own = "adamw" if optimizer.startswith("adamw_torch") else optimizer
    if str(kind).lower() != own:
        yield (
            "optimizer.type", kind,
            f"`optim` is {optimizer!r}, and the optimizer is that of the settings. Leave `optimizer` out.",
        )  # fmt: skip
        return
    values: dict[str, tuple[str, Any]] = {
        "lr": ("`learning_rate`", args.learning_rate),
        "weight_decay": ("`weight_decay`", args.weight_decay),
    }
    if own == "adamw":
        values["betas"] = ("`adam_beta1` and `adam_beta2`", [args.adam_beta1, args.adam_beta2])
        values["eps"] = ("`adam_epsilon`", args.adam_epsilon)
    for name, given in _leaves({name: it for name, it in block.items() if name != "type"}):
        if own == "adamw" and name in OF_PYTORCH and given in (True, "auto"):
            continue  # that is PyTorch's
        setting, value = values.get(name.removeprefix("params."), (None, None))
        if setting is None:
            yield f"optimizer.{name}", given, "the optimizer is that of the settings. Leave it out."
        elif given != "auto" and (list(given) if isinstance(given, tuple) else given) != value:
            yield f"optimizer.{name}", given, f"{setting} is {value!r}. Leave it out, or set it to 'auto'."


def _of_settings(args: TrainingArguments) -> dict[str, tuple[str, Any]]:
    """What the settings decide, by DeepSpeed's name: their name, and their value."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "train_micro_batch_size_per_gpu": ("`per_device_train_batch_size`", args.per_device_train_batch_size),
        "train_batch_size": ("the number of rows of an update", rows),
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

"""Ways of spreading weights over processes that cannot work here, refused before a model is loaded."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env, str_to_bool
from packaging.version import Version
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from .deepspeed_config import check_deepspeed, zero_stage

logger = logging.getLogger(__name__)

REPLICATING_DEVICES = {"cpu"}
"""Where accelerate shards nothing, and does not say so."""
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Those that were tried on shards; others may read a weight as a whole, or keep a state that no shard has."""
OPTIMIZER_CLASSES = (torch.optim.AdamW, torch.optim.SGD)
"""The same, as classes."""
OLDEST_TORCH = Version("2.7")
"""That can take its part of a tensor which every process has."""
PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Where `accelerate launch` leaves what its configuration says."""


def sharding_of(args: TrainingArguments) -> str | None:
    """What the settings, or accelerate's that the run was launched with, ask to shard with; None for whole weights."""
    if args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return "DeepSpeed"
    return "FSDP" if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP") else None


def read_switch(value: Any) -> Any:
    """`fsdp` as a boolean where it is the text of one, as of `fsdp: true` in a file or `--fsdp true`; else as it is."""
    text = value.lower() if isinstance(value, str) else None
    return text == "true" if text in ("true", "false") else value


def check_launched_precision(bf16: bool, fp16: bool, is_open: bool) -> None:
    """Says so where the settings compute in something else than accelerate's `mixed_precision`, which does not count.

    Args:
        bf16: of the settings.
        fp16: of the settings.
        is_open: whether neither of the two was set.

    Raises:
        ValueError: if nothing was set, and what accelerate's configuration asks for would not be done.
    """
    asked = os.environ.get(PRECISION, "no").lower()
    own = "fp16" if fp16 else "bf16" if bf16 else "no"
    if asked in ("no", own):
        return
    if is_open and asked != "bf16":
        remedy = "Set `fp16=True`" if asked == "fp16" else "It is not supported. Set it to 'no' there"
        raise ValueError(
            f"`mixed_precision` of accelerate's configuration is {asked!r}, and the settings decide, where neither "
            f"`fp16` nor `bf16` is set. {remedy}, or `bf16` to whether to compute in bfloat16."
        )
    if os.environ.get("RANK", "0") == "0":
        decided = {"no": "float32: `bf16` and `fp16` are off"}.get(own, f"{own}: the settings decide")
        logger.warning("`mixed_precision` of accelerate's configuration is %r, and this run is in %s.", asked, decided)


@contextmanager
def precision_of_settings() -> Iterator[None]:
    """Within, `TrainingArguments` does not see accelerate's `mixed_precision`, which it takes where its own are off."""
    asked = os.environ.pop(PRECISION, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[PRECISION] = asked


def check_strategy(args: TrainingArguments) -> None:
    """Raises a ValueError for a way of spreading weights that is not supported."""
    if args.n_gpu > 1:
        raise ValueError(
            "TGOTrainer does not support `nn.DataParallel`, which `Trainer` uses when several GPUs are visible to a "
            "single process. Launch the script with `accelerate launch` or `torchrun`, or make a single GPU visible "
            "with `CUDA_VISIBLE_DEVICES`."
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"This is one of {launched} launched processes, and each would train alone, into the same folder: there is "
            "no GPU that they could use, and `use_cpu` is not set. Launch a single one, or set `use_cpu=True`."
        )
    sharding = sharding_of(args)
    if sharding is None:
        return
    if sharding == "FSDP":
        _check_options(args)
    else:
        check_deepspeed(args)
    for name, (is_refused, why) in _refused_settings(args, sharding).items():
        if is_refused:
            raise ValueError(f"{sharding} is asked for, and `{name}` is {getattr(args, name)!r}: {why}")
    _check_processes(args, sharding)


def check_shardable(
    args: TrainingArguments, quantization_config: Any, networks: Mapping[str, Any] | None = None
) -> None:
    """Raises a ValueError for networks that cannot be sharded: quantised ones.

    Args:
        args: of the run.
        quantization_config: that the pipeline is to be loaded with, where that is known.
        networks: to be sharded, by name, once they are there.
    """
    parts, sharding = networks or {}, sharding_of(args)
    quantized = [f"`{name}`" for name, part in parts.items() if getattr(part, "hf_quantizer", None) is not None]
    if sharding is not None and (quantization_config is not None or quantized):
        cannot = "FSDP cannot shard quantised weights" if sharding == "FSDP" else "DeepSpeed was not tried on them"
        raise ValueError(
            f"{' and '.join(quantized) or 'The model'} is quantised, and {cannot}. Load it in bfloat16 (`bf16=True`), "
            "or train with whole weights in each process (`--accelerate_config multi_gpu`), which quantised ones are "
            "small enough for."
        )


def _check_options(args: TrainingArguments) -> None:
    for name, (is_refused, why) in _refused_options(args).items():
        if is_refused:
            own_name = {"offload_params": "cpu_offload"}.get(name, name)
            raise ValueError(f"`fsdp_{name}` (`fsdp_config[{own_name!r}]`) {why}")


def _check_processes(args: TrainingArguments, sharding: str) -> None:
    setting, profile = ("fsdp", "fsdp2") if sharding == "FSDP" else ("deepspeed", f"zero{zero_stage(args)}")
    if args.device.type in REPLICATING_DEVICES:
        raise ValueError(
            f"{sharding} is asked for, and the run is on the {args.device.type.upper()}, where accelerate would "
            f"replicate all weights without a word. Leave `{setting}` unset there."
        )
    if sharding == "FSDP" and Version(torch.__version__) < OLDEST_TORCH:
        raise ValueError(
            f"FSDP is asked for, which needs PyTorch {OLDEST_TORCH} or newer, and this is {torch.__version__}. Upgrade "
            "it, or leave `fsdp` unset."
        )
    if args.world_size == 1:
        raise ValueError(
            f"{sharding} is asked for, which spreads weights over processes, and there is a single one. Launch with "
            f"`accelerate launch`, `torchrun`, or `tgo-trl train --accelerate_config {profile} --num_processes N`; or "
            f"leave `{setting}` unset."
        )


def _refused_options(args: TrainingArguments) -> dict[str, tuple[bool, str]]:
    """Options of FSDP, as accelerate calls them: whether each is refused as it is, and why."""
    given: Mapping[str, Any] = args.fsdp_plugin_args or {}

    def option(name: str, default: str) -> str:
        value = given.get({"version": "fsdp_version", "offload_params": "cpu_offload"}.get(name, name))
        return str(os.environ.get(f"FSDP_{name.upper()}", default) if value is None else value)

    def is_on(name: str) -> bool:
        return bool(str_to_bool(option(name, "false")))

    version, wrap = option("version", "1"), option("auto_wrap_policy", "NO_WRAP")
    form = option("state_dict_type", "SHARDED_STATE_DICT")
    return {
        "version": (
            version != "2",
            f"is {version}: FSDP1 flattens weights, so that adapters cannot be told from the base. Set it to 2.",
        ),
        "cpu_ram_efficient_loading": (
            is_on("cpu_ram_efficient_loading"),
            "is on: it loses buffers that diffusers' networks have, and saves no memory, since each process loads the "
            "pipeline. Set it to false.",
        ),
        "activation_checkpointing": (
            is_on("activation_checkpointing"),
            "is on: its wrappers rename the weights, so that no adapter would be found to be saved. Set it to false, "
            "and `gradient_checkpointing=True`, which is diffusers' own.",
        ),
        "offload_params": (
            is_on("offload_params"),
            "is on, which was not tried: sampling and the optimizer need the weights on the device. Set it to false.",
        ),
        "auto_wrap_policy": (
            wrap.upper() != "TRANSFORMER_BASED_WRAP",
            f"is {wrap!r}: weights are gathered block by block, as the networks name their blocks. Set it to "
            "'TRANSFORMER_BASED_WRAP'.",
        ),
        "state_dict_type": (
            args.save_only_model and form.upper() != "FULL_STATE_DICT",
            f"is {form!r}, and `save_only_model` is on, which transformers refuses together. Set it to "
            "'FULL_STATE_DICT'.",
        ),
        "reshard_after_forward": (
            option("reshard_after_forward", "true").lower() not in ("true", "1"),
            "is off: whole weights would be left over where the optimizer looks for shards. Set it to true.",
        ),
        "transformer_layer_cls_to_wrap": (
            bool(given.get("transformer_cls_names_to_wrap") or os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")),
            "is set: weights are gathered by the blocks that the networks name themselves. Leave it out.",
        ),
        "ignored_modules": (
            bool(given.get("ignored_modules") or os.environ.get("FSDP_IGNORED_MODULES")),
            "is set, which was not tried. Leave it out.",
        ),
        "xla": (bool((args.fsdp_config or {}).get("xla")), "is on, which is another FSDP. Leave it out."),  # type: ignore[union-attr]
    }


def _refused_settings(args: TrainingArguments, sharding: str) -> dict[str, tuple[bool, str]]:
    """Settings: whether each is refused as it is, and why."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    refused = {
        "fp16": (
            args.fp16, "gradients of shards were not scaled yet. Use `bf16=True`.",
        ),
        "torch_compile": (
            args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no",
            "compiled networks were not sharded yet. Leave it out, also of accelerate's configuration.",
        ),
        "speed": (
            sharding != "FSDP" and getattr(args, "speed", None) is not None,
            "what DeepSpeed keeps in memory is not known here. Leave it out.",
        ),
        "parallelism_config": (
            args.parallelism_config is not None or parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
            "weights are sharded over all processes. Leave it out.",
        ),
        "fsdp": (sharding != "FSDP" and bool(args.fsdp), "one of the two shards. Leave it out."),
        "optim": (
            optimizer not in OPTIMIZERS,
            f"it was not tried on shards. Set one of {', '.join(map(repr, OPTIMIZERS))}.",
        ),
        "load_best_model_at_end": (
            args.load_best_model_at_end and args.save_only_model,
            "transformers refuses that together with `save_only_model`. Leave one of the two out.",
        ),
    }  # fmt: skip
    has_parts = sharding == "FSDP" or zero_stage(args) == 3
    return refused | _refused_of_parts(args) if has_parts else refused


def _refused_of_parts(args: TrainingArguments) -> dict[str, tuple[bool, str]]:
    """The same, of processes that hold a part of the weights only."""
    return {
        "hub_strategy": (
            args.push_to_hub and args.hub_strategy != HubStrategy.END,
            "only the main process pushes on the way, and to gather the weights takes all of them. Set it to 'end'.",
        ),
    }  # fmt: skip

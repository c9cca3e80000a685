"""What the course of a run depends on, so that a run that goes on can tell whether it is the same run."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..families.base import adapter_metadata
from ..policy.policy import Policy
from ..storage.fingerprints import stored_tensors, tensors_digest
from . import objective

if TYPE_CHECKING:
    from .tgo_config import TGOConfig

MOST_PER_TENSOR = 4096  # numbers

REPLACED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules", "model_init_kwargs", "prompt_column", "image_column", "video_column", "score_column",
    "score_columns", "score_weights", "threshold_values", "source_column",
    "chosen_column", "rejected_column", "pairs", "pair_margin", "resolution", "height", "width", "on_bad_row",
    "max_steps", "num_train_epochs", "recipe", "max_drift", "min_variety", "early_stopping_patience",
    "stream_lanes",
)  # fmt: skip
"""Settings that act through something else that is compared, or that say how long a run goes on."""
WITHOUT_EFFECT = (
    "logging_", "log_", "eval_", "save_", "sample_", "dataloader_", "include_", "hub_", "ddp_", "fsdp", "trackio_",
    "gradient_checkpointing", "activation_checkpointing", "torch_compile", "encode_batch_size", "disable_tqdm",
    "report_to", "run_name", "project", "per_device_eval_batch_size", "prediction_loss_only", "batch_eval_metrics",
    "push_to_hub", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip",
    "restore_callback",
    "full_determinism", "use_cpu", "accelerator_config", "parallelism_config", "remove_unused_columns", "label_names",
    "length_column_name", "debug", "skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_",
    "enable_jit", "torch_empty_cache_steps", "use_cache", "use_liger_kernel", "liger_kernel_config", "average_tokens",
    "encoding_cache_dir", "deepspeed", "overwrite_", "local_rank", "allow_urls", "image_dir",
    "precompute_ref_batch_size", "compile_repeated_blocks", "attention_backend", "speed",
)  # fmt: skip
"""How the names begin of settings that change neither the rows of an update nor what is made of them."""
OPTIMIZER = ("optim", "optim_args", "optim_target_modules", "optimizer", "use_peft")
"""Settings without which a saved optimizer state means nothing."""

RESOLVED_LATER = ("temperature", "lora_")
"""How the names begin of settings of which a [`Course`] has what pipeline, data and adapter make of them."""

OF_THE_BASE = "the base model's weights"
"""What a digest of these is called in a [`Course`]."""

OFF = objective.OFF | {
    "quantile_scope": "auto", "num_ref_draws": None, "precompute_ref_log_probs": False, "bf16_autocast": True,
    "score_combination": "sum",
}  # fmt: skip
"""Settings of a run as they are by default, and as they were in a run of a version without them."""


@dataclass(frozen=True)
class Course:
    """Everything that decides which weights a run ends with, but for its length.

    Attributes:
        settings: by name, as JSON has them.
        fingerprints: digests of the rows in their order, of the frozen encoders, of the base and of where the adapter
            and the reference began, by what they are of.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def differences(self, now: "Course") -> list[str]:
        """What differs between this course, which was saved, and the one now; a clause each."""
        names = sorted(self.settings.keys() | now.settings.keys())
        values = [(name, *(it.settings.get(name, OFF.get(name)) for it in (self, now))) for name in names]
        changed = [f"`{name}` was {was}, is {is_now}" for name, was, is_now in values if was != is_now]
        parts = [part for part, digest in now.fingerprints.items() if self.fingerprints.get(part) != digest]
        return changed + [f"{part} are others" for part in parts]

    def only(self, names: Iterable[str]) -> "Course":
        """Some of its settings, and no fingerprints."""
        return Course({name: self.settings[name] for name in names if name in self.settings})

    def keeps_optimizer(self, now: "Course") -> bool:
        """Whether the saved state of the optimizer is one of the optimizer now."""
        return all(self.settings.get(name) == now.settings.get(name) for name in OPTIMIZER)


def settings_changes(saved: Course, args: "TGOConfig", public: Mapping[str, Any]) -> list[str]:
    """What differs between a saved course and arguments, before anything is loaded; a clause each.

    What a trainer adds to its course, such as sizes or a reward, is no setting, and is compared when training begins.

    Args:
        saved: the course of the run that goes on.
        args: of the run now.
        public: what of them may be written down.
    """
    now = Course(json.loads(json.dumps(course_settings(args, public))))
    names = {it.name for it in fields(args)} | now.settings.keys()  # what is not set now may have been
    told = [name for name in names if not name.startswith(RESOLVED_LATER)]
    return saved.only(told).differences(now.only(told))


def course_settings(args: "TGOConfig", public: Mapping[str, Any], policy: Policy | None = None) -> dict[str, Any]:
    """The settings of a [`Course`], of the arguments, as JSON has them, and of the adapter as it was made."""
    settings = {
        name: value for name, value in public.items() if name not in REPLACED and not name.startswith(WITHOUT_EFFECT)
    }
    settings["rows_per_update"] = args.rows_per_update
    if policy is not None and policy.adapter_name is not None:
        network = next(iter(policy.networks.values()))
        settings |= _lora_settings(adapter_metadata(network, policy.adapter_name))
    return settings


def _lora_settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's, without what is not set: the names in peft's configuration, those of ours where there are any.

    What is off is left out: another version of peft may know more of what can be on.
    """
    irrelevant = ("inference_mode", "base_model_name_or_path", "peft_version", "revision", "task_type", "auto_mapping")
    is_set = {
        name: value
        for name, value in metadata.items()
        if isinstance(value, (str, int, float, bool, list, dict)) and value not in ([], {}) and value is not False
    }
    return {
        name if name.startswith("lora_") else f"lora_{name}": value
        for name, value in is_set.items()
        if name not in irrelevant
    }


def weights_digest(networks: Mapping[str, nn.Module]) -> str:
    """A digest of the frozen or initial weights of networks, without adapters: of some numbers of each tensor.

    Enough to tell one published model from another at once, not to find a single number that differs.
    """
    return tensors_digest((name, _some(tensor)) for name, tensor in stored_tensors(_base_tensors(networks)))


def whole_weights_digest(networks: Mapping[str, nn.Module]) -> str:
    """As [`weights_digest`], of every number."""
    return tensors_digest(stored_tensors(_base_tensors(networks)))


def _base_tensors(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for network_name, network in networks.items():
        for name, tensor in sorted(network.state_dict().items()):
            if ".lora_" not in name:
                yield f"{network_name}.{name.replace('.base_layer.', '.')}", tensor


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // MOST_PER_TENSOR)]


def describe_optimizer(
    optimizers: tuple[Any, Any], cls_and_kwargs: tuple[type, Mapping[str, Any]] | None
) -> str | None:
    """The optimizer and the schedule that the user passes as objects or classes; None for those of the settings."""
    parts: Iterable[str] = (type(given).__name__ for given in optimizers if given is not None)
    if cls_and_kwargs is not None:
        cls, kwargs = cls_and_kwargs
        parts = [*parts, f"{cls.__name__}({', '.join(f'{name}={value}' for name, value in sorted(kwargs.items()))})"]
    return ", ".join(parts) or None

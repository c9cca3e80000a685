"""What a run leaves on disk: the adapter or network in diffusers' format, and JSON of its settings.

Everything is written into a temporary folder first and renamed file by file, so that a process that is killed leaves
either the old file or the new one.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .alterations import check_saved_names, unwrap_networks
from .config import FAMILY_SETTINGS
from .labels import LabelRule
from .policy import Policy
from .public import is_secret_name, without_secrets
from .reference import Reference

CONFIG_NAME = "tgo_config.json"
REFERENCE_NAME = "reference.safetensors"
TRAINER_STATE_NAME = "trainer_state.json"
COURSE = (
    "loss_type", "beta", "temperature", "size", "aspect_ratio_buckets", "max_aspect_ratio", *FAMILY_SETTINGS, "seed",
    "data_seed", "num_likelihood_samples", "train_sampling_strategy", "sync_ref_model", "ref_model_mixup_alpha",
    "ref_model_sync_strategy",
    "ref_model_sync_steps",
)  # fmt: skip
"""The settings that a resumed run should share with its beginning."""


@dataclass(frozen=True)
class RunRecord:
    """The settings of a run, as JSON beside its weights.

    Attributes:
        config: the training arguments, without paths, tokens and names of machines.
        rule: the fitted threshold and weights.
        temperature: `T`, resolved.
        size: height and width, in pixels.
    """

    config: dict[str, Any]
    rule: LabelRule
    temperature: float
    size: tuple[int, int]

    def write(self, folder: Path) -> None:
        """Writes `tgo_config.json`."""
        values = {
            "temperature": self.temperature,
            "size": list(self.size),
            "label_rule": self.rule.to_dict(),
            "config": self.config,
        }
        (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_label_rule(folder: Path) -> LabelRule:
    """The rule that a run was trained with."""
    return LabelRule.from_dict(json.loads((folder / CONFIG_NAME).read_text())["label_rule"])


def changed_settings(folder: Path, record: RunRecord) -> list[str]:
    """What differs, of the settings in [`COURSE`], between a saved run and this one."""
    saved = json.loads((folder / CONFIG_NAME).read_text())
    before = {**saved["config"], "temperature": saved["temperature"], "size": saved["size"]}
    now = {**record.config, "temperature": record.temperature, "size": list(record.size)}
    return [
        f"`{name}` was {before.get(name)}, is {now.get(name)}" for name in COURSE if before.get(name) != now.get(name)
    ]


def check_names(pipeline: DiffusionPipeline, policy: Policy) -> None:
    """Raises a ValueError if [`save_weights`] would write what stock diffusers cannot load."""
    unwrap_networks(pipeline, policy.family.network_names)
    for name, network in policy.family.networks(pipeline).items():
        check_saved_names(network, name, policy.adapter_name)


def save_weights(pipeline: DiffusionPipeline, policy: Policy, folder: Path, whole_pipeline: bool) -> None:
    """Writes the adapter as `pytorch_lora_weights.safetensors`, or fully trained networks in their own folders.

    Args:
        pipeline: holds the policy's networks.
        policy: what was trained.
        folder: where to write.
        whole_pipeline: for full fine-tuning, also write the frozen parts, so that `from_pretrained(folder)` works.
    """
    if policy.adapter_name is not None:
        policy.family.save_adapter(pipeline, policy.adapter_name, folder)
    elif whole_pipeline:
        pipeline.save_pretrained(folder, safe_serialization=True)
    else:
        for name, network in policy.networks.items():
            network.save_pretrained(folder / name, safe_serialization=True)


def load_weights(policy: Policy, folder: Path) -> None:
    """Loads what [`save_weights`] wrote into the policy."""
    if policy.adapter_name is not None:
        state = {
            f"{name}.{key}": value
            for name, weights in policy.family.load_adapter(folder).items()
            for key, value in weights.items()
        }
        policy.load_adapter_state(state, policy.adapter_name)
        return
    for name, network in policy.networks.items():
        saved = type(network).from_pretrained(folder / name, torch_dtype=next(network.parameters()).dtype)
        network.load_state_dict(saved.state_dict())


def save_reference(reference: Reference, folder: Path) -> None:
    """Writes the reference's own weights, for a run that moves them."""
    save_file({name: value.contiguous() for name, value in reference.state().items()}, folder / REFERENCE_NAME)


def load_reference(reference: Reference, folder: Path) -> None:
    """Loads what [`save_reference`] wrote."""
    reference.load_state(load_file(folder / REFERENCE_NAME))


@contextmanager
def replacing(folder: Path, is_checkpoint: bool) -> Iterator[Path]:
    """Yields a temporary folder whose files move into `folder`, each in one step, when the context ends well.

    What a killed process left is removed. A checkpoint that is saved again loses its trainer state first, which would
    vouch for a folder that is half old and half new.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("_saving-*"):
        shutil.rmtree(left, ignore_errors=True)
    if is_checkpoint:
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="_saving-", dir=folder))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run; one that a killed process left behind is passed over."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if is_checkpoint_of(path, output_dir)
    ]
    return next((path for _, path in sorted(found, reverse=True) if is_complete(path)), None)


def is_checkpoint_of(folder: Path, output_dir: Path) -> bool:
    """Whether a folder is `output_dir/checkpoint-N`."""
    name, _, step = folder.name.rpartition("-")
    return folder.parent == output_dir and name == PREFIX_CHECKPOINT_DIR and step.isdecimal()


def is_complete(checkpoint: Path) -> bool:
    """Whether saving a checkpoint came to its end: the trainer state, written last, is there and whole."""
    if not (checkpoint / CONFIG_NAME).is_file():
        return False
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, TypeError, ValueError):  # TypeError: fields of another version of transformers
        return False
    return True


def public_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments, and what is nested in them, without what names a machine, a folder or a secret."""
    hidden = ("_dir", "run_name", "local_rank", "resume_from_checkpoint", "deepspeed", "fsdp", "hub_")
    kept = {
        name: value
        for name, value in without_secrets(values).items()
        if not is_secret_name(name) and not any(part in name for part in hidden)
    }
    return {
        name: public_config(value) if isinstance(value, dict) else value
        for name, value in kept.items()
        if isinstance(value, (str, int, float, bool, list, dict))
    }

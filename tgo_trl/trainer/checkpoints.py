"""What a run leaves on disk: the adapter or network in diffusers' format, and JSON of its settings.

Everything is written into a temporary folder first and renamed file by file, so that a process that is killed leaves
either the old file or the new one. A checkpoint is whole once its manifest is written, which comes last.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..labels.combination import rule_from_dict
from ..labels.rule import LabelRule
from ..messages.public import is_secret_name, without_secrets
from ..policy.alterations import check_saved_names, unwrap_networks
from ..policy.policy import Policy
from ..policy.reference import Reference
from ..settings import PIPELINE_CLASS
from ..storage.files import flush
from ..storage.manifest import find_damage, revoke_manifest, write_manifest
from ..storage.records import RUN_NAME
from .course import Course
from .nonfinite import check_finite_tensors
from .progress import Progress

logger = logging.getLogger(__name__)

REFERENCE_NAME = "reference.safetensors"
RAW_WEIGHTS_NAME = "raw_weights"
TRAINER_STATE_NAME = "trainer_state.json"


@dataclass(frozen=True)
class RunRecord:
    """The settings of a run, as JSON beside its weights.

    Attributes:
        config: the training arguments, without paths, tokens and names of machines.
        rule: the fitted threshold and weights, or what pairs of several columns are compared by; None without scores,
            and of other pairs.
        temperature: `T`, resolved; None without a likelihood.
        size: height and width, in pixels.
        course: what a run that goes on should share with it.
        progress: how far it has come.
        updates: that were made.
        changes: what was set otherwise from some update on, a sentence each.
        averaged_updates: those that the average of the weights counts; None without one.
        sample_ways: after which updates samples were measured in another way, with digests of it by metric.
        lanes: rows of each lane that a stream is read in; empty if it is read in its order.
        pipeline_class: of a pipeline that the trainer was passed, where its own index names another class, or there is
            none.
    """

    config: dict[str, Any]
    rule: LabelRule | None
    temperature: float | None
    size: tuple[int, int]
    course: Course = field(default_factory=Course)
    progress: Progress = field(default_factory=Progress)
    updates: int = 0
    changes: list[str] = field(default_factory=list)
    averaged_updates: int | None = None
    sample_ways: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    pipeline_class: str | None = None

    def write(self, folder: Path) -> None:
        """Writes `tgo_config.json`."""
        values: dict[str, Any] = {
            "temperature": self.temperature,
            "size": list(self.size),
            "label_rule": None if self.rule is None else self.rule.to_dict(),
            "config": self.config,
            "course": asdict(self.course),
            "progress": asdict(self.progress),
            "updates": self.updates,
            "changes": self.changes,
        }
        if self.averaged_updates is not None:
            values["averaged_updates"] = self.averaged_updates
        if self.sample_ways:
            values["sample_ways"] = self.sample_ways
        if self.lanes:
            values["lanes"] = self.lanes
        if self.pipeline_class is not None:
            values[PIPELINE_CLASS] = self.pipeline_class
        (folder / RUN_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The inverse of [`write`]."""
        values = json.loads((folder / RUN_NAME).read_text())
        rule = values["label_rule"]
        return cls(
            config=values["config"],
            rule=None if rule is None else rule_from_dict(rule),
            temperature=values["temperature"],
            size=tuple(values["size"]),
            course=Course(**values["course"]),
            progress=Progress(**values["progress"]),
            updates=values["updates"],
            changes=values["changes"],
            averaged_updates=values.get("averaged_updates"),
            sample_ways=[(after, ways) for after, ways in values.get("sample_ways", [])],
            lanes=values.get("lanes", []),
            pipeline_class=values.get(PIPELINE_CLASS),
        )


def read_label_rule(folder: Path) -> LabelRule | None:
    """The rule that a run was trained with; None without scores."""
    return RunRecord.read(folder).rule


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
        # the pipeline notes the class of what it is given, which was another one while weights were sharded
        pipeline.register_modules(**{name: getattr(pipeline, name) for name in policy.networks})
        pipeline.save_pretrained(folder, safe_serialization=True)
    else:
        for name, network in policy.networks.items():
            network.save_pretrained(folder / name, safe_serialization=True)


def load_weights(policy: Policy, folder: Path) -> None:
    """Loads what [`save_weights`] wrote into the policy; raises a `NonFiniteError` if it holds NaN or infinity."""
    what = f"What was saved in {str(folder)!r}"
    if policy.adapter_name is not None:
        state = {
            f"{name}.{key}": value
            for name, weights in policy.family.load_adapter(folder).items()
            for key, value in weights.items()
        }
        check_finite_tensors(state.items(), what)
        policy.load_adapter_state(state, policy.adapter_name)
        return
    for name, network in policy.networks.items():
        saved = type(network).from_pretrained(folder / name, dtype=next(network.parameters()).dtype)
        check_finite_tensors(saved.state_dict().items(), what)
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

    What a killed process left is removed. A checkpoint that is saved again loses its manifest first, which would vouch
    for a folder that is half old and half new.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_over(folder)
    if is_checkpoint:
        revoke_manifest(folder)
    temporary = Path(tempfile.mkdtemp(prefix="_saving-", dir=folder))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                flush(path)
                os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_left_over(folder: Path) -> None:
    """Removes what processes that were killed while they saved into a folder left there."""
    for left in folder.glob("_saving-*"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoints(output_dir: Path) -> list[Path]:
    """Those of a run, whole or not, the newest first."""
    found = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if is_checkpoint_of(path, output_dir)]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """The update after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; one that is cut short or damaged is passed over with a warning."""
    for path in checkpoints(output_dir):
        damage = checkpoint_damage(path)
        if damage is None:
            return path
        logger.warning("The checkpoint %s is not whole (%s); an older one is looked for.", path, damage)
    return None


def newest_checkpoint(output_dir: Path) -> Path | None:
    """As [`last_checkpoint`], without reading more than manifest and records: what is cut short is passed over."""
    return next((path for path in checkpoints(output_dir) if record_damage(path) is None), None)


def is_checkpoint_of(folder: Path, output_dir: Path) -> bool:
    """Whether a folder is `output_dir/checkpoint-N`."""
    name, _, step = folder.name.rpartition("-")
    return folder.parent == output_dir and name == PREFIX_CHECKPOINT_DIR and step.isdecimal()


def checkpoint_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, a clause that names the file; None if it can."""
    return find_damage(checkpoint) or _unreadable(checkpoint)


def record_damage(checkpoint: Path) -> str | None:
    """As [`checkpoint_damage`], of sizes and records alone: weights are not read, which may be tens of gigabytes."""
    return find_damage(checkpoint, contents=False) or _unreadable(checkpoint)


def _unreadable(checkpoint: Path) -> str | None:
    try:
        RunRecord.read(checkpoint)
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, KeyError, TypeError, ValueError) as error:  # of other versions of this package or of transformers
        return f"{RUN_NAME} or {TRAINER_STATE_NAME} is missing or of another version ({type(error).__name__})"
    return None


def seal_checkpoint(checkpoint: Path) -> None:
    """Says that a checkpoint is whole, once all its files are on the disk."""
    write_manifest(checkpoint)


def public_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments, and what is nested in them, without what names a machine, a folder or a secret."""
    hidden = (
        "_dir", "run_name", "local_rank", "resume_from_checkpoint", "deepspeed", "fsdp", "hub_", "push_", "save_",
        "eval_rewards", "_sources",
    )  # fmt: skip
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

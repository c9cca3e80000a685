"""Whether a run goes on with what a checkpoint holds, or is another one."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..data.stream import StreamDataset
from ..policy.replication import Replication, fit_groups
from .checkpoints import RunRecord, checkpoint_damage, last_checkpoint, newest_checkpoint, public_config, record_damage
from .course import settings_changes
from .tgo_config import TGOConfig

logger = logging.getLogger(__name__)

CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")
OF_WHOLE_STREAMS = "A run of a version that read shuffled streams whole goes on with `stream_lanes=1`."
LENGTH = ("max_steps", "num_train_epochs")


def check_resumed_settings(args: TGOConfig) -> None:
    """Compares settings with those of the run that `args.resume_from_checkpoint` names, before anything is loaded.

    What the pipeline and the data decide is compared by [`accepted_changes`], when training begins; so is all of a run
    that is named to `train` alone.

    Args:
        args: of the run that goes on. `resume_from_checkpoint` is a folder, or true for the newest checkpoint.

    Raises:
        ValueError: if something differs, and `resume_with_changes` is not set.
    """
    checkpoint = _named_checkpoint(args)
    if checkpoint is None or args.resume_with_changes:
        return
    changes = changed_settings(checkpoint, args)
    if changes and checkpoint_damage(checkpoint) is None:  # of a damaged one, `train` takes an older one, or none
        raise _other_run(checkpoint, changes)


def changed_settings(checkpoint: Path, args: TGOConfig) -> list[str]:
    """What is set otherwise than in a checkpoint's run, a clause each; not what pipeline and data decide."""
    return settings_changes(RunRecord.read(checkpoint).course, args, public_config(args.to_dict()))


def find_checkpoint(args: TGOConfig, wanted: str | bool) -> Path:
    """The checkpoint to go on from, all files of which were read: the newest of the run if `wanted` is no name.

    Raises:
        ValueError: if there is none, or the one that is named is not whole.
    """
    if isinstance(wanted, bool):
        found = last_checkpoint(args.output_path)
        if found is None:
            raise ValueError(
                f"No complete checkpoint found in `output_dir` ({args.output_dir}). Set `resume_from_checkpoint` to "
                "false to begin anew, or another `output_dir`."
            )
        return found
    damage = checkpoint_damage(Path(wanted))
    if damage is not None:
        raise ValueError(
            f"{wanted} is no complete checkpoint of a run: {damage}. Set `resume_from_checkpoint` to true for the "
            "newest complete one."
        )
    return Path(wanted)


def resume_setting(args: TGOConfig) -> str | bool | None:
    """`resume_from_checkpoint` of the settings: a folder, True for the newest checkpoint, False to begin anew, or None.

    A command line gives texts, in which true and false may be written.
    """
    named: Any = args.resume_from_checkpoint
    chosen: str | bool | None = {"true": True, "false": False}.get(str(named).lower(), named)
    return chosen


def _named_checkpoint(args: TGOConfig) -> Path | None:
    """What `resume_from_checkpoint` names, if it can be read; `train` reads all of it, and refuses what is damaged."""
    named = resume_setting(args)
    if not named:
        return None
    if named is True:
        return newest_checkpoint(args.output_path)
    return Path(named) if record_damage(Path(named)) is None else None


def _other_run(checkpoint: Path, changes: Sequence[str], hint: str = "") -> ValueError:
    return ValueError(
        f"{checkpoint.name} in {str(checkpoint.parent)!r} is of a run with other settings or data: "
        f"{'; '.join(changes)}. Go on with those of the checkpoint, set another `output_dir` to begin anew, or set "
        f"`resume_with_changes` to go on with these; the model card then says so. {hint}".rstrip()
    )


def accepted_changes(checkpoint: Path, now: RunRecord, accept: bool, hint: str = "") -> list[str]:
    """What is set otherwise than in the checkpoint's run, a clause each; empty if it is the same run.

    Args:
        checkpoint: to go on from.
        now: the run that goes on.
        accept: whether other settings and data are wanted.
        hint: what else to do about other settings and data, as a sentence.

    Raises:
        ValueError: if something differs and is not wanted, or cannot be had.
    """
    saved = RunRecord.read(checkpoint)
    changes = saved.course.differences(now.course)
    was, is_now = saved.rule, now.rule
    if was is not None and is_now is not None and not was.equals(is_now) and not changes:
        changes.append(
            f"the threshold was {was.describe()} on {was.num_rows} rows, is {is_now.describe()} on "
            f"{is_now.num_rows} rows, or the weights are others"
        )
    if saved.lanes and saved.lanes != now.lanes:
        changes.append(f"the lanes of the stream had {saved.lanes} rows, have {now.lanes}")
    if changes and not accept:
        raise _other_run(checkpoint, changes, hint)
    resized = saved.course.settings.get("rows_per_update") != now.course.settings.get("rows_per_update")
    if resized and now.config.get("max_steps", -1) <= 0:
        raise ValueError(
            "An update has another number of rows than before, so that `num_train_epochs` says no longer how many "
            "updates are left. Set `max_steps`, which counts those that are made already."
        )
    return changes + _other_length(saved, now)


def lanes_of(saved: RunRecord, stream: StreamDataset, args: TGOConfig) -> int:
    """How many lanes the run that goes on was read in; 1 of a version that knew none.

    Raises:
        ValueError: if the stream cannot be read in them, so that the next row of the run is not known.
    """
    number = len(saved.lanes) or 1
    why = None
    if args.stream_lanes not in (None, number):
        why = f"`stream_lanes` is {args.stream_lanes}. Set it to {number}, or leave it out,"
    elif number > 1 and number > len(stream.shards):
        why = "`train_dataset` cannot be divided into as many now. Pass the one that the run began with,"
    elif args.rows_per_update % number:
        why = f"an update has {args.rows_per_update} rows now, not as many of each. Set a multiple of {number},"
    if why is not None:
        read = f"was read in {number} lanes" if number > 1 else "was read in its order"
        raise ValueError(f"The stream of the run that goes on {read}, and {why} or another `output_dir`.")
    return number


def _other_length(saved: RunRecord, now: RunRecord) -> list[str]:
    lengths = [f"`{name}` was {saved.config.get(name)}, is {now.config.get(name)}" for name in LENGTH
               if saved.config.get(name) != now.config.get(name)]  # fmt: skip
    if not lengths or now.config.get("lr_scheduler_type") in CONSTANT_SCHEDULES:
        return []
    logger.warning(
        "The run that goes on had another length: %s. Its learning rate followed a schedule over the old one, and "
        "follows one over the new one from here on; `lr_scheduler_type='constant'` has no such seam.",
        ", ".join(lengths),
    )
    return lengths


def read_optimizer(checkpoint: Path) -> dict[str, Any]:
    """The state of the optimizer in a checkpoint, of whole tensors, on the CPU."""
    state: dict[str, Any] = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    return state


def load_optimizer(checkpoint: Path, optimizer: Any, scheduler: Any, strategy: Replication) -> None:
    """Loads the state of optimizer and schedule; arguments as of [`load_changed_optimizer`]."""
    state = read_optimizer(checkpoint)
    strategy.load_optimizer_state(optimizer, state)
    schedule: dict[str, Any] = torch.load(checkpoint / SCHEDULER_NAME, weights_only=True)
    own, groups = scheduler.state_dict(), state["param_groups"]
    for name, values in schedule.items():
        if isinstance(values, list) and len(values) == len(groups):  # one of each group
            schedule[name] = fit_groups(values, groups, own.get(name, values), strategy.groups(optimizer))
    scheduler.load_state_dict(schedule)


def load_changed_optimizer(
    checkpoint: Path, optimizer: Any, scheduler: Any, keep_state: bool, strategy: Replication
) -> None:
    """Loads the state of optimizer and schedule, but for what the settings say, which are those of now.

    Args:
        checkpoint: to load from.
        optimizer: as the settings of now made it.
        scheduler: likewise, at its beginning.
        keep_state: False if the saved state is of another optimizer, which then begins anew.
        strategy: how weights are spread over processes.
    """
    if keep_state:
        groups = [dict(group, params=None) for group in optimizer.param_groups]
        strategy.load_optimizer_state(optimizer, read_optimizer(checkpoint))
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group.update({name: value for name, value in settings.items() if name != "params"})
    else:
        logger.warning("The optimizer is another one than before; its moments begin anew.")
    state = torch.load(checkpoint / SCHEDULER_NAME, weights_only=True)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):  # follows what was measured
        scheduler.load_state_dict(state)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for _ in range(state["last_epoch"]):
            scheduler.step()

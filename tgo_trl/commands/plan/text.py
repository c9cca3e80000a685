"""What a plan says, in lines of a name and a value."""

import shutil
from pathlib import Path

from ...messages.values import shown_bytes
from ...trainer.checkpoints import RunRecord
from ...trainer.plan import EncodingsPlan, MemoryPlan, RunPlan, has_adam
from ...trainer.resuming import changed_settings, find_checkpoint
from ...trainer.summary import found_rows, rule_rows
from ...trainer.tgo_config import TGOConfig
from ..train.run import resume_choice

TRIAL = 20
"""Updates that tell how long one takes."""


def plan_lines(plan: RunPlan, args: TGOConfig) -> list[tuple[str, str]]:
    """Name and value of each line.

    Args:
        plan: of the run.
        args: its settings.

    Raises:
        ValueError: if the checkpoint that it would go on from is not whole.
    """
    lines = [
        *_rows(plan, args),
        ("updates", _updates(plan, args)),
        ("checkpoints", _checkpoints(plan, args)),
    ]
    goes_on = _goes_on(args)
    if goes_on is not None:
        lines.append(("goes on", goes_on))
    if plan.encodings is not None:
        lines.append(("encodings", _encodings(plan.encodings)))
    return [*lines, *_memory(plan.memory, args), ("time", _time(plan, args))]


def _goes_on(args: TGOConfig) -> str | None:
    """What becomes of the run that is there, whose settings may be others than a plan tries; None without one."""
    wanted = resume_choice(args)
    if not wanted:
        return None
    checkpoint = find_checkpoint(args, wanted)
    after = f"after update {RunRecord.read(checkpoint).updates:,}"
    changes = "; ".join(changed_settings(checkpoint, args))
    if not changes:
        return f"{after}, if it began with the same data"
    if args.resume_with_changes:
        return f"{after}, with other settings than it began with: {changes}"
    return (
        f"not with these settings, started as this plan was: {checkpoint} is of a run with others ({changes}), which "
        "`train` refuses. `--resume_from_checkpoint false` or another `--output_dir` begins anew, and "
        "`--resume_with_changes true` goes on with these"
    )


def _rows(plan: RunPlan, args: TGOConfig) -> list[tuple[str, str]]:
    if plan.training is None:
        assert plan.rule is not None
        return rule_rows(plan.rule)
    pairs = plan.training.pairs
    lines = rule_rows(plan.rule) if plan.rule is not None else [] if pairs is None else found_rows(pairs)
    lines.insert(1, ("rows left out", f"{plan.training.num_bad:,} of {plan.num_rows:,} rows of the data set"))
    if plan.rule is not None and len(plan.training.positions) < plan.rule.num_rows:
        lines.append(("trained on", f"{len(plan.training.positions):,} rows (`loss_type={args.loss_type!r}`)"))
    return lines


def _updates(plan: RunPlan, args: TGOConfig) -> str:
    of = f"{plan.updates:,} of {args.rows_per_update:,} rows each"
    if plan.updates_per_epoch is None:
        return of
    return f"{of}, {plan.updates / plan.updates_per_epoch:.3g} epochs of {plan.updates_per_epoch:,}"


def _checkpoints(plan: RunPlan, args: TGOConfig) -> str:
    size = shown_bytes(plan.checkpoint_bytes)
    beside = "" if args.save_only_model or has_adam(args) else ", and the optimizer's state"
    if plan.checkpoints == 0:
        return "none (`save_strategy='no'`), so that a run which is stopped begins anew"
    number = f"{plan.checkpoints:,}" if plan.checkpoints is not None else "as many as metrics ask for,"
    kept = args.save_total_limit
    are_left = kept is not None and (plan.checkpoints is None or kept < plan.checkpoints)
    return f"{number} of about {size}{beside} in {args.output_dir}{f', of which {kept} stay' if are_left else ''}"


def _encodings(encodings: EncodingsPlan) -> str:
    of = f"{encodings.num_images:,} images and {encodings.num_prompts:,} prompts"
    of_prompts = f"at most {shown_bytes(encodings.prompt_bytes)}" if encodings.prompt_bytes else "an unknown size"
    size = f"{shown_bytes(encodings.image_bytes)} and {of_prompts}"
    if encodings.missing is None:
        there = "what is there already only the encoders' weights tell, as nothing was encoded with them here"
    elif not any(encodings.missing):
        there = "all of them are there already"
    else:
        there = "of which {:,} images and {:,} prompts are still to be encoded".format(*encodings.missing)
    return f"{of}, {size} in {encodings.folder} ({shown_bytes(_free(encodings.folder))} are free there); {there}"


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def _memory(memory: MemoryPlan, args: TGOConfig) -> list[tuple[str, str]]:
    fixed = f"{shown_bytes(memory.fixed)} of weights, gradients and averages"
    blocks = {None: "no block recomputed", 1: "every block recomputed"}.get(
        memory.every, f"one block in {memory.every} recomputed"
    )
    if args.speed is not None and args.gradient_checkpointing is None:
        blocks += f", unless speed={args.speed!r} decides otherwise"
    if memory.peak is None:
        text = f"{fixed}; what comes on top is not known, since {memory.why_unknown}"
    else:
        text = f"about {shown_bytes(memory.peak)} for each process, {fixed} among it, with {blocks}"
    if memory.device is not None:
        text += f"; the GPU here has {shown_bytes(memory.device)}"
    return [("memory", text), ("to encode", f"{shown_bytes(memory.encoders)} of encoders, before the first update")]


def _time(plan: RunPlan, args: TGOConfig) -> str:
    if plan.speed is not None:
        each, number = plan.speed.seconds / plan.speed.updates, plan.speed.updates
        return (
            f"about {plan.updates * each / 60:,.1f} minutes, at the {each:.3g} seconds that each of {number:,} updates "
            "with these settings took here; encoding, evaluations, samples and checkpoints come on top"
        )
    return (
        f"not known before updates were made on this machine: train with `--max_steps {TRIAL} --save_strategy no "
        f"--output_dir {args.output_dir}-trial`, and plan again"
    )

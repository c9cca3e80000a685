"""`speed="auto"`: which of the settings that change results by rounding at most make a run fastest, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..messages.values import shown_bytes
from ..policy.memory import Footprint

INTERVALS = (4, 3, 2, 1)
"""Of recomputed blocks, from few to all."""
USED = 0.9
"""The share of the device's memory that a choice counts on: what the model leaves out (kernels, what is left between
tensors, samples) takes the rest."""
COMPILING_PAYS_AFTER = 250
"""Batches: to compile the blocks of FLUX.1 took 46 s, and saved 0.2 s of each batch of one row."""


@dataclass(frozen=True)
class SpeedFacts:
    """What a choice depends on.

    Attributes:
        device: `"cuda"`, `"cpu"`, ...
        memory: bytes of the device; None if it is no GPU.
        footprint: of a run on it; None where it is not known.
        rows: in a batch, times the draws of each.
        batches: that are to be trained on, accumulated ones each; None if that is not known.
        uncompiled: why blocks are not to be compiled, a clause; None if nothing speaks against it.
    """

    device: str
    memory: int | None
    footprint: Footprint | None
    rows: int
    batches: int | None
    uncompiled: str | None


@dataclass(frozen=True)
class SpeedChoice:
    """What was chosen, and why.

    Attributes:
        recomputes: whether blocks are recomputed in the backward pass.
        every: of each kind, the first and every so many after it.
        compiles: whether repeated blocks are compiled.
        why_recomputes, why_compiles: a clause each.
    """

    recomputes: bool
    every: int
    compiles: bool
    why_recomputes: str
    why_compiles: str


def common_facts(facts: Sequence[SpeedFacts]) -> SpeedFacts:
    """By which the processes of a run choose alike, of those of each: the least memory, and the most that it takes."""
    memories = [it.memory for it in facts]
    known = [it.footprint for it in facts if it.footprint is not None]
    return replace(
        facts[0],
        memory=None if None in memories else min(it for it in memories if it is not None),
        footprint=max(known, key=lambda it: it.fixed) if len(known) == len(facts) else None,
    )


def choose_speed(facts: SpeedFacts) -> SpeedChoice:
    """The choice for a run, a pure function of the facts.

    Recomputing costs a quarter of a step or more and saves memory, so that as few blocks are recomputed as fit.
    Compiling was measured to pay with one row in a batch (SDXL: 472 to 298 ms, FLUX.1: 452 to 251), and not with four
    (SDXL: 416 to 438).
    """
    if facts.memory is None:
        why = f"nothing was measured on this {facts.device.upper()}, and the defaults stay"
        return SpeedChoice(True, 1, False, why, why)
    every, why = _interval(facts, facts.memory)
    compiles, why_compiles = _compiles(facts)
    return SpeedChoice(every is not None, every or 1, compiles, why, why_compiles)


def apply_choice(args: Any, choice: SpeedChoice) -> list[str]:
    """Sets what is not set yet, and returns a line for each setting.

    Args:
        args: of a run, in which what was left open is None.
        choice: for it.
    """
    lines = ["speed='auto':"]
    why = "as you set it"
    if args.gradient_checkpointing is None:
        why, options = choice.why_recomputes, {"every_n_layers": choice.every} if choice.every > 1 else None
        for name in ("activation_checkpointing", "gradient_checkpointing"):  # the newer and the older name
            if hasattr(args, name):
                setattr(args, name, choice.recomputes)
                setattr(args, f"{name}_kwargs", options)
    lines.append(f"  gradient_checkpointing={args.gradient_checkpointing}{_options(args)}: {why}")
    why = "as you set it"
    if args.compile_repeated_blocks is None:
        why, args.compile_repeated_blocks = choice.why_compiles, choice.compiles
    lines.append(f"  compile_repeated_blocks={args.compile_repeated_blocks}: {why}")
    of = "left at PyTorch's own" if args.attention_backend is None else f"{args.attention_backend!r}, as you set it"
    return [*lines, f"  attention_backend: {of}"]


def _options(args: Any) -> str:
    options = args.gradient_checkpointing_kwargs
    return f", gradient_checkpointing_kwargs={options}" if args.gradient_checkpointing and options else ""


def _interval(facts: SpeedFacts, memory: int) -> tuple[int | None, str]:
    if facts.footprint is None:
        return 1, "what its blocks keep is not known"
    most = USED * memory
    for every in (None, *INTERVALS):
        needed = facts.footprint.peak(facts.rows, every)
        if needed <= most:
            return every, f"about {shown_bytes(needed)} of {shown_bytes(memory)} are needed"
    return (
        1,
        f"about {shown_bytes(needed)} are needed, and the device has {shown_bytes(memory)}: take fewer rows in a batch",
    )


def _compiles(facts: SpeedFacts) -> tuple[bool, str]:
    if facts.uncompiled is not None:
        return False, facts.uncompiled
    if facts.rows > 1:
        return False, f"there are {facts.rows} rows in a batch, and it was measured to pay with one"
    if facts.batches is not None and facts.batches < COMPILING_PAYS_AFTER:
        return False, f"{facts.batches} batches are over before it pays, after about {COMPILING_PAYS_AFTER}"
    return True, "with one row in a batch, the GPU waits for Python otherwise"

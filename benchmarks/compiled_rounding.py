"""How far from 0 the first log-ratio is where blocks are compiled, on the CPU, of tiny networks with random weights.

    python -m benchmarks.compiled_rounding

A fresh adapter changes nothing, so that the errors of policy and reference are the same number, and their difference
is exactly 0. Compiled, the policy's blocks (with gradient) and the reference's (without) are other graphs, which
may round in other places. Asked are rows of several seeds, each with weights and noise of its own, and of each row: by
how much the two errors differ, as a share of the error; and how far each is from that of plain blocks, likewise.
"""

import argparse
import statistics
from contextlib import nullcontext
from pathlib import Path

import diffusers
import torch
import transformers
from torch import Tensor

from tests.cases import CASES, Setup
from tgo_trl.policy.compilation import RepeatedBlocks

KINDS = ("stable_diffusion", "flux", "wan")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
NUM_DRAWS = 4


def errors_of(setup: Setup, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of policy and reference, float32 `[draws, rows]`."""
    is_half = dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
        errors = setup.errors(setup.draw(NUM_DRAWS, seed=seed))
    return errors.policy.detach(), errors.reference


def measure(kind: str, dtype: torch.dtype, seed: int, backend: str) -> tuple[Tensor, Tensor]:
    """Of one seed, as shares of the error, `[draws, rows]`: reference less policy, and policy less plain policy."""
    case = next(case for case in CASES if case.name == kind)
    setup = case.setup(Path("unused"), dtype, pipeline=case.build(seed))
    plain, reference = errors_of(setup, seed, dtype)
    assert torch.equal(plain, reference), "a fresh adapter changes something"
    with RepeatedBlocks(setup.policy.networks.values(), backend, None, dynamic=False).compiled():
        policy, reference = errors_of(setup, seed, dtype)
    return (reference - policy) / plain, (policy - plain) / plain


def summary(shares: Tensor) -> str:
    """Root mean square, and the largest."""
    return f"{shares.square().mean().sqrt():.1e} | {shares.abs().max():.1e}"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="what to measure; by default all")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--backend", default="inductor", help="of `torch.compile`")
    options = parser.parse_args()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    print("| network | dtype | first difference: typical | largest | not 0 | against plain blocks: typical | largest |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kind or KINDS:
        for name, dtype in DTYPES.items():
            found = [measure(kind, dtype, seed, options.backend) for seed in range(options.seeds)]
            between, from_plain = (torch.cat(shares) for shares in zip(*found, strict=True))
            off = statistics.fmean(between.ne(0).flatten().tolist())
            print(f"| {kind} | {name} | {summary(between)} | {off:.0%} | {summary(from_plain)} |", flush=True)


if __name__ == "__main__":
    main()

"""Step time, memory and utilisation of the trainer on published models with random weights, beside a bare loop.

    python -m benchmarks.gpu_speed                                     # everything, as `make benchmark-gpu`
    python -m benchmarks.gpu_speed --only sd15 flux-512 --trained lora --batch_sizes 1
    python -m benchmarks.gpu_speed --only sdxl --set compile_repeated_blocks=true
    python -m benchmarks.gpu_speed --only peers                        # other scripts' orders of operations
    python -m benchmarks.gpu_speed --no_measuring --check              # are the bars met?
    python -m benchmarks.gpu_speed --no_measuring --write docs/performance.md
    python -m benchmarks.gpu_speed --scale tiny --only flux-512        # the same on any CPU, in seconds: says nothing

Nothing is downloaded. Each case runs in a process of its own, so that one that does not fit in memory is noted as
such, and the rest goes on. Results are kept in `output_dir`, a JSON each with a log beside it, and not measured again
when the command is started again: delete those that should be, and take another folder for another card or version.
What is measured, and how: `gpu_models`, `gpu_steps`, `peer_steps`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from tgo_trl import TGOConfig
from tgo_trl.storage.files import write_json

from .gpu_cases import OWN_SETTINGS, QUANTISATIONS, TRAINED, Case, measure, plan
from .gpu_models import MODELS, SCALES
from .gpu_tables import Results, bar_table, missed, section, write_page, write_result

ROOT = Path(__file__).resolve().parents[1]
PEERS = "peers"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not measured yet, and prints the tables."""
    options = parse(arguments)
    if options.measure is not None:
        measure_here(options)
        return
    folder = options.output_dir / options.scale
    failed = [] if options.no_measuring else measure_all(cases_of(options), folder, options)
    results = Results(read_results(folder))
    if options.write is not None:
        write_page(options.write, results)
        print(f"The tables are in {options.write}.")
    elif not options.check:
        print(section(results))
    short = missed(results) if options.check else []
    if options.check:
        print(bar_table(results))
    if failed or short:
        sys.exit("\n".join([*(f"failed: {it}" for it in failed), *short]))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", default=[*MODELS, PEERS], help=f"beginnings of {', '.join([*MODELS, PEERS])}")
    add("--trained", nargs="+", default=list(TRAINED), choices=list(TRAINED), help="an adapter, or all weights")
    add("--batch_sizes", nargs="+", type=int, default=[], help="instead of each model's own")
    add("--checkpointing", choices=("both", "on", "off"), default="both", help="of gradients")
    add("--bits", type=int, choices=list(QUANTISATIONS), help="of the frozen weights; by default one case of 4")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="of TGOConfig, for all cases")
    add("--scale", choices=SCALES, default="real", help="`tiny` runs on any CPU")
    add("--windows", type=int, default=5, help="that are timed of the trainer and of the bare loop each")
    add("--seconds", type=float, default=2.0, help="that a window takes at least, about")
    add("--output_dir", type=Path, default=Path("outputs/gpu_speed"), help="of the results")
    add("--no_measuring", action="store_true", help="only read what is there")
    add("--check", action="store_true", help="exit with an error unless all bars are met")
    add("--write", type=Path, metavar="FILE", help="put the tables into this page instead of printing them")
    add("--measure", help=argparse.SUPPRESS)  # a case in JSON, for the child
    options = parser.parse_args(arguments)
    if options.measure is None:
        try:
            options.models, options.settings = chosen(options.only), settings_of(options.set)
        except ValueError as error:
            parser.error(str(error))
        if options.scale != "real" and (options.check or options.write):
            parser.error("bars and tables are of published sizes, `--scale real`")
        if options.scale == "real" and not options.no_measuring and not torch.cuda.is_available():
            parser.error("there is no GPU for the published sizes; `--scale tiny` runs on the CPU")
    return options


def chosen(beginnings: Sequence[str]) -> list[str]:
    """The models, and "peers", that begin with one of these; raises a ValueError for a beginning of none."""
    names = [*MODELS, PEERS]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(f"nothing begins with {beginning!r}; there are {', '.join(names)}")
    return [name for name in names if name.startswith(tuple(beginnings))]


def settings_of(assignments: Sequence[str]) -> dict[str, Any]:
    """Settings by name, of `name=value` with values in JSON, or else text; raises a ValueError for unknown ones."""
    known = {it.name for it in fields(TGOConfig)}
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {assignment}: TGOConfig has no such setting; write name=value")
        if name in OWN_SETTINGS:
            raise ValueError(f"--set {assignment}: `{name}` is what a case sets itself; see --help for its options")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def cases_of(options: argparse.Namespace) -> list[Case]:
    """What these options ask for."""
    models = [name for name in options.models if name in MODELS]
    again = {"both": (False, True), "on": (True,), "off": (False,)}[options.checkpointing]
    return plan(
        models, options.trained, options.batch_sizes, again, options.settings, options.scale,
        with_peers=PEERS in options.models, bits=options.bits,
    )  # fmt: skip


def measure_all(cases: Sequence[Case], folder: Path, options: argparse.Namespace) -> list[str]:
    """Measures each case that has no result yet in a process of its own; returns those that ended with an error."""
    failed, started = [], time.monotonic()
    for number, case in enumerate(cases, start=1):
        path = folder / f"{case.name}.json"
        start = f"[{number}/{len(cases)}, {time.monotonic() - started:.0f} s]"
        if path.exists():
            print(f"{start} {write_result(json.loads(path.read_text('utf-8')))} (kept)", flush=True)
            continue
        print(f"{start} {case.title} ...", flush=True)
        code = measure_apart(case, path, options)
        if path.exists():
            print(f"    {write_result(json.loads(path.read_text('utf-8')))}", flush=True)
        else:
            reason = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
            print(f"    failed ({reason}): {path.with_suffix('.log')}", flush=True)
            failed.append(f"{case.title} ({reason}, see {path.with_suffix('.log')})")
    return failed


def measure_apart(case: Case, path: Path, options: argparse.Namespace) -> int:
    """Measures a case in a process of its own, which writes the result to `path`; returns how that ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.gpu_speed", "--measure", json.dumps(asdict(case)), "--write",
        str(path.resolve()), "--windows", str(options.windows), "--seconds", str(options.seconds),
    ]  # fmt: skip
    with path.with_suffix(".log").open("w") as log:
        return subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode


def measure_here(options: argparse.Namespace) -> None:
    """Measures the case that is asked for, in this process."""
    case = Case(**json.loads(options.measure))
    write_json(options.write, measure(case, options.windows, options.seconds))


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, in the order of their names."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    main()

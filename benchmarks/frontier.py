"""What each method makes of the same scored images, along its strength, in two worlds of digits.

    python -m benchmarks.frontier --output_dir outputs/frontier
    python -m benchmarks.frontier --output_dir outputs/frontier_quick --quick

Each method is trained on the same 2,000 images of the base with as many updates, at its own learning rate, which is the
best of three by `choose`, on a training seed and images that the results do not use. Beside them: the base with
guidance, the best of n images of the base by the training scorer, and supervised fine-tuning for eight times the
updates. Every number is a mean over training seeds (of the base: over image seeds), each judged on images of its own,
with a 95 % interval; all have the same training images, whose chance is in no interval. `docs/results.md` says what
came out.

Every run is kept in `output_dir/runs`, and not made again when the command is started again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .digit_runs import (
    Method,
    Options,
    Run,
    check_folder,
    measure_all,
    parse_options,
    prepare,
    tune,
    untrained_runs,
    write,
)

METHODS = {
    "SFT": Method({"loss_type": "sft"}, "max_steps", (1, 8), "#8c8c8c"),
    "TGO, the paper's": Method({}, "beta", (10, 3, 1), "#c44e52"),
    "TGO, robust": Method({"recipe": "robust"}, "beta", (1, 0.3, 0.1, 0.03), "#4c72b0"),
    "TGO, mirrored": Method({"negatives": "mirror", "beta": 3.0}, "mirror_strength", (1, 2, 4), "#55a868"),
}
TUNED_AT = {"SFT": 1.0, "TGO, the paper's": 3.0, "TGO, robust": 0.3, "TGO, mirrored": 4.0}
"""The value of the knob at which the learning rate is chosen, and guidance is tried too."""
GUIDANCES = (1.0, 2.0, 4.0)
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
LONGER_IN = "strokes"
"""The world in which more updates are tried, since guidance does not do it there."""


@dataclass(frozen=True)
class FrontierOptions(Options):
    """Options of the frontier."""

    methods: tuple[str, ...] = tuple(METHODS)


def trained_runs(rates: Mapping[tuple[str, str], float], options: FrontierOptions) -> list[Run]:
    """Each method along its knob, at its learning rate; with guidance where it was tuned."""
    runs = [
        METHODS[name].run(world, name, value, rates[world, name], seed=seed)
        for world in options.worlds
        for seed in range(options.num_seeds)
        for name in options.methods
        for value in METHODS[name].values
    ]
    runs = [run for run in runs if run.times == 1 or run.world == LONGER_IN]
    return [replace(run, guidances=GUIDANCES) if run.value == TUNED_AT[run.method] else run for run in runs]


def main(options: FrontierOptions) -> list[dict[str, Any]]:
    """Runs what is missing, and writes tables, figures and picture."""
    start = time.perf_counter()
    check_folder(options, METHODS)
    for world in options.worlds:
        prepare(world, options)
    methods = {name: METHODS[name] for name in options.methods}
    tuned = tune(methods, {name: [TUNED_AT[name]] for name in methods}, LEARNING_RATES, options)
    rates = {key: run["learning_rate"] for key, run in tuned.items()}
    runs = [*trained_runs(rates, options), *untrained_runs(options)]
    # what takes eight times as long first, so that nothing waits for it in the end; then seed by seed
    runs.sort(key=lambda run: (-run.times, run.seed))
    rows = write(measure_all(runs, options, "Frontier"), methods, options, "frontier.png")
    print(f"took {(time.perf_counter() - start) / 60:.0f} minutes; runs of an earlier start are not made again")
    return rows


if __name__ == "__main__":
    main(parse_options(__doc__.splitlines()[0], FrontierOptions()))

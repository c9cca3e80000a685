"""Every loss on the same scored images, with as many updates, each with its own learning rate and strength.

    python -m benchmarks.paper_table --output_dir outputs/paper_table
    python -m benchmarks.paper_table --output_dir outputs/paper_table_quick --quick

The losses are those of the paper's table, and those beside TGO that were published since (`docs/losses.md`), in both
worlds of digits (`benchmarks/frontier.py` describes what is measured). Each has the same budget of tuning, two learning
rates at two strengths, of which `choose` takes one on a training seed and images that the results do not use. Pairs are
all those of one prompt; a pair is two of the 64 rows of an update. AlignProp draws its own images, as many as the
others are given, in as many updates; it needs a scorer with a gradient, which only the second world has, and its
strength is how early it ends. Beside them: the base with guidance, and the best of n of its images.

Every run is kept in `output_dir/runs`, and not made again when the command is started again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .digit_runs import (
    Method,
    Options,
    check_folder,
    measure_all,
    parse_options,
    prepare,
    tune,
    untrained_runs,
    write,
)

GOOD, BAD = "+ ", "- "
"""One token each: the base's text encoder has seen 41 captions, and no word where it is after a longer prefix."""
PAIRS = {"pairs": "all"}

METHODS = {
    "SFT": Method({"loss_type": "sft"}, None, (0,), "#8c8c8c"),
    "CSFT": Method(
        {"loss_type": "csft", "positive_prefix": GOOD, "negative_prefix": BAD}, None, (0,), "#ccb974", prefix=GOOD
    ),
    "Diffusion-KTO": Method({"loss_type": "diffusion_kto"}, "beta", (30, 10), "#64b5cd"),
    "Diffusion-DPO": Method({"loss_type": "diffusion_dpo", **PAIRS}, "beta", (5000, 1000), "#937860"),
    "DSPO, SD 1.5 form": Method({"loss_type": "dspo", "dspo_form": "sd15", **PAIRS}, "beta", (1e-3, 0.5), "#bbbbbb"),
    "DSPO, SDXL form": Method({"loss_type": "dspo", "dspo_form": "sdxl", **PAIRS}, "beta", (5000, 1000), "#a05195"),
    "NFT, offline": Method({"loss_type": "nft"}, "mirror_strength", (2, 4), "#2f9e9e"),
    "QRPO": Method({"loss_type": "qrpo"}, "beta", (10, 3), "#b8860b"),
    "AlignProp": Method({}, "max_steps", (0.25, 0.4), "#e6007e", climbs=True, worlds=("strokes",)),
    "TGO, the paper's": Method({}, "beta", (30, 10), "#c44e52"),
    "TGO, robust": Method({"recipe": "robust"}, "beta", (0.3, 0.1), "#4c72b0"),
    "TGO, mirrored": Method({"negatives": "mirror", "beta": 3.0}, "mirror_strength", (2, 4), "#55a868"),
}
LEARNING_RATES = (5e-4, 2e-3)


@dataclass(frozen=True)
class TableOptions(Options):
    """Options of the table."""

    output_dir: Path = Path("outputs/paper_table")
    num_seeds: int = 5
    most_of: int = 4
    methods: tuple[str, ...] = tuple(METHODS)


def main(options: TableOptions) -> list[dict[str, Any]]:
    """Runs what is missing, and writes tables, figures and picture."""
    start = time.perf_counter()
    check_folder(options, METHODS)
    for world in options.worlds:
        prepare(world, options)
    methods = {name: METHODS[name] for name in options.methods}
    tuned = tune(methods, {name: method.values for name, method in methods.items()}, LEARNING_RATES, options)
    runs = untrained_runs(options) + [
        methods[name].run(world, name, run["value"], run["learning_rate"], seed=seed)
        for (world, name), run in tuned.items()
        for seed in range(options.num_seeds)
    ]
    runs.sort(key=lambda run: run.seed)
    results = measure_all(runs, options, "Losses")
    rows = write(results, methods, options, "paper_table.png")
    print(f"took {(time.perf_counter() - start) / 60:.0f} minutes; runs of an earlier start are not made again")
    return rows


if __name__ == "__main__":
    main(parse_options(__doc__.splitlines()[0], TableOptions()))

"""What each setting of the method does alone: threshold, confidence, normalisation of scores, and temperature.

    python -m benchmarks.ablations --output_dir outputs/ablations
    python -m benchmarks.ablations --output_dir outputs/ablations_quick --quick

In the world of strokes (`benchmarks/frontier.py` describes it, and what is measured), one setting at a time, all others
as they are, learning rate and seeds included: with `recipe="robust"`, and with the paper's loss. The temperature goes
over four decades with the paper's loss, on the base and on a second one whose latents have a quarter of the numbers,
which is pre-trained first. `beta` has no ablation of its own: the loss sees `beta / T` alone.

Every run is kept in `output_dir/runs`, and not made again when the command is started again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tgo_trl.noise.diffusion import scaled_temperature
from tgo_trl.plots import save_figure

from .digit_runs import (
    BASE,
    DISTANCES,
    SAMPLERS,
    SMALL,
    Method,
    Options,
    Run,
    check_folder,
    difference,
    measure_all,
    parse_options,
    prepare,
    results_of,
    show,
    summarise,
    world_of,
    write_tables,
)

from pretrain import pretrain  # isort: skip  # where .digit_runs looks for it

WORLD, JUDGE = "strokes", "unseen net"
LEARNING_RATE = 5e-4
LOSSES: dict[str, dict[str, Any]] = {"TGO, robust": {"recipe": "robust"}, "TGO, the paper's": {"beta": 10.0}}
"""The recipe at its `beta`, the paper's at one of about the same score."""
COLORS = {"TGO, robust": "#4c72b0", "TGO, the paper's": "#c44e52", WORLD: "#c44e52", SMALL: "#8172b2"}

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "threshold": {
        "10 %": {"threshold_percentile": 10.0},
        "30 %": {"threshold_percentile": 30.0},
        "median": {},
        "70 %": {"threshold_percentile": 70.0},
        "90 %": {"threshold_percentile": 90.0},
        "mean": {"threshold_type": "mean"},
        "per prompt": {"threshold_type": "prompt_mean"},
    },
    "confidence_coef": {
        "0": {"confidence_coef": 0.0},
        "1": {"confidence_coef": 1.0},
        "5": {},
        "20": {"confidence_coef": 20.0},
    },
    "score_normalization": {
        "none": {},
        "zscore": {"score_normalization": "zscore"},
        "robust": {"score_normalization": "robust"},
    },
}
"""What each ablation sets, by what it is called. Nothing is the default, one and the same run in all of them."""

NUMBERS = {WORLD: 4 * 4 * 4, SMALL: 4 * 2 * 2}
"""Of a latent."""
TIMES = tuple(4.0**k for k in range(-2, 6))
"""What the usual temperature is multiplied by. A step is the ratio of the two latents' sizes."""


@dataclass(frozen=True)
class AblationOptions(Options):
    """Options of the ablations."""

    output_dir: Path = Path("outputs/ablations")
    worlds: tuple[str, ...] = (WORLD, SMALL)
    num_seeds: int = 3


def method_name(loss: str, ablation: str, way: str) -> str:
    """The name of what is trained."""
    return f"{loss}, {ablation} {way}" if SETTINGS[ablation][way] else loss


METHODS = {
    method_name(loss, ablation, way): Method(settings | changed, None, (0,), COLORS[loss], worlds=(WORLD,))
    for loss, settings in LOSSES.items()
    for ablation, ways in SETTINGS.items()
    for way, changed in ways.items()
} | {
    f"temperature, {world}": Method(
        {}, "temperature", tuple(scaled_temperature(numbers) * it for it in TIMES), COLORS[world], worlds=(world,)
    )
    for world, numbers in NUMBERS.items()
}


def runs_of(options: AblationOptions) -> list[Run]:
    """All of them, seed by seed, with what is not trained."""
    bases = [Run(world, BASE, seed=seed) for seed in range(options.num_seeds) for world in options.worlds]
    return bases + [
        method.run(world, name, value, LEARNING_RATE, seed=seed)
        for seed in range(options.num_seeds)
        for name, method in METHODS.items()
        for world in method.worlds
        if world in options.worlds
        for value in method.values
    ]


# --- what came out ---------------------------------------------------------------------------------------------------


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per setting and sampler, with what it changes in the score against the default: seed by seed."""
    rows = summarise(results)
    for row in rows:
        usual = next((loss for loss in LOSSES if row["method"].startswith(f"{loss}, ")), None)
        if usual is not None:
            changed, default = (results_of(results, row["world"], name) for name in (row["method"], usual))
            row["difference"] = difference(changed, default, row["sampler"], JUDGE)
    return rows


def find(rows: Sequence[dict[str, Any]], world: str, method: str, sampler: str) -> list[dict[str, Any]]:
    """The rows of a method, along its values."""
    found = [row for row in rows if (row["world"], row["method"], row["sampler"]) == (world, method, sampler)]
    return sorted(found, key=lambda row: float(row["value"]))


def tables(rows: Sequence[dict[str, Any]], options: AblationOptions) -> Iterator[str]:
    """In Markdown, one of each ablation and sampler."""
    for sampler in SAMPLERS:
        if WORLD in options.worlds:
            for ablation, ways in SETTINGS.items():
                named = [
                    (f"{loss} | {way}", row)
                    for loss in LOSSES
                    for way in ways
                    for row in find(rows, WORLD, method_name(loss, ablation, way), sampler)
                ]
                yield _table(f"{ablation}, {sampler}", f"loss | {ablation}", named)
        named = [
            (f"{NUMBERS[world]} | {row['value']:.3g} (x {row['value'] / scaled_temperature(NUMBERS[world]):g})", row)
            for world in options.worlds
            for row in find(rows, world, f"temperature, {world}", sampler)
        ]
        named += [
            (f"{NUMBERS[world]} | base", row) for world in options.worlds for row in find(rows, world, BASE, sampler)
        ]
        yield _table(f"temperature, {sampler}", "numbers of a latent | temperature", named)


def _table(title: str, head: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    names = [JUDGE, "legible", "variety", "frechet", "drift"]
    heads = [head, *names, *(["score less the default's"] if any("difference" in row for _, row in rows) else [])]
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for label, row in rows:
        cells = [
            show(*row["measured"][name], name in ("legible", "variety")) if name in row["measured"] else ""
            for name in names
        ]
        if len(heads) > 1 + len(names):
            cells.append(show(*row["difference"], False) if "difference" in row else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], sampler: str, path: Path) -> None:
    """Score above distance, of every setting of each ablation and along the temperature."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    widths = [*(len(ways) for ways in SETTINGS.values()), len(TIMES)]
    axes = figure.subplots(2, len(widths), sharey="row", width_ratios=widths)
    for panels, measured, title in zip(axes, (JUDGE, "frechet"), (f"score, {JUDGE}", "Fréchet distance"), strict=True):
        for panel, (ablation, ways) in zip(panels, SETTINGS.items(), strict=False):
            for shift, loss in zip((-0.12, 0.12), LOSSES, strict=False):
                points = [find(rows, WORLD, method_name(loss, ablation, way), sampler) for way in ways]
                values = np.array([row["measured"][measured] for found in points for row in found])
                if len(values):
                    panel.errorbar(np.arange(len(ways)) + shift, values[:, 0], values[:, 1], fmt="o", markersize=4,
                                   color=COLORS[loss], label=loss)  # fmt: skip
            panel.set_xticks(range(len(ways)), list(ways), rotation=40 if len(ways) > 4 else 0, fontsize=8)
            panel.set_xlabel(ablation, fontsize=9)
        panel = panels[-1]
        for world, numbers in NUMBERS.items():
            found = find(rows, world, f"temperature, {world}", sampler)
            if found:
                values = np.array([row["measured"][measured] for row in found])
                panel.errorbar([row["value"] for row in found], values[:, 0], values[:, 1], marker="o", markersize=4,
                               color=COLORS[world], label=f"{numbers} numbers, the paper's loss")  # fmt: skip
                panel.axvline(scaled_temperature(numbers), color=COLORS[world], linewidth=0.8, linestyle="--")
        panel.set(xscale="log")
        panel.set_xlabel("temperature (dashed: the default)", fontsize=9)
        panels[0].set_ylabel(title, fontsize=9)
        if measured == "frechet":
            panels[0].set_yscale("log")
            panels[0].set_yticks(DISTANCES, labels=map(str, DISTANCES))
            panels[0].set_yticks([], minor=True)
    for panel in axes.flat:
        panel.tick_params(labelsize=8)
    handles, names = (a + b for a, b in zip(*(axes[0, i].get_legend_handles_labels() for i in (0, -1)), strict=True))
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=len(names), frameon=False)
    save_figure(figure, path, 110)


def prepare_small(options: AblationOptions) -> None:
    """Pre-trains the base of the small latents."""
    folder = world_of(SMALL, options).base
    if folder.exists():
        return
    is_quick = options.num_updates < Options.num_updates
    pipeline = pretrain(*((20, 20) if is_quick else (2000, 3000)), seed=0, wrong_rate=0.0, latent_size=2)
    unfinished = folder.with_name("unfinished_base")
    pipeline.save_pretrained(unfinished)
    unfinished.rename(folder)


def main(options: AblationOptions) -> list[dict[str, Any]]:
    """Runs what is missing, and writes tables, figures and pictures."""
    start = time.perf_counter()
    check_folder(options, METHODS)
    if SMALL in options.worlds:
        prepare_small(options)
    for world in options.worlds:
        prepare(world, options)
    rows = rows_of(measure_all(runs_of(options), options, "Ablations"))
    pictures = {sampler: f"ablations_{sampler}.png" for sampler in SAMPLERS}
    for sampler, picture in pictures.items():
        plot(rows, sampler, options.output_dir / picture)
    write_tables(rows, [*tables(rows, options)], options.output_dir, [*pictures.values()])
    print(f"took {(time.perf_counter() - start) / 60:.0f} minutes; runs of an earlier start are not made again")
    return rows


if __name__ == "__main__":
    main(parse_options(__doc__.splitlines()[0], AblationOptions()))

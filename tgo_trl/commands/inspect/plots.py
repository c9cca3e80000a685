"""Pictures of an inspection, as PNG with matplotlib: thresholds, weights, and the baselines of prompts."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from ...labels.thresholds import prompt_baseline
from ...plots import NEGATIVE, POSITIVE, legend_below, save_figure
from .report import Report
from .rows import Rows
from .scores import ThresholdRow, WeightRow, distinct, training_weights

NEUTRAL = "#8c8c8c"
SHADES = ("#f1a340", "#b35806", "#000000", "#542788", "#8073ac")
MOST_BARS = 25
MOST_PROMPTS = 120
DOTS_PER_INCH = 110


def plot_report(rows: Rows, report: Report, folder: Path, beta: float) -> list[str]:
    """Plots what there are numbers for; returns the names of the pictures."""
    scores = torch.tensor(rows.scores, dtype=torch.float64)
    plot_thresholds(scores, report.thresholds, report.threshold, folder / "thresholds.png")
    names = ["thresholds.png"]
    if report.weights:
        are_signed = report.columns is not None
        plot_weights(scores, report.threshold, report.weights, folder / "weights.png", are_signed)
        names.append("weights.png")
    if report.prompts is not None:
        noun = "prompts" if report.num_tasks is None else "prompts with their sources"
        plot_baselines(scores, rows.tasks, report.threshold, beta, folder / "prompts.png", noun)
        names.append("prompts.png")
    return names


def plot_thresholds(scores: Tensor, rows: Sequence[ThresholdRow], threshold: float, path: Path) -> None:
    """Histogram of the scores, with thresholds and what they make positive.

    Args:
        scores: float64 `[N]`.
        rows: the thresholds.
        threshold: the one that colours the bars.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    values, counts = distinct(scores)
    sides = (scores < threshold, NEGATIVE, "negative"), (scores >= threshold, POSITIVE, "positive")
    if len(values) <= MOST_BARS and len(values) > 1:
        gap, span = (values[1:] - values[:-1]).min().item(), (values[-1] - values[0]).item()
        width = max(0.8 * gap, 0.02 * span)  # ties of a vote lie next to each other
        for mask, colour, name in sides:
            present = torch.isin(values, scores[mask])
            label = f"{name} ({int(mask.sum()):,})"
            axes.bar(values[present].numpy(), counts[present].numpy(), width, color=colour, alpha=0.55, label=label)
    else:
        edges = torch.linspace(scores.min().item(), scores.max().item() + 1e-12, 61, dtype=torch.float64).tolist()
        parts = [scores[mask].numpy() for mask, _, _ in sides]
        names = [f"{name} ({int(mask.sum()):,})" for mask, _, name in sides]
        axes.hist(parts, edges, stacked=True, color=[NEGATIVE, POSITIVE], alpha=0.55, label=names)
    _threshold_lines(axes, rows)
    if all(abs(threshold - row.threshold) > 1e-12 for row in rows):
        share = (scores >= threshold).double().mean().item()
        label = f"suggested: {threshold:.4g} ({100 * share:.0f} % positive)"
        axes.axvline(threshold, color="#d01c8b", linewidth=2.4, label=label)
    axes.set(xlabel="score", ylabel="rows", title="Scores and thresholds")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


def _threshold_lines(axes: Any, rows: Sequence[ThresholdRow]) -> None:
    """A line for each threshold; those that coincide are one line with all their names."""
    percentiles = [row.name for row in rows if row.name.startswith(("percentile", "median"))]
    shades = dict(zip(percentiles, SHADES, strict=False))  # none of several columns
    together: dict[float, list[ThresholdRow]] = {}
    for row in rows:
        together.setdefault(row.threshold, []).append(row)
    for threshold, same in together.items():
        names = [row.name for row in same]
        label = f"{', '.join(names)}: {threshold:.4g} ({100 * same[0].positive_share:.0f} % positive)"
        label = textwrap.fill(label, 40)  # or the legend leaves no room to the axes
        name = "median" if "median" in names else names[0]
        style = "-" if name == "median" else ":" if name in ("mean", "given") else "--"
        axes.axvline(threshold, color=shades.get(name, "#1b7837"), linestyle=style, linewidth=1.6, label=label)


def plot_weights(
    scores: Tensor, threshold: float, rows: Sequence[WeightRow], path: Path, are_signed: bool = False
) -> None:
    """The weights in order, for each normalisation and coefficient.

    Args:
        scores: float64 `[N]`.
        threshold: in score units.
        rows: the combinations.
        path: of the PNG.
        are_signed: whether the scores are those of several columns, in units already.
    """
    kinds = list(dict.fromkeys(row.normalization for row in rows))
    figure = Figure(figsize=(3.6 * len(kinds) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    share = torch.linspace(0, 100, len(scores)).numpy()
    for axes, kind in zip(panels, kinds, strict=True):
        of_kind = [row for row in rows if row.normalization == kind]
        for row, colour in zip(of_kind, ("#999999", "#41b6c4", "#225ea8", "#081d58"), strict=False):
            weights = training_weights(scores, threshold, row.coefficient, kind)
            assert weights is not None
            label = f"c = {row.coefficient:g}: {100 * row.effective_share:.0f} %"
            axes.plot(share, weights.sort().values.numpy(), color=colour, linewidth=1.8, label=label)
        title = "signed scores" if are_signed else f"score_normalization: {kind}"
        axes.set(yscale="log", xlabel="rows, by weight (%)", title=title)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", color="#e5e5e5")
        legend_below(axes, fontsize=9, title="effective rows")
    panels[0].set(ylabel="weight")
    save_figure(figure, path, DOTS_PER_INCH)


def plot_baselines(
    scores: Tensor, prompts: Sequence[str], threshold: float, beta: float, path: Path, noun: str = "prompts"
) -> None:
    """The scores of prompts with several images beside the prompt's baseline and the threshold for all.

    Args:
        scores: float64 `[N]`.
        prompts: `N` prompts.
        threshold: in score units.
        beta: of the baseline, in score units.
        path: of the PNG.
        noun: what the picture calls the prompts.
    """
    groups: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores.tolist(), strict=True):
        groups.setdefault(prompt, []).append(score)
    several = [torch.tensor(group, dtype=torch.float64) for group in groups.values() if len(group) > 1]
    pairs = [(prompt_baseline(group, torch.zeros(len(group), dtype=torch.int64), beta)[0].item(), group)
             for group in several]  # fmt: skip
    pairs.sort(key=lambda pair: pair[0])
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.4))
    baselines = [baseline for baseline, _ in pairs]
    edges = torch.linspace(scores.min().item(), scores.max().item() + 1e-12, 25, dtype=torch.float64).tolist()
    for values, colour, name in ((scores.tolist(), NEUTRAL, "scores"), (baselines, "#1b7837", "baselines of prompts")):
        weights = [100 / len(values)] * len(values)
        style = {"histtype": "step", "linewidth": 2} if colour != NEUTRAL else {"alpha": 0.55}
        left.hist(values, edges, weights=weights, orientation="horizontal", color=colour, label=name, **style)
    left.axhline(threshold, color="black", linestyle="--")
    left.set(xlabel="share (%)", ylabel="score", title="All prompts")
    shown = pairs if len(pairs) <= MOST_PROMPTS else [
        pairs[round(i * (len(pairs) - 1) / (MOST_PROMPTS - 1))] for i in range(MOST_PROMPTS)
    ]  # fmt: skip
    _dots(right, shown, threshold)
    count = f"{len(shown)} of {len(pairs):,}" if len(shown) < len(pairs) else f"{len(pairs)}"
    right.set(xlabel=f"{noun}, by baseline", title=f"Images of {count} {noun}")
    handles, labels = (a + b for a, b in zip(*(it.get_legend_handles_labels() for it in (left, right)), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


def _dots(axes: Any, shown: Sequence[tuple[float, Tensor]], threshold: float) -> None:
    places = torch.cat([torch.full((len(group),), float(i)) for i, (_, group) in enumerate(shown)])
    scores = torch.cat([group for _, group in shown])
    own = torch.cat([torch.full_like(group, baseline) for baseline, group in shown])
    kinds = (
        ((scores >= threshold) == (scores >= own), NEUTRAL, "same label"),
        ((scores < threshold) & (scores >= own), POSITIVE, "positive by its prompt's baseline only"),
        ((scores >= threshold) & (scores < own), NEGATIVE, "negative by its prompt's baseline only"),
    )
    for mask, colour, name in kinds:
        axes.scatter(places[mask].numpy(), scores[mask].numpy(), s=12, color=colour, linewidths=0, label=name)
    axes.step(
        range(len(shown)), [baseline for baseline, _ in shown], where="mid", color="#1b7837", label="prompt's baseline"
    )
    axes.axhline(threshold, color="black", linestyle="--", label="one threshold for all")

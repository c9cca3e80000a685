"""The comparison as tables: in the terminal, in Markdown and in LaTeX."""

import re
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from .report import Estimate, EvaluationReport, RewardResults

Cells = list[list[str]]
"""Rows of a table, the head first."""
Tell = Callable[[Estimate | None], str]
"""How a table tells of estimates."""

NOTHING = "-"
MOST_DECIMALS = 8
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def print_evaluation(report: EvaluationReport, written: Sequence[str]) -> None:
    """Prints a table for each reward, how sure they are, what was written, and what comes next."""
    console = Console(highlight=False, markup=False, emoji=False)  # a label may hold `[/x]`
    for name, results in report.overall.rewards.items():
        _print_table(console, name, score_table(report, results, with_wins=True))
    if report.overall.varieties:
        _print_table(console, "Variety of the samples of a prompt", variety_table(report))
    console.print(statement(report))
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True)  # to be copied
    console.print("Next: look at the grids. With more `--rewards` or `--models`, only what is missing is made.")


# ---- Tables ----


def score_table(report: EvaluationReport, results: RewardResults, with_wins: bool = False) -> Cells:
    """Mean and median of each model, and its difference, or its wins, from and against the baseline."""
    tell, signed = _numbers(results.means.values()), _numbers(results.means.values(), "+")
    head, rows = ["model", "mean", "median"], []
    for label in report.labels:
        rows.append([label, tell(results.means[label]), tell(results.medians[label])])
        if report.others and with_wins:
            rows[-1].append(_percent(results.win_rates[label].get(report.baseline)))
        elif report.others:
            rows[-1].append(signed(results.differences.get(label)))
    if report.others:
        head.append(f"wins against {report.baseline}" if with_wins else f"difference from {report.baseline}")
    return [head, *rows]


def win_table(report: EvaluationReport, results: RewardResults) -> Cells:
    """The win rate of each model against each other."""
    return [
        ["wins of", *(f"against {label}" for label in report.labels)],
        *(
            [label, *(_percent(results.win_rates[label].get(other)) for other in report.labels)]
            for label in report.labels
        ),
    ]


def category_table(report: EvaluationReport, reward: str) -> Cells:
    """The mean of each model in each category."""
    found = {name: it.rewards[reward].means for name, it in report.categories.items()}
    tell = _numbers(estimate for means in found.values() for estimate in means.values())
    counts = report.prompts["categories"]
    return [
        ["category", "prompts", *report.labels],
        *([name, f"{counts[name]:,}", *(tell(means[label]) for label in report.labels)]
          for name, means in found.items()),
    ]  # fmt: skip


def category_win_table(report: EvaluationReport, reward: str) -> Cells:
    """The win rate of each other model against the baseline in each category."""
    return [
        [f"wins against {report.baseline}", *report.others],
        *([name, *(_percent(it.rewards[reward].win_rates[label][report.baseline]) for label in report.others)]
          for name, it in report.categories.items()),
    ]  # fmt: skip


def variety_table(report: EvaluationReport) -> Cells:
    """Variety of each model, and as a share of the baseline's."""
    varieties, shares = report.overall.varieties, report.overall.relative_varieties
    tell = _numbers(varieties.values())
    head = ["model", "variety", f"share of {report.baseline}'s"]
    return [head, *([label, tell(varieties[label]), _percent(shares.get(label))] for label in report.labels)]


def model_table(report: EvaluationReport) -> Cells:
    """How each model was sampled."""
    rows = [["model", "pipeline", "adapter", "scale", "sampler", "precision", "size", "call"]]
    for label, settings in report.models.items():
        call = {**settings["family"], **settings["call"]}
        adapter = settings["adapter"]
        rows.append(
            [
                label,
                settings["model"],
                adapter or NOTHING,
                f"{settings.get('adapter_scale', 1):g}" if adapter else NOTHING,
                settings["scheduler"],
                settings["dtype"],
                f"{settings['width']} x {settings['height']}",
                ", ".join(f"{name} {value}" for name, value in call.items() if value is not None),
            ]
        )
    return rows


def statement(report: EvaluationReport) -> str:
    """What was compared and how sure the numbers are, in a few sentences."""
    prompts, count = report.prompts, report.num_images_per_prompt
    return (
        f"{prompts['number']:,} prompts of {prompts['source']}, {count} sample{'s' * (count > 1)} each, with the same "
        f"seeds for all models (seed {report.seed}). In brackets: 95 % intervals over prompts, percentiles of "
        f"{report.num_resamples:,} draws of them with replacement (bootstrap), paired by prompt; they say nothing of "
        "other training seeds. A win is a higher score of the sample with the same prompt and seed; ties count half."
    )


def versions(report: EvaluationReport) -> str:
    """The libraries that the samples were drawn with, in a sentence."""
    found = {f"{name} {number}" for it in report.models.values() for name, number in it["versions"].items()}
    return f"Drawn with {', '.join(sorted(found))}."


# ---- Documents ----


def as_markdown(report: EvaluationReport, pictures: Sequence[tuple[str, str]]) -> str:
    """All tables, and the pictures.

    Args:
        report: what was found.
        pictures: file beside the text, and caption, of each.
    """
    parts = ["# Evaluation", statement(report)]
    for name, record in report.rewards.items():
        results = report.overall.rewards[name]
        parts += [f"## {name}", _markdown(score_table(report, results))]
        parts += [_markdown(win_table(report, results))] if report.others else []
        parts += [_markdown(category_table(report, name))] if report.categories else []
        parts += [_markdown(category_win_table(report, name))] if report.categories and report.others else []
        parts += [f"Reward: {record['name']}, version {record['version']}, license {record['license']}."]
    if report.overall.varieties:
        explained = (
            "The mean distance between two samples of a prompt, as small pictures: the root mean square of the "
            "difference of their pixels, 0 to 1. What a model lacks here, a better score may have been bought with."
        )
        parts += ["## Variety", explained, _markdown(variety_table(report))]
    parts += ["## Pictures", *(f"![{caption}]({file})\n\n{caption}" for file, caption in pictures)]
    parts += ["## What was compared", _markdown(model_table(report)), versions(report)]
    return "\n\n".join(parts) + "\n"


def as_latex(report: EvaluationReport) -> str:
    r"""Tables for a paper that loads `booktabs`: means, medians and win rates by reward, and means by category.

    A model is a row; the best of a column is bold, with no word of whether the difference is more than chance.
    """
    labels, found = report.labels, report.overall.rewards
    columns = {name: _numbers(results.means.values()) for name, results in found.items()}
    tables = [
        _latex(labels, {name: [it.means[label] for label in labels] for name, it in found.items()}, columns,
               f"Mean reward. {statement(report)}"),
        _latex(labels, {name: [it.medians[label] for label in labels] for name, it in found.items()}, columns,
               "Median reward of the samples."),
    ]  # fmt: skip
    if report.others:
        rates = {name: [it.win_rates[label][report.baseline] for label in report.others] for name, it in found.items()}
        caption = f"Win rate against {report.baseline}, by reward. At 50 %, neither is better."
        tables.append(_latex(report.others, rates, dict.fromkeys(rates, _percent), caption))
    for name in report.rewards if report.categories else ():
        means = {category: [it.rewards[name].means[label] for label in labels]
                 for category, it in report.categories.items()}  # fmt: skip
        tell = _numbers(estimate for column in means.values() for estimate in column)
        tables.append(_latex(labels, means, dict.fromkeys(means, tell), f"Mean {name} by category of the prompts."))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


# ---- Parts ----


def _numbers(estimates: Iterable[Estimate], sign: str = "") -> Tell:
    """Tells of numbers with as many decimals as the narrowest interval has one digit after its first."""
    known = [estimate for estimate in estimates if estimate.interval is not None]
    widths = [it.interval[1] - it.interval[0] for it in known if it.interval and it.interval[1] > it.interval[0]]
    unit = min(widths, default=0.01) / 10
    decimals = next((digits for digits in range(MOST_DECIMALS) if 10.0**-digits <= unit), MOST_DECIMALS)

    def tell(estimate: Estimate | None) -> str:
        return _told(estimate, lambda value: f"{value:{sign}.{decimals}f}")

    return tell


def _percent(estimate: Estimate | None) -> str:
    return _told(estimate, lambda value: f"{100 * value:.1f}", " %")


def _told(estimate: Estimate | None, write: Callable[[float], str], unit: str = "") -> str:
    if estimate is None:
        return NOTHING
    text = write(estimate.value) + unit
    if estimate.interval is None:
        return text
    low, high = map(write, estimate.interval)
    return f"{text} [{low}, {high}]"


def _print_table(console: Console, title: str, cells: Cells) -> None:
    table = Table(*cells[0], title=title)
    for row in cells[1:]:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))  # in 80 letters
    console.print(table)


def _markdown(cells: Cells) -> str:
    lines = ["| " + " | ".join(_in_line(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def _latex(
    labels: Sequence[str], columns: dict[str, list[Estimate]], tell: dict[str, Tell], caption: str
) -> str:  # fmt: skip
    """A table of models by columns, the highest number of each bold, intervals small."""
    best = {name: max(estimate.value for estimate in column) for name, column in columns.items()}
    lines = [" & ".join(["", *map(_escaped, columns)]) + r" \\", r"\midrule"]
    for i, label in enumerate(labels):
        cells = [_escaped(label)]
        for name, column in columns.items():
            number, _, bounds = tell[name](column[i]).partition(" [")
            is_best = len(labels) > 1 and column[i].value == best[name]
            cell = f"\\textbf{{{_escaped(number)}}}" if is_best else _escaped(number)
            cells.append(cell + (f" {{\\scriptsize [{_escaped(bounds)}}}" if bounds else ""))
        lines.append(" & ".join(cells) + r" \\")
    body = "\n".join([r"\toprule", *lines, r"\bottomrule"])
    layout = "l" + "r" * len(columns)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(caption)}}}\n"
        f"\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in _in_line(text)).replace(" \\%", "\\,\\%")


def _in_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

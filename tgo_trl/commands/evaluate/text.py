"""The comparison as tables: in the terminal, in Markdown and in LaTeX."""

import re
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from .report import Estimate, EvaluationReport, Results

Cells = list[list[str]]
"""Rows of a table, the head first."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def print_evaluation(report: EvaluationReport, written: Sequence[str]) -> None:
    """Prints a table for each reward, how sure they are, what was written, and what comes next."""
    console = Console(highlight=False, markup=False, emoji=False)  # a label may hold `[/x]`
    for name in report.rewards:
        _print_table(console, f"{name}, {report.overall.num_prompts:,} prompts", reward_table(report, name))
    if report.overall.varieties:
        _print_table(console, "Variety of the samples of a prompt", variety_table(report))
    console.print(statement(report))
    for path in written:
        console.print(f"Written: {path}")
    console.print("Next: look at the grids. With more `--rewards` or `--models`, only what is missing is made.")


def reward_table(report: EvaluationReport, reward: str) -> Cells:
    """What a reward says of each model: mean, median, difference from the baseline, win rates against all others."""
    results, base = report.overall.rewards[reward], report.baseline
    head = ["model", "mean", "median", *([f"difference from {base}"] if report.others else []),
            *(f"wins against {label}" for label in report.labels if report.others)]  # fmt: skip
    rows = []
    for label in report.labels:
        row = [label, _number(results.means[label]), _number(results.medians[label])]
        if report.others:
            row.append(_number(results.differences.get(label), signed=True))
            row += [_percent(results.win_rates[label].get(other)) for other in report.labels]
        rows.append(row)
    return [head, *rows]


def variety_table(report: EvaluationReport) -> Cells:
    """Variety of each model, and as a share of the baseline's."""
    found = report.overall
    return [
        ["model", "variety", f"share of {report.baseline}'s"],
        *(
            [label, _number(found.varieties[label]), _percent(found.relative_varieties[label])]
            for label in report.labels
        ),
    ]


def category_table(report: EvaluationReport, reward: str) -> Cells:
    """The mean of each model in each category, and how often the others beat the baseline there."""

    def row(name: str, results: Results) -> list[str]:
        found = results.rewards[reward]
        return [
            name,
            f"{results.num_prompts:,}",
            *(_number(found.means[label]) for label in report.labels),
            *(_percent(found.win_rates[label][report.baseline]) for label in report.others),
        ]

    head = ["category", "prompts", *report.labels, *(f"{label} against {report.baseline}" for label in report.others)]
    rows = [row(name, results) for name, results in report.categories.items()]
    return [head, *rows, row("all", report.overall)]


def model_table(report: EvaluationReport) -> Cells:
    """How each model was sampled."""
    rows = [["model", "pipeline", "adapter", "scale", "sampler", "precision", "size", "call"]]
    for label, settings in report.models.items():
        call = {**settings["family"], **settings["call"]}
        rows.append([
            label,
            settings["model"],
            settings["adapter"] or "none",
            f"{settings.get('adapter_scale', 1):g}" if settings["adapter"] else "",
            settings["scheduler"],
            settings["dtype"],
            f"{settings['width']} x {settings['height']}",
            ", ".join(f"{name} {value}" for name, value in call.items() if value is not None),
        ])  # fmt: skip
    return rows


def statement(report: EvaluationReport) -> str:
    """What was compared and how sure the numbers are, in a few sentences."""
    prompts, count = report.prompts, report.num_images_per_prompt
    versions = sorted({f"{name} {number}" for it in report.models.values() for name, number in it["versions"].items()})
    return (
        f"{prompts['number']:,} prompts of {prompts['source']}, {count} sample{'s' * (count > 1)} each, with the same "
        f"seeds for all models (seed {report.seed}). In brackets: 95 % intervals, percentiles of "
        f"{report.num_resamples:,} draws of the prompts with replacement (bootstrap), paired by prompt; they say nothing "
        "of other training seeds. "
        "A win is a higher score of the sample with the same prompt and seed; ties count half. "
        f"Drawn with {', '.join(versions)}."
    )


def as_markdown(report: EvaluationReport, pictures: Sequence[tuple[str, str]]) -> str:
    """All tables, and the pictures.

    Args:
        report: what was found.
        pictures: file beside the text, and caption, of each.
    """
    parts = ["# Evaluation", statement(report)]
    for name, record in report.rewards.items():
        parts += [f"## {name}", _markdown(reward_table(report, name))]
        parts += [_markdown(category_table(report, name))] if report.categories else []
        parts += [f"Reward: {record['name']}, version {record['version']}, license {record['license']}."]
    if report.overall.varieties:
        explained = (
            "The mean distance between two samples of a prompt, as small pictures (root mean square of the difference "
            "of their pixels, 0 to 1). What a model loses here, a better score may have been bought with."
        )
        parts += ["## Variety", explained, _markdown(variety_table(report))]
    parts += ["## Pictures"] if pictures else []
    parts += [f"![{caption}]({file})\n\n{caption}" for file, caption in pictures]
    parts += ["## What was compared", _markdown(model_table(report))]
    return "\n\n".join(parts) + "\n"


def as_latex(report: EvaluationReport) -> str:
    r"""Tables for a paper that loads `booktabs`: means, medians and win rates by reward, and means by category.

    The best of a column is bold. What is compared with what stands in the captions.
    """
    rewards, base = list(report.rewards), report.baseline
    found = report.overall.rewards
    tables = [
        _latex(
            [["", *rewards], *([label, *(pick(name, label) for name in rewards)] for label in report.labels)],
            [[value(name, label) for name in rewards] for label in report.labels],
            caption,
        )
        for caption, pick, value in (
            (
                f"Mean reward. {statement(report)}",
                lambda name, label: _number(found[name].means[label]),
                lambda name, label: found[name].means[label].value,
            ),
            (
                "Median reward of the samples.",
                lambda name, label: _number(found[name].medians[label]),
                lambda name, label: found[name].medians[label].value,
            ),
        )
    ]
    if report.others:
        rates = [[found[name].win_rates[label][base] for name in rewards] for label in report.others]
        tables.append(
            _latex(
                [["", *rewards], *([it, *map(_percent, row)] for it, row in zip(report.others, rates, strict=True))],
                [[rate.value for rate in row] for row in rates],
                f"Win rate against {base}, by reward; 50 % is chance.",
            )
        )
    if report.categories:
        for name in rewards:
            rows = [[category, *(_number(it.rewards[name].means[label]) for label in report.labels)]
                    for category, it in report.categories.items()]  # fmt: skip
            tables.append(_latex([["", *report.labels], *rows], None, f"Mean {name} by category of the prompts."))
    return "% \\usepackage{booktabs}\n" + "\n".join(tables)


# ---- Parts ----


def _number(estimate: Estimate | None, signed: bool = False) -> str:
    """Four digits, as many as the interval's half says at most, and the interval."""
    if estimate is None:
        return "-"
    digits = _decimals(estimate)
    sign = "+" if signed else ""
    text = f"{estimate.value:{sign}.{digits}f}"
    if estimate.interval is None:
        return text
    low, high = (f"{end:{sign}.{digits}f}" for end in estimate.interval)
    return f"{text} [{low}, {high}]"


def _decimals(estimate: Estimate) -> int:
    """As many as show two digits of the interval's width, or four digits of the number."""
    low, high = estimate.interval or (0.0, 0.0)
    scale = (high - low) / 100 if high > low else abs(estimate.value) / 1000
    return next((digits for digits in range(7) if 10.0**-digits <= scale), 6) if scale else 3


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    text = f"{100 * estimate.value:.1f} %"
    if estimate.interval is None:
        return text
    return f"{text} [{100 * estimate.interval[0]:.1f}, {100 * estimate.interval[1]:.1f}]"


def _print_table(console: Console, title: str, cells: Cells) -> None:
    table = Table(*cells[0], title=title)
    for row in cells[1:]:
        table.add_row(*row)
    console.print(table)


def _markdown(cells: Cells) -> str:
    lines = ["| " + " | ".join(_in_line(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def _latex(cells: Cells, values: Sequence[Sequence[float]] | None, caption: str) -> str:
    """A table with the highest value of each column bold; none without `values`, of the cells but head and names."""
    best = [max(column) for column in zip(*values, strict=True)] if values and len(values) > 1 else []
    lines = [" & ".join(map(_escaped, cells[0])) + r" \\", r"\midrule"]
    for i, row in enumerate(cells[1:]):
        bold: Callable[[int], bool] = lambda j, i=i: bool(best) and values[i][j] == best[j]  # noqa: E731
        texts = [_escaped(cell) for cell in row]
        lines.append(" & ".join([texts[0], *(f"\\textbf{{{text}}}" if bold(j) else text
                                             for j, text in enumerate(texts[1:]))]) + r" \\")  # fmt: skip
    body = "\n".join([r"\toprule", *lines, r"\bottomrule"])
    layout = "l" + "r" * (len(cells[0]) - 1)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escaped(caption)}}}\n"
        f"\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in _in_line(text)).replace(" \\%", "\\,\\%")


def _in_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

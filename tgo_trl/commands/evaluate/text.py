"""The comparison as tables: in the terminal, in Markdown and in LaTeX."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from ...measures import FEW_PROMPTS, Estimate
from ...messages.markdown import markdown_table
from .report import EvaluationReport, RewardResults

Cells = list[list[str]]
"""Rows of a table, the head first."""
Tell = Callable[[Estimate | None], str]
"""How a table tells of estimates."""

NOTHING = "-"
MOST_DECIMALS, MOST_PLAIN = 8, 1e9
"""Beyond which numbers have an exponent."""
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "*": "{*}",  # the last two would belong to the `\\` of the row above
}  # fmt: skip


def print_evaluation(report: EvaluationReport, written: Sequence[str]) -> None:
    """Prints a table for each reward, how sure they are, and what was written."""
    console = Console(highlight=False, markup=False, emoji=False)  # a label may hold `[/x]`
    for name, results in report.overall.rewards.items():
        _print_table(console, name, score_table(report, results, with_wins=True))
    if report.overall.varieties:
        _print_table(console, "Variety of the samples of a prompt", variety_table(report))
    console.print(statement(report))
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True)  # to be copied


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
    head, rows = ["model", "variety"], [[label, tell(varieties[label])] for label in report.labels]
    if report.others:
        head.append(f"share of {report.baseline}'s")
        rows = [[*row, _percent(shares.get(row[0]))] for row in rows]
    return [head, *rows]


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
    few = f", and with fewer than {FEW_PROMPTS} prompts they are too narrow" if prompts["number"] < FEW_PROMPTS else ""
    return (
        f"{prompts['number']:,} prompts of {prompts['source']}, {count} sample{'s' * (count > 1)} each, with the same "
        f"seeds for all models (seed {report.seed}). In brackets: 95 % intervals over prompts, percentiles of "
        f"{report.num_resamples:,} draws of them with replacement (bootstrap), paired by prompt; they say nothing of "
        f"other training seeds{few}. A win is a higher score of the sample with the same prompt and seed; ties count "
        "half."
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

    A model is a row, or a column where categories are rows; the best model is bold, with no word of whether the
    difference is more than chance.
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
        means = {label: [it.rewards[name].means[label] for it in report.categories.values()] for label in labels}
        tell = dict.fromkeys(means, _numbers(estimate for column in means.values() for estimate in column))
        caption = f"Mean {name} by category of the prompts."
        tables.append(_latex(list(report.categories), means, tell, caption, compares_rows=False))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


# ---- Parts ----


def _numbers(estimates: Iterable[Estimate], sign: str = "") -> Tell:
    """Tells of numbers, one at least, with as many decimals as the narrowest interval has a digit after its first."""
    known = list(estimates)
    largest = max(abs(estimate.value) for estimate in known)
    widths = [it.interval[1] - it.interval[0] for it in known if it.interval and it.interval[1] > it.interval[0]]
    unit = min(widths, default=min(0.01, largest / 10 or 0.01)) / 10
    decimals = max(0, math.ceil(round(-math.log10(unit), 9)))
    form = f".{decimals}f" if decimals <= MOST_DECIMALS and largest < MOST_PLAIN else ".4g"

    def tell(estimate: Estimate | None) -> str:
        return NOTHING if estimate is None else estimate.text(lambda value: f"{value:{sign}{form}}")

    return tell


def _percent(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else estimate.percent()


def _print_table(console: Console, title: str, cells: Cells) -> None:
    table = Table(*cells[0], title=title)
    for row in cells[1:]:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))  # in 80 letters
    console.print(table)


def _markdown(cells: Cells) -> str:
    return markdown_table(cells[0], cells[1:])


def _latex(
    names: Sequence[str], columns: dict[str, list[Estimate]], tell: dict[str, Tell], caption: str,
    compares_rows: bool = True,
) -> str:  # fmt: skip
    """A table of named rows by columns, the highest number of each column, or of each row, bold, intervals small."""
    lines = [" & ".join(["", *map(_escaped, columns)]) + r" \\", r"\midrule"]
    for i, name in enumerate(names):
        cells = [_escaped(name)]
        for head, column in columns.items():
            number, _, bounds = tell[head](column[i]).partition(" [")
            rivals = column if compares_rows else [other[i] for other in columns.values()]
            is_best = len(rivals) > 1 and column[i].value == max(rival.value for rival in rivals)
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

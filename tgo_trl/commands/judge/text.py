"""The judge's report in words: in the terminal, and in Markdown."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...measures import FEW_PROMPTS
from ...messages.markdown import markdown_table
from .agreements import OUTCOMES, Agreement
from .report import JudgeReport, PairResult
from .verdicts import CUT, FAILED, REFUSED, UNREADABLE

HEAD = ("model", "against", "win", "tie", "loss", "win rate", "comparisons", "prompts")


def print_judgement(report: JudgeReport, written: Sequence[str], next_step: str) -> None:
    """Prints the results, how far to trust them, what was written, and what comes next."""
    console = Console(highlight=False, markup=False, emoji=False)  # a path or a name may hold `[/x]`
    table = Table("", "win", "tie", "loss", "win rate (95 %)", "number", title=f"Judged by {report.judge}")
    for pair in report.pairs:
        table.add_row(f"{pair.first} against {pair.second}", *_short_cells(pair), end_section=not pair.categories)
        for i, (category, result) in enumerate(pair.categories.items(), 1):
            table.add_row(f"  {category}", *_short_cells(result), end_section=i == len(pair.categories))
    console.print(table)
    for line in remarks(report):
        console.print(line)
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True)  # to be copied
    console.print(next_step)


def markdown(report: JudgeReport, pictures: Sequence[str]) -> str:
    """The report as a page.

    Args:
        report: what was found.
        pictures: their paths, relative to the page.
    """
    lines = [f"# Images judged by {report.judge}", ""]
    for picture in pictures:
        lines += [f"![Wins, ties and losses]({picture})", ""]
    lines += [markdown_table(HEAD, [_cells(pair) for pair in report.pairs]), ""]
    for pair in report.pairs:
        if pair.categories:
            rows = [_cells(result, category)[:1] + _cells(result)[2:] for category, result in pair.categories.items()]
            lines += [f"## {pair.first} against {pair.second}, by category", ""]
            lines += [markdown_table(("category", *HEAD[2:]), rows), ""]
    lines += ["## How far to trust this", "", *(f"- {line}" for line in remarks(report)), ""]
    for agreement in report.agreements:
        lines += [f"## Agreement with {agreement.name}", "", _confusion(agreement), ""]
    return "\n".join(lines)


def remarks(report: JudgeReport) -> list[str]:
    """What to know beside the table, a sentence or two each."""
    lines = [
        "95 % intervals are over prompts drawn anew (bootstrap). The win rate is wins and half of the ties."
        + (f" With fewer than {FEW_PROMPTS} prompts they are too narrow." if _num_prompts(report) < FEW_PROMPTS else "")
    ]
    if report.shown_first is not None:
        lines.append(f"Of the verdicts that are no ties, {report.shown_first.percent()} are for the image shown first.")
    if report.inconsistent is not None:
        lines.append(
            f"Shown in both orders, {report.inconsistent.percent()} of the comparisons got different verdicts, and "
            "count as ties."
        )
    gaps = {
        UNREADABLE: "the reply has no one verdict",
        CUT: "it ended before one, for want of `max_tokens`",
        REFUSED: "the server refused",
        FAILED: "no attempt got an answer",
    }
    parts = [f"{report.num_missing(why):,} where {text}" for why, text in gaps.items() if report.num_missing(why)]
    if parts:
        lines.append(f"Left out are comparisons without a verdict: {', '.join(parts)}.")
    elsewhere = [f"{count:,} from {host}" for host, count in report.hosts.items() if host != report.host]
    if elsewhere:
        lines.append(
            f"Of the answers, {' and '.join(elsewhere)}, which an earlier run asked, are taken to be of the same "
            f"{report.judge}."
        )
    for agreement in report.agreements:
        kappa = "" if agreement.kappa is None else f", Cohen's kappa {agreement.kappa:.2f}"
        passed_over = f"; {agreement.num_unmatched:,} more are on nothing here" if agreement.num_unmatched else ""
        lines.append(
            f"Of {agreement.num_verdicts:,} verdicts of {agreement.name}, {100 * agreement.share:.1f} % are the same"
            f"{kappa}{passed_over}."
        )
    cost = "" if report.cost is None else f", which cost {report.cost:.4g} at the prices set"
    uncounted = f"; {report.num_uncounted:,} answers were not counted" if report.num_uncounted else ""
    lines.append(
        f"The server counts {report.prompt_tokens:,} tokens of prompts and {report.completion_tokens:,} of answers"
        f"{cost}{uncounted}."
    )
    return lines


def _num_prompts(report: JudgeReport) -> int:
    return min(pair.num_prompts for pair in report.pairs)


def _short_cells(pair: PairResult) -> list[str]:
    """For the width of a terminal."""
    shares = [f"{100 * share.value:.1f} %" for share in (pair.wins, pair.ties, pair.losses)]
    return [*shares, pair.win_rate.percent().replace(" [", "\n["), f"{pair.num_comparisons:,}"]


def _cells(pair: PairResult, name: str | None = None) -> list[str]:
    shares = [share.percent() for share in (pair.wins, pair.ties, pair.losses, pair.win_rate)]
    names = [pair.first, pair.second] if name is None else [name, ""]
    return [*names, *shares, f"{pair.num_comparisons:,}", f"{pair.num_prompts:,}"]


def _confusion(agreement: Agreement) -> str:
    rows = [[f"**{name}**", *map(str, counts)] for name, counts in zip(OUTCOMES, agreement.confusion, strict=True)]
    return markdown_table(("the judge \\ the others", *OUTCOMES), rows)

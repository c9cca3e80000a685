"""The table of rounds, in the terminal and in the model card."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...messages.markdown import markdown_table
from .report import Round, RoundsReport

NOTHING = "-"


def print_rounds(report: RoundsReport, written: Sequence[str]) -> None:
    """Prints the table, what is kept and why, what was written, and what comes next."""
    console = Console(highlight=False, markup=False, emoji=False)  # a reward's name may hold `[/x]`
    head, *rows = _cells(report)
    table = Table(title=f"Rounds on {report.model}")
    for name in head[:-1]:
        table.add_column(name.replace("threshold", "thresh-\nold"), overflow="fold")  # in 80 letters
    for *cells, note in rows:
        table.add_row(*(cell.replace(" [", "\n[") for cell in cells), style="bold" if note else None)
    console.print(table)
    console.print(report.reason)
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True)  # to be copied
    console.print(
        "Next: load the adapter as its card says, or compare it with others (tgo-trl evaluate) and find how strongly "
        "to apply it (tgo-trl strength). With more `--num_rounds`, the same command goes on."
    )


def print_round(entry: Round, num_rounds: int) -> None:
    """Prints a line of what was measured of a round's policy, beside the base."""
    found = entry.measurement
    assert found is not None
    parts = [
        f"{name} {_number(value.value)} (base {_number(found.base_rewards[name].value)})"
        for name, value in found.rewards.items()
    ]
    parts += [f"variety {_number(found.variety)}", f"drift {_number(max(found.drift))}"]
    print(f"round {entry.number}/{num_rounds}  {'  '.join(parts)}", flush=True)


def card_section(report: RoundsReport, picture: str) -> str:
    """The section of the model card, in Markdown.

    Args:
        report: of all rounds.
        picture: its path, relative to the card.
    """
    head, *rows = _cells(report)
    of_each = "the policy before it" if report.reference == "previous" else "the base"
    measured = report.rounds[-1].measurement is not None
    return "\n".join(
        [
            "## Rounds",
            "",
            f"This adapter was trained in {_count(report.kept, 'round')} of drawing, scoring and training; the other "
            f"sections of this card are of the last of them. Each round drew samples from the policy of the one before "
            f"(the first: from the base), fitted its threshold to their scores, and trained that policy further, with "
            f"{of_each} as the reference. {report.reason}",
            "",
            f"![What was drawn and measured, over rounds]({picture})",
            "",
            markdown_table(head, rows),
            "",
            "Score is the mean of what the round trained on, drawn by the policy before it, and what the threshold was "
            "fitted to.",
            *(
                [
                    "Rewards, variety and drift are of the policy after the round, on the same prompts and seeds "
                    "every time; in brackets, the 95 % interval of the mean over prompts (bootstrap). Variety is the "
                    "mean distance between two samples of a prompt; drift is the error in denoising samples of the "
                    "base, in the worst quartile of the time; the base has 1 in both.",
                ]
                if measured
                else []
            ),
        ]
    )


def _cells(report: RoundsReport) -> list[list[str]]:
    """The rows of the table, the head first, then the base if it was measured."""
    first = report.rounds[0].measurement
    names = [] if first is None else list(first.rewards)
    measured = [] if first is None else [*names, "variety", "drift"]
    rows = [["round", "score", "threshold", *measured, ""]]
    if first is not None:
        rewards = [first.base_rewards[name].text(_number) for name in names]
        rows.append(["base", *[NOTHING] * 2, *rewards, "1", "1", ""])
    return rows + [_row(entry, names, entry.number == report.kept) for entry in report.rounds]


def _row(entry: Round, names: Sequence[str], is_kept: bool) -> list[str]:
    cells = [str(entry.number), _number(entry.score), _number(entry.threshold)]
    if entry.measurement is not None:
        found = entry.measurement
        cells += [
            *(found.rewards[name].text(_number) for name in names),
            _number(found.variety),
            _number(max(found.drift)),
        ]
    return [*cells, "kept" if is_kept else ""]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""What others say of the same comparisons: a second judge, or people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.columns import check_columns, column_names
from ...measures import agreement, cohens_kappa
from ...messages.public import public_name
from ...messages.values import shown
from ...storage.sources import open_dataset
from .config import TIE
from .questions import FIRST, SECOND
from .samples import Comparison
from .verdicts import Verdict

VERDICTS_NAME = "verdicts.jsonl"
OUTCOMES = (FIRST, TIE, SECOND)


@dataclass(frozen=True)
class Others:
    """Verdicts of another judge, or of people, who may be several and disagree.

    Attributes:
        name: where they are from.
        of: for each comparison, by prompt, sample and places of the models, `"first"`, `"second"` or `"tie"`.
        num_unmatched: verdicts on what is not compared here.
    """

    name: str
    of: dict[tuple[str, int, int, int], list[str]]
    num_unmatched: int


@dataclass(frozen=True)
class Agreement:
    """How far the judge agrees with others.

    Attributes:
        name: of the others.
        num_verdicts: of theirs, on what the judge has a verdict on too.
        share: of them that are the same.
        kappa: Cohen's; None where both always say one and the same.
        confusion: how often the judge said what (rows) where the others said what (columns): first, tie, second, of the
            two models.
        num_unmatched: verdicts of theirs on what was not compared.
    """

    name: str
    num_verdicts: int
    share: float
    kappa: float | None
    confusion: list[list[int]]
    num_unmatched: int


def read_others(source: str, names: Sequence[str], comparisons: Sequence[Comparison]) -> Others:
    """The verdicts of others on some of the comparisons.

    Args:
        source: the output folder of another judge, or a table with the columns `prompt` and `winner`, the name of a
            model or `tie`; `sample_index`, if prompts have several; and `first` and `second`, the names of the models,
            both or, of two models, neither. Rows without a winner are passed over.
        names: of the models.
        comparisons: all that are made.

    Raises:
        ValueError: if a column is missing or a winner cannot be, naming the row, or none is of any comparison.
    """
    path = Path(source, VERDICTS_NAME) if Path(source).is_dir() else Path(source)
    dataset = open_dataset(str(path))
    columns = column_names(dataset)
    pair = ["first", "second"] if len(names) > 2 or {"first", "second"} & {*columns} else []
    wanted = ["prompt", "winner", *pair]
    check_columns(
        f"`agreement_with` {public_name(source)!r}", columns, wanted, "Rename columns, or name another table."
    )
    known = set(map(_key, comparisons))
    if "sample_index" not in columns and len({(c.prompt, c.first, c.second) for c in comparisons}) < len(comparisons):
        raise ValueError(
            f"`agreement_with` {public_name(source)!r} has no column 'sample_index', and prompts have several."
        )
    samples = {comparison.prompt: comparison.sample_index for comparison in comparisons}
    found: dict[tuple[str, int, int, int], list[str]] = {}
    num_unmatched = 0
    keep = [name for name in ("prompt", "sample_index", "first", "second", "winner") if name in columns]
    for row, example in enumerate(dataset.select_columns(keep)):
        if example["winner"] is None or example["winner"] == "":
            continue
        places = _places(example, names, f"Row {row} of `agreement_with` {public_name(source)!r}")
        sample = example.get("sample_index", samples.get(example["prompt"]))
        for key, outcome in _outcomes(example["prompt"], sample, *places):
            if key in known:
                found.setdefault(key, []).append(outcome)
                break
        else:
            num_unmatched += 1
    if not found:
        raise ValueError(
            f"None of the {num_unmatched:,} verdicts in {public_name(source)!r} is of a prompt, a sample and two "
            "models that are compared here. Look at the names of the models, and at the prompts."
        )
    return Others(public_name(source), found, num_unmatched)


def agree(verdicts: Sequence[Verdict], others: Others) -> Agreement | None:
    """How far the judge agrees with others; None if it has no verdict on what they have."""
    ours: list[str] = []
    theirs: list[str] = []
    for verdict in verdicts:
        if verdict.winner is not None:
            given = others.of.get(_key(verdict.comparison), [])
            ours += [verdict.winner] * len(given)
            theirs += given
    if not ours:
        return None
    pairs = list(zip(ours, theirs, strict=True))
    confusion = [[pairs.count((a, b)) for b in OUTCOMES] for a in OUTCOMES]
    share, kappa = agreement(ours, theirs), cohens_kappa(ours, theirs)
    return Agreement(others.name, len(ours), share, kappa, confusion, others.num_unmatched)


def _key(comparison: Comparison) -> tuple[str, int, int, int]:
    return comparison.prompt, comparison.sample_index, comparison.first, comparison.second


def _places(example: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[int, int, str]:
    """Places of the two models, and the winner's name."""
    first, second = example.get("first", names[0]), example.get("second", names[1])
    winner = str(example["winner"])
    for name in (first, second):
        if name not in names:
            raise ValueError(f"{where} names the model {shown(name)}; there are {', '.join(map(repr, names))}.")
    if winner not in (first, second, TIE):
        raise ValueError(f"{where} has the winner {shown(winner)}; it must be {first!r}, {second!r} or {TIE!r}.")
    return names.index(first), names.index(second), TIE if winner == TIE else FIRST if winner == first else SECOND


def _outcomes(
    prompt: Any, sample: Any, first: int, second: int, winner: str
) -> Iterator[tuple[tuple[Any, Any, int, int], str]]:
    """A verdict, as it is and with its models the other way round."""
    yield (prompt, sample, first, second), winner
    yield (prompt, sample, second, first), {FIRST: SECOND, SECOND: FIRST}.get(winner, winner)

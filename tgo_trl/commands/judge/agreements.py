"""What others say of the same comparisons: a second judge, or people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...data.columns import check_columns, column_names, undecoded
from ...measures import agreement, cohens_kappa
from ...media.origin import named_origin
from ...messages.public import public_name
from ...messages.values import shown
from ...storage.sources import open_dataset
from .config import TIE
from .questions import FIRST, SECOND
from .samples import Comparison, Subject, digests_of
from .verdicts import Verdict

VERDICTS_NAME = "verdicts.jsonl"
OUTCOMES = (FIRST, TIE, SECOND)
SOURCES = "sources"
"""Of verdicts on edits: the digests of what they were made from."""

Key: TypeAlias = tuple[Subject, int, int, int]


@dataclass(frozen=True)
class Others:
    """Verdicts of another judge, or of people, who may be several and disagree.

    Attributes:
        name: where they are from.
        of: for each comparison, by subject, sample and places of the models, `"first"`, `"second"` or `"tie"`.
        num_unmatched: verdicts on what is not compared here.
    """

    name: str
    of: dict[Key, list[str]]
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


def read_others(
    source: str, names: Sequence[str], comparisons: Sequence[Comparison], source_column: str = "source_image"
) -> Others:
    """The verdicts of others on some of the comparisons.

    Args:
        source: the output folder of another judge, or a table with the columns `prompt` and `winner`, the name of a
            model or `tie`; `sample_index`, if prompts have several; and `first` and `second`, the names of the models,
            both or, of two models, neither; and, if prompts have several source images, `source_column`. Rows without a
            winner are passed over.
        names: of the models.
        comparisons: all that are made.
        source_column: of what images were made from, files or lists of them.

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
    has_digests = path.name == VERDICTS_NAME  # of another judge
    of_sources: str | None = SOURCES if has_digests else source_column
    if of_sources not in columns or not any(comparison.subject.sources for comparison in comparisons):
        of_sources = None
    find_subject = _subjects(source, comparisons, of_sources, has_digests)
    if "sample_index" not in columns and len({(c.subject, c.first, c.second) for c in comparisons}) < len(comparisons):
        raise ValueError(
            f"`agreement_with` {public_name(source)!r} has no column 'sample_index', and prompts have several."
        )
    samples = {comparison.subject: comparison.sample_index for comparison in comparisons}
    found: dict[Key, list[str]] = {}
    num_unmatched = 0
    keep = [name for name in ("prompt", "sample_index", "first", "second", "winner", of_sources) if name in columns]
    for row, example in enumerate(undecoded(dataset, *keep)):
        if example["winner"] is None or example["winner"] == "":
            continue
        where = f"Row {row} of `agreement_with` {public_name(source)!r}"
        places, subject = _places(example, names, where), find_subject(example, where)
        for key, outcome in _outcomes(subject, example.get("sample_index", samples.get(subject)), *places):
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


def _key(comparison: Comparison) -> Key:
    return comparison.subject, comparison.sample_index, comparison.first, comparison.second


def _subjects(
    source: str, comparisons: Sequence[Comparison], column: str | None, has_digests: bool
) -> Callable[[Mapping[str, Any], str], Subject]:
    """What finds the subject of a row.

    Args:
        source: of the rows.
        comparisons: all that are made.
        column: of source images; None if prompts alone tell subjects apart.
        has_digests: whether it holds digests of them.

    Raises:
        ValueError: if they do not.
    """
    subjects = dict.fromkeys(comparison.subject for comparison in comparisons)
    of_prompt = {subject.prompt: subject for subject in subjects}
    if column is None and len(of_prompt) < len(subjects):
        raise ValueError(
            f"`agreement_with` {public_name(source)!r} has no column of what images were made from, and prompts have "
            "several. Add `source_image`, the path of a file."
        )
    origin = named_origin(source)

    def find(row: Mapping[str, Any], where: str) -> Subject:
        prompt, cell = str(row["prompt"]), None if column is None else row[column]
        if column is None or not cell:
            return of_prompt.get(prompt, Subject(prompt))
        try:
            return Subject(prompt, tuple(cell) if has_digests else digests_of(cell, origin))
        except ValueError as error:
            raise ValueError(f"{where}, column {column!r}: {error}.") from error

    return find


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
    subject: Subject, sample: Any, first: int, second: int, winner: str
) -> Iterator[tuple[tuple[Subject, Any, int, int], str]]:
    """A verdict, as it is and with its models the other way round."""
    yield (subject, sample, first, second), winner
    yield (subject, sample, second, first), {FIRST: SECOND, SECOND: FIRST}.get(winner, winner)

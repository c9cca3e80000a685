"""What the judge found: wins, ties and losses of each pair of models, and how far to trust the judge."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ...measures import Estimate, ratio
from ...messages.public import public_name
from .agreements import Agreement
from .config import TIE, JudgeConfig
from .costs import Usage
from .questions import FIRST, SECOND
from .samples import Subject
from .verdicts import REASONS, Verdict


@dataclass(frozen=True)
class PairResult:
    """How one model did against another.

    Attributes:
        first, second: names of the models.
        num_comparisons, num_prompts: with a verdict; the same prompt for other source images is another.
        num_wins, num_ties, num_losses: of the first model.
        wins, ties, losses: shares of the verdicts.
        win_rate: wins and half of the ties.
        num_missing: comparisons without a verdict, by reason.
        num_inconsistent: ties because the two orders gave different verdicts.
        categories: results within each category, by name; of these no categories.
    """

    first: str
    second: str
    num_comparisons: int
    num_prompts: int
    num_wins: int
    num_ties: int
    num_losses: int
    wins: Estimate
    ties: Estimate
    losses: Estimate
    win_rate: Estimate
    num_missing: dict[str, int]
    num_inconsistent: int
    categories: dict[str, "PairResult"] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeReport:
    """All that was found; written as JSON.

    Attributes:
        judge: name of the model that judged.
        models: names of those that are compared.
        order: of images, as set.
        pairs: results, one for each two models that are compared.
        shown_first: of the verdicts that are no ties, the share for the image that was shown first. Half, if the order
            does not sway the judge, and the order is random or both. None without such verdicts.
        inconsistent: of the comparisons in both orders, the share with different verdicts; None of a random order.
        prompt_tokens, completion_tokens: of all answers, as the server counts them.
        num_uncounted: answers whose tokens it did not count.
        cost: by the prices that are set; None if none is.
        agreements: with other judges, and with people.
        host: of the server, as set.
        hosts: of the servers that gave the answers, with the number of each: an earlier run may have asked another one
            that has a model of this name.
    """

    judge: str
    models: list[str]
    order: str
    pairs: list[PairResult]
    shown_first: Estimate | None
    inconsistent: Estimate | None
    prompt_tokens: int
    completion_tokens: int
    num_uncounted: int
    cost: float | None
    agreements: list[Agreement]
    host: str
    hosts: dict[str, int]

    def num_missing(self, reason: str) -> int:
        """Comparisons without a verdict, for a reason."""
        return sum(pair.num_missing[reason] for pair in self.pairs)


def build_report(
    verdicts: Sequence[Verdict], config: JudgeConfig, usage: Usage, agreements: Sequence[Agreement],
    hosts: Mapping[str | None, int],
) -> JudgeReport:  # fmt: skip
    """The report on all verdicts; `hosts` has the number of answers of each, of None those of unknown ones, or none.

    Raises:
        ValueError: if a pair of models has none.
    """
    names = config.model_names()
    pairs = []
    for first, second in config.model_pairs():
        own = [v for v in verdicts if (v.comparison.first, v.comparison.second) == (first, second)]
        result = _pair_result(own, names[first], names[second])
        by_category: dict[str, list[Verdict]] = {}
        for verdict in own:
            if verdict.comparison.category is not None and verdict.winner is not None:
                by_category.setdefault(verdict.comparison.category, []).append(verdict)
        for category, within in by_category.items():
            result.categories[category] = _pair_result(within, names[first], names[second])
        pairs.append(result)
    judged = [verdict for verdict in verdicts if verdict.winner is not None]
    in_both = config.order == "both"
    return JudgeReport(
        judge=public_name(config.model),
        models=names,
        order=config.order,
        pairs=pairs,
        shown_first=_share(verdicts, lambda v: v.num_first, lambda v: v.num_decided),
        inconsistent=_share(judged, lambda v: v.is_inconsistent) if in_both else None,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        num_uncounted=usage.num_uncounted,
        cost=usage.cost,
        agreements=list(agreements),
        host=config.host,
        hosts={host: hosts[host] for host in sorted(filter(None, hosts))},
    )


def _pair_result(verdicts: Sequence[Verdict], first: str, second: str) -> PairResult:
    judged = [verdict for verdict in verdicts if verdict.winner is not None]
    if not judged:
        reply = next((found.reply for verdict in verdicts for found in verdict.readings if found.reply), "")
        raise ValueError(
            f"There is no verdict on {first!r} against {second!r}. The first reply is {reply[:200]!r}: name another "
            "`model`, or raise `max_tokens`."
        )
    wins, ties, losses, win_rate = (
        _certain_share(judged, lambda v, worth=worth: worth.get(v.winner, 0.0))  # type: ignore[misc]
        for worth in ({FIRST: 1.0}, {TIE: 1.0}, {SECOND: 1.0}, {FIRST: 1.0, TIE: 0.5})
    )
    winners = [verdict.winner for verdict in judged]
    return PairResult(
        first, second, len(judged), len({verdict.comparison.subject for verdict in judged}),
        winners.count(FIRST), winners.count(TIE), winners.count(SECOND), wins, ties, losses, win_rate,
        {why: sum(verdict.missing == why for verdict in verdicts) for why in REASONS},
        sum(verdict.is_inconsistent for verdict in judged),
    )  # fmt: skip


def _certain_share(verdicts: Iterable[Verdict], worth: Callable[[Verdict], float]) -> Estimate:
    share = _share(verdicts, worth)
    assert share is not None
    return share


def _share(
    verdicts: Iterable[Verdict], worth: Callable[[Verdict], float], number: Callable[[Verdict], int] = lambda v: 1
) -> Estimate | None:
    """The sum of `worth` over that of `number`; None if there is nothing."""
    sums: dict[Subject, list[float]] = {}
    for verdict in verdicts:
        if number(verdict):
            of_prompt = sums.setdefault(verdict.comparison.subject, [0.0, 0.0])
            of_prompt[0] += worth(verdict)
            of_prompt[1] += number(verdict)
    if not sums:
        return None
    above, below = torch.tensor(list(sums.values()), dtype=torch.float64).unbind(1)
    return ratio(above, below)

"""The card of a data set whose scores were converted from what people said."""

from typing import Any

from ...cards.dataset_card import card_head, dataset_info
from ...storage.parquet import ParquetFolder
from ...storage.records import CONVERSION_NAME, read_record
from .scores import ScoreRule

SCORES = {
    "wins": "how often the image was preferred; a tie is no win",
    "win_rate": "the share of its comparisons that the image won",
    "smoothed_win_rate": "(wins + {prior:g}) / (comparisons + {twice:g})",
    "mean": "the mean of the image's ratings",
    "bayesian": "the mean of the image's ratings and {prior:g} more of {prior_mean:.4g}, the mean of all ratings",
}
MANY_JUDGES = {
    "votes": {
        "wins": "the number of votes that the image got in all of its pairs; it grows with the number that was cast",
        "win_rate": "the share of the votes in its pairs that the image got; each vote counts the same",
        "smoothed_win_rate": "(votes for the image + {prior:g}) / (votes in its pairs + {twice:g})",
    },
    "shares": {
        "wins": "the sum of the shares of votes that the image got, at most 1 in each of its pairs",
        "win_rate": "the mean share of the votes that the image got; each pair counts the same, whoever judged it",
        "smoothed_win_rate": "(sum of its shares of votes + {prior:g}) / (its pairs + {twice:g})",
    },
}
"""What scores are where pairs hold the votes of many people, or shares of them."""
COUNTS = {
    "outcomes": "",
    "votes": " `wins` and `comparisons` count votes.",
    "shares": " `wins` is a sum of shares of votes, `comparisons` the number of pairs.",
}
TIES = {"half": "half a win", "drop": "no comparison", "zero": "a loss"}


def build_card(shards: ParquetFolder, license: str | None, rule: ScoreRule, facts: dict[str, Any], medium: str) -> str:
    """The text of the card.

    Args:
        shards: all of them written.
        license: of the data set, as the Hub names it.
        rule: that the scores come from.
        facts: what was counted, by name.
        medium: `"image"` or `"video"`.
    """
    settings = (read_record(shards.folder, CONVERSION_NAME) or {})["settings"]
    source = settings["dataset_name"]
    head = card_head(
        dataset_info(shards),
        license=license,
        task_categories=[f"text-to-{medium}"],
        source_datasets=[source] if "/" in source else None,
        tags=["tgo_trl", "human-feedback"],
    )
    numbers = {"prior": rule.prior, "twice": 2 * rule.prior, "prior_mean": rule.prior_mean}
    meaning = {**SCORES, **MANY_JUDGES.get(rule.scale, {})}[rule.score_type].format(**numbers)
    has_ties = rule.kind != "ratings" and rule.scale == "outcomes"
    ties = f" In rates, a tie is {TIES[rule.ties]}." if has_ties else ""
    counts = "\n".join(f"| {name.replace('_', ' ')} | {value:,} |" for name, value in facts.items())
    return f"""{head}# {shards.folder.resolve().name}

{facts["images"]:,} {medium}s of `{source}` ({settings["dataset_split"]}), each with its prompt and a score, by tgo_trl.

```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder", split="{shards.split}")
```

## Score

`score` is {meaning}.{ties} The columns beside it are what else was said about the {medium}.{COUNTS[rule.scale]}

| counted | |
| --- | --- |
{counts}

## License

{"" if license else "None is claimed for this data set. "}The rows are those of `{source}`; its terms apply.
"""

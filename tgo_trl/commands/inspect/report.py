"""What is found out about a scored data set."""

from dataclasses import dataclass
from typing import Any

from .columns import ColumnSummary
from .images import ImageSummary
from .rows import Duplicates, PromptLengths
from .scores import PromptSummary, ScoreSummary, ThresholdRow, WeightRow
from .suggestions import Suggestion


@dataclass(frozen=True)
class Report:
    """All that was found; written as JSON.

    Attributes:
        dataset: its name.
        num_rows, num_usable, num_prompts: of the data set.
        num_tasks: prompts with their source images, no two alike; None where there are none.
        problems, first_reasons: unusable rows by kind, and why the first of each is.
        scores: of the usable rows; of several columns, the signed ones.
        columns: the threshold of each of several columns; None of a single one.
        thresholds: what each would make positive.
        threshold: that weights and prompts are looked at with: the given one, else the suggested one, else the median.
        weights: of each normalisation and coefficient; none if all scores are equal.
        prompts: within and between, of edits those of each task; None unless several have several images.
        lengths: of the prompts.
        images, duplicates: None if the images were not read.
        suggestions: for [`TGOConfig`].
    """

    dataset: str
    num_rows: int
    num_usable: int
    num_prompts: int
    num_tasks: int | None
    problems: dict[str, int]
    first_reasons: dict[str, str]
    scores: ScoreSummary
    columns: ColumnSummary | None
    thresholds: list[ThresholdRow]
    threshold: float
    weights: list[WeightRow]
    prompts: PromptSummary | None
    lengths: PromptLengths
    images: ImageSummary | None
    duplicates: Duplicates | None
    suggestions: list[Suggestion]

    @property
    def settings(self) -> dict[str, Any]:
        """The suggested settings together: a threshold for each prompt replaces one for all."""
        settings: dict[str, Any] = {}
        for suggestion in self.suggestions:
            if suggestion.settings.get("threshold_type") == "prompt_mean":
                settings = {name: value for name, value in settings.items() if not name.startswith("threshold_")}
            settings = {**suggestion.settings, **settings}
        return settings

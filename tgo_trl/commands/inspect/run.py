"""A report on a scored data set, before hours are spent on training with it."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from ...labels import NORMALIZATIONS
from ...media.origin import named_origin
from ...messages.public import public_name
from ...storage.files import write_json
from ...storage.processes import process_state
from ...storage.sources import open_dataset
from .columns import ColumnSummary, combine_columns
from .config import InspectConfig
from .images import summarize_images
from .plots import plot_report
from .report import Report
from .rows import Rows, find_duplicates, prompt_lengths, read_rows
from .scores import summarize_prompts, summarize_scores, threshold_rows, weight_rows
from .suggestions import (
    suggest_balance,
    suggest_image_size,
    suggest_mending,
    suggest_prompt_mean,
    suggest_threshold,
    suggest_weights,
)
from .text import print_report

REPORT_NAME = "inspection.json"


def inspect(config: InspectConfig) -> Report | None:
    """Reads the data set, prints the report, and writes it with its pictures to `config.output_dir`.

    Of a distributed launch, the main process does all that; the others wait, and return None.

    Raises:
        ValueError: if a column is missing, or no row can be used.
    """
    state = process_state()
    report = _inspect(config) if state.is_main_process else None
    state.wait_for_everyone()
    return report


def _inspect(config: InspectConfig) -> Report:
    dataset = open_dataset(config.dataset_name, config.dataset_config, config.dataset_split, config.dataset_streaming)
    read = read_rows(dataset, config, named_origin(config.dataset_name, config.image_dir, config.allow_urls))
    rows, columns = combine_columns(read, config)
    report = build_report(rows, config, columns)
    folder = Path(config.output_dir)
    write_json(folder / REPORT_NAME, {**asdict(report), "settings": report.settings})
    pictures = plot_report(rows, report, folder, config.beta)
    print_report(report, [REPORT_NAME, *pictures], config.output_dir)
    return report


def build_report(rows: Rows, config: InspectConfig, columns: ColumnSummary | None = None) -> Report:
    """The report on rows.

    Args:
        rows: as they were read.
        config: what is inspected.
        columns: that their scores are combined of; the threshold is 0 then.

    Raises:
        ValueError: if none can be used.
    """
    if not rows.scores:
        reasons = " ".join(f"{kind}: {reason}." for kind, reason in rows.first_reasons.items())
        raise ValueError(f"None of the {rows.num_rows} rows can be used. {reasons}".rstrip())

    # Thresholds, then the weights and the prompts at the one that is suggested.
    scores = torch.tensor(rows.scores, dtype=torch.float64)
    summary = summarize_scores(scores)
    thresholds = threshold_rows(scores, config.threshold_value if columns is None else 0.0)
    suggestions = list(suggest_mending(rows, config))
    threshold, weights, prompts = summary.percentiles[50], [], None
    if columns is not None:  # which have thresholds and units of their own
        thresholds, threshold = [replace(thresholds[-1], name="of all columns")], 0.0
    if summary.num_distinct > 1:
        split = suggest_threshold(scores, thresholds) if columns is None else None
        if split is not None:
            threshold = split.settings["threshold_value"]
        weights = weight_rows(scores, threshold, normalizations=NORMALIZATIONS if columns is None else ["none"])
        prompts = summarize_prompts(scores, rows.tasks, threshold, config.beta)
        is_vote = columns is not None and config.score_combination == "vote"
        # of a vote, whose columns would each have other thresholds, the leads do not tell what these would change
        per_prompt = None if is_vote else suggest_prompt_mean(prompts)
        units = suggest_weights(scores, summary, threshold) if weights and columns is None else None
        balance = None
        if weights and not (per_prompt and per_prompt.settings):  # around a mean, both sides lie equally far
            balance = suggest_balance(scores, threshold, {} if units is None else units.settings, is_vote)
        suggestions += [found for found in (split, units, balance, per_prompt) if found is not None]

    # What does not depend on the scores.
    images = summarize_images(rows.sizes) if rows.sizes else None
    return Report(
        dataset=public_name(config.dataset_name),
        num_rows=rows.num_rows,
        num_usable=len(rows.scores),
        num_prompts=len(set(rows.prompts)),
        num_tasks=len(set(rows.tasks)) if any(rows.sources) else None,
        problems={kind: len(found) for kind, found in rows.problems.items()},
        first_reasons=rows.first_reasons,
        scores=summary,
        columns=columns,
        thresholds=thresholds,
        threshold=threshold,
        weights=weights,
        prompts=prompts,
        lengths=prompt_lengths(rows.prompts),
        images=images,
        duplicates=find_duplicates(rows) if rows.files else None,
        suggestions=[*suggestions, *suggest_image_size(images)],
    )

"""Models compared on the same prompts and seeds, by several rewards: numbers with their intervals, and pictures.

Samples are drawn once and kept; each reward's scores are kept beside them. So a reward that is added only scores, a
model that is added is drawn and scored alone, and a run that was killed goes on where it stopped.
"""

import gc
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...messages.public import public_name
from ...messages.values import did_you_mean, shown_path
from ...policy.loading import set_adapter_scale
from ...policy.named import folders_beside
from ...rewards import load_rewards
from ...rewards.base import DRAWN_FOR, Reward, check_rates
from ...settings import shown
from ...storage.files import replace_file, sweep, write_json
from ...storage.processes import process_state
from ...storage.records import CARD_NAME, SCORING_NAME, read_record
from ..generate.known import Known, look_up
from ..generate.prompts import PROMPTS_ALONE, SourceUse
from ..generate.run import build_sampler, check_call, source_use, write_samples
from ..generate.tasks import Task, source_pictures, tasks_fingerprint
from ..generate.unweighted import check_drawing
from ..sharded_run import check_own_folder, locks_output_dir
from ..strength.card import check_adapter
from .config import Contestant, EvaluateConfig
from .plots import PROMPTS_IN_A_ROW, plot_distributions, plot_grid, plot_win_rates
from .prompt_sets import read_prompt_set
from .report import EvaluationReport, Measured, find_results
from .samples import Samples
from .scoring import write_scores
from .text import as_latex, as_markdown, print_evaluation

RECORD_NAME = "evaluation.json"
MARKDOWN_NAME, LATEX_NAME = "evaluation.md", "evaluation.tex"
WIN_RATES_NAME, DISTRIBUTIONS_NAME = "win_rates.png", "score_distributions.png"
MODELS = "models"
PROMPTS_SHOWN = 6


def evaluate(config: EvaluateConfig) -> EvaluationReport | None:
    """Compares models and prints the tables; goes on where a run stopped, and makes only what is missing.

    Every process of a distributed launch calls this; they share samples and scores, and the main one does the rest.

    Args:
        config: what is compared, on what, and by what.

    Returns:
        What was found, as it stands in `evaluation.json`; None in all processes but the main one. In
        `config.output_dir` are also `evaluation.md` and `evaluation.tex`, the pictures, and of each model the folder
        `models/<label>` with `drawn`, a data set as `generate` writes it, and `scores/<reward>`, its scores.

    Raises:
        ValueError: for settings that cannot work, or a folder that holds something else, or samples that were drawn
            with other settings.
    """
    found = compare(config)
    if found is None:
        return None
    report, written = found
    print_evaluation(report, written)
    return report


@locks_output_dir
def compare(config: EvaluateConfig) -> tuple[EvaluationReport, list[str]] | None:
    """As [`evaluate`], without a word of what was found: returns that, and the files that were written."""
    state, folder = process_state(), Path(config.output_dir)

    # What can fail, before a model is loaded.
    if state.is_main_process:
        check_own_folder(folder, RECORD_NAME)
    known = {it.label: _check_model(config, it) for it in config.contestants()}
    use = _shared_use(config, known)
    tasks = read_prompt_set(config, use)
    _check_grid(config, len(tasks))
    kwargs: Any = config.reward_kwargs
    remedy = "Samples are made from prompts alone: take another reward, or prompts with source images."
    rewards = load_rewards(config.rewards, kwargs, bool(next(iter(tasks)).sources), remedy)
    for contestant in config.contestants():
        _check_drawing(config, contestant, known[contestant.label], list(tasks), rewards)
    if state.is_main_process:
        _claim(folder, config)
    state.wait_for_everyone()

    # The samples, a model at a time; then the scores, a reward at a time.
    samples = {}
    for contestant in config.contestants():
        _say(config, f"Model {contestant.label}")
        samples[contestant.label] = _draw(config, contestant, list(tasks), folder / MODELS / contestant.folder, rewards)
    for spec, reward in rewards.items():
        for label, drawn in samples.items():
            _say(config, f"Reward {config.reward_names()[spec]}, model {label}")
            _score(config, spec, reward, drawn)
        if hasattr(reward, "release"):
            reward.release()
    found = _publish(config, tasks, samples) if state.is_main_process else None
    state.wait_for_everyone()
    return found


# ---- Before anything is drawn ----


def _check_model(config: EvaluateConfig, contestant: Contestant) -> Known:
    """What is known of a model without loading anything: the last one comes hours after the first."""
    generation = config.generation(contestant, "")
    adapter = generation.adapter_name_or_path
    try:
        known = look_up(generation, must_exist=True)
        if adapter is not None:
            check_adapter(adapter)
            if not Path(adapter).exists() and (adapter.count("/") != 1 or adapter.startswith((".", "/", "~"))):
                meant = did_you_mean(adapter, folders_beside(Path(adapter)))
                raise ValueError(
                    f"there is no adapter {shown_path(adapter)} here, and a Hub id is written owner/name.{meant}"
                )
        check_call(generation, known)
        return known
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {shown(contestant.label)}: {error}") from error


def _check_drawing(
    config: EvaluateConfig, contestant: Contestant, known: Known, tasks: Sequence[Task], rewards: Mapping[str, Reward]
) -> None:
    """Has the pipeline refuse prompts, settings and rewards, without its weights; not of a single file.

    Nor where its samples are there: then nothing is drawn before it is loaded, which refuses the same.
    """
    drawn = Path(config.output_dir) / MODELS / contestant.folder / "drawn"
    if known.kind is None or (drawn / CARD_NAME).is_file():
        return
    try:
        check_drawing(config.generation(contestant, ""), known, tasks, rewards)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {shown(contestant.label)}: {error}") from error


def _shared_use(config: EvaluateConfig, known: Mapping[str, Known]) -> SourceUse:
    """What all models make of source images; raises a ValueError if some take none and others need them.

    A single file, which does not say what it is, draws from prompts alone unless another model needs source images.
    """
    uses = {label: source_use(config, it.kind) for label, it in known.items() if it.kind is not None}
    of_edits = [label for label, use in uses.items() if use.are_needed]
    others = [label for label, use in uses.items() if not use.most]
    if of_edits and others:
        raise ValueError(
            f"The model {shown(of_edits[0])} makes images from others, and {shown(others[0])} from prompts alone: "
            "they have no task in common. Compare models of one kind, or set `pipeline_class` for all, if they can be "
            "loaded under one."
        )
    if len(uses) < len(known) and not of_edits:  # a single file may take none
        return PROMPTS_ALONE
    return SourceUse(min((use.most for use in uses.values()), default=0), bool(of_edits))


def _check_grid(config: EvaluateConfig, num_prompts: int) -> None:
    for prompt in config.grid_prompts or ():
        if prompt >= num_prompts:
            raise ValueError(
                f"`grid_prompts` has {prompt}, but there are {num_prompts} prompts: write numbers below {num_prompts}."
            )


def _claim(folder: Path, config: EvaluateConfig) -> None:
    """Notes that the folder is this command's, before anything else is written there; clears up after a kill."""
    for place in (folder, *(folder / MODELS / contestant.folder for contestant in config.contestants())):
        sweep(place)
    if not (folder / RECORD_NAME).is_file():
        write_json(folder / RECORD_NAME, {"settings": {}})


# ---- Samples and scores ----


def _draw(
    config: EvaluateConfig, contestant: Contestant, tasks: Sequence[Task], folder: Path, rewards: Mapping[str, Reward]
) -> Samples:
    """Draws what is missing of a model's samples, and makes room for the next."""
    generation = config.generation(contestant, str(folder / "drawn"))
    sampler = build_sampler(generation, None, None, bool(tasks[0].sources))
    check_rates(rewards, sampler.fps, DRAWN_FOR)
    if generation.adapter_scale != 1:
        set_adapter_scale(sampler.pipeline, generation.adapter_scale)
    write_samples(generation, tasks, sampler, process_state().device)
    medium = sampler.medium
    del sampler
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Samples(folder, medium, config.num_images_per_prompt)


def _score(config: EvaluateConfig, spec: str, reward: Reward, samples: Samples) -> None:
    """Scores what is missing of a model's samples."""
    folder = samples.folder / "scores" / config.reward_names()[spec]
    write_scores(config.scoring(spec, str(samples.folder / "drawn"), str(folder)), reward, samples)


def _say(config: EvaluateConfig, text: str) -> None:
    if process_state().is_main_process and not config.disable_tqdm:
        tqdm.write(text, file=sys.stderr)


# ---- What comes of them ----


def _publish(
    config: EvaluateConfig, tasks: Mapping[Task, str | None], samples: Mapping[str, Samples]
) -> tuple[EvaluationReport, list[str]]:
    """Makes the report of all that is in the folder, and writes it; returns it with the files."""
    folder = Path(config.output_dir)
    measured = _measured(config, samples)
    report = _report(config, tasks, samples, measured)
    pictures = _plot(config, report, list(tasks), samples, measured, folder)
    replace_file(folder / MARKDOWN_NAME, lambda path: path.write_text(as_markdown(report, pictures), "utf-8"))
    replace_file(folder / LATEX_NAME, lambda path: path.write_text(as_latex(report), "utf-8"))
    write_json(folder / RECORD_NAME, {"settings": _settings(config), **asdict(report)})
    written = [RECORD_NAME, MARKDOWN_NAME, LATEX_NAME, *(name for name, _ in pictures)]
    return report, [str(folder / name) for name in written]


def _measured(config: EvaluateConfig, samples: Mapping[str, Samples]) -> Measured:
    labels = list(samples)
    scores, seeds = {}, []
    for name in config.reward_names().values():
        found = [samples[label].scores(name) for label in labels]
        scores[name] = torch.stack([values for values, _ in found])
        seeds += [of_samples for _, of_samples in found]
    assert all(others == seeds[0] for others in seeds), "models were sampled with different seeds"
    varieties = None
    if config.num_images_per_prompt > 1:
        varieties = torch.stack([samples[label].varieties() for label in labels])
    return Measured(labels, scores, varieties)


def _report(
    config: EvaluateConfig, tasks: Mapping[Task, str | None], samples: Mapping[str, Samples], measured: Measured
) -> EvaluationReport:
    baseline = config.baseline or measured.labels[0]
    categories: dict[str, list[int]] = {}
    for i, category in enumerate(tasks.values()):
        if category is not None:
            categories.setdefault(category, []).append(i)
    return EvaluationReport(
        models={label: found.generation() for label, found in samples.items()},
        baseline=baseline,
        rewards={name: _scoring(samples.values(), name) for name in config.reward_names().values()},
        prompts={
            "source": public_name(config.prompts),
            "number": len(tasks),
            "fingerprint": tasks_fingerprint(tasks),
            "categories": {name: len(chosen) for name, chosen in categories.items()},
        },
        num_images_per_prompt=config.num_images_per_prompt,
        seed=config.seed,
        num_resamples=config.num_resamples,
        overall=find_results(measured, baseline, config.num_resamples, config.seed),
        categories={
            name: find_results(measured.of(chosen), baseline, config.num_resamples, config.seed)
            for name, chosen in categories.items()
        },
    )


def _scoring(samples: Iterable[Samples], reward: str) -> dict[str, Any]:
    """What is recorded of a reward, the same of all models."""
    record = read_record(next(iter(samples)).folder / "scores" / reward, SCORING_NAME)
    assert record is not None
    return dict(record["settings"]["reward"])


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """What the report is a function of and does not say itself, and the order of what it says."""
    return {
        "models": [contestant.label for contestant in config.contestants()],
        "rewards": list(config.reward_names().values()),
        "category_column": config.category_column,
    }


def _plot(
    config: EvaluateConfig, report: EvaluationReport, tasks: Sequence[Task], samples: Mapping[str, Samples],
    measured: Measured, folder: Path,
) -> list[tuple[str, str]]:  # fmt: skip
    """Writes the pictures, and removes those of an earlier run; file and caption of each."""
    for path in (folder / WIN_RATES_NAME, *folder.glob("grid-*.png")):
        path.unlink(missing_ok=True)
    pictures = []
    if report.others:
        plot_win_rates(report, folder / WIN_RATES_NAME)
        caption = (
            "Wins, ties and losses of the first of two models against the second, by reward. Dot and line: win rate"
        )
        pictures.append((WIN_RATES_NAME, f"{caption} (ties count half) with its 95 % interval over prompts."))
    plot_distributions(report, measured.scores, folder / DISTRIBUTIONS_NAME)
    caption = f"Distribution of the scores of all samples. Line: median; dotted: that of {report.baseline}."
    pictures.append((DISTRIBUTIONS_NAME, caption))
    chosen = config.grid_prompts or evenly_spread(len(tasks), PROMPTS_SHOWN)
    pages = [chosen[start : start + PROMPTS_IN_A_ROW] for start in range(0, len(chosen), PROMPTS_IN_A_ROW)]
    how = "chosen by number" if config.grid_prompts else "evenly spread over the set, not chosen"
    beside = ", below its source" if tasks[0].sources else ""
    for number, page in enumerate(pages, 1):
        name, images = f"grid-{number}.png", [found.pictures(page) for found in samples.values()]
        rows = [[it[i] for i in page] for it in images]
        sources = source_pictures([tasks[i] for i in page], rows[0])
        prompts = [tasks[i].prompt for i in page]
        plot_grid([*sources, *report.labels], prompts, [*sources.values(), *rows], folder / name)
        caption = f"The first sample of each prompt, from the same seed in each column{beside}; prompts {how}."
        pictures.append((name, caption))
    return pictures


def evenly_spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]

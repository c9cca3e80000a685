"""At what scale a trained adapter is best applied: reward, variety and drift over a few of them, and a suggestion.

What an adapter changes can be weighted after training, by one number between the base (0) and the adapter as it was
trained (1), and beyond. Reward rises with it, variety falls and drift rises, and not at the same pace.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ...data.columns import Columns
from ...families import Family
from ...hub.repositories import Destination, open_repository
from ...measures import interval, resampled_means, variety
from ...messages.public import public_name
from ...policy.loading import set_adapter_scale
from ...rewards import load_rewards
from ...rewards.base import DRAWN_FOR, Reward, check_rates
from ...storage.files import sweep, write_json
from ...storage.fingerprints import fingerprint
from ...storage.processes import process_state
from ...storage.records import GENERATION_NAME, read_record
from ..generate.config import SOURCE_COLUMN
from ..generate.known import look_up
from ..generate.run import build_sampler, find_tasks, write_samples
from ..generate.sampling import Sampler
from ..generate.tasks import Task, source_pictures, tasks_fingerprint
from ..score.run import score
from ..sharded_run import check_own_folder, locks_output_dir
from .card import PICTURE_NAME, check_adapter, find_base, local_folder, push_card, write_card
from .config import StrengthConfig
from .drift import DriftRows, denoising_errors, encode_drift_rows, read_drift_rows
from .plots import Shown, plot_strength
from .report import ScaleRow, StrengthReport, suggest_scale
from .samples import ScaleSamples, read_samples
from .text import card_section, print_strength

RECORD_NAME = "strength.json"
ERRORS_NAME = "errors.json"
DRAWN, SCORED = "drawn", "scored"


@locks_output_dir
def strength(
    config: StrengthConfig, pipeline: DiffusionPipeline | None = None, family: Family | None = None
) -> StrengthReport | None:
    """Measures an adapter at several scales; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share samples and scores, and the main one does the rest.

    Args:
        config: what is measured.
        pipeline: the base, used where it is, instead of the one that `config` names. It gets the adapter, which is left
            at scale 1; its encoders are cast as in training.
        family: of a pipeline that the table of families does not know.

    Returns:
        What was measured and suggested, as it stands in `strength.json`; None in all processes but the main one. In
        `config.output_dir` are also `strength.png`, and of each scale the folders `scale-<scale>/drawn` and `scored`,
        data sets as `generate` and `score` write them.

    Raises:
        ValueError: for settings that cannot work, an adapter that does not fit, or a folder that holds something else.
        UploadError: if the card is to be pushed and cannot.
    """
    state, folder = process_state(), Path(config.output_dir)

    # What can fail, before a model is loaded.
    if state.is_main_process:
        _check_folder(folder, config)
    check_adapter(config.adapter_name_or_path)
    if pipeline is None or config.model_name_or_path is not None:
        model = config.model_name_or_path or find_base(config.adapter_name_or_path)
    else:
        model = str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)
    generation = config.generation(model, 1.0, "")
    known = look_up(generation, pipeline, family)
    tasks = find_tasks(generation, known.kind)
    if len(tasks) < 2:
        raise ValueError(
            f"{config.prompts!r} has one prompt, and the interval of the reward is over prompts. Give two or more; 20 "
            "are few."
        )
    kwargs: Any = config.reward_kwargs
    has_sources = bool(tasks[0].sources)
    remedy = "Samples are made from prompts alone: take another reward, or prompts with source images."
    rewards = load_rewards(config.rewards, kwargs, has_sources, remedy)
    destination = _destination(config) if config.push_to_hub and state.is_main_process else None

    # The base with the adapter, and the user's rows, which are to be readable before hours are spent on samples.
    is_ours = pipeline is None
    sampler = build_sampler(generation, pipeline, family, has_sources, known)
    sampler.family.check(sampler.pipeline)
    check_rates(rewards, sampler.fps, DRAWN_FOR)
    run = _Strength(config, model, tasks, rewards, sampler, state.device if is_ours else None)
    if state.is_main_process:
        if config.drift_dataset_name is not None:
            run.drift_rows()
        run.claim()
    state.wait_for_everyone()

    # The samples and their scores, scale by scale; then the errors, which need no drawing.
    errors = {}
    with run.scales_restored():
        for number, scale in enumerate(config.scales, 1):
            if state.is_main_process and not config.disable_tqdm:
                tqdm.write(f"Scale {scale:g} ({number} of {len(config.scales)})", file=sys.stderr)
            run.sample(scale)
        if state.is_main_process:
            errors = run.errors()
    report = run.publish(errors, destination) if state.is_main_process else None
    state.wait_for_everyone()
    return report


@dataclass(frozen=True)
class _Strength:
    """The measurement of one adapter.

    Attributes:
        config: of the command.
        model: Hub id or folder of the base.
        tasks: the distinct ones.
        rewards: by their names in `config`.
        sampler: of the base with the adapter.
        device: where the pipeline is put; None leaves it where it is.
    """

    config: StrengthConfig
    model: str
    tasks: Sequence[Task]
    rewards: Mapping[str, Reward]
    sampler: Sampler
    device: torch.device | None

    @contextmanager
    def scales_restored(self) -> Iterator[None]:
        """Leaves the adapter at scale 1, whatever happens within."""
        try:
            yield
        finally:
            set_adapter_scale(self.sampler.pipeline, 1.0)

    def claim(self) -> None:
        """Notes that the folder is this command's, before anything else is written there; clears up after a kill."""
        path = Path(self.config.output_dir) / RECORD_NAME
        for folder in (path.parent, *map(self.folder, self.config.scales)):
            sweep(folder)
        if not path.is_file():
            write_json(path, {"settings": self.settings()})

    def folder(self, scale: float) -> Path:
        """Of a scale."""
        return Path(self.config.output_dir) / f"scale-{scale:.12g}"

    def sample(self, scale: float) -> None:
        """Draws and scores the samples of a scale, as far as they are not there."""
        drawn, scored = self.folder(scale) / DRAWN, self.folder(scale) / SCORED
        set_adapter_scale(self.sampler.pipeline, scale)
        write_samples(self.config.generation(self.model, scale, str(drawn)), self.tasks, self.sampler, self.device)
        score(self.config.scoring(str(drawn), str(scored)), rewards=self.rewards)

    def drift_rows(self) -> DriftRows:
        """The rows that drift is measured on: the user's, or samples of the base."""
        config, family = self.config, self.sampler.family
        name, split = config.drift_dataset_name, config.drift_dataset_split
        media = config.image_column if family.video_format is None else config.video_column
        columns = Columns(config.prompt_column, media, source=config.source_column)
        if name is None:
            name, split = str(self.folder(0) / DRAWN), "train"
            columns = Columns(media=family.medium, source=SOURCE_COLUMN)
        return read_drift_rows(name, split, columns, config.num_drift_rows, family)

    def errors(self) -> dict[float, list[float]]:
        """The denoising errors of each scale, by quartile; those that an earlier run has found are kept."""
        config, rows = self.config, self.drift_rows()
        found, sources = {}, {}
        for scale in config.scales:
            path = self.folder(scale) / ERRORS_NAME
            record = read_record(self.folder(scale) / DRAWN, GENERATION_NAME)
            assert record is not None
            sources[scale] = fingerprint(rows.fingerprint, config.seed, json.dumps(record["settings"], sort_keys=True))
            before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            if before.get("source") == sources[scale]:
                found[scale] = before["errors"]
        missing = [scale for scale in config.scales if scale not in found]
        encoded = encode_drift_rows(rows, self.sampler, self.device, missing) if missing else {}
        for scale in missing:
            set_adapter_scale(self.sampler.pipeline, scale)
            found[scale] = denoising_errors(self.sampler, encoded[scale], config.seed)
            write_json(self.folder(scale) / ERRORS_NAME, {"source": sources[scale], "errors": found[scale]})
        return found

    def publish(self, errors: Mapping[float, Sequence[float]], destination: Destination | None) -> StrengthReport:
        """Makes the report of the errors and all that is in the folder; writes, pushes and prints it."""
        config, folder = self.config, Path(self.config.output_dir)
        report, shown = self.report(errors)
        write_json(folder / RECORD_NAME, {"settings": self.settings(), **asdict(report)})
        plot_strength(report, shown, folder / PICTURE_NAME)
        written = [str(folder / name) for name in (RECORD_NAME, PICTURE_NAME)]
        if config.write_card:
            section = card_section(report, PICTURE_NAME)
            card = write_card(config.adapter_name_or_path, section, folder)
            written.append(f"{card}, section Strength")
            if destination is not None:
                push_card(card, section, destination)
                written.append(f"the same, to the {destination}")
        print_strength(report, written, _next_step(config, report))
        return report

    def report(self, errors: Mapping[float, Sequence[float]]) -> tuple[StrengthReport, list[Shown]]:
        """The report, and the samples of some prompts at each scale."""
        config, family = self.config, self.sampler.family
        columns = config.scoring("", "").reward_columns()
        samples = {
            scale: read_samples(self.folder(scale) / SCORED, family.medium, columns, len(self.tasks))
            for scale in config.scales
        }
        means = {name: torch.stack([samples[scale].prompt_means(name) for scale in config.scales]) for name in columns}
        resampled = resampled_means(means[columns[0]])
        rows = [
            ScaleRow(
                scale=scale,
                reward=means[columns[0]][i].mean().item(),
                interval=interval(resampled[i]),
                other_rewards={name: means[name][i].mean().item() for name in columns[1:]},
                variety=_relative_variety(samples[scale], samples[0.0]),
                drift=[ours / base for ours, base in zip(errors[scale], errors[0.0], strict=True)],
            )
            for i, scale in enumerate(config.scales)
        ]
        suggestion = suggest_scale(rows, resampled, config.min_variety, config.max_drift)
        own = config.drift_dataset_name is None
        report = StrengthReport(
            model=public_name(self.model),
            adapter=public_name(config.adapter_name_or_path),
            reward=config.rewards[0].rpartition(":")[2],
            num_prompts=len(self.tasks),
            num_images_per_prompt=config.num_images_per_prompt,
            drift_rows="the base's own samples" if own else f"rows of {public_name(str(config.drift_dataset_name))}",
            min_variety=config.min_variety,
            max_drift=config.max_drift,
            rows=rows,
            suggestion=suggestion,
            code=None if suggestion.scale is None else family.scaling_code(suggestion.scale),
        )
        of_base = samples[0.0].shown
        sources = source_pictures([self.tasks[index] for index in of_base], [*of_base.values()])
        shown = [
            Shown(
                self.tasks[index].prompt,
                [pictures[place] for pictures in sources.values()],
                {scale: found.shown[index] for scale, found in samples.items()},
            )
            for place, index in enumerate(of_base)
        ]
        return report, shown

    def settings(self) -> dict[str, Any]:
        """What the report is a function of and does not say itself."""
        config = self.config
        drift = config.drift_dataset_name
        return {
            "seed": config.seed,
            "rewards": [spec if ":" not in spec else spec.rpartition(":")[2] for spec in config.rewards],
            "prompts": {"source": public_name(config.prompts), "fingerprint": tasks_fingerprint(self.tasks)},
            "drift_dataset": None if drift is None else public_name(drift),
            "num_drift_rows": config.num_drift_rows,
        }


def _relative_variety(samples: ScaleSamples, base: ScaleSamples) -> float:
    of_base = variety(base.features, base.prompt_indices)
    if of_base == 0:
        raise ValueError(
            "The base draws the same picture for every seed of a prompt, so that there is no variety to compare with. "
            "Look at what it draws in the folder `scale-0`: a safety checker, or an overflow, may black it out."
        )
    return variety(samples.features, samples.prompt_indices) / of_base


def _check_folder(folder: Path, config: StrengthConfig) -> None:
    adapter = local_folder(config.adapter_name_or_path)
    if adapter is not None and adapter.resolve() == folder.resolve():
        raise ValueError(
            f"`output_dir` is {config.output_dir!r}, where the adapter itself is. Set another folder: the samples of "
            "all scales go there, and would be pushed with the adapter."
        )
    check_own_folder(folder, RECORD_NAME)


def _destination(config: StrengthConfig) -> Destination:
    adapter = config.adapter_name_or_path
    folder = local_folder(adapter)
    name = config.hub_model_id or (adapter if folder is None else folder.resolve().name)
    return open_repository(name, "model", config.hub_token, config.hub_private_repo, None, "hub_model_id")


def _next_step(config: StrengthConfig, report: StrengthReport) -> str:
    if report.code is None:
        return "Next: train again, or measure other scales; the ones that are here are not drawn again."
    text = "Next: load the adapter as its card says, and put the line above behind it."
    if config.write_card and not config.push_to_hub:
        text += " The same command with `--push_to_hub` uploads the card."
    return text

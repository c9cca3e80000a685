"""Rounds of drawing, scoring and training: each draws from the policy of the one before, and goes on training it.

What is trained on is thus always of a policy that is near, and each round's threshold lies among the scores that this
policy gets. A round is what `tgo-trl generate`, `score` and `train` do, one after the other, with a seed of its own:
`seed + round - 1`. Samples that policies are measured on have another one, the same in all rounds.
"""

import copy
import gc
import json
import shutil
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...cards.model_card import path_in_card
from ...cards.sections import with_section, with_sections_of
from ...data.columns import Columns
from ...data.sources import check_same_number
from ...losses import LOSSES
from ...measures import Estimate
from ...messages.public import public_name, public_value
from ...messages.values import shown, shown_path
from ...policy.draws import stable_seed
from ...policy.loading import set_adapter_scale
from ...rewards import load_rewards
from ...storage.files import replace_file, sweep, write_json
from ...storage.fingerprints import weights_fingerprint
from ...storage.parquet import ParquetFolder, column
from ...storage.processes import process_state
from ...storage.records import CARD_NAME, SCORING_NAME, read_record
from ...storage.sources import open_dataset
from ...trainer.arguments import check_launch
from ...trainer.checkpoints import RunRecord, public_config
from ...trainer.course import OF_THE_BASE, WITHOUT_EFFECT, Course
from ...trainer.label_rules import fit_rule
from ...trainer.selection import OutsideBoundsError
from ...trainer.tgo_config import DEFAULTS, TGOConfig
from ..evaluate.prompt_sets import read_prompt_set
from ..evaluate.run import compare
from ..generate.config import SOURCE_COLUMN, GenerateConfig
from ..generate.known import look_up
from ..generate.run import build_sampler, find_tasks, generate, source_use
from ..generate.tasks import Task, tasks_fingerprint
from ..score.run import score
from ..sharded_run import check_own_folder, locks_output_dir
from ..strength.drift import denoising_errors, encode_drift_rows, read_drift_rows
from ..train.config import TrainArguments
from ..train.run import train
from .config import BASE, RoundsConfig
from .plots import plot_rounds
from .report import Limits, Measurement, Round, RoundsReport, best_round
from .steps import check_steps
from .text import card_section, print_round, print_rounds

RECORD_NAME = "rounds.json"
ROUND_NAME, MEASUREMENT_NAME = "round.json", "measurement.json"
PICTURE_NAME = "rounds.png"
DRAWN, SCORED, ADAPTER, HELD_OUT = "drawn", "scored", "adapter", "held_out"
NUM_DRIFT_ROWS = 64
MEASURED = 1
"""Beside the seed of the run, what the seed of the samples is made of that policies are measured on."""
OF_EACH_ROUND = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps")
"""Settings of training that are recorded in another way."""


def rounds(config: RoundsConfig, args: TGOConfig) -> RoundsReport | None:
    """Draws, scores and trains `num_rounds` times; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share the work.

    Args:
        config: what is drawn, scored and measured in each round.
        args: how each round trains, alike in all but for the seed; `max_steps` and the schedule are those of a round.

    Returns:
        What the rounds brought, as it stands in `rounds.json`; None in all processes but the main one. In
        `args.output_dir` are also `rounds.png`, `adapter` with the adapter that is kept and its card, of each round
        the folder `round-<number>` with `drawn`, `scored` and `adapter`, as `generate`, `score` and `train` write them,
        and in `held_out` what `evaluate` writes of base and policy.

    Raises:
        ValueError: for settings that cannot work, a folder of a run with other settings, or scores of the first round
            that are all the same.
        OutsideBoundsError: if there are bounds, and no round is within them.
    """
    return _rounds(args, config)


@locks_output_dir
def _rounds(args: TGOConfig, config: RoundsConfig) -> RoundsReport | None:
    state, folder = process_state(), args.output_path
    _check_training(args, config)
    if state.is_main_process:
        check_own_folder(folder, RECORD_NAME)
    run = _Rounds(config, args)
    course = run.check()
    if state.is_main_process:
        run.claim(course)
    state.wait_for_everyone()

    done: list[Round] = []
    why_ended = None
    for number in range(1, config.num_rounds + 1):
        run.say(f"Round {number} of {config.num_rounds}")
        if not run.is_done(number):
            run.draw_and_score(number)
            why_ended = run.why_not_train(number)
            if why_ended is not None:
                break
            run.train(number)
        done.append(run.measured(number))
        measurement = done[-1].measurement
        if state.is_main_process and measurement is not None:
            print_round(done[-1], config.num_rounds)
        broken = [] if measurement is None else run.limits.broken(measurement)
        if broken:
            why_ended = f"Round {number} ended the run: {', and '.join(broken)}."
            break
    report = run.publish(done, why_ended) if state.is_main_process else None
    state.wait_for_everyone()
    return report


@dataclass(frozen=True)
class _Rounds:
    """A run of rounds.

    Attributes:
        config: of the command.
        args: of the training in each round.
    """

    config: RoundsConfig
    args: TGOConfig

    @property
    def limits(self) -> Limits:
        """What each round has to keep to."""
        return Limits(self.config.stop_above_drift, self.config.stop_below_variety)

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.args.output_path / f"round-{number}"

    def adapter(self, number: int) -> str | None:
        """The folder of what a round trained; None for the base, which comes before the first."""
        return None if number == 0 else str(self.folder(number) / ADAPTER)

    def seed(self, number: int) -> int:
        """Of the samples and the training of a round."""
        return self.args.seed + number - 1

    def say(self, text: str) -> None:
        """A line among the progress bars."""
        if process_state().is_main_process and not self.args.disable_tqdm:
            tqdm.write(text, file=sys.stderr)

    # ---- Before anything is drawn ----

    def check(self) -> Course:
        """Checks what can be checked before a model is loaded; returns what the rounds are a function of."""
        config = self.config
        generation = self.generation(1)
        known = look_up(generation, must_exist=True)
        tasks = find_tasks(generation, known.kind)
        check_same_number("Prompts", (task.sources for task in tasks))
        scoring: Any = config.scoring("", "").reward_kwargs
        remedy = "Samples are made from prompts alone: take another reward, or prompts with source images."
        specs = (*config.rewards, *(config.held_out_rewards or ()))
        rewards = load_rewards(specs, scoring, bool(tasks[0].sources), remedy)
        prints, held_out = {"the prompts": tasks_fingerprint(tasks)}, {}
        if config.is_measured:
            measured = config.evaluation("", {}, self._held_out_seed, generation)
            held_out = read_prompt_set(measured, source_use(generation, known.kind))
            _check_alike(tasks[0], next(iter(held_out)), generation.source_column)
            prints["the prompts of the measurements"] = tasks_fingerprint(held_out)
        check_steps(config, self.args, generation, known, [*tasks, *held_out], rewards)
        return Course(self._settings(), prints)

    def claim(self, course: Course) -> None:
        """Compares the settings with those of an earlier run, or notes that the folder is this command's.

        Raises:
            ValueError: if they differ, naming what does.
        """
        folder = self.args.output_path
        for place in (folder, folder / ADAPTER, *(self.folder(i + 1) for i in range(self.config.num_rounds))):
            sweep(place)
        record = read_record(folder, RECORD_NAME)
        if record is None:
            write_json(folder / RECORD_NAME, asdict(course))
            return
        differences = Course(record["settings"], record["fingerprints"]).differences(course)
        if differences:
            raise ValueError(
                f"The rounds in {str(folder)!r} were made with other settings: {shown('; '.join(differences), 600)}. "
                "Set another `output_dir`, or what it was. `num_rounds` and the bounds may change."
            )

    def _settings(self) -> dict[str, Any]:
        """Everything that the rounds are a function of, but for the prompts."""
        training = {
            name: value
            for name, value in public_config(self.args.to_dict()).items()
            if name not in OF_EACH_ROUND and not name.startswith(WITHOUT_EFFECT)
        }
        free = ("num_rounds", "stop_above_drift", "stop_below_variety")
        own = {name: public_value(value) for name, value in asdict(self.config).items() if name not in free}
        own["model_name_or_path"] = public_name(self.config.model_name_or_path)
        for name in ("rewards", "held_out_rewards"):  # without folders, which may be moved
            own[name] = [spec.rpartition(":")[2] for spec in getattr(self.config, name) or ()]
        settings = {**training, **own, "seed": self.args.seed, "rows_per_update": self.args.rows_per_update}
        return dict(json.loads(json.dumps(settings)))

    # ---- A round ----

    def is_done(self, number: int) -> bool:
        """Whether a round has trained to its end."""
        return (self.folder(number) / ROUND_NAME).is_file()

    def generation(self, number: int) -> GenerateConfig:
        """How the samples of a round are drawn: by the policy of the round before."""
        args = self.args
        shared = {
            "model_init_kwargs": args.model_init_kwargs,
            "pipeline_class": args.pipeline_class,
            "height": args.height or args.resolution,
            "width": args.width or args.resolution,
            "num_frames": args.num_frames,
            "max_sequence_length": args.max_sequence_length,
            "disable_tqdm": args.disable_tqdm,
        }
        folder = str(self.folder(number) / DRAWN)
        return self.config.generation(folder, self.adapter(number - 1), self.seed(number), shared)

    def draw_and_score(self, number: int) -> None:
        """Draws the samples of a round and scores them, as far as they are not there."""
        drawn = generate(self.generation(number))
        _make_room()
        score(self.config.scoring(str(drawn), str(self.folder(number) / SCORED), bool(self.args.disable_tqdm)))
        _make_room()

    def column(self, number: int, name: str) -> list[Any]:
        """Of the scored samples of a round."""
        return column(ParquetFolder(self.folder(number) / SCORED, SCORING_NAME).written().values(), name)

    def why_not_train(self, number: int) -> str | None:
        """Why the scores of a round tell none of its samples from another, a sentence; None if they do.

        Raises:
            ValueError: in the first round, before which there is nothing to keep.
        """
        scores = self.column(number, self.args.score_column)
        prompts = [*map(str, self.column(number, "prompt_index"))]  # of edits, each with its sources
        try:
            if LOSSES[self.args.loss_type].rows != "pairs":
                fit_rule(self.args, scores, prompts)
            elif len(set(scores)) == 1:
                raise ValueError(f"All {len(scores)} scores equal {scores[0]:.6g}, so no pair has a better image.")
        except ValueError as error:
            if number == 1:
                raise ValueError(f"Round 1 has nothing to train on. {error}") from error
            return f"The run ended before round {number} trained. {error}"
        return None

    def train(self, number: int) -> None:
        """Trains on the samples of a round, from the policy of the round before, and notes that it is done."""
        config, folder = self.config, self.folder(number)
        args = copy.copy(self.args)
        args.output_dir = str(folder / ADAPTER)
        args.seed = self.seed(number)
        arguments = TrainArguments(
            config.model_name_or_path, str(folder / SCORED), adapter_name_or_path=self.adapter(number - 1)
        )
        is_base = config.reference == BASE and number > 1
        train(arguments, args, ref_model=config.model_name_or_path if is_base else None)
        _make_room()
        if process_state().is_main_process:
            trained, first = (RunRecord.read(self.folder(it) / ADAPTER) for it in (number, 1))
            if trained.course.fingerprints[OF_THE_BASE] != first.course.fingerprints[OF_THE_BASE]:
                raise ValueError(
                    f"The base {shown_path(config.model_name_or_path)} has other weights than in round 1, and the "
                    f"adapter of round {number - 1} is not of it. Name the one it was, and delete {str(folder)!r}, or "
                    "set another `output_dir`."
                )
            scores = self.column(number, args.score_column)
            threshold = None if trained.rule is None else trained.rule.threshold
            done = Round(number, args.seed, len(scores), statistics.fmean(scores), threshold)
            write_json(folder / ROUND_NAME, asdict(done))
        process_state().wait_for_everyone()

    # ---- What it brought ----

    @property
    def _held_out_seed(self) -> int:
        return stable_seed(self.args.seed, MEASURED)

    def measured(self, number: int) -> Round:
        """A round that is done, with what is measured of its policy, if anything is."""
        done = json.loads((self.folder(number) / ROUND_NAME).read_text("utf-8"))
        if not self.config.is_measured:
            return Round(**done)
        path, label = self.folder(number) / MEASUREMENT_NAME, f"round {number}"
        if not path.is_file():
            folder = self.args.output_path / HELD_OUT
            adapter = self.adapter(number)
            assert adapter is not None
            generation = self.generation(number)
            pair = compare(self.config.evaluation(str(folder), {label: adapter}, self._held_out_seed, generation))
            if pair is not None:
                found = pair[0].overall
                variety = found.relative_varieties.get(label)
                measurement = Measurement(
                    rewards={name: results.means[label] for name, results in found.rewards.items()},
                    base_rewards={name: results.means[BASE] for name, results in found.rewards.items()},
                    variety=None if variety is None else variety.value,
                    drift=self._drift(number, folder / "models" / BASE / DRAWN),
                )
                write_json(path, asdict(measurement))
            _make_room()
            process_state().wait_for_everyone()
        names = self.config.evaluation("", {}, 0, self.generation(number)).reward_names().values()
        return Round(**{**done, "measurement": _read_measurement(path, names)})

    def _drift(self, number: int, rows_of_base: Path) -> list[float]:
        """Errors of a policy over those of the base, by quartile of the time, on samples of the base."""
        generation = self.generation(number + 1)
        has_sources = SOURCE_COLUMN in open_dataset(str(rows_of_base)).column_names
        sampler = build_sampler(generation, None, None, has_sources)
        columns = Columns(media=sampler.medium, source=SOURCE_COLUMN)
        rows = read_drift_rows(str(rows_of_base), "train", columns, NUM_DRIFT_ROWS, sampler.family)
        encoded, errors = encode_drift_rows(rows, sampler, process_state().device, [0.0, 1.0]), {}
        for scale, encoded_rows in encoded.items():
            set_adapter_scale(sampler.pipeline, scale)
            errors[scale] = denoising_errors(sampler, encoded_rows, self._held_out_seed)
        return [ours / base for ours, base in zip(errors[1.0], errors[0.0], strict=True)]

    def publish(self, done: Sequence[Round], why_ended: str | None) -> RoundsReport:
        """Writes the report, its picture, and the adapter of the round that is kept; prints what was written.

        Raises:
            OutsideBoundsError: if no round is within the bounds.
        """
        folder = self.args.output_path
        kept = best_round(done, self.limits)
        if kept is None:
            raise OutsideBoundsError(
                f"{why_ended} None is within the bounds, and no adapter is kept. Each round's is in its folder in "
                f"{str(folder)!r}. Set other bounds, which makes nothing again, or another `output_dir` and fewer or "
                "smaller updates."
            )
        report = RoundsReport(
            model=public_name(self.config.model_name_or_path),
            reference=self.config.reference,
            num_rounds=self.config.num_rounds,
            rounds=list(done),
            kept=kept.number,
            reason=" ".join([*([why_ended] if why_ended else []), _why_kept(kept, done, self.limits)]),
        )
        record = read_record(folder, RECORD_NAME)
        assert record is not None
        write_json(folder / RECORD_NAME, {**record, "report": asdict(report)})
        plot_rounds(report, self.limits, folder / PICTURE_NAME)
        self._keep(report)
        written = [str(folder / name) for name in (RECORD_NAME, PICTURE_NAME, ADAPTER)]
        print_rounds(report, written)
        return report

    def _keep(self, report: RoundsReport) -> None:
        """Copies the adapter that is kept, and what its card shows; the card, with the table of rounds, comes last."""
        source, target = self.folder(report.kept) / ADAPTER, self.args.output_path / ADAPTER
        target.mkdir(exist_ok=True)
        path_of_card = target / CARD_NAME
        previous = path_of_card.read_text("utf-8", errors="replace") if path_of_card.is_file() else ""
        for path in sorted(source.iterdir()):
            if path.suffix in (".safetensors", ".json", ".png"):
                replace_file(target / path.name, partial(shutil.copyfile, path))
        if (source / "samples").is_dir():
            shutil.copytree(source / "samples", target / "samples", dirs_exist_ok=True)
        picture = self.args.output_path / PICTURE_NAME
        replace_file(target / PICTURE_NAME, partial(shutil.copyfile, picture))
        card = (source / CARD_NAME).read_text("utf-8").replace(path_in_card(str(source)), path_in_card(str(target)))
        digest = weights_fingerprint(target)
        card = with_sections_of(previous, card, digest)  # what `tgo-trl strength` has found of the same weights
        card = with_section(card, "rounds", card_section(report, PICTURE_NAME), digest)
        replace_file(path_of_card, lambda copied: copied.write_text(card, "utf-8"))


def _check_training(args: TGOConfig, config: RoundsConfig) -> None:
    """Raises a ValueError for settings of training that rounds cannot have."""
    check_launch(args)
    if not args.use_peft:
        raise ValueError(
            "`use_peft` is False, and rounds go on with the adapter of the round before. Leave it out; `tgo-trl "
            "train` trains all weights."
        )
    if args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` is {shown(str(args.eval_strategy))}, and a round has no rows to evaluate on. Leave it "
            "out; `held_out_rewards` measure the policy after each round."
        )
    if args.push_to_hub:
        raise ValueError(
            "`push_to_hub` is set, and rounds upload nothing. Leave it out; at the end, `hf upload <repository> "
            "<output_dir>/adapter` uploads the adapter that is kept, with its card."
        )
    if args.resume_from_checkpoint is not None:
        raise ValueError(
            f"`resume_from_checkpoint` is {shown(args.resume_from_checkpoint)}, and each round goes on from its own "
            "checkpoint. Leave it out; to begin anew, set another `output_dir`."
        )
    for name in ("prompt_column", "source_column", "image_column", "video_column"):
        if getattr(args, name) != DEFAULTS[name]:
            raise ValueError(
                f"`{name}` is {shown(getattr(args, name))}, and the columns of what rounds draw are known. Leave it "
                "out; that of a data set of prompts is in `generate_settings`."
            )
    if args.score_columns is not None:
        raise ValueError(
            f"`score_columns` is {shown(args.score_columns)}, and rounds are compared by one column. Set "
            "`ensemble_weights` in `score_settings` for a sum of several, or `score_column` to one."
        )
    columns = config.scoring("", "").new_columns()
    if args.score_column not in columns:
        raise ValueError(
            f"`rewards` give the columns {', '.join(columns)}, and `score_column`, which is trained on, is "
            f"{shown(args.score_column)}. Set `ensemble_weights` in `score_settings` for a sum of them, or "
            "`score_column` to one."
        )
    if config.reference == BASE and (args.sync_ref_model or not LOSSES[args.loss_type].needs_reference):
        why = "`sync_ref_model` moves it" if args.sync_ref_model else f"`loss_type={args.loss_type!r}` has none"
        raise ValueError(f"`reference` is 'base', and {why}. Leave `reference` out.")


def _why_kept(kept: Round, done: Sequence[Round], limits: Limits) -> str:
    if kept.measurement is None:
        return f"Round {kept.number} is kept, the last one that trained; nothing was measured that could tell more."
    name, reward = next(iter(kept.measurement.rewards.items()))
    within = " within the bounds" if limits else ""
    return f"Round {kept.number} of {len(done)} is kept, with the highest {name}{within} ({reward.value:.4g})."


def _check_alike(drawn: Task, held_out: Task, source_column: str) -> None:
    """Raises a ValueError if one of two tasks is an edit, and the other is not."""
    if bool(drawn.sources) != bool(held_out.sources):
        raise ValueError(
            "Of `prompts` and `held_out_prompts`, one has source images and the other has none: what is trained would "
            f"not be what is measured. Give both a column {source_column!r}, or neither."
        )


def _read_measurement(path: Path, names: Collection[str]) -> Measurement:
    """What was measured; the rewards in the order of their names, which JSON files are sorted out of."""
    values = json.loads(path.read_text("utf-8"))
    rewards, base_rewards = (
        {name: _estimate(values[part][name]) for name in names} for part in ("rewards", "base_rewards")
    )
    return Measurement(rewards, base_rewards, values["variety"], values["drift"])


def _estimate(values: Mapping[str, Any]) -> Estimate:
    return Estimate(values["value"], None if values["interval"] is None else tuple(values["interval"]))


def _make_room() -> None:
    """Frees the memory of the models of one stage for those of the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

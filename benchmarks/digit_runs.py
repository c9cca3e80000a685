"""What benchmarks on the two worlds of digits share: runs, how they are measured and chosen, tables and pictures."""

import argparse
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm
from typing_extensions import Self

from tgo_trl import AlignPropConfig, AlignPropTrainer, TGOConfig, TGOTrainer
from tgo_trl.trainer.objective import RECIPES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

from digits import NUM_HELD_OUT, balanced_prompts, prompts_of, unseen_scorer
from measures import drift, frechet_distance, interval, variety_of_right
from worlds import WORLDS, World, draw, load_base

SMALL = "strokes, small latents"
"""The world of strokes on a base of its own, whose latents have a quarter of the numbers."""
SAMPLERS = {"ddim": 0.0, "ancestral": 1.0}
"""The samplers by name, and their eta."""
TUNING_SEED, FIRST_TUNING_SEED, FIRST_TEST_SEED = 100, 500, 1000
"""Of training; and of images, to which a run adds its own."""
MOST_DRIFT, LEAST_VARIETY = 1.2, 0.87
"""Bounds of a run that may be chosen, both over the base's."""
MEASURES = ("variety", "frechet")
DISTANCES = (1, 2, 5, 10)
"""Ticks in the picture."""
MARKERS = "osD^v<>PXph*d8H"
"""One for each method, which colours alone would not tell apart."""


@dataclass(frozen=True)
class Method:
    """A way to train, and the knob that says how far it goes.

    Attributes:
        settings: of `TGOConfig`, or of `AlignPropConfig`.
        knob: the setting that is varied, in place of what `settings` say of it; `"max_steps"` in multiples of the
            others' updates; None if there is none.
        values: of the knob, the gentlest first.
        color: in the picture.
        prefix: of the prompts that it is judged on.
        climbs: its own images, by the gradient of the training scorer: `AlignPropTrainer`.
        worlds: where it is run.
    """

    settings: dict[str, Any]
    knob: str | None
    values: tuple[float, ...]
    color: str
    prefix: str = ""
    climbs: bool = False
    worlds: tuple[str, ...] = tuple(WORLDS)

    def run(self, world: str, name: str, value: float, learning_rate: float, **seeds: Any) -> "Run":
        """The run of a value of the knob; `seeds` as [`Run`] has them."""
        is_longer = self.knob == "max_steps"
        own = {} if self.knob is None or is_longer else {self.knob: value}
        return Run(
            world, name, value, learning_rate, settings=self.settings | own, times=value if is_longer else 1,
            prefix=self.prefix, climbs=self.climbs, **seeds,
        )  # fmt: skip

    def describe(self, value: float) -> str:
        """What a value of the knob is."""
        if self.knob is None:
            return ""
        return f": {value:g} x the updates" if self.knob == "max_steps" else f": {self.knob} {value:g}"


BASE_GUIDANCES = (1.0, 2.0, 4.0, 8.0)
BASE, BEST, REAL = "base", "best of n", "real scans"
"""What is not trained: the base, the best of n of its images, and scans that are drawn from the target."""
UNTRAINED = {REAL: ("real scans", "#8172b2"), BASE: ("base, with guidance", "black"),
             BEST: ("base, best of n", "#dd8452")}  # fmt: skip
"""Label and colour in the picture."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    output_dir: Path = Path("outputs/frontier")
    worlds: tuple[str, ...] = tuple(WORLDS)
    num_rows: int = 2000
    num_updates: int = 200
    batch_size: int = 64
    num_seeds: int = 4
    num_images: int = 500
    num_steps: int = 20
    most_of: int = 8
    num_workers: int = field(default_factory=lambda: os.cpu_count() or 1)

    def quick(self) -> Self:
        """The same in a few minutes: fewer of everything. The numbers mean nothing."""
        return replace(
            self, num_rows=120, num_updates=2, batch_size=8, num_seeds=1, num_images=40, num_steps=3, most_of=2
        )


Chosen = TypeVar("Chosen", bound=Options)


@dataclass(frozen=True)
class Run:
    """One thing that is measured: a trained adapter, the base, the best of n of its images, or the target itself.

    Attributes:
        world: key of `WORLDS`.
        method: name of a [`Method`], or of what is not trained.
        value: of the method's knob; the largest n for the best of n.
        learning_rate: 0 where nothing is trained.
        seed: of training, and with `first_seed` of the images that it is judged on.
        guidances: at which images are drawn.
        first_seed: which images.
        settings: of training, those of the method; None if nothing is trained.
        times: multiple of the updates.
        prefix: of the prompts.
        climbs: as the method.
    """

    world: str
    method: str
    value: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0
    guidances: tuple[float, ...] = (1.0,)
    first_seed: int = FIRST_TEST_SEED
    settings: dict[str, Any] | None = None
    times: float = 1
    prefix: str = ""
    climbs: bool = False

    @property
    def name(self) -> str:
        """A file name of its own."""
        parts = [self.world, self.method, f"{self.value:g}", f"{self.learning_rate:g}", self.seed, self.first_seed]
        return "-".join(str(part).replace(" ", "_").replace(",", "") for part in parts)


# --- one run ---------------------------------------------------------------------------------------------------------


def world_of(name: str, options: Options) -> World:
    """The world of a name; that of small latents has its base in `output_dir`."""
    if name == SMALL:
        return replace(WORLDS["strokes"], base=options.output_dir / "small_base")
    return WORLDS[name]


def prepare(name: str, options: Options) -> None:
    """Draws and scores the images that all methods of a world are trained on."""
    folder, world = options.output_dir / name / "scored", world_of(name, options)
    if folder.exists():
        return
    torch.set_num_threads(1)
    prompts = balanced_prompts(options.num_rows, seed=0)
    images = draw(load_base(world), prompts, seed=0, num_steps=options.num_steps)
    dataset = Dataset.from_dict({"prompt": prompts, "image": images, "score": world.training()(prompts, images)})
    unfinished = folder.with_name("unfinished")
    dataset.save_to_disk(unfinished)
    unfinished.rename(folder)


def measure(run: Run, options: Options) -> dict[str, Any]:
    """What a run gives, remembered in `output_dir/runs`."""
    path = options.output_dir / "runs" / f"{run.name}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    start, world = time.perf_counter(), world_of(run.world, options)
    if run.method == REAL:
        return _keep(path, {"run": asdict(run), "cells": real_cells(run, options)}, start)
    pipeline = load_base(world)
    result: dict[str, Any] = {"run": asdict(run), "cells": []}
    if run.settings is not None:
        adapter = train(run, options)
        pipeline.load_lora_weights(adapter)
        scans, weights = world.target()
        result["drift"] = drift(pipeline, scans.last(NUM_HELD_OUT), weights[-NUM_HELD_OUT:])
    seed = run.first_seed + run.seed
    prompts = balanced_prompts(options.num_images, seed)
    for sampler, eta in SAMPLERS.items():
        for guidance in run.guidances:
            asked = [run.prefix + prompt for prompt in prompts]
            draw_all = partial(draw, pipeline, asked, num_steps=options.num_steps, guidance_scale=guidance, eta=eta)
            where = {"sampler": sampler, "guidance": guidance}
            if run.method == BEST:
                chosen = best_of(int(run.value), draw_all, world, prompts, seed)
                result["cells"] += [
                    where | {"value": num_draws, "measured": judge(world, prompts, images)}
                    for num_draws, images in enumerate(chosen, 1)
                    if num_draws in (run.value // 2, run.value)
                ]
            else:
                images = draw_all(seed)
                result["cells"].append(where | {"value": run.value, "measured": judge(world, prompts, images)})
    return _keep(path, result, start)


def _keep(path: Path, result: dict[str, Any], start: float) -> dict[str, Any]:
    result["seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.rename(path)
    return result


def real_cells(run: Run, options: Options) -> list[dict[str, Any]]:
    """Real scans as often as the target has them, instead of images: what nothing can be nearer to it than."""
    world = world_of(run.world, options)
    scans, weights = world.target()
    drawn = np.random.default_rng(run.first_seed + run.seed)
    rows = drawn.choice(len(weights), options.num_images, p=weights / weights.sum())
    values = judge(world, [prompts_of(scans.digits[row])[0] for row in rows], [scans.images[row] for row in rows])
    return [{"sampler": sampler, "guidance": 1.0, "value": 0.0, "measured": values} for sampler in SAMPLERS]


def train(run: Run, options: Options) -> Path:
    """The folder of the adapter that a run trains."""
    folder, num_updates = options.output_dir / "adapters" / run.name, int(run.times * options.num_updates)
    settings = {
        "output_dir": str(folder),
        "max_steps": num_updates,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": num_updates // 10,
        "logging_steps": 50,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "report_to": "none",
        "encode_batch_size": 64,
        "encoding_cache_dir": str(options.output_dir / run.world / "encodings"),
        "seed": run.seed,
        "use_cpu": True,
        "disable_tqdm": True,
    } | (run.settings or {})
    world = world_of(run.world, options)
    pipeline, dataset = load_base(world), Dataset.load_from_disk(options.output_dir / run.world / "scored")
    trainer: TGOTrainer | AlignPropTrainer
    if run.climbs:
        # as many updates, and in them as many images as the others are given
        batch_size = max(1, len(dataset) // options.num_updates)
        steps = {"sample_num_steps": options.num_steps, "sample_guidance_scale": 1.0}
        args = AlignPropConfig(per_device_train_batch_size=batch_size, **steps, **settings)
        trainer = AlignPropTrainer(pipeline, world.training(), args, dataset.select_columns("prompt"))
    else:
        trainer = TGOTrainer(pipeline, TGOConfig(per_device_train_batch_size=options.batch_size, **settings), dataset)
    trainer.train()
    trainer.save_model()
    return folder


def best_of(
    most: int,
    draw_all: Callable[[int], list[Image.Image]],
    world: World,
    prompts: list[str],
    seed: int,
) -> Iterator[list[Image.Image]]:
    """For 1, 2 to `most` images per prompt, those that the training scorer likes best (rejection sampling)."""
    best: list[Image.Image] = []
    highest = np.full(len(prompts), -np.inf)
    for i in range(most):
        images = draw_all(seed + 10_000 * i)
        scores = np.array(world.training()(prompts, images))
        is_better = scores > highest
        best = [image if is_better[k] else best[k] for k, image in enumerate(images)]
        highest = np.maximum(highest, scores)
        yield best


def judge(world: World, prompts: list[str], images: list[Image.Image]) -> dict[str, float]:
    """Mean score by each judge, share of legible images, variety, and distance to the target."""
    scores = {name: float(np.mean(fit()(prompts, images))) for name, fit in world.judges.items()}
    return {
        **scores,
        "legible": unseen_scorer().accuracy(prompts, images),
        "variety": variety_of_right(prompts, images),
        "frechet": frechet_distance(images, *world.target()),
    }


# --- many ------------------------------------------------------------------------------------------------------------


def measure_all(runs: Sequence[Run], options: Options, label: str) -> list[dict[str, Any]]:
    """What each run gives, several at a time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        results = pool.map(partial(measure, options=options), runs)
        return list(tqdm(results, desc=label, total=len(runs), unit="run"))


def _end_with_parent() -> None:
    """Lets a worker end where what started it was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def results_of(results: Iterable[dict[str, Any]], world: str, method: str) -> list[dict[str, Any]]:
    """Those of a method in a world."""
    return [it for it in results if (it["run"]["world"], it["run"]["method"]) == (world, method)]


def choose(results: Iterable[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
    """The result of the highest training score, among those where drift and variety stay within bounds.

    As `max_drift` and `min_variety` choose a checkpoint. Where none does, that which ends nearest to the target:
    without such bounds what wrecks the model most can win.

    Args:
        results: of one method.
        base: that of the base on the same images, whose variety is what theirs is measured by.
    """
    tried = list(results)
    least = LEAST_VARIETY * _mean_of("variety", base)
    within = [it for it in tried if max(it["drift"]) <= MOST_DRIFT and _mean_of("variety", it) >= least]
    if within:
        return max(within, key=partial(_mean_of, "training scorer"))
    return min(tried, key=partial(_mean_of, "frechet"))


def _mean_of(name: str, result: dict[str, Any]) -> float:
    """Over the samplers."""
    return float(np.mean([cell["measured"][name] for cell in result["cells"]]))


def tune(
    methods: Mapping[str, Method], values: Mapping[str, Sequence[float]], rates: Sequence[float], options: Options
) -> dict[tuple[str, str], dict[str, Any]]:
    """The run that [`choose`] takes of each method, by world and name, on seeds that the results do not use.

    Args:
        methods: by name.
        values: of the knob of each, that are tried.
        rates: that are tried.
        options: of the benchmark.
    """
    seeds = {"seed": TUNING_SEED, "first_seed": FIRST_TUNING_SEED}
    runs = [Run(world, BASE, **seeds) for world in options.worlds]
    runs += [
        method.run(world, name, value, rate, **seeds)
        for name, method in methods.items()
        for world in options.worlds
        if world in method.worlds
        for value in values[name]
        for rate in rates
    ]
    tuned = measure_all(runs, options, "Tuning")
    return {
        (world, name): choose(results_of(tuned, world, name), *results_of(tuned, world, BASE))["run"]
        for name, method in methods.items()
        for world in options.worlds
        if world in method.worlds
    }


def untrained_runs(options: Options) -> list[Run]:
    """Real scans, the base with guidance, and the best of n without."""
    return [
        run
        for world in options.worlds
        for seed in range(options.num_seeds)
        for run in (
            Run(world, REAL, seed=seed),
            Run(world, BASE, seed=seed, guidances=BASE_GUIDANCES),
            Run(world, BEST, options.most_of, seed=seed),
        )
    ]


def check_folder(options: Options, methods: Mapping[str, Method]) -> None:
    """Remembers in `output_dir` what its runs are of. Methods may be added.

    Raises:
        ValueError: if they are of other options or settings.
    """
    options.output_dir.mkdir(parents=True, exist_ok=True)
    now = {
        name: value
        for name, value in asdict(options).items()
        if name not in ("output_dir", "num_workers", "worlds", "methods")
    }
    settings = {
        name: {key: it for key, it in asdict(method).items() if key != "color"} for name, method in methods.items()
    }
    now |= {"methods": settings, "recipes": RECIPES}
    now = json.loads(json.dumps(now))
    path = options.output_dir / "options.json"
    if path.exists():
        before = json.loads(path.read_text())
        before["methods"] = now["methods"] | before["methods"]
        if before != now:
            raise ValueError(f"The runs in {options.output_dir} are of other options: set another `--output_dir`.")
    path.write_text(json.dumps(now, indent=1) + "\n")


# --- what came out ---------------------------------------------------------------------------------------------------


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per method, value, sampler and guidance: mean and half of the 95 % interval of each measure over seeds."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, float]]]] = {}
    for result in results:
        run = result["run"]
        for cell in result["cells"]:
            key = (run["world"], run["method"], cell["value"], run["learning_rate"], cell["sampler"], cell["guidance"])
            groups.setdefault(key, []).append((result, cell["measured"]))
    rows = []
    for (world, method, value, rate, sampler, guidance), members in groups.items():
        measured = {name: interval([values[name] for _, values in members]) for name in members[0][1]}
        drifts = [result["drift"] for result, _ in members if "drift" in result]
        if drifts:
            measured["drift"] = interval([max(quartiles) for quartiles in drifts])
        rows.append(
            {
                "world": world, "method": method, "value": value, "learning_rate": rate, "sampler": sampler,
                "guidance": guidance, "seeds": len(members), "measured": measured,
            }
        )  # fmt: skip
    return rows


def difference(
    results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], sampler: str, name: str
) -> tuple[float, float]:
    """Mean and half of the 95 % interval of a measure less another's, seed by seed: the chance of both cancels."""

    def by_seed(members: Sequence[dict[str, Any]]) -> dict[int, float]:
        return {
            result["run"]["seed"]: cell["measured"][name]
            for result in members
            for cell in result["cells"]
            if cell["sampler"] == sampler
        }

    other = by_seed(others)
    return interval([value - other[seed] for seed, value in by_seed(results).items()])


def row_name(row: dict[str, Any], methods: Mapping[str, Method]) -> str:
    """What a row is of."""
    guidance = f", guidance {row['guidance']:g}" if row["guidance"] != 1 else ""
    if row["method"] == REAL:
        return "real scans, drawn from the target"
    if row["method"] == BASE:
        return f"base{guidance}"
    if row["method"] == BEST:
        return f"base, best of {row['value']:g}"
    return f"{row['method']}{methods[row['method']].describe(row['value'])}{guidance}"


def table(rows: Sequence[dict[str, Any]], world: str, sampler: str, methods: Mapping[str, Method]) -> str:
    """The rows of a world and a sampler in Markdown, in order of the second judge, which training never saw."""
    judges = list(WORLDS[world].judges)
    chosen = [row for row in rows if row["world"] == world and row["sampler"] == sampler]
    chosen.sort(key=lambda row: row["measured"][judges[1]][0])
    names = [*judges, *([] if world == "asked" else ["legible"]), *MEASURES, "drift"]
    is_share = {name: name in ("variety", "legible") or (world == "asked" and name in judges) for name in names}
    lines = [f"| | rate | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in chosen:
        cells = [show(*row["measured"][name], is_share[name]) if name in row["measured"] else "" for name in names]
        rate = f"{row['learning_rate']:g}" if row["learning_rate"] else ""
        lines.append(f"| {row_name(row, methods)} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(mean: float, half: float, is_share: bool) -> str:
    """A mean with its interval, if there is one; shares in percent."""
    if math.isinf(half):
        return f"{100 * mean:.1f} (one seed)" if is_share else f"{mean:.2f} (one seed)"
    return f"{100 * mean:.1f} ± {100 * half:.1f}" if is_share else f"{mean:.2f} ± {half:.2f}"


def plot(rows: Sequence[dict[str, Any]], worlds: Sequence[str], methods: Mapping[str, Method], path: Path) -> None:
    """Score against distance and against variety, a line per method, for each world and sampler."""
    looks = UNTRAINED | {name: (name, method.color) for name, method in methods.items()}
    figure = Figure(figsize=(11, 4.2 * len(worlds) + 0.4), layout="constrained")
    axes = figure.subplots(len(worlds), 4, squeeze=False)
    for i, world in enumerate(worlds):
        judge_name = list(WORLDS[world].judges)[1]
        for k, (sampler, measured) in enumerate((s, m) for s in SAMPLERS for m in reversed(MEASURES)):
            panel = axes[i, k]
            for marker, method in zip(cycle(MARKERS), looks, strict=False):
                chosen = [
                    row for row in rows
                    if (row["world"], row["method"], row["sampler"]) == (world, method, sampler)
                    and (row["guidance"] == 1 or method == BASE)
                ]  # fmt: skip
                chosen.sort(key=lambda row: row["measured"][judge_name][0])
                points = [(row["measured"][measured], row["measured"][judge_name]) for row in chosen]
                if not points:
                    continue
                (x, x_half), (y, y_half) = (np.array(values).T for values in zip(*points, strict=True))
                label, color = looks[method]
                panel.errorbar(x, y, y_half, x_half, color=color, marker=marker, markersize=5, linewidth=1.2,
                               elinewidth=0.6, label=label)  # fmt: skip
            if measured == "frechet":
                panel.set_xscale("log")
                panel.set_xlim(left=0.6)
                panel.set_xticks(DISTANCES, labels=map(str, DISTANCES))
                panel.set_xticks([], minor=True)
            panel.set_xlabel({"frechet": "Fréchet distance to the target", "variety": "variety"}[measured], fontsize=9)
            panel.set_title(f"{world}: {sampler}", fontsize=9)
            panel.set_ylabel(f"score, {judge_name}" if k == 0 else "", fontsize=9)
            panel.tick_params(labelsize=8, which="both")
    handles = {
        label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def write(
    results: Sequence[dict[str, Any]], methods: Mapping[str, Method], options: Options, picture: str
) -> list[dict[str, Any]]:
    """Writes `tables.md`, `results.json` and the picture, prints the tables, and returns their rows."""
    rows = summarise(results)
    tables = [
        f"### {world}, {sampler}\n\n{table(rows, world, sampler, methods)}"
        for world in options.worlds
        for sampler in SAMPLERS
    ]
    plot(rows, options.worlds, methods, options.output_dir / picture)
    write_tables(rows, tables, options.output_dir, [picture])
    return rows


def write_tables(rows: Sequence[dict[str, Any]], tables: Sequence[str], folder: Path, pictures: Sequence[str]) -> None:
    """Writes `tables.md` and `results.json`, prints the tables, and names these files and the pictures beside them."""
    text = "\n\n".join(tables)
    (folder / "tables.md").write_text(text + "\n")
    # the interval of one seed is infinite, which JSON has no word for
    (folder / "results.json").write_text(json.dumps(rows, indent=1).replace("Infinity", "null") + "\n")
    print(text)
    for name in ("tables.md", "results.json", *pictures):
        print(folder / name)


# --- the command line ------------------------------------------------------------------------------------------------


def parse_options(description: str, usual: Chosen, arguments: Sequence[str] | None = None) -> Chosen:
    """The options of a command line, those of `usual` where it has none."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    for name, default in vars(usual).items():
        if isinstance(default, tuple):
            parser.add_argument(f"--{name}", nargs="+", choices=default, default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args(arguments))
    is_quick = values.pop("quick")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if not is_quick:
        return replace(usual, **given)
    return replace(usual.quick(), **{name: value for name, value in given.items() if value != getattr(usual, name)})

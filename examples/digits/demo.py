"""Align a small pipeline of handwritten digits with TGO, from its own samples and a classifier's scores.

    python examples/digits/demo.py --output_dir outputs/digits

The base draws the digit that the prompt asks for about six times in ten: three in ten captions of its training set were
wrong. The demo samples it, scores every image with a classifier, and trains three LoRA adapters: with TGO by
`recipe="robust"`, with the paper's settings, and by supervised fine-tuning (SFT) on the positive images. It compares
them with the base, and with the base under guidance, on fresh seeds: by the classifier that gave the scores, by another
one that the training never saw, by the variety of the right digits, and by the distance to real scans. Everything it
writes lies in `--output_dir`. It runs on the CPU, also on a machine with a GPU, so that the table is the same.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from digits import RESOLUTION, DigitScorer, balanced_prompts, digit_of, prompts_of, training_scorer, unseen_scorer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measures import frechet_distance, interval, variety_of_right
from PIL import Image
from rich.console import Console
from rich.table import Table
from worlds import WORLDS, draw, load_base, real_scans

from tgo_trl import TGOConfig, TGOTrainer

WORLD = WORLDS["asked"]
SCORERS: dict[str, Callable[[], DigitScorer]] = {"training scorer": training_scorer, "unseen scorer": unseen_scorer}
RUNS: dict[str, dict[str, Any]] = {
    "tgo": {"recipe": "robust"},
    "paper": {"beta": 3.0},
    "sft": {"loss_type": "sft"},
}
"""What is trained, by the folder that it is saved to, and the settings that tell it from the others."""
TITLES = {"tgo": "TGO, recipe robust", "paper": "TGO, paper's settings", "sft": "SFT on the positives"}
GUIDANCES = (2.0, 4.0)
CELL, FRAME, WRONG = 20, 1, (216, 27, 27)
"""Pixels of a digit in a picture with its frame and what is around it, those of the frame, and its colour."""


@dataclass
class Options:
    """Options of the demo."""

    output_dir: Path = Path("outputs/digits")
    num_images: int = 2000
    num_updates: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    num_seeds: int = 6
    images_per_seed: int = 500
    num_inference_steps: int = 20


@dataclass
class Result:
    """What one model draws, by seed.

    Attributes:
        name: of the model.
        accuracies: the share of right digits, by scorer.
        varieties: of the right digits, over that of real scans.
        distances: Frechet distance to the real scans.
    """

    name: str
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    varieties: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)

    def interval(self, scorer: str) -> tuple[float, float]:
        """Mean over seeds, and half the width of its 95 % confidence interval (Student's t)."""
        return interval(self.accuracies[scorer])


def make_scored_dataset(options: Options) -> Dataset:
    """Samples of the base with the training scorer's score of each, stored in `output_dir/scored`."""
    prompts = balanced_prompts(options.num_images, seed=0)
    images = draw(load_base(WORLD), prompts, 0, options.num_inference_steps, label="Sampling the base")
    scores = training_scorer()(prompts, images)
    dataset = Dataset.from_dict({"prompt": prompts, "image": images, "score": scores})
    dataset.save_to_disk(options.output_dir / "scored")
    return Dataset.load_from_disk(options.output_dir / "scored")


def train(name: str, dataset: Dataset, options: Options, **settings: Any) -> TGOTrainer:
    """Trains an adapter of `RUNS` and saves it to `output_dir/<name>`; `settings` take the place of the demo's."""
    defaults = {
        **RUNS[name],
        "max_steps": options.num_updates,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_steps": 50,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "report_to": "none",
        "encode_batch_size": 64,
        "encoding_cache_dir": str(options.output_dir / "encodings"),
        "sample_prompts": [prompts_of(digit)[digit % 4] for digit in range(10)],
        "sample_steps": max(1, options.num_updates // 3),
        "sample_num_inference_steps": options.num_inference_steps,
        "sample_guidance_scale": 1.0,
        "seed": options.seed,
        "use_cpu": True,  # and so float32, as stock diffusers draws: bfloat16 moves pixels by a third of their range
    }
    args = TGOConfig(str(options.output_dir / name), **{**defaults, **settings})
    trainer = TGOTrainer(load_base(WORLD), args, dataset)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=f"Digits, {TITLES[name]}")
    return trainer


def evaluate(name: str, adapter: Path | None, options: Options, guidance_scale: float = 1.0) -> Result:
    """What the base draws on fresh seeds, with an adapter loaded by stock diffusers or without."""
    pipeline = load_base(WORLD)
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    result = Result(name, {scorer: [] for scorer in SCORERS})
    for seed in range(1000, 1000 + options.num_seeds):
        prompts = balanced_prompts(options.images_per_seed, seed)
        label = f"{name}, seed {seed}"
        images = draw(pipeline, prompts, seed, options.num_inference_steps, label, guidance_scale)
        for scorer, fitted in SCORERS.items():
            result.accuracies[scorer].append(fitted().accuracy(prompts, images))
        result.varieties.append(variety_of_right(prompts, images))
        result.distances.append(frechet_distance(images, *real_scans()))
    return result


def check_adapter(trainer: TGOTrainer, adapter: Path, options: Options) -> int:
    """The largest difference of a pixel between the trainer's pictures and stock diffusers' with the saved adapter.

    Raises:
        AssertionError: if it is more than rounding.
    """
    prompts = [prompts_of(digit)[0] for digit in range(10)]
    seeds = list(range(10))
    kwargs = {"num_inference_steps": options.num_inference_steps, "guidance_scale": 1.0}
    ours = trainer.sample(prompts, seeds, **kwargs)
    stock = load_base(WORLD)
    stock.load_lora_weights(adapter)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    theirs = stock(prompts, generator=generators, **kwargs).images
    difference = int(np.abs(np.stack(ours).astype(int) - np.stack(theirs).astype(int)).max())
    assert difference <= 1, f"stock diffusers draws other pictures: a pixel differs by {difference} of 255"
    return difference


def show_digits(axes: Axes, name: str, prompts: list[str], images: list[Image.Image]) -> None:
    """A row of digits with the asked one below each, and a red frame around what the unseen scorer reads otherwise."""
    strip = Image.new("RGB", (CELL * len(images), CELL), "white")
    edge = (CELL - RESOLUTION) // 2
    for i, (image, is_right) in enumerate(zip(images, unseen_scorer().is_right(prompts, images), strict=True)):
        if not is_right:
            corner = edge - FRAME
            strip.paste(WRONG, (CELL * i + corner, corner, CELL * (i + 1) - corner, CELL - corner))
        strip.paste(image.convert("RGB"), (CELL * i + edge, edge))
    axes.imshow(strip, interpolation="nearest")
    centres = [CELL * (i + 0.5) - 0.5 for i in range(len(images))]
    axes.set_xticks(centres, [str(digit_of(prompt)) for prompt in prompts], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=1)
    axes.spines[:].set_visible(False)
    axes.set_title(name, fontsize=9, loc="left", pad=2)


def draw_before_after(options: Options) -> Path:
    """Digits of all models for the same prompts and seeds, a row each, as wide as a page; wrong ones are marked."""
    digits = [digit for digit in range(10) for _ in range(2)]
    prompts = [prompts_of(digit)[i % 2] for i, digit in enumerate(digits)]
    models = [("base", None, 1.0), ("base, guidance 4", None, 4.0)]
    models += [(TITLES[run], options.output_dir / run, 1.0) for run in reversed(RUNS)]
    rows = {}
    for name, adapter, guidance in models:
        pipeline = load_base(WORLD)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        rows[name] = draw(pipeline, prompts, 7, options.num_inference_steps, f"Digits, {name}", guidance)
    figure = Figure(figsize=(10, 0.95 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows)), rows.items(), strict=True):
        show_digits(axes, name, prompts, images)
    path = options.output_dir / "before_after.png"
    figure.savefig(path, dpi=110)
    return path


def print_results(results: list[Result]) -> None:
    """The table of shares with 95 % confidence intervals."""
    table = Table(
        title=f"Images that show the asked digit, mean over {len(results[0].accuracies['unseen scorer'])} seeds"
    )
    table.add_column("model")
    for scorer in SCORERS:
        table.add_column(scorer, justify="right")
    table.add_column("variety (real scans: 100 %)", justify="right")
    table.add_column("distance to real scans", justify="right")
    for result in results:
        cells = [f"{100 * mean:.1f} % ± {100 * half:.1f}" for mean, half in map(result.interval, SCORERS)]
        variety, distance = statistics.mean(result.varieties), statistics.mean(result.distances)
        table.add_row(result.name, *cells, f"{100 * variety:.0f} %", f"{distance:.1f}")
    Console().print(table)


def draw_chart(results: list[Result], options: Options) -> Path:
    """What the table has, a panel each: right digits by the unseen scorer, variety, and distance."""
    panels = {
        "right digits, unseen scorer": [result.accuracies["unseen scorer"] for result in results],
        "variety (real scans: 1)": [result.varieties for result in results],
        "distance to real scans": [result.distances for result in results],
    }
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        means, halves = zip(*map(interval, values), strict=True)
        axes.barh(np.arange(len(results)), means, xerr=halves, capsize=3, color="#4c72b0")
        axes.set_title(title, fontsize=9)
        axes.set_yticks(np.arange(len(results)), [result.name for result in results], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    path = options.output_dir / "results.png"
    figure.savefig(path, dpi=120)
    return path


def main(options: Options) -> None:
    """Runs the demo."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    dataset = make_scored_dataset(options)
    trainers = {name: train(name, dataset, options) for name in RUNS}
    difference = check_adapter(trainers["tgo"], options.output_dir / "tgo", options)
    results = [evaluate("base", None, options)]
    results += [evaluate(f"base, guidance {scale:g}", None, options, scale) for scale in GUIDANCES]
    results += [evaluate(TITLES[name], options.output_dir / name, options) for name in reversed(RUNS)]
    grid = draw_before_after(options)
    chart = draw_chart(results, options)
    (options.output_dir / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=2))
    print_results(results)
    print(f"adapter in stock diffusers: largest pixel difference {difference} of 255")
    print(f"before and after:           {grid}")
    print(f"chart of the table:         {chart}")
    print(f"score histogram:            {options.output_dir / 'tgo' / 'score_histogram.png'}")
    print(f"model card:                 {options.output_dir / 'tgo' / 'README.md'}")
    print(f"took {time.perf_counter() - start:.0f} s at {RESOLUTION} pixels, {options.num_updates} updates each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in vars(Options()).items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Options(**vars(parser.parse_args())))

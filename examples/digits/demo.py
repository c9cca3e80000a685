"""Align a small pipeline of handwritten digits with TGO, from its own samples and a classifier's scores.

    python examples/digits/demo.py --output_dir outputs/digits

The base draws the digit that the prompt asks for about six times in ten: three in ten captions of its training set were
wrong. The demo samples it, scores every image with a classifier, trains one LoRA adapter with TGO and one with
supervised fine-tuning (SFT) on the positive images, and compares base, SFT and TGO on fresh seeds: by the classifier
that gave the scores, and by another one that the training never saw. Everything it writes lies in `--output_dir`. It
runs on the CPU, on a machine with a GPU too, so that the table is the same everywhere.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from digits import (
    RESOLUTION,
    DigitScorer,
    balanced_prompts,
    digit_of,
    load_scans,
    prompts_of,
    to_pixels,
    training_scorer,
    unseen_scorer,
)
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t
from tqdm.auto import tqdm

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.trainer.plots import plot_grid

BASE = Path(__file__).parent / "base"
SAMPLE_BATCH_SIZE = 250
SCORERS: dict[str, Callable[[], DigitScorer]] = {"training scorer": training_scorer, "unseen scorer": unseen_scorer}


@dataclass
class Options:
    """Options of the demo."""

    output_dir: Path = Path("outputs/digits")
    num_images: int = 2000
    num_updates: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta: float = 3.0
    recipe: str = ""
    seed: int = 0
    num_seeds: int = 6
    images_per_seed: int = 500
    num_inference_steps: int = 20


@dataclass
class Result:
    """What one model draws, by seed: the share of right digits for each scorer, and the variety of the right ones."""

    name: str
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    varieties: list[float] = field(default_factory=list)

    def interval(self, scorer: str) -> tuple[float, float]:
        """Mean over seeds, and half the width of its 95 % confidence interval (Student's t)."""
        values = self.accuracies[scorer]
        spread = statistics.stdev(values) / len(values) ** 0.5
        return statistics.mean(values), float(student_t.ppf(0.975, len(values) - 1)) * spread


def load_base() -> StableDiffusionPipeline:
    """The base pipeline, as stock diffusers loads it."""
    # relative to where the demo is run from, where it can be: this is the path that the model card shows
    folder = BASE.relative_to(Path.cwd()) if BASE.is_relative_to(Path.cwd()) else BASE
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int, num_steps: int, label: str
) -> list[Image.Image]:
    """One image per prompt, without guidance."""
    images: list[Image.Image] = []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(prompts), SAMPLE_BATCH_SIZE), desc=label, unit="batch"):
        batch = list(prompts[start : start + SAMPLE_BATCH_SIZE])
        images += pipeline(batch, num_inference_steps=num_steps, guidance_scale=1.0, generator=generator).images
    return images


def make_scored_dataset(options: Options) -> Dataset:
    """Samples of the base with the training scorer's score of each, stored in `output_dir/scored`."""
    prompts = balanced_prompts(options.num_images, seed=0)
    images = draw(load_base(), prompts, seed=0, num_steps=options.num_inference_steps, label="Sampling the base")
    scores = training_scorer()(prompts, images)
    dataset = Dataset.from_dict({"prompt": prompts, "image": images, "score": scores})
    dataset.save_to_disk(options.output_dir / "scored")
    return Dataset.load_from_disk(options.output_dir / "scored")


def train(loss_type: str, dataset: Dataset, options: Options, **settings: Any) -> TGOTrainer:
    """Trains an adapter and saves it to `output_dir/<loss_type>`; `settings` take the place of the demo's."""
    has_recipe = options.recipe and loss_type == "tgo"
    defaults = {
        "loss_type": loss_type,
        **({"recipe": options.recipe} if has_recipe else {"beta": options.beta}),
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
    args = TGOConfig(str(options.output_dir / loss_type), **{**defaults, **settings})
    trainer = TGOTrainer(load_base(), args, dataset)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=f"Digits, aligned with {loss_type.upper()}")
    return trainer


def evaluate(name: str, adapter: Path | None, options: Options) -> Result:
    """Share of right digits on fresh seeds, of the base with an adapter loaded by stock diffusers."""
    pipeline = load_base()
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    result = Result(name, {scorer: [] for scorer in SCORERS})
    for seed in range(1000, 1000 + options.num_seeds):
        prompts = balanced_prompts(options.images_per_seed, seed)
        images = draw(pipeline, prompts, seed, options.num_inference_steps, f"{name}, seed {seed}")
        for scorer, fitted in SCORERS.items():
            result.accuracies[scorer].append(fitted().accuracy(prompts, images))
        result.varieties.append(variety(prompts, images) / real_variety())
    return result


def variety(prompts: Sequence[str], images: Sequence[Image.Image]) -> float:
    """Mean distance of pixels between two images of the same digit, among those that the unseen scorer reads as asked.

    An aligned model that draws one perfect seven for every seven has a variety of 0.
    """
    asked = torch.tensor([digit_of(prompt) for prompt in prompts])
    right = asked == torch.tensor(unseen_scorer().read(list(images)))
    pixels = to_pixels(images).mean(1).flatten(1)
    distances = [torch.pdist(pixels[right & (asked == digit)]) for digit in range(10)]
    return float(np.mean([distance.mean() for distance in distances if len(distance)]))


@functools.cache
def real_variety() -> float:
    """The variety of real scans that no generator and no scorer has seen."""
    scans = load_scans("held_out")
    return variety([prompts_of(digit)[0] for digit in scans.digits], scans.images)


def check_adapter(trainer: TGOTrainer, adapter: Path, options: Options) -> int:
    """The largest difference of a pixel between the trainer's pictures and stock diffusers' with the saved adapter.

    Raises:
        AssertionError: if it is more than rounding.
    """
    prompts = [prompts_of(digit)[0] for digit in range(10)]
    seeds = list(range(10))
    kwargs = {"num_inference_steps": options.num_inference_steps, "guidance_scale": 1.0}
    ours = trainer.sample(prompts, seeds, **kwargs)
    stock = load_base()
    stock.load_lora_weights(adapter)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    theirs = stock(prompts, generator=generators, **kwargs).images
    difference = int(np.abs(np.stack(ours).astype(int) - np.stack(theirs).astype(int)).max())
    assert difference <= 1, f"stock diffusers draws other pictures: a pixel differs by {difference} of 255"
    return difference


def draw_before_after(options: Options) -> Path:
    """A grid of base, SFT and TGO on the same prompts and seeds."""
    digits = [digit for digit in range(10) for _ in range(2)]
    prompts = [prompts_of(digit)[i % 2] for i, digit in enumerate(digits)]
    rows = []
    for adapter in (None, "sft", "tgo"):
        pipeline = load_base()
        if adapter is not None:
            pipeline.load_lora_weights(options.output_dir / adapter)
        rows.append(draw(pipeline, prompts, 7, options.num_inference_steps, f"Grid, {adapter or 'base'}"))
    path = options.output_dir / "before_after.png"
    plot_grid(rows, ["base", "SFT", "TGO"], [str(digit_of(prompt)) for prompt in prompts], path)
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
    for result in results:
        cells = [f"{100 * mean:.1f} % ± {100 * half:.1f}" for mean, half in map(result.interval, SCORERS)]
        table.add_row(result.name, *cells, f"{100 * statistics.mean(result.varieties):.0f} %")
    Console().print(table)


def draw_chart(results: list[Result], options: Options) -> Path:
    """The table as bars with their confidence intervals."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(results))
    for i, scorer in enumerate(SCORERS):
        means, halves = zip(*(result.interval(scorer) for result in results), strict=True)
        axes.bar(positions + 0.4 * i - 0.2, means, 0.38, yerr=halves, capsize=4, label=scorer)
    axes.set(ylabel="share of images with the asked digit", ylim=(0, 1.05), xticks=positions)
    axes.set_xticklabels([result.name for result in results])
    axes.legend(loc="lower right")
    path = options.output_dir / "accuracy.png"
    figure.savefig(path, dpi=120)
    return path


def main(options: Options) -> None:
    """Runs the demo."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    dataset = make_scored_dataset(options)
    trainers = {loss_type: train(loss_type, dataset, options) for loss_type in ("tgo", "sft")}
    difference = check_adapter(trainers["tgo"], options.output_dir / "tgo", options)
    results = [
        evaluate("base", None, options),
        evaluate("SFT on the positives", options.output_dir / "sft", options),
        evaluate("TGO", options.output_dir / "tgo", options),
    ]
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

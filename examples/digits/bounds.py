"""Bounds that end a run before it is wrecked, and what they keep, in the digits world.

    python examples/digits/bounds.py --output_dir outputs/bounds

The scores are log-probabilities, whose long lower tail gives bad rows most of the weight. Two runs are held to the same
bounds, on drift and on variety: one with the paper's settings, and one with `recipe="robust"`. Each evaluation draws
digits, and a scorer that training never saw says how many are right. Takes three minutes on two cores.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from demo import WORLD, Options, make_scored_dataset
from digits import prompts_of, unseen_scorer
from PIL import Image
from worlds import load_base

from tgo_trl import TGOConfig, TGOTrainer

RUNS = {"paper": {"beta": 3.0}, "robust": {"recipe": "robust"}}
LEAST_PROBABILITY = 1e-4
NUM_EVALUATIONS = 12


def right_digits(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """A reward: the probability of the asked digit, by the scorer that training never saw."""
    return unseen_scorer()(list(prompts), list(images))


def train(name: str, parts: Any, options: Options, **settings: Any) -> TGOTrainer:
    """Trains with bounds, and saves the best checkpoint that is inside of them to `output_dir/<name>`.

    Args:
        name: of the run, a key of `RUNS`.
        parts: the rows of training, `train`, and of evaluations, `test`.
        options: as of the demo.
        settings: take the place of those here.

    Raises:
        OutsideBoundsError: if no evaluation was inside the bounds.
    """
    every = max(1, options.num_updates // NUM_EVALUATIONS)
    defaults = {
        "max_steps": options.num_updates,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": 100,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(20, options.num_updates // 2),
        "gradient_checkpointing": False,
        "report_to": "none",
        "encoding_cache_dir": str(options.output_dir / "encodings"),
        "seed": options.seed,
        "use_cpu": True,
        # what is measured, when, and what must hold of it
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "samples/right_digits",
        "eval_rewards": [f"{__file__}:right_digits"],
        "eval_prompts": [prompt for digit in range(10) for prompt in prompts_of(digit)],
        "eval_samples_per_prompt": 5,
        "sample_num_inference_steps": options.num_inference_steps,
        "sample_guidance_scale": 1.0,
        "max_drift": 1.2,
        "min_variety": 0.75,
    }
    args = TGOConfig(str(options.output_dir / name), **{**defaults, **RUNS[name], **settings})
    trainer = TGOTrainer(load_base(WORLD), args, parts["train"], parts["test"])
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=f"Digits within bounds, {name}")
    return trainer


def main(options: Options) -> Path:
    """Trains both, and puts their pictures one above the other."""
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    dataset = make_scored_dataset(options).map(lambda row: {"score": math.log(max(row["score"], LEAST_PROBABILITY))})
    parts = dataset.train_test_split(0.1, seed=0)
    trainers = [train(name, parts, options) for name in RUNS]
    pictures = [Image.open(trainer.args.output_path / "evaluations.png").convert("RGB") for trainer in trainers]
    joined = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    for i, picture in enumerate(pictures):
        joined.paste(picture, (0, i * pictures[0].height))
    path = options.output_dir / "evaluations.png"
    joined.save(path)
    print(f"paper's settings above, the recipe below: {path}")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = replace(Options(), output_dir=Path("outputs/bounds"), num_images=1000, num_updates=120)
    for option, default in vars(defaults).items():
        if option not in ("num_seeds", "images_per_seed"):
            parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Options(**vars(parser.parse_args())))

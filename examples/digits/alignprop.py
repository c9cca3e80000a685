"""Make a small pipeline of handwritten digits draw what it is asked, by the gradient of a classifier, with AlignProp.

    python examples/digits/alignprop.py --output_dir outputs/alignprop

No images are needed, and no scores: the policy draws, and the gradient of a net's log-probability of the asked digit
goes back through the autoencoder and the last steps of the sampler. Each evaluation draws the same prompts and seeds,
which another classifier judges that shares no scan and no kind of model with the net, beside their variety. Takes about
two minutes on two cores.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from digits import digit_of, prompts_of, training_scorer, unseen_scorer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from worlds import WORLDS, load_base

from tgo_trl import AlignPropConfig, AlignPropTrainer

PROMPTS = [prompt for digit in range(10) for prompt in prompts_of(digit)]


@dataclass
class Options:
    """Options of the example."""

    output_dir: Path = Path("outputs/alignprop")
    num_updates: int = 40
    batch_size: int = 40
    learning_rate: float = 1e-3
    num_steps: int = 20
    samples_per_prompt: int = 5
    num_evaluations: int = 5
    seed: int = 0


class AskedDigit:
    """The net's log-probability of the asked digit: of a probability, a wrong digit has hardly a gradient."""

    name, version, license = "asked_digit", "1", "apache-2.0"
    differentiable = True

    def score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """Float32 `[N]`, of pixels `[N, 3, H, W]` in [0, 1]."""
        asked = torch.tensor([digit_of(prompt) for prompt in prompts])
        probability = unseen_scorer().probabilities(pixels * 2 - 1)
        return probability.gather(1, asked[:, None]).squeeze(1).add(1e-6).log()


def right_digits(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """A reward of evaluations: 1 where the judge, a kernel machine fitted to other scans, reads the asked digit."""
    return [float(it) for it in training_scorer().is_right(list(prompts), list(images))]


def train(options: Options, **settings: Any) -> AlignPropTrainer:
    """Trains, and saves the adapter to `output_dir`; `settings` take the place of those here."""
    every = max(1, options.num_updates // options.num_evaluations)
    defaults = {
        "max_steps": options.num_updates,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "sample_num_steps": options.num_steps,
        "sample_guidance_scale": 1.0,
        "gradient_checkpointing": False,  # these networks are small
        "logging_steps": every,
        "report_to": "none",
        "encoding_cache_dir": str(options.output_dir / "encodings"),
        "seed": options.seed,
        "use_cpu": True,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "eval_rewards": [f"{__file__}:right_digits"],
        "eval_prompts": PROMPTS,
        "eval_samples_per_prompt": options.samples_per_prompt,
        "per_device_eval_batch_size": 100,
        "save_strategy": "no",
        "sample_prompts": [prompts_of(digit)[digit % 4] for digit in range(10)],
        "sample_steps": options.num_updates,
    }
    args = AlignPropConfig(str(options.output_dir), **{**defaults, **settings})
    trainer = AlignPropTrainer(load_base(WORLDS["asked"]), AskedDigit(), args, Dataset.from_dict({"prompt": PROMPTS}))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="Digits, AlignProp")
    return trainer


def print_results(trainer: AlignPropTrainer) -> None:
    """What the judge saw over the run, beside the reward that was climbed."""
    table = Table(
        "update", "reward (net)", "right digits (judge)", "variety (base: 100 %)", title="AlignProp on digits"
    )
    rewards = {entry["step"]: entry["reward"] for entry in trainer.state.log_history if "reward" in entry}
    for entry in trainer.state.log_history:
        if "eval_samples/right_digits" in entry:
            reward = rewards.get(entry["step"])
            cells = (f"{entry[f'eval_samples/{name}']:.1%}" for name in ("right_digits", "variety"))
            table.add_row(str(entry["step"]), "" if reward is None else f"{reward:.2f}", *cells)
    Console().print(table)


def main(options: Options) -> Path:
    """Trains, and says what came of it; returns the folder."""
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    trainer = train(options)
    print_results(trainer)
    grid = options.output_dir / "samples" / f"step-{options.num_updates:06d}.png"
    print(f"The adapter and its card are in {options.output_dir}; base and policy side by side: {grid}")
    return options.output_dir


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in vars(Options()).items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Options(**vars(parser.parse_args())))

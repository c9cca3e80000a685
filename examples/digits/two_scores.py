"""A reward that can be gamed, alone and beside one that holds it, in the digits world.

    python examples/digits/two_scores.py --output_dir outputs/two_scores

The reward `ink` is the share of the picture that is bright: legible digits have some, and blots have more. `asked` is
the probability that the picture shows the digit it was asked for. The same samples of the base are trained on by `ink`
alone, and by both with a threshold each. Takes eight minutes on two cores
that have other work.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import Options, make_scored_dataset, train
from digits import balanced_prompts, unseen_scorer
from measures import variety_of_right
from PIL import Image
from worlds import WORLDS, draw, load_base

BOTH = ["ink", "score"]
RUNS: dict[str, dict[str, Any]] = {
    "ink alone": {"score_column": "ink", "score_normalization": "zscore"},
    "sum of both": {"score_columns": BOTH},
    "vote of both": {"score_columns": BOTH, "score_combination": "vote"},
}
"""Settings of each run beside the demo's."""
SMALL = Options(Path("outputs/two_scores"), num_images=1000, num_updates=120, batch_size=48, images_per_seed=300)


def ink(images: Sequence[Image.Image]) -> list[float]:
    """The mean brightness of each image, from 0 to 1."""
    return [float(np.asarray(image.convert("L")).mean() / 255) for image in images]


def describe(name: str, prompts: Sequence[str], images: Sequence[Image.Image]) -> str:
    """A row of the table: ink, legible digits by a scorer that no training has seen, and their variety."""
    right = 100 * unseen_scorer().accuracy(list(prompts), list(images))
    variety = 100 * variety_of_right(prompts, images)
    return f"| {name} | {sum(ink(images)) / len(images):.3f} | {right:.1f} % | {variety:.0f} % |"


def main(options: Options) -> list[str]:
    """Trains by each, and prints the table."""
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    dataset = make_scored_dataset(options)
    dataset = dataset.add_column("ink", ink(dataset["image"]))
    prompts = balanced_prompts(options.images_per_seed, seed=1000)
    pipeline = load_base(WORLDS["asked"])
    lines = [describe("base", prompts, draw(pipeline, prompts, 1000, options.num_inference_steps, "base"))]
    for name, settings in RUNS.items():
        trainer = train("tgo", dataset, options, sample_prompts=None, **settings)
        pipeline = load_base(WORLDS["asked"])
        pipeline.load_lora_weights(Path(trainer.args.output_dir))
        lines.append(describe(name, prompts, draw(pipeline, prompts, 1000, options.num_inference_steps, name)))
    print(
        "\n".join(["| trained by | ink | right digits, unseen scorer | their variety |", "|---|---|---|---|", *lines])
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in vars(SMALL).items():
        if option != "num_seeds":
            parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Options(**vars(parser.parse_args())))

"""Two worlds of handwritten digits: a base that draws, a score to train on, and what the result is judged by.

**asked**: three in ten captions of the base's training set were wrong, and the score is the probability that an image
shows the digit that its prompt asks for. Wrong captions are just what classifier-free guidance removes: the base gets
there with `guidance_scale=4` and no training.

**strokes**: all captions were right, and the score is how heavy the strokes are (`strokes.py`), which no prompt
mentions and guidance does not know. What alignment should lead to is known: real scans of each digit, a scan of stroke
weight `s` drawn as often as `exp(s / TARGET_BETA)` says.

    python examples/digits/pretrain.py --help      makes the bases
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from digits import DigitScorer, Scans, load_scans, neighbours_scorer, prompts_of, training_scorer, unseen_scorer
from PIL import Image
from strokes import stroke_weight, training_preferences, unseen_preferences
from tqdm.auto import tqdm

FOLDER = Path(__file__).parent
SAMPLE_BATCH_SIZE = 250
TARGET_BETA = 1.0

Scorer = Callable[[list[str], list[Image.Image]], list[float]]
"""From prompts and images to scores, the higher the better."""


@dataclass(frozen=True)
class World:
    """A base, and scores.

    Attributes:
        base: folder of its pipeline.
        training: fits what alignment trains on.
        judges: fit what judges the result, by name: training's own first, and two that training never saw.
        target: real scans, and how often each should be drawn, `[N]`, to any sum.
    """

    base: Path
    training: Callable[[], Scorer]
    judges: Mapping[str, Callable[[], Scorer]]
    target: Callable[[], tuple[Scans, np.ndarray]]


def right(scorer: Callable[[], DigitScorer]) -> Callable[[], Scorer]:
    """Judges by whether an image is read as the digit that its prompt asks for: 1 or 0."""
    return lambda: lambda prompts, images: [float(it) for it in scorer().is_right(prompts, images)]


@functools.cache
def real_scans() -> tuple[Scans, np.ndarray]:
    """The scans that the base learned from, then those that nothing has seen, all as often."""
    seen, held_out = load_scans("generator"), load_scans("held_out")
    scans = Scans(seen.images + held_out.images, seen.digits + held_out.digits)
    return scans, np.ones(len(scans.digits))


@functools.cache
def heavy_scans() -> tuple[Scans, np.ndarray]:
    """The same, tilted towards heavy strokes within each digit: `exp(s / TARGET_BETA)` over its sum."""
    scans, _ = real_scans()
    weights = np.exp(np.array(stroke_weight()([prompts_of(digit)[0] for digit in scans.digits], scans.images)))
    weights **= 1 / TARGET_BETA
    digits = np.array(scans.digits)
    for digit in set(scans.digits):
        weights[digits == digit] /= weights[digits == digit].mean()
    return scans, weights


WORLDS = {
    "asked": World(
        base=FOLDER / "base",
        training=training_scorer,
        judges={
            "training scorer": right(training_scorer),
            "unseen net": right(unseen_scorer),
            "unseen neighbours": right(neighbours_scorer),
        },
        target=real_scans,
    ),
    "strokes": World(
        base=FOLDER / "obedient_base",
        training=training_preferences,
        judges={
            "training scorer": training_preferences,
            "unseen net": unseen_preferences,
            "stroke weight": stroke_weight,
        },
        target=heavy_scans,
    ),
}
"""The worlds by name."""


def load_base(world: World) -> StableDiffusionPipeline:
    """The base pipeline, as stock diffusers loads it."""
    # relative to where it is run from, where it can be: this is the path that the model card shows
    folder = world.base.relative_to(Path.cwd()) if world.base.is_relative_to(Path.cwd()) else world.base
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seed: int,
    num_steps: int,
    label: str = "",
    guidance_scale: float = 1.0,
    eta: float = 0.0,
) -> list[Image.Image]:
    """One image per prompt.

    Args:
        pipeline: what draws.
        prompts: what is drawn.
        seed: of the noise.
        num_steps: denoising steps.
        label: of the progress bar; none without.
        guidance_scale: 1 for none.
        eta: 0 for deterministic DDIM, 1 for fresh noise at every step (ancestral).
    """
    images: list[Image.Image] = []
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, len(prompts), SAMPLE_BATCH_SIZE)
    for start in tqdm(starts, desc=label, unit="batch", disable=not label):
        batch = list(prompts[start : start + SAMPLE_BATCH_SIZE])
        kwargs = {"num_inference_steps": num_steps, "guidance_scale": guidance_scale, "eta": eta}
        images += pipeline(batch, generator=generator, **kwargs).images
    return images

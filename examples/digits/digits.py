"""The digits world that pre-training and the demo share: real scans, prompts that name a digit, and two scorers.

The scans are the UCI handwritten digits that ship with scikit-learn (1,797 scans of 8x8 pixels), so nothing is
downloaded. They are split once, stratified by digit:

    held_out          397 scans  no generator and no scorer ever sees them
    training_scorer   700 scans  fits the scorer whose scores an alignment run trains on
    unseen_scorer     700 scans  fits the scorer that only judges the result
    generator       1,400 scans  pre-trains the base model: the union of the two scorers' splits

The two scorers share no scan and no kind of model: a kernel machine on 8x8 pixels, and a small convolutional net on
16x16.
"""

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional as F

RESOLUTION = 16
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {}", "the number {}", "a scan of the digit {}")

Split = Literal["generator", "training_scorer", "unseen_scorer", "held_out"]
NUM_HELD_OUT = 397
SPLIT_SEED = 0


class Scans(NamedTuple):
    """Real scans as the pipeline would return them, and the digit that each one shows."""

    images: list[Image.Image]
    digits: list[int]

    def last(self, number: int) -> "Scans":
        """The last ones."""
        return Scans(self.images[-number:], self.digits[-number:])


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts_of(digit: int) -> list[str]:
    """Every prompt that asks for `digit`, one per template."""
    return [template.format(DIGIT_NAMES[digit]) for template in TEMPLATES]


def digit_of(prompt: str) -> int:
    """The digit that `prompt` asks for.

    Raises:
        ValueError: the prompt names no digit, or more than one.
    """
    named = [word for word in re.findall(r"[a-z]+", prompt.lower()) if word in DIGIT_NAMES]
    if len(named) != 1:
        raise ValueError(
            f"The prompt {prompt!r} names {len(named)} digits. Name exactly one of {', '.join(DIGIT_NAMES)}."
        )
    return DIGIT_NAMES.index(named[0])


def balanced_prompts(num_prompts: int, seed: int) -> list[str]:
    """`num_prompts` prompts in random order, every (digit, template) pair as often as any other (give or take one)."""
    every = [prompt for digit in range(len(DIGIT_NAMES)) for prompt in prompts_of(digit)]
    drawn = random.Random(seed)
    drawn.shuffle(every)
    prompts = [every[i % len(every)] for i in range(num_prompts)]
    drawn.shuffle(prompts)
    return prompts


# --- scans -----------------------------------------------------------------------------------------------------------


def load_scans(split: Split) -> Scans:
    """The real scans of one split as RGB images of RESOLUTION x RESOLUTION, ink bright on dark."""
    scans = load_digits()
    rows = _rows_of_splits()[split]
    return Scans([_image_of(scans.images[row]) for row in rows], [int(scans.target[row]) for row in rows])


@functools.cache
def _rows_of_splits() -> dict[Split, list[int]]:
    """Row numbers in scikit-learn's data set, per split."""
    digits = load_digits().target
    seen, held_out = train_test_split(
        np.arange(len(digits)), test_size=NUM_HELD_OUT, stratify=digits, random_state=SPLIT_SEED
    )
    training, unseen = train_test_split(seen, test_size=0.5, stratify=digits[seen], random_state=SPLIT_SEED)
    rows = {"generator": seen, "training_scorer": training, "unseen_scorer": unseen, "held_out": held_out}
    return {split: sorted(int(row) for row in chosen) for split, chosen in rows.items()}


def _image_of(scan: np.ndarray) -> Image.Image:
    """An RGB image from one scan [8, 8] whose ink runs from 0 to 16."""
    grey = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return grey.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC).convert("RGB")


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pixels [N, 3, RESOLUTION, RESOLUTION] in [-1, 1], the range that a diffusers VAE encodes."""
    resized = [image.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def jitter(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """`pixels` [N, C, H, W], each image turned, scaled and moved at random.

    At strength 1 by up to 6 degrees, 6 % and half a scan pixel.
    """
    angle, zoom, right, down = (strength * (torch.rand(4, len(pixels), generator=generator) * 2 - 1)).unbind()
    cos, sin = torch.cos(angle * torch.pi / 30), torch.sin(angle * torch.pi / 30)
    scale = 1 + 0.06 * zoom
    rows = [
        torch.stack([scale * cos, -scale * sin, right / 8], -1),
        torch.stack([scale * sin, scale * cos, down / 8], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    # Outside the image there is no ink: the samples are taken from pixels in [0, 2], where 0 is dark.
    return F.grid_sample(pixels + 1, grid, mode="bicubic", align_corners=False).clamp(0, 2) - 1


# --- scorers ---------------------------------------------------------------------------------------------------------


class DigitScorer:
    """Scores an image by the probability that it shows the digit its prompt asks for.

    A probability, not its logarithm: that has a long lower tail, and would give the worst rows weights beside which the
    good ones hardly count.

    Args:
        probabilities: from pixels [N, 3, H, W] in [-1, 1] to the probability of each digit [N, 10].
    """

    def __init__(self, probabilities: Callable[[Tensor], Tensor]):
        self.probabilities = probabilities

    def __call__(self, prompts: list[str], images: list[Image.Image]) -> list[float]:
        """Scores in [0, 1], the higher the better."""
        asked = torch.tensor([digit_of(prompt) for prompt in prompts])
        probability = self.probabilities(to_pixels(images)).gather(1, asked[:, None]).squeeze(1)
        return probability.tolist()

    def read(self, images: list[Image.Image]) -> list[int]:
        """The digit that each image most probably shows."""
        return [int(digit) for digit in self.probabilities(to_pixels(images)).argmax(1)]

    def is_right(self, prompts: list[str], images: list[Image.Image]) -> list[bool]:
        """Whether each image is read as the digit asked for."""
        return [digit_of(prompt) == read for prompt, read in zip(prompts, self.read(images), strict=True)]

    def accuracy(self, prompts: list[str], images: list[Image.Image]) -> float:
        """The share of images that are."""
        return float(np.mean(self.is_right(prompts, images)))


@functools.cache
def training_scorer() -> DigitScorer:
    """A calibrated support vector machine on 8x8 pixels, fitted to the `training_scorer` split (under a second)."""
    scans = load_scans("training_scorer")
    machine = CalibratedClassifierCV(SVC(C=10, gamma=0.05), method="sigmoid", cv=5, ensemble=False)
    machine.fit(ink_8x8(to_pixels(scans.images)).numpy(), scans.digits)
    return DigitScorer(lambda pixels: torch.from_numpy(machine.predict_proba(ink_8x8(pixels).numpy())).float())


def ink_8x8(pixels: Tensor) -> Tensor:
    """Ink [N, 64] in [0, 1]: `pixels` [N, 3, H, W] averaged over channels and over the area of each scan pixel."""
    return F.adaptive_avg_pool2d((pixels.mean(1, keepdim=True) + 1) / 2, 8).flatten(1)


@functools.cache
def unseen_scorer() -> DigitScorer:
    """A small convolutional net on 16x16 pixels, fitted to the `unseen_scorer` split (a few seconds)."""
    net = _unseen_net()
    return DigitScorer(lambda pixels: net(pixels.mean(1, keepdim=True)).softmax(1))


def reader_features(images: Sequence[Image.Image]) -> Tensor:
    """What the unseen scorer's net makes of images before its last layer, float32 `[N, 64]`: for distances."""
    features: Tensor = _unseen_net()[:-1](to_pixels(images).mean(1, keepdim=True))
    return features


@functools.cache
def neighbours_scorer() -> DigitScorer:
    """The five nearest of the `unseen_scorer` split on 8x8 pixels: nothing in common with the training scorer."""
    scans = load_scans("unseen_scorer")
    neighbours = KNeighborsClassifier(5, weights="distance").fit(ink_8x8(to_pixels(scans.images)).numpy(), scans.digits)
    return DigitScorer(lambda pixels: torch.from_numpy(neighbours.predict_proba(ink_8x8(pixels).numpy())).float())


@functools.cache
def _unseen_net() -> nn.Sequential:
    scans = load_scans("unseen_scorer")
    return _fit_net(to_pixels(scans.images).mean(1, keepdim=True), torch.tensor(scans.digits))


def _fit_net(grey: Tensor, digits: Tensor, num_epochs: int = 30, batch_size: int = 50) -> nn.Sequential:
    """A net from grey pixels [N, 1, 16, 16] to logits [N, 10], fitted with jitter; touches no global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, len(DIGIT_NAMES))),
        )
    generator = torch.Generator().manual_seed(0)
    num_steps = num_epochs * (len(grey) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(grey), generator=generator).split(batch_size):
            # Label smoothing keeps the probabilities off 0 and 1, so that scores still differ among good images.
            loss = F.cross_entropy(net(jitter(grey[rows], generator)), digits[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval().requires_grad_(False)
    return net

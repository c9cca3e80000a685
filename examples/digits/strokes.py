"""The second world's score: how heavy the strokes are, by people who were asked which of two scans they like better.

No prompt mentions it, so guidance has no way to it, and what alignment should lead to is known: the real scans, heavy
ones more often. The truth is `stroke_weight`. No scorer knows it; each is a preference model, fitted to simulated
choices between two real scans of the same digit, where a scan that is one unit heavier is chosen seven times in eight:

    training scorer   a kernel logistic regression on 8x8 pixels, on scans of the `training_scorer` split
    unseen scorer     a small convolutional net on 16x16 pixels, on scans of the `unseen_scorer` split

Scores are in units of the real scans: mean 0 and standard deviation 1 among the scans of the digit that is asked for.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from digits import DIGIT_NAMES, Split, digit_of, ink_8x8, jitter, load_scans, to_pixels
from PIL import Image
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CHOICES = 4000
DECISIVENESS = 2.0  # the logit of a choice, per unit of stroke weight: sigmoid(2) = 0.88

Values = Callable[[Tensor], Tensor]
"""From pixels `[N, 3, H, W]` in [-1, 1] to a number each, float32 `[N]`."""


class StrokeScorer:
    """Scores an image by a number that pixels give, in units of the real scans of the digit that its prompt asks for.

    The number has a gradient, so that `AlignPropTrainer` can climb it.

    Args:
        values: the number.
        split: the real scans whose mean and standard deviation, digit by digit, become 0 and 1.
    """

    name, version, license = "strokes", "1", "apache-2.0"
    differentiable = True

    def __init__(self, values: Values, split: Split):
        self.values = values
        scans = load_scans(split)
        shown, values_of_scans = torch.tensor(scans.digits), values(to_pixels(scans.images))
        by_digit = [values_of_scans[shown == digit] for digit in range(len(DIGIT_NAMES))]
        self.centre = torch.stack([values.mean() for values in by_digit])
        self.spread = torch.stack([values.std() for values in by_digit])

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """Scores, the higher the better; of real scans with the right prompt, 0 on average."""
        return [float(score) for score in self._scores(prompts, to_pixels(images))]

    def score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """The same, float32 `[N]` with a gradient, of pixels `[N, 3, H, W]` in [0, 1]."""
        return self._scores(prompts, pixels * 2 - 1)

    def _scores(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        asked = torch.tensor([digit_of(prompt) for prompt in prompts])
        return (self.values(pixels) - self.centre[asked]) / self.spread[asked]


@functools.cache
def stroke_weight() -> StrokeScorer:
    """The truth: the mean ink of an image."""
    return StrokeScorer(lambda pixels: (pixels.mean((1, 2, 3)) + 1) / 2, "generator")


@functools.cache
def training_preferences() -> StrokeScorer:
    """The preference model whose scores an alignment run trains on."""
    pixels, better, worse = choices("training_scorer", seed=0)
    kernel = Nystroem(gamma=0.05, n_components=200, random_state=0)
    features = kernel.fit_transform(ink_8x8(pixels).numpy())
    differences = features[better] - features[worse]
    # Each choice once either way, so that both classes are there, and no side has an advantage.
    model = LogisticRegression(C=10, fit_intercept=False, max_iter=1000)
    model.fit(np.concatenate([differences, -differences]), np.repeat([1, 0], len(differences)))
    # what the kernel machine computes, by PyTorch: with a gradient
    anchors = torch.from_numpy(kernel.components_).double()
    weights = torch.from_numpy(kernel.normalization_.T @ model.coef_[0]).double()

    def values(pixels: Tensor) -> Tensor:
        distances = (ink_8x8(pixels).double()[:, None] - anchors).square().sum(-1)
        return ((-kernel.gamma * distances).exp() @ weights).float()

    return StrokeScorer(values, "training_scorer")


@functools.cache
def unseen_preferences() -> StrokeScorer:
    """The preference model that only judges the result."""
    pixels, better, worse = choices("unseen_scorer", seed=1)
    net = _fit_preferences(pixels.mean(1, keepdim=True), torch.from_numpy(better), torch.from_numpy(worse))
    return StrokeScorer(lambda pixels: net(pixels.mean(1, keepdim=True)).squeeze(1), "unseen_scorer")


def choices(split: Split, seed: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Pixels `[N, 3, H, W]` of the scans of a split, and the rows of the better and the worse one of each choice."""
    scans = load_scans(split)
    digits = np.array(scans.digits)
    weight = np.array(stroke_weight()([DIGIT_NAMES[digit] for digit in scans.digits], scans.images))
    drawn = np.random.default_rng(seed)
    one = drawn.integers(len(digits), size=NUM_CHOICES)
    other = np.array([drawn.choice(np.flatnonzero(digits == digits[row])) for row in one])
    is_one = drawn.random(NUM_CHOICES) < 1 / (1 + np.exp(-DECISIVENESS * (weight[one] - weight[other])))
    differ = one != other
    return to_pixels(scans.images), np.where(is_one, one, other)[differ], np.where(is_one, other, one)[differ]


def _fit_preferences(
    grey: Tensor, better: Tensor, worse: Tensor, num_epochs: int = 10, batch_size: int = 100
) -> nn.Sequential:
    """A net from grey pixels `[N, 1, 16, 16]` to a value `[N, 1]`, by the likelihood of the choices (Bradley-Terry)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 1)),
        )
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(better), generator=generator).split(batch_size):
            pixels = jitter(torch.cat([grey[better[rows]], grey[worse[rows]]]), generator, 0.3)
            value, other = net(pixels).chunk(2)
            loss = -F.logsigmoid(value - other).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval().requires_grad_(False)
    return net

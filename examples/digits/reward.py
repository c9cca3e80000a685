"""Scorers of the digits world as rewards: `--rewards examples/digits/reward.py:asked_digit`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from digits import training_scorer, unseen_scorer


def asked_digit(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """The probability that each image shows the digit that its prompt asks for, by the scorer of training."""
    return training_scorer()(list(prompts), list(images))


def asked_digit_unseen(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """The same probability by a scorer that no training has seen: what an evaluation should go by."""
    return unseen_scorer()(list(prompts), list(images))


def shows_asked_digit(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """1 for each image that the scorer which no training has seen reads as the digit asked for, else 0."""
    return [float(right) for right in unseen_scorer().is_right(list(prompts), list(images))]

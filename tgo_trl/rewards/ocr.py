"""Whether an image shows the text that its prompt puts in quotes, as an OCR engine reads it.

The score is Flow-GRPO's (arXiv 2505.05470); the engine is RapidOCR, with the models that come in its package.
"""

import importlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from unicodedata import normalize

import numpy as np

from .base import NoScore, check_rows, load_images

_QUOTED = re.compile('["\u201c\u201d]([^"\u201c\u201d]*)["\u201c\u201d]')
"""Text in straight or curly double quotes."""

MOST_ELONGATED = 20
"""Times as long as wide. The engine enlarges the shorter side to 736 pixels, and with it the longer one, until memory
and minutes run out; from about 120 on it fails."""


class OCRAccuracy:
    r"""`1 - \min(d, n) / n`: `n` the length of the quoted text, `d` its edit distance to the text that is read.

    1 also if the quoted text is a part of what is read; 0 if nothing of it is. Case and blanks are ignored. Of several
    texts in quotes the first counts. A row without quotes has no score, nor has an image that is more than 20 times as
    long as wide. Images only; the CPU reads them, one by one.

    Raises:
        ImportError: if RapidOCR is not installed.
    """

    name = "ocr"
    license = "Apache-2.0 (RapidOCR and the PP-OCRv6 models in its package)"

    def __init__(self) -> None:
        try:
            # No turning of lines by 180 degrees, as in the original; else the engine logs its settings and models.
            self._engine = importlib.import_module("rapidocr").RapidOCR(
                params={"Global.use_cls": False, "Global.log_level": "error"}
            )
            importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ImportError(
                "The reward 'ocr' reads texts with RapidOCR, which cannot be imported. Install it with "
                '`pip install "tgo_trl[ocr]"`.'
            ) from error
        self.version = f"rapidocr@{version('rapidocr')}"

    def __call__(self, prompts: Sequence[str], images: Sequence[Any]) -> list[float | NoScore]:
        """How much of the quoted text each image shows, 0 to 1.

        Args:
            prompts: `N` prompts.
            images: `N` images, as [`~tgo_trl.media.images.load_image`] takes them.

        Raises:
            ValueError: if there are not as many prompts as images, or an image cannot be read.
        """
        check_rows(prompts, images)
        scores: list[float | NoScore] = []
        for prompt, image in zip(prompts, load_images(images), strict=True):
            wanted, (width, height) = quoted_text(prompt), image.size
            if wanted is None:
                scores.append(NoScore("its prompt has no text in double quotes, which the image would show"))
            elif max(width, height) > MOST_ELONGATED * min(width, height):
                scores.append(
                    NoScore(
                        f"its image has {width} x {height} pixels, and one that is more than {MOST_ELONGATED} times as "
                        "long as wide is not read"
                    )
                )
            else:
                scores.append(text_accuracy(self._read(np.asarray(image)), wanted))
        return scores

    def _read(self, pixels: np.ndarray) -> str:
        """The texts of an RGB image, uint8 `[H, W, 3]`, from the top to the bottom, joined."""
        bgr = np.ascontiguousarray(pixels[..., ::-1])  # as OpenCV has them
        return "".join(self._engine(bgr).txts or ())


def quoted_text(prompt: str) -> str | None:
    """The first text in double quotes, straight or curly; None if there is none, or only blanks in it."""
    found = _QUOTED.search(prompt)
    return found[1] if found is not None and found[1].strip() else None


def text_accuracy(found: str, wanted: str) -> float:
    """How much of the wanted text was found, 0 to 1, without case and blanks; accents may be written either way."""
    found, wanted = ("".join(normalize("NFC", text.lower()).split()) for text in (found, wanted))
    if wanted in found:
        return 1.0
    return 1 - min(edit_distance(found, wanted), len(wanted)) / len(wanted)


def edit_distance(first: str, second: str) -> int:
    """The least number of letters that are put in, left out or replaced on the way from one to the other."""
    distances = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        diagonal, distances[0] = distances[0], i
        for j, other in enumerate(second, start=1):
            replaced = diagonal + (letter != other)
            diagonal, distances[j] = distances[j], min(distances[j] + 1, distances[j - 1] + 1, replaced)
    return distances[-1]

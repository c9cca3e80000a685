"""Pictures, clips and scored rows of them, all random."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image

RESOLUTION = 16
PROMPTS = ("a red cat", "a blue dog", "a green bird", "a grey fish")


def picture(seed: int, size: tuple[int, int] = (RESOLUTION, RESOLUTION)) -> Image.Image:
    """A random RGB picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(seed: int, num_frames: int = 5, size: tuple[int, int] = (RESOLUTION, RESOLUTION)) -> list[Image.Image]:
    """Random RGB pictures, one a frame."""
    shape = (num_frames, size[1], size[0], 3)
    return [Image.fromarray(pixels) for pixels in np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)]


def scored_rows(num_rows: int = 8, seed: int = 0) -> Dataset:
    """`(prompt, image, score)` rows with scores 0, 1, 2, ..., shuffled."""
    return Dataset.from_dict(
        {
            "prompt": _prompts(num_rows),
            "image": [picture(1000 * seed + i) for i in range(num_rows)],
            "score": _scores(num_rows, seed),
        }
    )


def paired_rows(num_rows: int = 8, seed: int = 0) -> Dataset:
    """`(prompt, chosen, rejected)` rows."""
    images = [picture(1000 * seed + i) for i in range(2 * num_rows)]
    return Dataset.from_dict({"prompt": _prompts(num_rows), "chosen": images[::2], "rejected": images[1::2]})


def scored_videos(num_rows: int = 8, num_frames: int = 5, seed: int = 0) -> Dataset:
    """`(prompt, video, score)` rows, each video a list of pictures, with scores 0, 1, 2, ..., shuffled."""
    return Dataset.from_dict(
        {
            "prompt": _prompts(num_rows),
            "video": [clip(1000 * seed + i, num_frames) for i in range(num_rows)],
            "score": _scores(num_rows, seed),
        },
        features=Features({"prompt": Value("string"), "video": List(ImageFeature()), "score": Value("float64")}),
    )


def with_sources(rows: Dataset, sources: Sequence[list[Image.Image]]) -> Dataset:
    """The rows with the column `source_image`, as `tgo-trl generate` writes it: of each, a list of pictures."""
    features = Features({"source_image": List(ImageFeature())})
    return concatenate_datasets([rows, Dataset.from_dict({"source_image": list(sources)}, features=features)], axis=1)


def _prompts(num_rows: int) -> list[str]:
    return [PROMPTS[i % len(PROMPTS)] for i in range(num_rows)]


def _scores(num_rows: int, seed: int) -> list[float]:
    return [float(score) for score in np.random.default_rng(seed).permutation(num_rows)]

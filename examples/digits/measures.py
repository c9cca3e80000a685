"""What is measured of drawn digits beside their score: legibility, variety, distance to real scans, and drift."""

import functools
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from digits import Scans, digit_of, load_scans, prompts_of, reader_features, to_pixels, unseen_scorer
from PIL import Image
from scipy.stats import t as student_t
from torch import Tensor

from tgo_trl.measures import variety

QUARTILES = 4
DRAWS_PER_SCAN = 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval (Student's t); half of one value is infinite."""
    if len(values) < 2:
        return statistics.mean(values), float("inf")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(student_t.ppf(0.975, len(values) - 1)) * spread


def variety_of_right(prompts: Sequence[str], images: Sequence[Image.Image]) -> float:
    """Mean distance of pixels between two images of the same digit, among those that the unseen scorer reads as asked.

    Over that of real scans: an aligned model that draws one perfect seven for every seven has a variety of 0.
    """
    return _variety(prompts, images) / _real_variety()


def _variety(prompts: Sequence[str], images: Sequence[Image.Image]) -> float:
    asked = [digit_of(prompt) for prompt in prompts]
    right = [i for i, read in enumerate(unseen_scorer().read(list(images))) if read == asked[i]]
    return variety(to_pixels(images).mean(1).flatten(1)[right], [asked[i] for i in right])


@functools.cache
def _real_variety() -> float:
    """That of real scans that no generator and no scorer has seen."""
    scans = load_scans("held_out")
    return _variety([prompts_of(digit)[0] for digit in scans.digits], scans.images)


def frechet_distance(images: Sequence[Image.Image], scans: Scans, weights: np.ndarray) -> float:
    """Frechet distance between images and weighted real scans, in features of the unseen scorer's net.

    `|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))` of their means and covariances (arXiv 1706.08500), as FID.

    Args:
        images: drawn.
        scans: real.
        weights: `[N]`, of each scan, to any sum.
    """
    return frechet_of_features(reader_features(images), reader_features(scans.images), torch.from_numpy(weights))


def frechet_of_features(features: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """The same of features `[N, D]` and `[M, D]`, the latter with weights `[M]`."""
    mean, covariance = _moments(features.double(), torch.ones(len(features)))
    goal, goal_covariance = _moments(target.double(), torch.ones(len(target)) if weights is None else weights)
    root = _square_root(covariance)
    overlap = torch.linalg.eigvalsh(root @ goal_covariance @ root).clamp(min=0).sqrt().sum()
    return float((mean - goal).square().sum() + covariance.trace() + goal_covariance.trace() - 2 * overlap)


def _moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    share = weights.double() / weights.sum()
    mean = share @ features
    centred = features - mean
    return mean, (centred * share[:, None]).T @ centred


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@torch.no_grad()
def drift(pipeline: StableDiffusionPipeline, scans: Scans, weights: np.ndarray, seed: int = 0) -> list[float]:
    """Denoising error of the adapted network over that of the base, on weighted real scans, by quartile of the time.

    The pipeline has one adapter, which is switched off for the base. Both get the same draws.
    """
    generator = torch.Generator().manual_seed(seed)
    posterior = pipeline.vae.encode(to_pixels(scans.images)).latent_dist
    latents = posterior.mean * pipeline.vae.config.scaling_factor
    prompts = [prompts_of(digit)[0] for digit in scans.digits]
    text, _ = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    num_times = pipeline.scheduler.config.num_train_timesteps
    ratios = []
    for quartile in range(QUARTILES):
        errors = torch.zeros(2, dtype=torch.float64)
        for _ in range(DRAWS_PER_SCAN):
            share = (quartile + torch.rand(len(latents), generator=generator)) / QUARTILES
            times = (share * num_times).long()
            noise = torch.randn(latents.shape, generator=generator)
            noisy = pipeline.scheduler.add_noise(latents, noise, times)
            for i, switch in enumerate((pipeline.disable_lora, pipeline.enable_lora)):
                switch()
                error = (pipeline.unet(noisy, times, text).sample - noise).square().flatten(1).mean(1)
                errors[i] += float(error.double() @ torch.from_numpy(weights))
        ratios.append(float(errors[1] / errors[0]))
    return ratios

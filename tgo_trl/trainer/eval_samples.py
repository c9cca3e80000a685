"""What rewards and variety say of samples that evaluations draw, of the same prompts and seeds every time."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from PIL import Image

from ..families import Family
from ..measures import thumbnails, variety
from ..media.types import Sample
from ..policy.draws import stable_seed
from ..rewards import load_rewards
from ..rewards.base import Reward, checked_scores
from ..storage.fingerprints import fingerprint, task_of
from .sample_grids import SamplingTrainer
from .selection import OF_THE_REFERENCE, SAMPLES, VARIETY, reward_names

ROWS_PER_CALL = 32
"""Samples that a reward is given at once, as in `tgo-trl score`."""


REMEDY = "Set `eval_sources`, if `TGOTrainer` trains a pipeline of edits, or take another reward."


def load_eval_rewards(specs: list[str] | None, have_sources: bool) -> dict[str, Reward]:
    """The rewards of `eval_rewards` by name; models load their weights at the first call.

    Args:
        specs: the setting.
        have_sources: whether samples of evaluations are made from source images.

    Raises:
        ValueError: if one cannot be had, or judges edits and there are none.
    """
    rewards: dict[str, Reward] = {}
    for name, spec in zip(reward_names(specs), specs or (), strict=True):
        try:
            rewards[name] = load_rewards([spec], {}, have_sources, REMEDY)[spec]
        except ValueError as error:
            raise ValueError(f"`eval_rewards`: {error}") from error
    return rewards


def rate_of(family: Family) -> float | None:
    """Frames per second of a family's videos; None of images."""
    return None if family.video_format is None else family.video_format.fps


class EvalSamples:
    """Draws the samples of an evaluation, and measures them in the main process; the others are told.

    Args:
        trainer: whose policy and reference are sampled.
        rewards: by name.
        prompts: what is drawn, no two alike.
        num_per_prompt: samples of each; of one there is no variety.
        seed: with the prompt and the sample's number, what its seed is made of.
        batch_size: samples that are drawn at once.
        sources: the source images of each prompt, for pipelines that read them.
        fps: frames per second of videos, which rewards may ask for.
        kwargs: passed to the pipeline.

    Attributes:
        ways: a digest by metric of how it is measured; values under another one cannot be compared.
    """

    def __init__(
        self, trainer: SamplingTrainer, rewards: Mapping[str, Reward], prompts: Sequence[str], num_per_prompt: int,
        seed: int, batch_size: int, sources: Sequence[Sequence[Any]] | None = None,
        fps: float | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.trainer = trainer
        self.rewards = rewards
        self.prompts = [prompt for prompt in prompts for _ in range(num_per_prompt)]
        tasks = [*prompts]
        if sources is not None:  # the same prompt for another image is another task
            tasks = [task_of(prompt, map(_digest, images)) for prompt, images in zip(prompts, sources, strict=True)]
        self.tasks = [task for task in tasks for _ in range(num_per_prompt)]
        self.seeds = [sample_seed(seed, task, i) for task in tasks for i in range(num_per_prompt)]
        self.sources = None if sources is None else [images for images in sources for _ in range(num_per_prompt)]
        self.batch_size, self.fps = batch_size, fps
        self.kwargs = kwargs
        self._reference: dict[str, float] | None = None
        drawn = (seed, num_per_prompt, sorted(kwargs.items()), *sorted(tasks))
        versions = {f"{SAMPLES}{name}": getattr(reward, "version", "") for name, reward in rewards.items()}
        self.ways = {name: fingerprint(version, *drawn) for name, version in versions.items()}
        if num_per_prompt > 1:
            self.ways[VARIETY] = fingerprint(*drawn)

    def measure_reference(self) -> dict[str, float]:
        """Rewards and variety of the reference as it is when this is first called, before training."""
        if self._reference is None:
            self._reference = self._measure(self.trainer.sampled_reference is not None)
            if self._reference.get(VARIETY) == 0:
                raise ValueError(
                    "The reference draws the same picture from every seed, so that no policy has a share of its "
                    "variety. Set `eval_samples_per_prompt=1` and leave `min_variety` out, or sample in another way."
                )
        return self._reference

    def metrics(self) -> dict[str, float]:
        """The metrics of the policy as it is now: mean rewards, the reference's, and the share of its variety."""
        reference, policy = self.measure_reference(), self._measure(from_reference=False)
        metrics = {}
        for name in policy:
            if name == VARIETY:
                metrics[name] = policy[name] / reference[name]
            else:
                metrics |= {name: policy[name], f"{name}{OF_THE_REFERENCE}": reference[name]}
        return metrics

    def _measure(self, from_reference: bool) -> dict[str, float]:
        trainer, device = self.trainer, self.trainer.args.device
        devices = [device] if device.type == "cuda" else []
        found: list[Any] = [None]
        with ExitStack() as stack:  # in every process
            # a model that is loaded, or a function of the user's, may draw from the generators of training
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(trainer.optimizer_mode.averaged())
            if trainer.strategy.samples_here:
                given = {} if self.sources is None else {"sources": self.sources}
                samples = trainer.sample(
                    self.prompts, self.seeds, from_reference=from_reference, batch_size=self.batch_size, **given,
                    **self.kwargs,
                )  # fmt: skip
                if trainer.is_world_process_zero():
                    found = [self._values(samples)]
        broadcast_object_list(found)
        values: dict[str, float] = found[0]
        return values

    def _values(self, samples: Sequence[Sample]) -> dict[str, float]:
        values = {}
        for name, reward in self.rewards.items():
            scores: list[float] = []
            for start in range(0, len(samples), ROWS_PER_CALL):
                rows = slice(start, start + ROWS_PER_CALL)
                sources = None if self.sources is None else self.sources[rows]
                scores += checked_scores(reward, self.prompts[rows], samples[rows], sources, self.fps)
            values[f"{SAMPLES}{name}"] = fmean(scores)
            release = getattr(reward, "release", None)
            if callable(release):  # training needs the memory
                release()
        if len(set(self.tasks)) < len(self.tasks):
            values[VARIETY] = variety(thumbnails(samples), self.tasks)
        return values


def _digest(image: Image.Image) -> str:
    return fingerprint(image.mode, image.size, image.tobytes())


def sample_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of a prompt's sample, which depends on no other prompt."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return stable_seed(seed, int.from_bytes(digest, "big"), number)

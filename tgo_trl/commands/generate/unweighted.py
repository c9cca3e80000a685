"""What drawing would refuse of a pipeline, asked of one without weights: hours may come before it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...rewards.base import DRAWN_FOR, Reward, check_rates
from .config import GenerateConfig
from .known import Known
from .run import build_sampler, check_tasks
from .sampling import Sampler
from .tasks import Task


def check_drawing(
    config: GenerateConfig, known: Known, tasks: Sequence[Task], rewards: Mapping[str, Reward]
) -> Sampler:
    """How the pipeline would be called, which is made without weights and without an adapter.

    Args:
        config: what is sampled, and how.
        known: of its pipeline, with its adapter.
        tasks: that it draws, all with source images or none.
        rewards: that see what is drawn.

    Raises:
        ValueError: for settings, prompts or rewards that do not go with the pipeline.
    """
    base = replace(config, adapter_name_or_path=None, adapter_scale=1.0)
    sampler = build_sampler(base, None, None, bool(tasks[0].sources), known, weights=False)
    check_tasks(sampler, tasks)
    check_rates(rewards, sampler.fps, DRAWN_FOR)
    return sampler

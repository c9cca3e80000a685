"""What the commands of a round would refuse, asked before the first of them works."""

from collections.abc import Mapping, Sequence

from datasets import Dataset, Value

from ...rewards.base import Reward
from ...trainer.refusals import load_unweighted
from ...trainer.tgo_config import TGOConfig
from ..generate.config import GenerateConfig
from ..generate.known import Known
from ..generate.run import features_of_samples
from ..generate.tasks import Task
from ..generate.unweighted import check_drawing
from .config import RoundsConfig


def check_steps(
    config: RoundsConfig, args: TGOConfig, generation: GenerateConfig, known: Known, tasks: Sequence[Task],
    rewards: Mapping[str, Reward],
) -> None:  # fmt: skip
    """Raises a ValueError for what drawing, measuring or training refuses of a pipeline, which is made without weights.

    Args:
        config: of the command.
        args: of the training in each round.
        generation: of the first round.
        known: of its pipeline.
        tasks: that it draws, and that it measures on.
        rewards: that it scores and measures by.
    """
    sampler = check_drawing(generation, known, tasks, rewards)
    features = features_of_samples(sampler.medium, max(len(task.sources) for task in tasks))
    for column in config.scoring("", "").new_columns():
        features[column] = Value("float64")
    rows = Dataset.from_dict({name: [] for name in features}, features=features)
    load_unweighted(config.model_name_or_path, args, rows)

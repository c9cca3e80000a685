"""Align image and video generators with scores: Threshold-Guided Optimization for diffusers, in the manner of TRL."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.convert.config import ConvertConfig
    from .commands.convert.run import convert
    from .commands.evaluate.config import EvaluateConfig
    from .commands.evaluate.run import evaluate
    from .commands.export.config import ExportConfig
    from .commands.export.run import export
    from .commands.generate.config import GenerateConfig
    from .commands.generate.run import generate
    from .commands.inspect.config import InspectConfig
    from .commands.inspect.run import inspect
    from .commands.judge.config import JudgeConfig
    from .commands.judge.run import judge
    from .commands.rounds.config import RoundsConfig
    from .commands.rounds.run import rounds
    from .commands.score.config import ScoreConfig
    from .commands.score.run import score
    from .commands.strength.config import StrengthConfig
    from .commands.strength.run import strength
    from .families import Family
    from .models import MeissonicPipeline
    from .trainer.alignprop_config import AlignPropConfig
    from .trainer.alignprop_trainer import AlignPropTrainer
    from .trainer.sample_grids import SampleGridCallback
    from .trainer.tgo_config import TGOConfig
    from .trainer.tgo_trainer import TGOTrainer

__version__ = "0.1.0"

_EXPORTS = {
    "AlignPropConfig": "trainer.alignprop_config",
    "AlignPropTrainer": "trainer.alignprop_trainer",
    "ConvertConfig": "commands.convert.config",
    "EvaluateConfig": "commands.evaluate.config",
    "ExportConfig": "commands.export.config",
    "Family": "families",
    "GenerateConfig": "commands.generate.config",
    "InspectConfig": "commands.inspect.config",
    "JudgeConfig": "commands.judge.config",
    "MeissonicPipeline": "models",
    "RoundsConfig": "commands.rounds.config",
    "SampleGridCallback": "trainer.sample_grids",
    "ScoreConfig": "commands.score.config",
    "StrengthConfig": "commands.strength.config",
    "TGOConfig": "trainer.tgo_config",
    "TGOTrainer": "trainer.tgo_trainer",
    "convert": "commands.convert.run",
    "evaluate": "commands.evaluate.run",
    "export": "commands.export.run",
    "generate": "commands.generate.run",
    "inspect": "commands.inspect.run",
    "judge": "commands.judge.run",
    "rounds": "commands.rounds.run",
    "score": "commands.score.run",
    "strength": "commands.strength.run",
}

__all__ = [
    "AlignPropConfig", "AlignPropTrainer", "ConvertConfig", "EvaluateConfig", "ExportConfig", "Family",
    "GenerateConfig", "InspectConfig", "JudgeConfig", "MeissonicPipeline", "RoundsConfig", "SampleGridCallback",
    "ScoreConfig", "StrengthConfig", "TGOConfig", "TGOTrainer", "__version__", "convert", "evaluate", "export",
    "generate", "inspect", "judge", "rounds", "score", "strength",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import tgo_trl` and its pure functions do not load every library.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)

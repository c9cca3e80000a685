"""Runs on tiny pipelines: their settings, their trainers, and what they left behind.

As a program (`python -m tests.runs CASES OUT`), runs named cases in one process or several, and saves what they gave.
"""

import gc
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.labels.rule import LabelRule, Labels
from tgo_trl.trainer import callbacks
from tgo_trl.trainer.plots import plot_scores

from . import tiny

# `Trainer` collects garbage at every start of training, which takes long among all that the imports have brought.
gc.collect()
gc.freeze()

_HISTOGRAMS: dict[tuple[Any, ...], bytes] = {}


def _plot_scores_once(labels: Labels, rule: LabelRule, path: Path, are_weighed: bool = True) -> None:
    """The histogram of each training set, drawn once for all runs: it takes longer than two updates."""
    numbers = (labels.scores, labels.is_positive, labels.weights)
    key = (*(tuple(values.tolist()) for values in numbers), rule.threshold, are_weighed)
    if key not in _HISTOGRAMS:
        plot_scores(labels, rule, path, are_weighed)
        _HISTOGRAMS[key] = path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_HISTOGRAMS[key])


callbacks.plot_scores = _plot_scores_once


def config(folder: Path, **settings: Any) -> TGOConfig:
    """Settings of two short updates of four rows each, in `folder/out`."""
    defaults = {
        "output_dir": str(folder / "out"),
        "encoding_cache_dir": str(folder / "cache"),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_alpha": 8,
        "gradient_checkpointing": False,  # it changes nothing but time, as the tests of families and some runs hold
    }
    return TGOConfig(**{**defaults, **settings})


def make_trainer(args: TGOConfig, **arguments: Any) -> TGOTrainer:
    """A trainer of the tiny Stable Diffusion on eight rows, unless told otherwise."""
    defaults = {"model": None, "train_dataset": None}
    arguments = {**defaults, **arguments}
    arguments["model"] = arguments["model"] or tiny.stable_diffusion()
    if arguments["train_dataset"] is None:
        arguments["train_dataset"] = tiny.scored_rows(8)
    return TGOTrainer(args=args, **arguments)


def streamed(dataset: Dataset) -> IterableDataset:
    """The same rows as a stream."""
    return dataset.to_iterable_dataset()


def trained_weights(trainer: TGOTrainer) -> dict[str, Tensor]:
    """A copy of every trained weight, by name."""
    parameters = trainer.policy.named_parameters()
    return {name: weight.detach().clone() for name, weight in parameters if weight.requires_grad}


def logged(trainer: TGOTrainer, name: str = "loss") -> list[float]:
    """A metric's values in the order they were logged."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def first_log(trainer: TGOTrainer) -> dict[str, float]:
    """What was logged of the first update."""
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


def metrics(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """Logged or returned metrics without those that tell the time."""
    timed = re.compile(r"runtime|per_second|preparation_time|total_flos|^step$|^epoch$")
    return [{name: value for name, value in entry.items() if not timed.search(name)} for entry in entries]


def assert_equal(actual: Any, expected: Any, where: str = "") -> None:
    """Bit for bit, through dictionaries, lists and arrays."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_equal(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(one, other, f"{where}/{i}")
    else:
        assert actual == expected, where


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Weights of the same names, none further apart than the tolerance."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert (actual[name] - weight).abs().max() <= tolerance, name


class Stop(Exception):  # noqa: N818 (a run that is ended from outside is no error of its own)
    """Ends a run."""


class StopAt(TrainerCallback):
    """Ends a run after an update, before its checkpoint is saved, as a machine that goes away would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise Stop


CASES: dict[str, dict[str, Any]] = {
    "map": {"num_train_epochs": 2, "max_steps": -1},
    "stream": {"max_steps": 3, "train_sampling_strategy": "sequential"},
    "lanes": {"max_steps": 3, "stream_lanes": 4},
    "synchronised": {"num_train_epochs": 2, "max_steps": -1, "sync_ref_model": True, "ref_model_sync_steps": 1},
    "full": {"max_steps": 2, "use_peft": False, "learning_rate": 1e-2},
    "sft": {"max_steps": 2, "loss_type": "sft"},
    # 10 pairs, in updates of 4
    "pairs": {"max_steps": 3, "loss_type": "diffusion_dpo", "pairs": "all", "beta": 20.0},
    # of 11 rows 6 are positive, which leaves 7 an epoch; the reference point is above 0 in some updates
    "diffusion_kto": {"max_steps": 4, "loss_type": "diffusion_kto", "positive_ratio": 0.85, "temperature": 0.01},
    "qrpo": {"max_steps": 2, "loss_type": "qrpo", "num_likelihood_samples": 2},
    "resumed": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "stop": 3, "sync_ref_model": True},
    "reference remembered": {"max_steps": 3, "precompute_ref_log_probs": True, "num_ref_draws": 1},
    "compiled": {"max_steps": 3, "compile_repeated_blocks": True, "torch_compile_backend": "eager"},
    "averaged": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "stop": 3, "ema_decay": 0.3},
    "evaluated before": {"max_steps": 2, "eval_first": True},
    # the drift is 1.0038 after one update, and 1.0050 after two
    "held to bounds": {
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "eval_rewards": ["tests.runs:brightness"], "max_drift": 1.0045,
        "eval_prompts": ["a red cat", "a blue dog"], "sample_num_inference_steps": 2,
    },
}  # fmt: skip
"""Runs of 11 rows, in updates of 8: the second update of an epoch has 3."""


def brightness(prompts: list[str], images: list[Any]) -> list[float]:
    """A reward: the mean pixel of each image."""
    return [float(np.asarray(image).mean()) for image in images]


def num_graphs() -> tuple[int, int]:
    """How many graphs dynamo made in this process, and how many breaks it found."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def run_case(name: str, folder: Path, **layout: Any) -> dict[str, Any]:
    """Trains and evaluates; what that gave.

    Args:
        name: of the case.
        folder: of the run.
        layout: how the 8 rows of an update are spread.
    """
    rows, held_out = tiny.scored_rows(11), tiny.scored_rows(7, seed=1)
    if name == "stream":
        rows, held_out = streamed(rows), streamed(held_out)
    elif name == "lanes":
        rows = rows.to_iterable_dataset(num_shards=4)
    seen: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        seen.append((torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)))
        return {}

    settings = {**CASES[name], **layout}
    eval_first, stop = settings.pop("eval_first", False), settings.pop("stop", None)
    # Adam would blow up what rounding leaves of a gradient near zero.
    settings = {"optim": "sgd", "learning_rate": 0.1, "gradient_checkpointing": True, **settings}
    args = config(folder, **settings)
    arguments = {"train_dataset": rows, "eval_dataset": held_out, "compute_metrics": keep}
    if stop is not None:
        with suppress(Stop):
            make_trainer(args, **arguments, callbacks=[StopAt(stop)]).train()
    trainer = make_trainer(args, **arguments)
    evaluations = [trainer.evaluate()] if eval_first else []
    trainer.train(resume_from_checkpoint=stop is not None)
    evaluations.append(trainer.evaluate())
    return {
        "weights": trained_weights(trainer),
        "log": metrics(trainer.state.log_history),
        "evaluations": metrics(evaluations),
        "predictions": seen,
        "graphs": num_graphs(),
    }


def main(cases: list[str], out: Path) -> None:
    """Runs cases in updates of eight rows, four a batch or fewer; each process saves its own results."""
    torch.set_num_threads(1)
    batch_size = min(4, 8 // int(os.environ.get("WORLD_SIZE", "1")))
    for name in cases:
        result = run_case(name, out / f"run-{name}", per_device_train_batch_size=batch_size)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))

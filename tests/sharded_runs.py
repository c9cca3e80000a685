"""Runs whose weights are sharded, on the CPU: what makes accelerate shard there, and a program of several processes.

`torchrun -m tests.sharded_runs CASES OUT PHASE` runs named cases and saves what they gave.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from tgo_trl import TGOTrainer
from tgo_trl.policy import launch

from .cases import CASES as FAMILIES
from .runs import Stop, StopAt, make_trainer, metrics

FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


def allow_sharding_on_the_cpu() -> None:
    """Makes accelerate shard where it would replicate without a word."""
    made = AcceleratorState.__init__

    def make(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = make
    launch.REPLICATING_DEVICES.clear()


CASES: dict[str, dict[str, Any]] = {
    # of a factor of rank 1, one process holds nothing
    "adapter": {
        "max_steps": 3, "max_grad_norm": 0.5, "sample_prompts": ["a red cat"], "sample_steps": 1, "lora_r": 1,
    },
    "all weights": {"max_steps": 2, "use_peft": False, "sample_prompts": ["a red cat"], "sample_steps": 1},
    "all weights, without a reference": {"max_steps": 2, "use_peft": False, "loss_type": "sft"},
    "moving reference": {"max_steps": 3, "sync_ref_model": True, "ref_model_sync_steps": 1},
    "accumulated": {"max_steps": 3, "gradient_accumulation_steps": 2, "gradient_checkpointing": False},
    "evaluated before": {"max_steps": 2, "eval_first": True},
    "resumed": {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "stop": 3, "optim": "adamw_torch_fused",
        "learning_rate": 1e-2, "sync_ref_model": True, "ref_model_sync_steps": 1,
    },
    "all weights, resumed": {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "stop": 3, "use_peft": False, "optim": "adamw_torch",
        "learning_rate": 1e-3, "sync_ref_model": True, "ref_model_sync_steps": 1,
    },
    "held to bounds": {
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "eval_rewards": ["tests.runs:brightness"], "max_drift": 1.0045,
        "eval_prompts": ["a red cat", "a blue dog"],
    },
    "kto": {"max_steps": 2, "loss_type": "diffusion_kto", "temperature": 0.01},
    "flux": {"max_steps": 2, "family": "flux"},
    "stable_diffusion_3": {"max_steps": 2, "family": "stable_diffusion_3"},
    "two networks": {"max_steps": 2, "family": "wan-two_stage"},
    "bfloat16": {"max_steps": 2, "family": "stable_diffusion_3", "bf16": True},
    "without autocast": {"max_steps": 2, "family": "stable_diffusion_3", "bf16": True, "bf16_autocast": False},
}  # fmt: skip
"""Runs of 11 rows, in updates of 8: the second update of an epoch has 3."""


def run_case(name: str, folder: Path, phase: str = "", **layout: Any) -> dict[str, Any]:
    """Trains, evaluates, samples and saves; what that gave.

    Args:
        name: of the case.
        folder: of the run, which is left in `out`.
        phase: of a run that is stopped, "begin" or "go on" for what comes before or after that; both if empty.
        layout: how the 8 rows of an update are spread, and weights over processes.
    """
    settings = {**CASES[name], **layout}
    family = settings.pop("family", "stable_diffusion")
    kind = next(case for case in FAMILIES if case.name == family)
    rows, held_out = kind.rows(11), kind.rows(7, seed=1)
    eval_first, stop = settings.pop("eval_first", False), settings.pop("stop", None)
    settings["per_device_train_batch_size"] //= settings.get("gradient_accumulation_steps", 1)
    # Adam would blow up what rounding leaves of a gradient near zero.
    defaults = {"optim": "sgd", "learning_rate": 0.1, "sample_num_inference_steps": 2}
    args = kind.config(folder, **{**defaults, **settings})
    evaluated = {} if args.loss_type == "sft" else {"eval_dataset": held_out}

    def build(**more: Any) -> TGOTrainer:
        return make_trainer(args, model=kind.build(), train_dataset=rows, **evaluated, **more)

    if stop is not None and phase != "go on":
        stopped = build(callbacks=[StopAt(stop)])
        with suppress(Stop):
            stopped.train()
        if phase == "begin":
            return {"is sharded": is_sharded(stopped)}
        del stopped
    trainer = build()
    evaluations = [trainer.evaluate()] if eval_first else []
    trainer.train(resume_from_checkpoint=stop is not None)
    samples = [] if kind.num_frames else trainer.sample(["a red cat"], [5], **kind.module.CALL)
    if evaluated:
        evaluations.append(trainer.evaluate())
    trainer.save_model()
    return {
        "weights": whole_weights(trainer),
        "log": metrics(trainer.state.log_history),
        "evaluations": metrics(evaluations),
        "samples": torch.tensor(np.array([np.asarray(picture) for picture in samples], dtype=np.float32)),
        "is sharded": is_sharded(trainer),
    }


def whole_weights(trainer: TGOTrainer) -> dict[str, Tensor]:
    """Every trained weight by name, as one process has it."""
    trained = ((name, weight) for name, weight in trainer.policy.named_parameters() if weight.requires_grad)
    return {
        name: (weight.detach().full_tensor() if isinstance(weight, DTensor) else weight.detach()).clone()
        for name, weight in trained
    }


def is_sharded(trainer: TGOTrainer) -> bool:
    """Whether this process holds a part of the weights only."""
    weights = list(trainer.policy.parameters())
    are_parts = all(isinstance(weight, DTensor) for weight in weights)
    total, here = (sum(count) for count in ([it.numel() for it in weights], [_local(it).numel() for it in weights]))
    return bool(trainer.is_fsdp_enabled) and are_parts and here < 0.6 * total


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def main(cases: list[str], out: Path, phase: str = "") -> None:
    """Runs cases in updates of 8 rows over all processes; each process saves its own results."""
    torch.set_num_threads(1)
    allow_sharding_on_the_cpu()
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), 8 // torch.distributed.get_world_size()
    for name in cases:
        result = run_case(name, out / f"run-{name}", phase, per_device_train_batch_size=size, **FSDP2)
        torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

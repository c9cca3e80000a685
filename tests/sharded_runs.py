"""Runs whose weights are sharded, on the CPU: what makes accelerate shard there, and a program of several processes.

`torchrun -m tests.sharded_runs CASES OUT PHASE` runs named cases and saves what they gave.
"""

import functools
import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tgo_trl import TGOTrainer, cli
from tgo_trl.policy import launch
from tgo_trl.policy.compilation import repeated_blocks
from tgo_trl.policy.policy import Policy
from tgo_trl.policy.reference import ModelReference
from tgo_trl.trainer import tgo_trainer

from .cases import CASES as FAMILIES
from .devices import cpu_environment
from .runs import Stop, StopAt, assert_close, assert_equal, make_trainer, metrics, num_graphs

ROOT = Path(__file__).parent.parent
DOCUMENTED: dict[int, dict[str, Any]] = {
    stage: {
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
        "zero_optimization": {"stage": stage, "overlap_comm": True, "contiguous_gradients": True, **own},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    for stage, own in {
        2: {"allgather_partitions": True, "allgather_bucket_size": 2e8, "reduce_scatter": True,
            "reduce_bucket_size": "auto", "offload_optimizer": {"device": "none", "pin_memory": True}},
        3: {"sub_group_size": 1e9, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": "auto",
            "offload_optimizer": {"device": "none", "pin_memory": True},
            "offload_param": {"device": "none", "pin_memory": True}},
    }.items()
}  # fmt: skip
"""DeepSpeed's configurations, by stage, as the documentation of transformers and accelerate writes them, less what is
refused of them (a schedule, offloading)."""
WAYS: dict[str, dict[str, Any]] = {
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}},
    "zero2": {},  # as `accelerate launch` asks for it
    "zero3": {},
    "deepspeed": {
        "deepspeed": {
            "zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        },
    },
    "weights": {
        "deepspeed": {
            "zero_optimization": {
                # or weights as small as these would never be sharded again
                "stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0,
                "stage3_max_reuse_distance": 0,
            },
            "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        },
    },
    "documented, stage 2": {"deepspeed": DOCUMENTED[2]},
    "documented, stage 3": {"deepspeed": DOCUMENTED[3]},
    # the optimizer takes its steps in many parts
    "parts": {
        "deepspeed": {
            **DOCUMENTED[3],
            "zero_optimization": {**DOCUMENTED[3]["zero_optimization"], "sub_group_size": 2000, "overlap_comm": False},
        },
    },
}  # fmt: skip
"""Ways of sharding, by the settings that ask for them."""
NEEDS_DEEPSPEED = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None and "DS_ACCELERATOR" not in os.environ,
        reason="`make test` and `make test-deepspeed` install DeepSpeed",
    ),
]
"""Marks of tests that DeepSpeed shards in, which fail without it where they are told its device, as `make` does."""


def compile_no_operation() -> None:
    """Makes DeepSpeed add up by gloo, where it would first compile an operation of its own, for the CPU alone."""
    from deepspeed.ops import __compatible_ops__ as operations

    operations["deepspeed_shm_comm"] = False


def launch_with(profile: str) -> None:
    """Sets what `accelerate launch` sets in its processes for one of our profiles of DeepSpeed."""
    path = cli._accelerate_config(profile)
    arguments = ["--config_file", str(path), "--num_processes", "2", "--mixed_precision", "no", "train.py"]
    options = launch_command_parser().parse_args(arguments)
    options, defaults, _ = _validate_launch_command(options)
    options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(options)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("ACCELERATE_")})


def allow_sharding_on_the_cpu() -> None:
    """Makes accelerate shard where it would replicate without a word."""
    made = AcceleratorState.__init__

    def make(self: Any, *args: Any, fsdp_plugin: Any = None, deepspeed_plugin: Any = None, **kwargs: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
        plugin = fsdp_plugin or deepspeed_plugin
        if plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        self.distributed_type = DistributedType.DEEPSPEED if fsdp_plugin is None else DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = self.distributed_type
        if fsdp_plugin is None or self._mixed_precision != "no":
            plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.deepspeed_plugins = fsdp_plugin, deepspeed_plugin
        if deepspeed_plugin is not None:
            self._mixed_precision = "no"  # it is of the plugin
            deepspeed_plugin.select(_from_accelerator_state=True)

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
    "averaged": {
        "max_steps": 3, "ema_decay": 0.9, "eval_strategy": "steps", "eval_steps": 1, "lora_r": 1,
        "optim": "adamw_torch", "learning_rate": 1e-2,
        "sample_prompts": ["a red cat"], "sample_steps": 1,
    },
    "averaged, resumed": {
        "max_steps": 4, "ema_decay": 0.15, "save_strategy": "steps", "save_steps": 2, "stop": 3, "optim": "adamw_torch",
        "learning_rate": 1e-2, "sync_ref_model": True, "ref_model_sync_steps": 1,
    },
    "all weights, averaged, resumed": {
        "max_steps": 4, "ema_decay": 0.15, "save_strategy": "steps", "save_steps": 2, "stop": 3, "use_peft": False,
        "optim": "adamw_torch_fused", "learning_rate": 1e-3, "eval_strategy": "steps", "eval_steps": 1,
    },
    "reference remembered": {"max_steps": 2, "use_peft": False, "precompute_ref_log_probs": True},
    "reference remembered, resumed": {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "stop": 3, "optim": "adamw_torch",
        "learning_rate": 1e-3, "precompute_ref_log_probs": True, "num_ref_draws": 2, "precompute_ref_batch_size": 4,
    },
    "second network remembered": {
        "max_steps": 1, "use_peft": False, "by_path": True, "precompute_ref_log_probs": True, "num_ref_draws": 1,
    },
    # the first process has twice as much to compute as the second
    "two networks, remembered": {
        "max_steps": 2, "family": "wan-two_stage", "precompute_ref_log_probs": True, "num_ref_draws": 2,
    },
    "held to bounds": {
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "eval_rewards": ["tests.runs:brightness"], "max_drift": 1.0045,
        "eval_prompts": ["a red cat", "a blue dog"],
    },
    # of a GPU of so many bytes in each process
    "speed": {"max_steps": 2, "speed": "auto", "gradient_checkpointing": None, "memory": [10**12, 10**12]},
    "speed of the least": {"max_steps": 2, "speed": "auto", "gradient_checkpointing": None, "memory": [10**12, 10]},
    "compiled": {"max_steps": 2, "compile_repeated_blocks": True, "torch_compile_backend": "eager"},
    "compiled with gradients": {
        "max_steps": 2, "compile_repeated_blocks": True, "torch_compile_backend": "aot_eager",
        "gradient_checkpointing": False, "family": "flux",
    },
    "kto": {"max_steps": 2, "loss_type": "diffusion_kto", "temperature": 0.01},
    "loaded by path": {"max_steps": 1, "use_peft": False, "by_path": True},
    "flux": {"max_steps": 2, "family": "flux"},
    "stable_diffusion_3": {"max_steps": 2, "family": "stable_diffusion_3"},
    "two networks": {"max_steps": 2, "family": "wan-two_stage"},
    "row by row": {"max_steps": 2, "family": "qwen_image21"},
    "bfloat16": {"max_steps": 2, "family": "stable_diffusion_3", "bf16": True},
    "all weights, bfloat16": {"max_steps": 2, "family": "stable_diffusion_3", "bf16": True, "use_peft": False},
    "without autocast": {"max_steps": 2, "family": "stable_diffusion_3", "bf16": True, "bf16_autocast": False},
}  # fmt: skip
"""Runs of 11 rows, in updates of 8: the second update of an epoch has 3."""
OF_WHOLE_WEIGHTS: dict[str, dict[str, Any]] = {
    "left out": {"max_steps": 3, "on_bad_row": "skip", "bad_update": 2, "optim": "adamw_torch", "learning_rate": 2e-3},
    "trained on": {"max_steps": 2, "train_again": True},
    # of which each process has rows of one network in a batch, whose gradients come in an order of their own
    "two networks, row by row": {
        "max_steps": 2,
        "family": "wan-two_stage",
        "gradient_accumulation_steps": 4,
        "use_peft": False,
    },
}
"""The same, where every process holds all weights."""


def run_case(name: str, folder: Path, phase: str = "", **layout: Any) -> dict[str, Any]:
    """Trains, evaluates, samples and saves; what that gave.

    Args:
        name: of the case.
        folder: of the run, which is left in `out`.
        phase: of a run that is stopped, "begin" or "go on" for what comes before or after that; both if empty.
        layout: how the 8 rows of an update are spread, and weights over processes.
    """
    settings = {**(CASES | OF_WHOLE_WEIGHTS)[name], **layout}
    family = settings.pop("family", "stable_diffusion")
    kind = next(case for case in FAMILIES if case.name == family)
    rows, held_out = kind.rows(11), kind.rows(7, seed=1)
    eval_first, stop = settings.pop("eval_first", False), settings.pop("stop", None)
    bad_update, train_again = settings.pop("bad_update", None), settings.pop("train_again", False)
    by_path, memory = settings.pop("by_path", False), settings.pop("memory", None)
    settings["per_device_train_batch_size"] //= settings.get("gradient_accumulation_steps", 1)
    # Adam would blow up what rounding leaves of a gradient near zero.
    defaults = {"optim": "sgd", "learning_rate": 0.1, "sample_num_inference_steps": 2}
    args = kind.config(folder, **{**defaults, **settings})
    evaluated = {} if args.loss_type == "sft" else {"eval_dataset": held_out}

    def build(**more: Any) -> TGOTrainer:
        model = {"model": kind.build()} if not by_path else _by_path(kind, folder)
        with pytest.MonkeyPatch.context() as patch:
            if memory is not None:
                patch.setattr(tgo_trainer, "device_memory", lambda device: memory[PartialState().process_index])
            return make_trainer(args, train_dataset=rows, **evaluated, **model, **more)

    if stop is not None and phase != "go on":
        stopped = build(callbacks=[StopAt(stop)])
        with suppress(Stop):
            stopped.train()
        if phase == "begin":
            return {"is sharded": is_sharded(stopped)}
        del stopped
    before, called = WeakSet(policies()), num_called()
    trainer = build()
    if train_again:  # by another trainer of the same weights
        trainer.train()
        if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
            with pytest.raises(ValueError, match="engine of this trainer has ended with its run"):
                trainer.train()
        trainer = make_trainer(args, model=trainer.pipeline, train_dataset=rows, **evaluated)
    if bad_update is not None:
        make_bad(trainer, bad_update)
    kept, graphs = count_kept_weights(trainer), num_graphs()
    casts = count_casts(trainer) if args.bf16 and not args.use_peft else []
    evaluations = [trainer.evaluate()] if eval_first else []
    trainer.train(resume_from_checkpoint=stop is not None)
    samples = [] if kind.num_frames else trainer.sample(["a red cat"], [5], **kind.module.CALL)
    if evaluated:
        evaluations.append(trainer.evaluate())
    trainer.save_model()
    result = {
        "weights": whole_weights(trainer),
        "log": metrics(trainer.state.log_history),
        "evaluations": metrics(evaluations),
        "samples": torch.tensor(np.array([np.asarray(picture) for picture in samples], dtype=np.float32)),
        "is sharded": is_sharded(trainer),
        "graphs": tuple(after - before for after, before in zip(num_graphs(), graphs, strict=True)),
        "kept": kept,
        "casts": casts,
        "policies": sum(policy not in before for policy in policies()),
        "called": num_called() - called,
        "chosen": (args.gradient_checkpointing, args.gradient_checkpointing_kwargs, args.compile_repeated_blocks),
        "fixed": trainer.strategy.fixed_bytes(trainer.policy.networks.values()),
    }
    assert_ended(trainer, args, {"train_dataset": rows, **evaluated})
    return result


def _by_path(kind: Any, folder: Path) -> dict[str, Any]:
    """Policy and reference, each to be loaded by every process."""
    path = folder / "model"
    if PartialState().is_main_process:  # transformers saves nothing in others
        kind.build().save_pretrained(path)
    PartialState().wait_for_everyone()
    return {"model": str(path), "ref_model": str(path)}


def assert_ended(trainer: TGOTrainer, args: Any, data: dict[str, Any]) -> None:
    """That neither this trainer nor another one trains networks again that DeepSpeed has sharded."""
    if not trainer.strategy.shards or trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    with pytest.raises(ValueError, match=r"has ended with its run\. Load the pipeline anew in a new process"):
        trainer.train()
    with pytest.raises(ValueError, match=r"is sharded \(DeepSpeed\), and what is saved needs its weights whole"):
        make_trainer(args, model=trainer.pipeline, **data)


def runs_of_one_process(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Trains a case, once, by one process with batches of eight rows."""

    @functools.cache
    def run(name: str) -> dict[str, Any]:
        return run_case(name, folder / f"one-{name}", per_device_train_batch_size=8)

    return run


def count_kept_weights(trainer: TGOTrainer) -> list[tuple[int, int]]:
    """Linear layers that each forward pass with gradients calls, and how many of their weights are there after it."""
    called: list[StorageWeakRef] = []
    kept: list[tuple[int, int]] = []

    def is_linear(layer: Any) -> bool:
        return type(layer) is torch.nn.Linear

    def note(module: Any, *args: Any) -> None:
        weights = [layer._parameters.get("weight") for layer in module.modules() if is_linear(layer)]
        called.extend(StorageWeakRef(weight.untyped_storage()) for weight in weights)

    def count(*args: Any) -> None:
        if torch.is_grad_enabled():
            kept.append((len(called), sum(not weight.expired() for weight in called)))
        called.clear()

    networks = trainer.policy.networks.values()
    if trainer.args.compile_repeated_blocks:  # within which a hook would break graphs
        watched = [block for network in networks for block in repeated_blocks(network)]
    else:
        watched = [layer for layer in trainer.policy.modules() if is_linear(layer)]
    for module in watched:
        module.register_forward_hook(note)  # before that of an engine which is made later
    trainer.policy.register_forward_hook(count)
    return kept


class Casts(TorchDispatchMode):
    """Notes what weights of blocks are cast to.

    Attributes:
        made: the memory of each copy.
        depth: of blocks that are being called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[StorageWeakRef] = []
        self.depth = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and isinstance(args[0], torch.nn.Parameter) and self.depth:
            self.made.append(StorageWeakRef(result.untyped_storage()))
        return result


def count_casts(trainer: TGOTrainer) -> list[tuple[int, int]]:
    """Weights of blocks that autocast has cast in each forward pass with gradients, and copies there at its end.

    The blocks are recomputed, so that the backward pass has no use for these copies.
    """
    counts: list[tuple[int, int]] = []
    network: Any = trainer.policy.networks["transformer"]
    noting = [Casts()]

    def enter(*args: Any) -> None:
        noting[0] = Casts()
        noting[0].__enter__()

    def leave(*args: Any) -> None:
        noting[0].__exit__(None, None, None)
        if torch.is_grad_enabled():
            made = noting[0].made
            counts.append((len(made), sum(not copy.expired() for copy in made)))

    def step(by: int, *args: Any) -> None:
        noting[0].depth += by

    network.register_forward_pre_hook(enter, prepend=True)
    network.register_forward_hook(leave)
    for block in network.transformer_blocks:
        block.register_forward_pre_hook(functools.partial(step, 1))
        block.register_forward_hook(functools.partial(step, -1), always_call=True)
    return counts


def policies() -> list[Policy]:
    """Sets of networks that are there, of a policy or a reference, whoever has hold of them."""
    gc.collect()
    return [it for it in gc.get_objects() if isinstance(it, Policy)]


def num_called() -> int:
    """Modules that DeepSpeed takes to be called: the roots that it gathers weights for, between their calls."""
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    return 0 if offload is None else len(offload.FWD_MODULE_STACK)


def cached(run: Path) -> dict[str, bytes]:
    """The encodings and errors of a run, by file."""
    return {path.name: path.read_bytes() for path in (run / "cache").glob("*.safetensors")}


def make_bad(trainer: TGOTrainer, update: int) -> None:
    """Makes the loss and the gradient of one update NaN."""
    process = trainer.denoiser.noise_process
    error = process.error

    def of(*args: Tensor) -> Tensor:
        errors = error(*args)
        return errors * float("nan") if trainer.state.global_step + 1 == update else errors

    object.__setattr__(process, "error", of)


def whole_weights(trainer: TGOTrainer) -> dict[str, Tensor]:
    """Every trained weight by name, as one process has it."""
    with trainer.strategy.whole(trainer.policy, loading=True):
        trained = ((name, weight) for name, weight in trainer.policy.named_parameters() if weight.requires_grad)
        return {name: weight.detach().clone() for name, weight in trained}


def is_sharded(trainer: TGOTrainer) -> bool:
    """Whether this process holds a part of the weights only, or of what the optimizer keeps of them."""
    engine = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    if engine is not None and engine.engine.zero_optimization_partition_weights():
        return _is_sharded_by_zero3(trainer, engine.engine.optimizer)
    if engine is not None:
        zero = engine.engine.optimizer
        trained = [weight for weight in trainer.policy.parameters() if weight.requires_grad]
        parts = [part for group in zero.optimizer.param_groups for part in group["params"]]
        total, here = (sum(it.numel() for it in weights) for weights in (trained, parts))
        kept = [(value, part) for part in parts for value in zero.state[part].values() if value.dim()]
        are_like = all(value.shape == part.shape for value, part in kept)
        return bool(zero.partition_gradients) and are_like and here < 0.6 * total
    weights = list(trainer.policy.parameters())
    are_parts = all(isinstance(weight, DTensor) for weight in weights)
    total, here = (sum(count) for count in ([it.numel() for it in weights], [_local(it).numel() for it in weights]))
    return bool(trainer.is_fsdp_enabled) and are_parts and here < 0.6 * total


def _is_sharded_by_zero3(trainer: TGOTrainer, zero: Any) -> bool:
    """Whether this process holds a part of each weight, gradient, moment, and of the reference."""
    weights = [*trainer.policy.parameters()]
    if isinstance(trainer.reference, ModelReference):
        weights += trainer.reference.model.parameters()
    num_processes = trainer.args.world_size
    assert all(weight.ds_tensor.numel() == -(-weight.ds_numel // num_processes) for weight in weights)
    trained = sum(weight.ds_numel for weight in weights if weight.requires_grad)
    parts = sum(part.numel() for part in zero.fp32_partitioned_groups_flat)
    are_like = all(
        value.shape == part.shape
        for part in zero.fp32_partitioned_groups_flat
        for value in zero.state[part].values()
        if value.dim()
    )
    are_released = all(weight.ds_status.name == "NOT_AVAILABLE" for weight in weights if not weight.ds_persist)
    here = sum(weight.ds_tensor.numel() for weight in weights)
    total = sum(weight.ds_numel for weight in weights)
    return are_released and are_like and here < 0.6 * total and parts < 0.6 * trained


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def run_sharded(
    cases: list[str], folder: Path, num_processes: int = 2, phase: str = "", way: str = "fsdp2"
) -> dict[str, list[dict[str, Any]]]:
    """Cases trained by several processes that share the weights; what each of them gave."""
    folder.mkdir(exist_ok=True)
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", "-m", "tests.sharded_runs"]
    environment = cpu_environment(ACCELERATE_MIXED_PRECISION="bf16")  # as of our profile; the settings say float32
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-m", *command, json.dumps(cases), str(folder), phase, way],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(num_processes)] for name in cases}


def assert_same_metrics(actual: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Losses within 1e-5 of each other, relatively."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            # of others, two of float32's steps at a log-likelihood of -90, from which margins are
            tolerance = {"rel": 1e-5} if name.endswith("loss") else {"rel": 1e-4, "abs": 2e-5}
            if not math.isfinite(value):  # of an update that is left out, NaN or infinity
                assert not math.isfinite(one[name])
                continue
            assert one[name] == pytest.approx(value, **tolerance), name


def assert_like_one_process(sharded: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """That two processes, which really shard, gave what one did."""
    first, second = sharded
    assert [it["is sharded"] for it in (first, second, one)] == [True, True, False]
    assert_equal(second["weights"], first["weights"])
    assert_close(first["weights"], one["weights"], 1e-5)
    assert_same_metrics(first["log"], one["log"])
    assert_same_metrics(first["evaluations"], one["evaluations"])
    assert_equal(second["samples"], first["samples"])
    if one["samples"].numel():  # of 256 levels
        assert (first["samples"] - one["samples"]).abs().max() <= 1


def assert_same_losses(sharded: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Weights and losses alone: of log-ratios that rounding leaves before the first update, the sign is chance."""
    assert [it["is sharded"] for it in (*sharded, one)] == [True, True, False]
    assert_close(sharded[0]["weights"], one["weights"], 1e-5)
    losses = [[it["loss"] for it in run["log"] if "loss" in it] for run in (sharded[0], one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def assert_keeps_no_cast(sharded: list[dict[str, Any]]) -> None:
    """That two updates in bfloat16 cast the weights of blocks, and that no copy was left when they were called."""
    assert all(run["is sharded"] for run in sharded)
    counts = [count for run in sharded for count in run["casts"]]
    assert len(counts) == 4
    assert all(cast > 0 and kept == 0 for cast, kept in counts)


def assert_saves_an_adapter(out: Path, trained: dict[str, Tensor]) -> None:
    """That stock diffusers loads the trained weights from a run of "adapter", which drew a grid after every update."""
    assert len(list((out / "samples").glob("step-*.png"))) == 3
    pipeline = next(case for case in FAMILIES if case.name == "stable_diffusion").build()
    pipeline.load_lora_weights(out)
    loaded = {name.replace("default_0", "default"): weight for name, weight in pipeline.unet.named_parameters()}
    saved = load_file(out / "pytorch_lora_weights.safetensors")
    assert len(saved) == len(trained), "the adapter alone"
    assert_close({name: loaded[name.removeprefix("networks.unet.")] for name in trained}, trained, 1e-5)


def assert_saves_a_pipeline(out: Path, trained: dict[str, Tensor]) -> None:
    """That stock diffusers loads the trained weights from a run of "all weights"."""
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    saved = {f"networks.unet.{name}": weight for name, weight in pipeline.unet.named_parameters()}
    assert_close(saved, trained, 1e-5)


def main(cases: list[str], out: Path, phase: str = "", way: str = "fsdp2") -> None:
    """Runs cases in updates of 8 rows over all processes; each process saves its own results."""
    torch.set_num_threads(1)
    allow_sharding_on_the_cpu()
    if way != "fsdp2":
        compile_no_operation()
    if way in ("zero2", "zero3"):
        launch_with(way)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), 8 // torch.distributed.get_world_size()
    for name in cases:
        result = run_case(name, out / f"run-{name}", phase, per_device_train_batch_size=size, **WAYS[way])
        torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

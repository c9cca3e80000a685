"""The steps that are timed: of the trainer, and of a bare loop on the trainer's own networks, in turns.

The bare loop is the floor: noise drawn on the device, the reference's forward, the policy's, the loss, the backward, a
clip and the trainer's optimizer, under bfloat16 autocast, on a batch that lies on the device. It is given the trainer's
networks, so that what was done to them (an adapter, gradient checkpointing, compiled blocks) is done for both, and the
ratio tells what is around them. Windows of several steps are timed, first one of the trainer, then one of the bare
loop, and so on, with the device waited for at their ends, and an untimed step before each.

The time spent on data is that of fetching batches after which the device had nothing left to do: what it waited for is
at most that.

FLOPs are those of matrix products, convolutions and attention as `torch.utils.flop_counter` counts them, of a bare step
without what checkpointing computes again, on PyTorch's `meta` device. Utilisation is their number over the time of a
step, over what the same card does in a product of bfloat16 matrices of 8192 x 8192.
"""

import math
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from tgo_trl import TGOTrainer
from tgo_trl.families import Family
from tgo_trl.policy.reference import AdapterReference, ModelReference

from .gpu_models import Model, build_family, build_network, build_pipeline, encode_one

RANK = 16
WARM_UP = 3
"""Steps of each before anything is timed: kernels are chosen, blocks compiled, and what is kept is made."""
MATMUL_SIDE = 8192


# ---- The bare loop ----


class BareLoop:
    """Two forwards, a backward, a clip and a step, written down without a trainer.

    Args:
        family, pipeline: how the network is called.
        networks: the policy's, by name.
        reference: the reference's: the same ones for "with the adapter off", or None to leave its forward out.
        image, prompt: encoded, of a batch.
        optimizer: None for the gradient alone.
    """

    def __init__(
        self, family: Family, pipeline: DiffusionPipeline, networks: Mapping[str, nn.Module],
        reference: Mapping[str, nn.Module] | None, image: Mapping[str, Tensor], prompt: Mapping[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:  # fmt: skip
        self.family, self.networks, self.reference, self.optimizer = family, networks, reference, optimizer
        modules = [module for network in networks.values() for module in network.modules()]
        shares = reference is not None and all(reference[name] is networks[name] for name in networks)
        # switched as in `step_counts`: by a flag, without a call for each layer
        self.layers = [vars(it) for it in modules if isinstance(it, BaseTunerLayer)] if shares else []
        weights = [weight for network in networks.values() for weight in network.parameters()]
        self.trained = [weight for weight in weights if weight.requires_grad]
        self.process = family.process(pipeline)  # of its own, whose tables lie on the device
        self.clean = family.clean(pipeline, image, torch.zeros_like(image["mean"]))
        self.conditions = family.conditions(pipeline, image, prompt)
        self.sign = 1 - torch.arange(len(self.clean), device=self.clean.device) % 2 * 2
        self.temperature = self.process.temperature(math.prod(self.clean.shape[1:]))

    def errors(self, networks: Mapping[str, nn.Module], noisy: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Of each row, `[B]`."""
        prediction = self.family.predict(networks, noisy, time, self.conditions)
        return self.process.error(prediction, self.clean, noise, time)

    def gradient(self) -> None:
        """Of the loss of a batch: the forwards and the backward."""
        clean = self.clean
        noise = torch.randn_like(clean)
        time = self.process.time(torch.rand(len(clean), device=clean.device))
        noisy = self.process.corrupt(clean, noise, time)
        casts = nullcontext() if clean.is_meta else torch.autocast(clean.device.type, torch.bfloat16)
        reference: Tensor | float = 0.0
        with casts:
            if self.reference is not None:
                self._switch(off=True)
                with torch.no_grad():
                    reference = self.errors(self.reference, noisy, noise, time)
                self._switch(off=False)
            policy = self.errors(self.networks, noisy, noise, time)
        loss = -logsigmoid(self.sign * (reference - policy) / self.temperature).mean()
        loss.backward()

    def step(self) -> None:
        """One update."""
        assert self.optimizer is not None
        self.gradient()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _switch(self, off: bool) -> None:
        for layer in self.layers:
            layer["_disable_adapters"] = off


def bare_loop_of(trainer: TGOTrainer, batch_size: int, optimizer: torch.optim.Optimizer) -> BareLoop:
    """The bare loop on what a trainer trains, and on rows of its training set."""
    dataset: Any = trainer.train_dataset
    batch = trainer.data_collator([dataset[i % len(dataset)] for i in range(batch_size)])
    batch = tree_map_only(Tensor, lambda tensor: tensor.to(trainer.args.device), batch)
    networks = dict(trainer.policy.networks.items())
    reference = None
    if "reference_error" in batch:
        pass  # known already: the trainer asks no network
    elif isinstance(trainer.reference, AdapterReference):
        reference = networks
    elif isinstance(trainer.reference, ModelReference):
        reference = dict(trainer.strategy.unwrap(trainer.reference.model).networks.items())
    known = {"lengths": tuple(batch["prompt_length"])} if trainer.family.reads_lengths else {}
    prompt = {**batch["prompt"], **known}
    return BareLoop(trainer.family, trainer.pipeline, networks, reference, batch["image"], prompt, optimizer)


# ---- In turns ----


@dataclass
class Windows:
    """What was timed of one of the two.

    Attributes:
        seconds: of a step, the mean over each window.
        peak_bytes: the most memory that tensors took, over all windows; 0 where it is not a GPU's.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"seconds": self.median, "windows": self.seconds, "peak_gb": self.peak_bytes / 1e9 or None}


class InTurns(TrainerCallback):
    """Times windows of the trainer's steps and of the bare loop's, one after the other, and ends the training.

    Args:
        trainer: calls this at the end of each of its steps.
        batch_size: rows of a step.
        num_windows: of each.
        seconds: that a window takes at least, about.
    """

    def __init__(self, trainer: TGOTrainer, batch_size: int, num_windows: int, seconds: float) -> None:
        self.trainer, self.batch_size, self.num_windows, self.seconds = trainer, batch_size, num_windows, seconds
        self.of_trainer, self.of_bare = Windows(), Windows()
        self.num_steps = 0  # of a window, chosen once steps are warm
        self.data_seconds = 0.0
        self.has_reference = False
        self._bare: BareLoop | None = None
        self._done = -WARM_UP  # steps of the trainer since its window began
        self._since = 0.0
        self._fetch = trainer.get_batch_samples
        trainer.get_batch_samples = self._timed_fetch  # type: ignore[method-assign]

    def _timed_fetch(self, *args: Any) -> Any:
        start = time.perf_counter()
        batches = self._fetch(*args)
        is_timed = self.num_steps > 0 and self._done >= 0
        if is_timed and is_idle(self.trainer.args.device):
            self.data_seconds += time.perf_counter() - start
        return batches

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """A step of the trainer has ended."""
        self._done += 1
        device = args.device
        if self._done == -1:
            self._since = now(device)
        elif self._done == 0 and self._bare is None:
            self._warm_up(now(device) - self._since, kwargs["optimizer"], device)
            self._begin(device)
        elif self._done == 0:  # the untimed step
            self._begin(device)
        elif self._done == self.num_steps:
            self._end(self.of_trainer, device)
            self._time_bare(device)
            self._done = -1
            control.should_training_stop = len(self.of_trainer.seconds) == self.num_windows

    def _warm_up(self, seconds: float, optimizer: Any, device: torch.device) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # without accelerate's wrapper
        self._bare = bare_loop_of(self.trainer, self.batch_size, optimizer)
        self.has_reference = self._bare.reference is not None
        for _ in range(WARM_UP):
            self._bare.step()
        self.num_steps = min(100, max(2, math.ceil(self.seconds / seconds)))

    def _begin(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._since = now(device)

    def _end(self, windows: Windows, device: torch.device) -> None:
        windows.seconds.append((now(device) - self._since) / self.num_steps)
        if device.type == "cuda":
            windows.peak_bytes = max(windows.peak_bytes, torch.cuda.max_memory_allocated(device))

    def _time_bare(self, device: torch.device) -> None:
        assert self._bare is not None
        self._bare.step()
        self._begin(device)
        for _ in range(self.num_steps):
            self._bare.step()
        self._end(self.of_bare, device)

    def summary(self) -> dict[str, Any]:
        """As JSON has it: the ratio is the median of neighbouring windows', the spread that of the bare ones."""
        trainer, bare = self.of_trainer.seconds, self.of_bare.seconds
        ratios = [mine / theirs for mine, theirs in zip(trainer, bare, strict=True)]
        return {
            "trainer": self.of_trainer.summary(),
            "bare": {**self.of_bare.summary(), "spread": (max(bare) - min(bare)) / self.of_bare.median},
            "ratio": statistics.median(ratios),
            "samples_per_second": self.batch_size / self.of_trainer.median,
            "data_share": self.data_seconds / (sum(trainer) * self.num_steps),
            "steps_per_window": self.num_steps,
        }


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def is_idle(device: torch.device) -> bool:
    """Whether the device has done all that it was asked for; asks without waiting."""
    return device.type != "cuda" or torch.cuda.current_stream(device).query()


# ---- FLOPs ----


def count_flops(model: Model, scale: str, full: bool, with_reference: bool = True) -> int:
    """FLOPs of the forwards and the backward of one row, computed once each."""
    pipeline = build_pipeline(model, scale)
    family = build_family(model, scale, pipeline)
    meta, name = torch.device("meta"), family.network_names[0]
    network: Any = build_network(model, meta, torch.bfloat16) if scale == "real" else getattr(pipeline, name).to(meta)
    if not full:
        network.requires_grad_(False)
        network.add_adapter(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(family.lora_target_modules)))
    networks = {name: nn.Module.to(network, torch.bfloat16)}  # norms too, as nothing casts here
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(meta), encode_one(model, family, pipeline))
    loop = BareLoop(family, pipeline, networks, networks if with_reference else None, *inputs)
    with FlopCounterMode(display=False) as counter:
        loop.gradient()
    return int(counter.get_total_flops())

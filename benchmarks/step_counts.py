"""Python calls and kernels of a step, counted on the CPU: real depths, tiny widths, for the `--count` of step_overhead.

A small batch is bound by the host on any GPU, by how many functions Python calls and how many kernels it launches, and
neither depends on how wide a network is. So both can be counted without a GPU, exactly, and held to.

- **Python calls**: functions written in Python, also the resumption of a generator, as `sys.setprofile` sees them.
- **Kernels**: operators of PyTorch that compute; views, and memory that is not written, are left out. Random numbers
  are drawn on the CPU, by trainer and bare loop alike, and count too.

The trainer's are those of whole updates, from the end of one to the end of another: reading rows, collating, draws,
loss, metrics, guards, callbacks, and, since as many updates are counted as lie between two logs, logging.
"""

import copy
import gc
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PrinterCallback, TrainerCallback

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.precision import cast

from .step_depths import DEPTHS, Depth

WARM_UP = 3
"""Updates before counting: the first ones look for untrained layers, and make what is kept."""
BETWEEN_LOGS = 10
"""Updates, as by default; so many are counted."""
NUM_UPDATES = WARM_UP + 2 * BETWEEN_LOGS
"""Of the trainer: calls and kernels are counted one after the other, as each would count the other's counting."""
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",  # memory that nothing writes
    "detach", "lift_fresh", "set_", "_unsafe_view",  # a tensor of memory that is there
    "_local_scalar_dense", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


# ---- Counting ----


@dataclass
class Counts:
    """Of some updates.

    Attributes:
        calls: of functions written in Python.
        kernels: that were launched, or would be.
    """

    calls: float = 0
    kernels: float = 0

    @contextmanager
    def counting_calls(self) -> Iterator[None]:
        """Counts the calls within; none of what the garbage collector calls, for objects of whatever came before."""

        def count(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                self.calls += 1

        gc.collect()
        gc.disable()
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(None)
            gc.enable()
            self.calls -= 2  # of the context's end, and of this function to go on

    @contextmanager
    def counting_kernels(self) -> Iterator[None]:
        """Counts the kernels within."""
        with _Kernels(self):
            yield


class _Kernels(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts.kernels += not func.is_view and name not in NO_KERNEL
        return func(*args, **(kwargs or {}))


# ---- What is counted ----

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


class BareLoop:
    """The same mathematics with as little around it as can be: in bfloat16 as the trainer, adapters by their flags."""

    def __init__(self, depth: Depth, network: nn.Module, batch: int) -> None:
        cast(network.requires_grad_(False).train(), torch.bfloat16)
        network.add_adapter(LoraConfig(**LORA))
        cast_training_params(network, torch.float32)
        self.layers = [vars(layer) for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        self.trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        self.denoise = depth.denoiser(network, batch)
        self.alphas_cumprod = DDPMScheduler().alphas_cumprod
        self.latents, self.sign = torch.randn(batch, *depth.latents), 1 - torch.arange(batch) % 2 * 2
        self.dims = tuple(range(1, self.latents.ndim))

    def step(self) -> None:
        """One update."""
        noise, time = torch.randn_like(self.latents), torch.randint(0, 1000, (len(self.latents),))
        abar = self.alphas_cumprod[time].reshape(-1, *[1] * len(self.dims))
        noisy = (abar.sqrt() * self.latents + (1 - abar).sqrt() * noise).to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                layer["_disable_adapters"] = True
            with torch.no_grad():
                reference = (self.denoise(noisy, time).float() - noise).square().mean(self.dims)
            for layer in self.layers:
                layer["_disable_adapters"] = False
            policy = (self.denoise(noisy, time).float() - noise).square().mean(self.dims)
        loss = -logsigmoid(self.sign * (reference - policy) / 0.256).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def count_bare(depth: Depth, network: nn.Module, batch: int) -> Counts:
    """Calls and kernels of an update of a bare loop, on a copy of the network."""
    loop, counts = BareLoop(depth, copy.deepcopy(network), batch), Counts()
    for _ in range(WARM_UP):
        loop.step()
    with counts.counting_calls():
        loop.step()
    with counts.counting_kernels():
        loop.step()
    return counts


class CountUpdates(TrainerCallback):
    """Counts calls, and then kernels, of so many updates as lie between two logs, each from end to end."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._counting: AbstractContextManager[None] | None = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """An update has ended."""
        done = state.global_step - WARM_UP
        if self._counting is not None and done % BETWEEN_LOGS == 0:
            self._counting.__exit__(None, None, None)
        ways = {0: self.counts.counting_calls, BETWEEN_LOGS: self.counts.counting_kernels}
        if done in ways:
            self._counting = ways[done]()
            self._counting.__enter__()


def count_trainer(depth: Depth, pipeline: DiffusionPipeline, batch: int, **settings: Any) -> Counts:
    """Calls and kernels of an update of the trainer, the mean over those between two logs."""
    counting = CountUpdates()
    with tempfile.TemporaryDirectory() as folder:
        args = TGOConfig(
            f"{folder}/run",
            encoding_cache_dir=f"{folder}/encodings",
            use_cpu=True,
            bf16=True,
            per_device_train_batch_size=batch,
            max_steps=NUM_UPDATES,
            logging_steps=BETWEEN_LOGS,
            gradient_checkpointing=False,
            learning_rate=1e-4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **{**depth.settings, **settings},
        )
        rows = depth.rows(batch * NUM_UPDATES)
        trainer = TGOTrainer(pipeline, args, rows, peft_config=LoraConfig(**LORA), callbacks=[counting])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    counts = counting.counts
    return Counts(counts.calls / BETWEEN_LOGS, counts.kernels / BETWEEN_LOGS)


def count(depth: Depth, batch: int = 1, shallow: bool = False) -> tuple[Counts, Counts]:
    """Of the trainer and of a bare loop, an update each.

    A shallow network has fewer calls and kernels, and the trainer as many more than the bare loop.
    """
    pipeline = depth.build(**(depth.shallow if shallow else {}))
    (network,) = (getattr(pipeline, name) for name in ("unet", "transformer") if hasattr(pipeline, name))
    bare = count_bare(depth, network, batch)
    return count_trainer(depth, pipeline, batch), bare


# ---- The table ----


def report(
    depths: Sequence[str], batch: int, most_calls: float | None = None, most_kernels: float | None = None
) -> None:
    """Prints a line for each depth, and ends with an error if any has more than it may.

    Args:
        depths: keys of [`DEPTHS`].
        batch: rows of an update.
        most_calls: the trainer's Python calls over the bare loop's.
        most_kernels: those that the trainer launches beyond the bare loop's.
    """
    print("| depth of | Python calls: trainer | bare | ratio | kernels: trainer | bare | difference |")
    print("|---|---|---|---|---|---|---|")
    misses = []
    for name in depths:
        trainer, bare = count(DEPTHS[name], batch)
        ratio, more = trainer.calls / bare.calls, trainer.kernels - bare.kernels
        print(
            f"| {DEPTHS[name].name} | {trainer.calls:,.0f} | {bare.calls:,.0f} | {ratio:.3f} | {trainer.kernels:,.1f} "
            f"| {bare.kernels:,.0f} | {more:.1f} |",
            flush=True,
        )
        if most_calls is not None and ratio > most_calls:
            misses.append(f"{DEPTHS[name].name}: {ratio:.3f} times the Python calls of a bare loop, above {most_calls}")
        if most_kernels is not None and more > most_kernels:
            misses.append(f"{DEPTHS[name].name}: {more:.1f} kernels more than a bare loop, above {most_kernels}")
    if misses:
        sys.exit("; ".join(misses))

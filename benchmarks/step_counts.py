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
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PrinterCallback, TrainerCallback

from tests.tiny import flux, scored_rows, stable_diffusion_xl
from tests.tiny.stable_diffusion import build as build_stable_diffusion
from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.precision import cast

WARM_UP = 3
"""Updates before counting: the first ones look for untrained layers, and make what is kept."""
BETWEEN_LOGS = 10
"""Updates, as by default; so many are counted."""
NUM_UPDATES = WARM_UP + 2 * BETWEEN_LOGS
"""Of the trainer: calls and kernels are counted one after the other, as each would count the other's counting."""
SIDE = 16
"""Latents of a picture: so many that even the lowest level of a UNet has several, between which attention tells."""

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
        """Counts the calls within."""

        def count(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                self.calls += 1

        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(None)
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

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Depth:
    """A published network, as deep as it is and as narrow as it can be.

    Attributes:
        name: of what is as deep.
        build: a pipeline that has it.
        denoiser: of a network and a number of rows, what asks the network, of noisy latents and their time, as a plain
            loop would, with conditions that are there already.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    denoiser: Callable[[Any, int], Denoise]


def unet_of_sd15() -> DiffusionPipeline:
    return build_stable_diffusion(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=2,
        sample_size=SIDE,
    )


def unet_of_sdxl() -> DiffusionPipeline:
    return stable_diffusion_xl.build(
        block_out_channels=(8, 8, 8),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 2, 2),
        sample_size=SIDE,
    )


def transformer_of_flux() -> DiffusionPipeline:
    return flux.build(num_layers=19, num_single_layers=38)


def denoiser_of_sd15(unet: UNet2DConditionModel, batch: int) -> Denoise:
    embeds = torch.randn(batch, 77, 32, dtype=torch.bfloat16)
    return lambda noisy, time: unet(noisy, time, embeds, return_dict=False)[0]


def denoiser_of_sdxl(unet: UNet2DConditionModel, batch: int) -> Denoise:
    embeds = torch.randn(batch, 77, 64, dtype=torch.bfloat16)
    told = {"text_embeds": torch.randn(batch, 32, dtype=torch.bfloat16), "time_ids": torch.zeros(batch, 6)}
    return lambda noisy, time: unet(noisy, time, embeds, added_cond_kwargs=told, return_dict=False)[0]


def denoiser_of_flux(transformer: FluxTransformer2DModel, batch: int) -> Denoise:
    length = 512
    embeds, pooled = (torch.randn(batch, *shape, dtype=torch.bfloat16) for shape in ((length, 32), (32,)))
    text_ids = torch.zeros(length, 3, dtype=torch.bfloat16)
    image_ids = FluxPipeline._prepare_latent_image_ids(batch, SIDE // 2, SIDE // 2, "cpu", torch.bfloat16)
    guidance = torch.full((batch,), 3.5)

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        packed = FluxPipeline._pack_latents(noisy, batch, 4, SIDE, SIDE)
        prediction = transformer(
            packed, embeds, pooled, time, img_ids=image_ids, txt_ids=text_ids, guidance=guidance, return_dict=False
        )[0]
        return FluxPipeline._unpack_latents(prediction, SIDE, SIDE, 1)

    return denoise


DEPTHS = {
    "sd15": Depth("SD 1.5", unet_of_sd15, denoiser_of_sd15),
    "sdxl": Depth("SDXL", unet_of_sdxl, denoiser_of_sdxl),
    "flux": Depth("FLUX.1", transformer_of_flux, denoiser_of_flux),
}

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
        self.latents, self.sign = torch.randn(batch, 4, SIDE, SIDE), 1 - torch.arange(batch) % 2 * 2

    def step(self) -> None:
        """One update."""
        noise, time = torch.randn_like(self.latents), torch.randint(0, 1000, (len(self.latents),))
        abar = self.alphas_cumprod[time].reshape(-1, 1, 1, 1)
        noisy = (abar.sqrt() * self.latents + (1 - abar).sqrt() * noise).to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                layer["_disable_adapters"] = True
            with torch.no_grad():
                reference = (self.denoise(noisy, time).float() - noise).square().mean((1, 2, 3))
            for layer in self.layers:
                layer["_disable_adapters"] = False
            policy = (self.denoise(noisy, time).float() - noise).square().mean((1, 2, 3))
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


def count_trainer(pipeline: DiffusionPipeline, batch: int, **settings: Any) -> Counts:
    """Calls and kernels of an update of the trainer, the mean over those between two logs."""
    counting = CountUpdates()
    with tempfile.TemporaryDirectory() as folder:
        args = TGOConfig(
            f"{folder}/run",
            encoding_cache_dir=f"{folder}/encodings",
            use_cpu=True,
            bf16=True,
            resolution=2 * SIDE,
            per_device_train_batch_size=batch,
            max_steps=NUM_UPDATES,
            logging_steps=BETWEEN_LOGS,
            gradient_checkpointing=False,
            learning_rate=1e-4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        trainer = TGOTrainer(
            pipeline, args, scored_rows(batch * NUM_UPDATES), peft_config=LoraConfig(**LORA), callbacks=[counting]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    counts = counting.counts
    return Counts(counts.calls / BETWEEN_LOGS, counts.kernels / BETWEEN_LOGS)


def count(depth: Depth, batch: int = 1) -> tuple[Counts, Counts]:
    """Of the trainer and of a bare loop, an update each."""
    pipeline = depth.build()
    (network,) = (getattr(pipeline, name) for name in ("unet", "transformer") if hasattr(pipeline, name))
    bare = count_bare(depth, network, batch)
    return count_trainer(pipeline, batch), bare


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

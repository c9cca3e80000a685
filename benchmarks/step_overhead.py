"""What a TGOTrainer step costs beside a bare PyTorch loop that does the same forwards and the same backward.

    python -m benchmarks.step_overhead

Both run in turns in one process: after every update of the trainer, a bare step is timed on a copy of the same UNet,
with the same batch size, precision, adapter and optimizer. The trainer's share is everything between two bare steps:
reading encoded rows, draws, loss, metrics, logging, callbacks. Prints the median ratio; `--most 1.05` makes a larger
one an error.

    python -m benchmarks.step_overhead --count

Counts instead of timing, exactly, what decides where batches are small: functions that Python calls and kernels that
are launched, of networks of real depths and tiny widths, on the CPU. See `step_counts`. `--most_calls 1.05` and
`--most_kernels 48` make a larger ratio of calls, or more kernels beyond the bare loop's, an error.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from transformers import TrainerCallback

from tests.tiny import RESOLUTION, stable_diffusion
from tgo_trl import TGOConfig, TGOTrainer

from .step_counts import report as report_counts
from .step_depths import DEPTHS

LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


def pipeline_with_large_unet() -> StableDiffusionPipeline:
    """The tests' tiny pipeline, with a UNet of more than 50 million parameters."""
    pipeline = stable_diffusion()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        block_out_channels=(160, 320, 480),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    pipeline.register_modules(unet=unet)
    return pipeline


class BareLoop:
    """The same mathematics, written down without a trainer."""

    def __init__(self, unet: UNet2DConditionModel, batch_size: int, learning_rate: float, temperature: float) -> None:
        self.unet = unet
        self.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(**LORA))
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, fused=True)
        self.schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        size = unet.config.sample_size
        self.latents = torch.randn(batch_size, 4, size, size)
        self.embeds = torch.randn(batch_size, 77, 32)
        self.is_positive = torch.arange(batch_size) % 2 == 0
        self.temperature = temperature

    def step(self) -> None:
        """One update."""
        noise = torch.randn_like(self.latents)
        time_ = torch.randint(0, 1000, (len(noise),))
        noisy = self.schedule.add_noise(self.latents, noise, time_)
        self.unet.disable_adapters()
        with torch.no_grad():
            reference = (self.unet(noisy, time_, self.embeds).sample - noise).square().mean((1, 2, 3))
        self.unet.enable_adapters()
        policy = (self.unet(noisy, time_, self.embeds).sample - noise).square().mean((1, 2, 3))
        reward = (reference - policy) / self.temperature
        loss = -torch.nn.functional.logsigmoid(torch.where(self.is_positive, reward, -reward)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class InTurns(TrainerCallback):
    """Times the trainer's steps, and a bare step after each."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.trainer_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._since = 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """A trainer step has ended: time a bare one."""
        start = time.perf_counter()
        if self._since:
            self.trainer_seconds.append(start - self._since)
        self.bare.step()
        self._since = time.perf_counter()
        if len(self.trainer_seconds) == len(self.bare_seconds) + 1:
            self.bare_seconds.append(self._since - start)


def scored_pictures(num_rows: int) -> Dataset:
    """Random pictures with random scores."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (num_rows, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    return Dataset.from_dict(
        {
            "prompt": [f"picture {i % 10}" for i in range(num_rows)],
            "image": [Image.fromarray(picture) for picture in pixels],
            "score": generator.normal(size=num_rows).tolist(),
        }
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24, help="timed updates; the first three are left out")
    parser.add_argument("--batch_size", type=int, help="4; where calls and kernels are counted, 1")
    parser.add_argument("--most", type=float, help="exit with an error if the median ratio is above this")
    parser.add_argument("--count", action="store_true", help="count Python calls and kernels instead")
    parser.add_argument("--depth", choices=tuple(DEPTHS), action="append", help="what to count; by default all")
    parser.add_argument("--most_calls", type=float, help="exit with an error if the ratio of calls is above this")
    parser.add_argument("--most_kernels", type=float, help="likewise, of kernels beyond the bare loop's")
    options = parser.parse_args()
    if options.count:
        report_counts(options.depth or tuple(DEPTHS), options.batch_size or 1, options.most_calls, options.most_kernels)
        return
    batch_size = options.batch_size or 4
    pipeline = pipeline_with_large_unet()
    num_parameters = sum(p.numel() for p in pipeline.unet.parameters())
    bare_unet = copy.deepcopy(pipeline.unet)
    with tempfile.TemporaryDirectory() as folder:
        args = TGOConfig(
            f"{folder}/run",
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            max_steps=options.steps + 3,
            gradient_checkpointing=False,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            encoding_cache_dir=f"{folder}/encodings",
        )
        trainer = TGOTrainer(pipeline, args, scored_pictures(64), peft_config=LoraConfig(**LORA))
        in_turns = InTurns(BareLoop(bare_unet, batch_size, 1e-4, trainer.temperature))
        trainer.add_callback(in_turns)
        trainer.train()
    report(num_parameters, in_turns.trainer_seconds[2:], in_turns.bare_seconds[2:], options.most)


def report(num_parameters: int, trainer: list[float], bare: list[float], most: float | None) -> None:
    """Prints the ratio, and exits with an error if it is above `most`."""
    ratios = [a / b for a, b in zip(trainer, bare, strict=True)]
    median = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"UNet parameters     {num_parameters / 1e6:.1f} M")
    print(f"TGOTrainer step     {statistics.median(trainer):.3f} s (median of {len(trainer)})")
    print(f"bare PyTorch step   {statistics.median(bare):.3f} s")
    print(f"ratio               {median:.3f} (quartiles {low:.3f} to {high:.3f})")
    if most is not None and median > most:
        sys.exit(f"the ratio is above {most}")


if __name__ == "__main__":
    main()

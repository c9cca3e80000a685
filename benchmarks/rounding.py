"""How far bfloat16 rounds the difference of two errors that training learns from, with autocast and without.

    python -m benchmarks.rounding            # some minutes on one core
    python -m benchmarks.rounding --count    # the kernels of a step that casts cost

A row's implicit reward is `beta (e_ref - e_policy) / T`, the difference of two numbers that are nearly equal near the
start. Each is computed in three ways, on the same draws and the same weights, the frozen ones rounded to bfloat16
already:

- **float32**, which the others are compared with;
- **autocast**: what `bf16=True` is by default, with the casts of CUDA's autocast, as `lora_memory` has them;
- **without**: `bf16_autocast=False`, every operation in bfloat16, LoRA's factors cast from float32.

Matrices are multiplied, and norms and softmax summed, in float32 within a kernel, on the CPU as on a GPU; what is
rounded is what kernels write, which is the same. Adapters are those after 1, 10 and 100 updates of Adam at 1e-4. The
rounding of a difference is `|d - d_float32| / |d_float32|`, each the root of a mean of squares over rows and draws; of
`K` draws, of the mean over them. Networks, adapters, rows and draws are others for each seed; of the trained network,
all but the network. Intervals are of 95 %, over seeds (Student's t).
"""

import argparse
import copy
import importlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from tests.tiny.stable_diffusion import build as build_stable_diffusion
from tests.tiny.stable_diffusion_3 import SETTINGS as OF_STABLE_DIFFUSION_3
from tests.tiny.stable_diffusion_3 import build as build_stable_diffusion_3
from tgo_trl import TGOConfig
from tgo_trl.families import build_family
from tgo_trl.media.sizes import crop_geometry
from tgo_trl.policy.adapter_dtype import cast_factors
from tgo_trl.policy.denoising import Corrupted, Denoiser
from tgo_trl.policy.draws import draw_rows
from tgo_trl.policy.errors import row_errors
from tgo_trl.policy.policy import Policy, build_policy
from tgo_trl.policy.reference import AdapterReference
from tgo_trl.precision import cast

from .lora_memory import CudaCasts
from .step_counts import BareLoop, Counts
from .step_depths import DEPTHS

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
NUM_ROWS = 8
NUM_DRAWS = 16
AVERAGED = (1, 4, 16)
"""`K`, the draws that a mean is over."""
LEARNING_RATE = 1e-4
RANK = 8
ADAPTERS = (1, 10, 100)
"""Updates that made an adapter."""
COUNTED = ("sd15", "sdxl", "flux")
"""Whose kernels are counted."""


# ---- Networks and rows ----


def of_digits(name: str) -> Any:
    """A module of the digits example, which is no package."""
    sys.path.insert(0, str(DIGITS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DIGITS))


def digits(seed: int) -> tuple[DiffusionPipeline, Tensor, list[str]]:
    """The trained U-Net of the digits example, and scans that it has not seen."""
    example = of_digits("digits")
    pipeline = StableDiffusionPipeline.from_pretrained(DIGITS / "base", safety_checker=None)
    scans = example.load_scans("held_out")
    rows = torch.randperm(len(scans.images), generator=torch.Generator().manual_seed(seed))[:NUM_ROWS].tolist()
    prompts = [example.prompts_of(scans.digits[row])[0] for row in rows]
    return pipeline, example.to_pixels([scans.images[row] for row in rows]), prompts


def unet(seed: int) -> tuple[DiffusionPipeline, Tensor, list[str]]:
    """A U-Net as deep as SD 1.5's, and narrower, with random weights."""
    pipeline = build_stable_diffusion(
        seed,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return pipeline, *random_rows(seed)


def transformer(seed: int) -> tuple[DiffusionPipeline, Tensor, list[str]]:
    """A transformer of Stable Diffusion 3's kind, of 12 layers, with random weights."""
    pipeline = build_stable_diffusion_3(
        seed, num_layers=12, attention_head_dim=32, num_attention_heads=4, caption_projection_dim=128
    )
    return pipeline, *random_rows(seed)


def random_rows(seed: int) -> tuple[Tensor, list[str]]:
    """Noise for pictures, which an untrained network cannot tell from any other."""
    pixels = torch.rand(NUM_ROWS, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return pixels, [f"picture {row}" for row in range(NUM_ROWS)]


@dataclass(frozen=True)
class Network:
    """What errors are of.

    Attributes:
        name: for the table.
        build: of a seed, the pipeline, and the pixels `[B, 3, 16, 16]` in [-1, 1] and prompts of some rows.
        settings: of the family.
    """

    name: str
    build: Callable[[int], tuple[DiffusionPipeline, Tensor, list[str]]]
    settings: dict[str, Any]


NETWORKS = {
    "digits": Network("U-Net of the digits, trained", digits, {}),
    "unet": Network("U-Net of SD 1.5's depth, random", unet, {}),
    "transformer": Network("transformer of 12 layers, random", transformer, OF_STABLE_DIFFUSION_3),
}


# ---- Errors in three ways ----


class Rows:
    """Rows of a network in float32, an adapter that is trained on them, and the same in bfloat16."""

    def __init__(self, network: Network, seed: int) -> None:
        pipeline, pixels, prompts = network.build(seed)
        family = build_family(type(pipeline), network.settings)
        geometry = crop_geometry((16, 16), (16, 16)).expand(NUM_ROWS, -1)
        with torch.no_grad():
            self.image = family.encode_images(pipeline, pixels, geometry)
            self.prompt = family.encode_prompts(pipeline, prompts)
        self.denoiser = Denoiser(family, pipeline, family.process(pipeline))
        for part in family.networks(pipeline).values():
            cast(part, torch.bfloat16)  # the same frozen weights in all ways
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            args = TGOConfig(folder, use_cpu=True, lora_r=RANK, lora_alpha=2 * RANK)
        self.policy, _ = build_policy(pipeline, family, args, None, torch.float32)
        self.trained = self.policy.trained_weights()
        self.optimizer = torch.optim.Adam(self.trained, lr=LEARNING_RATE)
        self.sign = 1 - torch.arange(NUM_ROWS) % 2 * 2  # good and bad rows in turns
        self.seed, self.num_updates = seed, 0

    def corrupted(self, epoch: int, num_draws: int) -> Corrupted:
        shape = self.denoiser.family.latent_shape(self.image)
        draw = draw_rows(self.seed, [epoch] * NUM_ROWS, range(NUM_ROWS), shape, num_draws, torch.device("cpu"))
        return self.denoiser.corrupt(self.image, self.prompt, draw)

    def train_until(self, num_updates: int) -> None:
        """Lowers the errors of the good rows, and raises those of the bad ones."""
        for epoch in range(self.num_updates, num_updates):
            errors = row_errors(self.policy, None, self.corrupted(epoch + 1, 1)).policy
            self.optimizer.zero_grad()
            (self.sign * errors).mean().backward()
            self.optimizer.step()
        self.num_updates = num_updates

    def in_bfloat16(self, autocasts: bool) -> Policy:
        """A copy of the policy as a run has it."""
        networks = copy.deepcopy(dict(self.policy.networks.items()))
        for network in networks.values():
            for name, weight in network.named_parameters():
                if "lora_" not in name:
                    weight.data = weight.data.to(torch.bfloat16)
            cast_factors(network, not autocasts)
        return Policy(self.policy.family, networks, self.policy.adapter_name, autocasts)

    def ways(self) -> Iterator[tuple[str, Policy, Callable[[], AbstractContextManager[Any]]]]:
        """Name of each way, the policy in it, and what its calls are within; float32 is the first."""
        yield "float32", self.policy, nullcontext
        yield "autocast", self.in_bfloat16(True), CudaCasts
        yield "without", self.in_bfloat16(False), nullcontext

    def differences(self, policy: Policy, within: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        """`e_ref - e_policy` of each draw and row, float32 `[NUM_DRAWS, NUM_ROWS]`."""
        with torch.no_grad(), within():
            errors = row_errors(policy, AdapterReference(policy, keep_copy=False), self.corrupted(0, NUM_DRAWS))
        assert errors.reference is not None
        return errors.reference - errors.policy

    def gradient(self, policy: Policy, within: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        """Of the errors of the good rows minus those of the bad ones, with one draw each, float32 `[weights]`."""
        weights = policy.trained_weights()
        with within():
            errors = row_errors(policy, None, self.corrupted(0, 1)).policy
        return torch.cat([it.flatten() for it in torch.autograd.grad((self.sign * errors).sum(), weights)])


def root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def averaged(differences: Tensor, number: int) -> Tensor:
    """Means over so many draws, `[NUM_DRAWS / number, NUM_ROWS]`."""
    return differences.unflatten(0, (-1, number)).mean(1)


def measure(
    network: Network, seed: int, num_updates: Sequence[int] = ADAPTERS
) -> dict[tuple[int, str], dict[str, float]]:
    """By updates and way, the columns of the table.

    Of a reward (`beta` of 1) its rounding; of the mean of some draws, and of the gradient, that as a share of what it
    should be; and how much of the rounding of one draw is left in the mean over the most.
    """
    rows = Rows(network, seed)
    temperature = rows.denoiser.noise_process.temperature(math.prod(rows.corrupted(0, 1).clean.shape[1:]))
    found: dict[tuple[int, str], dict[str, float]] = {}
    for number in num_updates:
        rows.train_until(number)
        exact: tuple[Tensor, Tensor] | None = None
        for name, policy, within in rows.ways():
            differences, gradient = rows.differences(policy, within), rows.gradient(policy, within)
            if exact is None:
                exact = differences, gradient
                continue
            off = {of: root_mean_square(averaged(differences - exact[0], of)) for of in AVERAGED}
            found[number, name] = {
                "reward": off[1] / temperature,
                **{f"K = {of}": off[of] / root_mean_square(averaged(exact[0], of)) for of in AVERAGED},
                "gradient": root_mean_square(gradient - exact[1]) / root_mean_square(exact[1]),
                f"left at K = {AVERAGED[-1]}": off[AVERAGED[-1]] / off[1],
            }
    return found


# ---- Kernels ----


def count_kernels(depth: str) -> dict[str, float]:
    """Of both forward passes, their errors, and the backward pass of a step: with CUDA's autocast, and without."""
    counts: dict[str, float] = {}
    for name, within in (("autocast", CudaCasts), ("without", nullcontext)):
        pipeline = DEPTHS[depth].build()
        (network,) = (getattr(pipeline, it) for it in ("unet", "transformer") if hasattr(pipeline, it))
        loop, kernels = BareLoop(DEPTHS[depth], network, 1), Counts()
        cast_factors(network, name == "without")
        with kernels.counting_kernels():
            with within():
                with torch.no_grad():
                    reference = error(loop, False)
                policy = error(loop, True)
            (reference - policy).sum().backward()
        counts[name] = kernels.kernels
    return counts


def error(loop: BareLoop, with_adapter: bool) -> Tensor:
    """Of the policy or of the reference, on latents that stand for their noise too."""
    for layer in loop.layers:
        layer["_disable_adapters"] = not with_adapter
    prediction = loop.denoise(loop.latents.to(torch.bfloat16), torch.tensor([500]))
    return (prediction.float() - loop.latents).square().mean((1, 2, 3))


# ---- The tables ----


def report(networks: Sequence[str], num_seeds: int, num_updates: Sequence[int] = ADAPTERS) -> None:
    """Prints a line for each network, adapter and way."""
    interval = of_digits("measures").interval
    for name in networks:
        of_seeds = [measure(NETWORKS[name], seed, num_updates) for seed in range(num_seeds)]
        columns = next(iter(of_seeds[0].values())).keys()
        print(f"| {NETWORKS[name].name}: updates | bf16 | {' | '.join(columns)} |")
        print("|---|---|" + "---|" * len(columns))
        for number, way in of_seeds[0]:
            values = [[found[number, way][column] for found in of_seeds] for column in columns]
            cells = ["{:.3g} ± {:.1g}".format(*interval(it)) for it in values]
            print(f"| {number} | {way} | {' | '.join(cells)} |", flush=True)


def report_counts() -> None:
    """Prints a line for each depth."""
    print("| depth of | kernels, autocast | without | share |", "|---|---|---|---|", sep="\n")
    for depth in COUNTED:
        counts = count_kernels(depth)
        share = counts["without"] / counts["autocast"]
        print(
            f"| {DEPTHS[depth].name} | {counts['autocast']:,.0f} | {counts['without']:,.0f} | {share:.2f} |", flush=True
        )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), action="append", help="what to measure; by default all")
    parser.add_argument("--seeds", type=int, default=8, help="intervals are over them")
    parser.add_argument("--quick", action="store_true", help="two seeds and ten updates, to see that it runs")
    parser.add_argument("--count", action="store_true", help="count the kernels of a step instead")
    options = parser.parse_args()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if options.count:
        report_counts()
    elif options.quick:
        report(options.network or tuple(NETWORKS), 2, (1, 10))
    else:
        report(options.network or tuple(NETWORKS), options.seeds)


if __name__ == "__main__":
    main()

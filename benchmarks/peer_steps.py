"""A step of two public scripts for Stable Diffusion 1.5, in their orders of operations and their precisions.

Both encode images and prompts in every step, with the autoencoder and the text encoder of the real size, where
`TGOTrainer` reads what was encoded once. Written from the scripts in other words, with the library calls in which the
cost lies. Images are pixels on the device already: reading, decoding and cropping files, which both scripts do between
the steps, is not timed. The adapter's rank is that of our runs, attention is PyTorch's, and AdamW is PyTorch's where
theirs is bitsandbytes' or xformers'. An image is an image: a step of `n` pairs has `2 n`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from .gpu_models import MODELS, build_network
from .gpu_steps import RANK

MODEL = MODELS["sd15-512"]
ENCODED_AT_ONCE = 8
"""Images that both scripts pass through the autoencoder together."""


@dataclass
class Parts:
    """What a step works with.

    Attributes:
        unet, vae, text_encoder: in bfloat16, but for Diffusion-KTO's autoencoder, in float32.
        trained: the weights that are.
        optimizer: of these.
        pixels: `[B, 3, H, W]`, -1 to 1.
        token_ids: int64 `[B, 77]`.
        reference: with all weights trained, those of before, on the CPU.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    pixels: Tensor
    token_ids: Tensor
    reference: EMAModel | None = None

    def encode_images(self, pixels: Tensor) -> Tensor:
        """A sample of each posterior, scaled."""
        parts = [self.vae.encode(some).latent_dist.sample() for some in pixels.split(ENCODED_AT_ONCE)]
        return torch.cat(parts) * self.vae.config.scaling_factor

    def error(self, noisy: Tensor, time: Tensor, hidden: Tensor, noise: Tensor) -> Tensor:
        """Of each image, `[B]`."""
        prediction = self.unet(noisy, time, hidden).sample
        return F.mse_loss(prediction.float(), noise.float(), reduction="none").mean((1, 2, 3))

    def update(self, loss: Tensor) -> None:
        """Backward, clip, step."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def dpo_step(parts: Parts) -> list[float]:
    """The order of diffusers' `research_projects/diffusion_dpo/train_diffusion_dpo.py`, which trains a LoRA.

    Images of both sides through the autoencoder; one noise, one time and one prompt for each pair; the policy, then
    the reference with the adapter switched off through peft; four numbers to the host in every step.
    """
    latents = parts.encode_images(parts.pixels)
    num_pairs = len(latents) // 2
    noise = torch.randn_like(latents[:num_pairs]).repeat(2, 1, 1, 1)
    time = torch.randint(0, 1000, (num_pairs,), device=latents.device).repeat(2)
    noisy = SCHEDULE.add_noise(latents, noise, time)
    with torch.no_grad():
        hidden = parts.text_encoder(parts.token_ids[:num_pairs])[0].repeat(2, 1, 1)
    with torch.autocast(latents.device.type, torch.bfloat16):
        policy = parts.error(noisy, time, hidden, noise)
        parts.unet.disable_adapters()
        with torch.no_grad():
            reference = parts.error(noisy, time, hidden, noise)
        parts.unet.enable_adapters()
    (chosen, rejected), (ref_chosen, ref_rejected) = policy.chunk(2), reference.chunk(2)
    logits = (ref_chosen - ref_rejected) - (chosen - rejected)
    loss = -F.logsigmoid(2500 * logits).mean()
    parts.update(loss)
    return [loss.item(), policy.mean().item(), reference.mean().item(), (logits > 0).float().mean().item()]


def kto_step(parts: Parts) -> list[float]:
    """The order of Diffusion-KTO's `train_kto_sd_v1.5.py`, with `--use_lora` or with all weights, as published.

    Pixels through the autoencoder in float32; noise and time of each image; the policy, then the reference: the adapter
    off, or, with all weights trained, those of before copied in from the CPU and back, for which the script uses an
    `EMAModel`; an estimate of the divergence from the batch; eight numbers to the host in every step, some of them
    before the backward.
    """
    latents = parts.encode_images(parts.pixels.float()).to(torch.bfloat16)
    noise = torch.randn_like(latents)
    time = torch.randint(0, 1000, (len(latents),), device=latents.device)
    noisy = SCHEDULE.add_noise(latents, noise, time)
    with torch.no_grad():
        hidden = parts.text_encoder(parts.token_ids)[0]
    with torch.autocast(latents.device.type, torch.bfloat16):
        policy = parts.error(noisy, time, hidden, noise)
        _to_reference(parts)
        with torch.no_grad():
            reference = parts.error(noisy, time, hidden, noise)
        _to_policy(parts)
    difference = reference - policy
    divergence = difference.mean().detach().clamp(min=0)
    difference = difference - divergence
    is_positive = torch.arange(len(latents), device=latents.device) % 2 == 0
    scaled = 1000 * (2 * is_positive.long() - 1) * difference
    num_positive = is_positive.sum().item()
    gaps = [difference[rows].detach().mean() for rows in (is_positive, ~is_positive)]
    loss = (1 - scaled.sigmoid()).mean()
    parts.update(loss)
    logged = (loss, policy.mean(), reference.mean(), difference.mean(), divergence, *gaps)
    return [num_positive, *(value.item() for value in logged)]


def _to_reference(parts: Parts) -> None:
    if parts.reference is None:
        parts.unet.disable_adapters()
    else:
        parts.reference.store(parts.unet.parameters())
        parts.reference.copy_to(parts.unet.parameters())


def _to_policy(parts: Parts) -> None:
    if parts.reference is None:
        parts.unet.enable_adapters()
    else:
        parts.reference.restore(parts.unet.parameters())


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of bfloat16 weights, as DeepSpeed keeps them for Diffusion-KTO's published command."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.half = list(weights)
        self.master = [nn.Parameter(weight.detach().float()) for weight in self.half]
        super().__init__(self.master, lr=1e-7, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps on the copies, and rounds them."""
        for master, half in zip(self.master, self.half, strict=True):
            master.grad = None if half.grad is None else half.grad.float()
        super().step()
        torch._foreach_copy_(self.half, self.master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of both."""
        for weight in (*self.half, *self.master):
            weight.grad = None


ORDERS: dict[str, tuple[Callable[[Parts], list[float]], bool]] = {
    "dpo-lora": (dpo_step, False),
    "kto-lora": (kto_step, False),
    "kto-full": (kto_step, True),
}
"""A step of each order, and whether it trains all weights."""
TITLES = {
    "dpo-lora": "diffusers' Diffusion-DPO script, LoRA",
    "kto-lora": "Diffusion-KTO's script, LoRA",
    "kto-full": "Diffusion-KTO's script, all weights",
}


def build_parts(order: str, scale: str, batch_size: int, device: torch.device) -> Parts:
    """Everything in its place, with random weights, gradient checkpointing on, as both published commands have it."""
    is_full = ORDERS[order][1]
    unet, vae, text_encoder, side = _networks(scale, device)
    text_encoder.requires_grad_(False).to(device, torch.bfloat16)
    vae.requires_grad_(False).to(device, torch.bfloat16 if order == "dpo-lora" else torch.float32)
    reference = None
    if is_full:
        copies = [weight.detach().float().cpu() for weight in unet.parameters()]
        reference = EMAModel(copies, decay=0.999)
    unet.requires_grad_(is_full).to(device, torch.bfloat16).train()
    if not is_full:
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    unet.enable_gradient_checkpointing()
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = MasterAdamW(trained) if is_full else torch.optim.AdamW(trained, lr=1e-5)
    pixels = torch.rand(batch_size, 3, side, side, device=device, dtype=vae.dtype) * 2 - 1
    ids = torch.randint(0, text_encoder.config.vocab_size, (batch_size, 77), device=device)
    return Parts(unet, vae, text_encoder, trained, optimizer, pixels, ids, reference)


def _networks(scale: str, device: torch.device) -> tuple[Any, Any, Any, int]:
    if scale == "tiny":
        pipeline = MODEL.tiny.build()
        return pipeline.unet, pipeline.vae, pipeline.text_encoder, MODEL.tiny.RESOLUTION
    unet: Any = build_network(MODEL, device, torch.bfloat16)
    assert isinstance(unet, UNet2DConditionModel)
    with device:
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                hidden_act="quick_gelu",
            )
        )  # fmt: skip
    return unet, vae, text_encoder, 512

"""What the families share that pack two by two latents in a token, as Qwen-Image does, and pad prompts on disk."""

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int, int]
"""Frames, rows and columns of tokens."""


def packed(latents: Tensor) -> tuple[Tensor, list[Shape]]:
    """Latents `[B, C, H, W]` as tokens `[B, n, 4 C]`, two by two in one, and the one shape that these lie in."""
    height, width = latents.shape[-2:]
    return QwenImagePipeline._pack_latents(latents, *latents.shape), [(1, height // 2, width // 2)]


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents `[B, C, height, width]` of tokens `[B, n, 4 C]`, the inverse of [`packed`]."""
    # with a scale factor of 1, pixels and latents are as large as each other
    latents: Tensor = QwenImagePipeline._unpack_latents(tokens, height, width, 1)
    return latents.squeeze(2)


def padded(embeds: Tensor, mask: Tensor | None, length: int) -> dict[str, Tensor]:
    """What `encode_prompt` returned, `[B, tokens, features]` and `[B, tokens]`, with zeros up to a length."""
    if mask is None:  # none of them is padded
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    missing = length - embeds.shape[1]
    return {"embeds": F.pad(embeds, (0, 0, 0, missing)), "mask": F.pad(mask, (0, missing))}


def length_ratio(with_prompt: Tensor, guided: Tensor, epsilon: float = 0.0) -> Tensor:
    """How much longer a prediction with a prompt is than the guided one, at each latent, `[B, 1, H, W]`.

    Args:
        with_prompt: `[B, C, H, W]`.
        guided: of the same shape.
        epsilon: added to the length of the guided one.
    """
    return _token_lengths(with_prompt) / (_token_lengths(guided) + epsilon)


def _token_lengths(latents: Tensor) -> Tensor:
    """The norm of each token, at all of its latents, `[B, 1, H, W]`, of latents `[B, C, H, W]`."""
    squares = F.avg_pool2d(latents.square().sum(1, keepdim=True), 2) * 4
    return squares.sqrt().repeat_interleave(2, -2).repeat_interleave(2, -1)

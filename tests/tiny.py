"""Tiny pipelines and data sets with random weights and pictures, built offline."""

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION = 16
PROMPTS = ("a red cat", "a blue dog", "a green bird", "a grey fish")


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level, without merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def stable_diffusion(
    prediction_type: str = "epsilon", width: int = 8, seed: int = 0, **unet_kwargs
) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` on 16-pixel images, with latents of 4 x 8 x 8."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        **{
            "block_out_channels": (width, 2 * width),
            "layers_per_block": 1,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 2,
            **unet_kwargs,
        }
    )
    vae = AutoencoderKL(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=RESOLUTION,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(seed: int, size: tuple[int, int] = (RESOLUTION, RESOLUTION)) -> Image.Image:
    """A random RGB picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scored_rows(num_rows: int = 8, seed: int = 0) -> Dataset:
    """`(prompt, image, score)` rows with scores 0, 1, 2, ..., shuffled."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return Dataset.from_dict(
        {
            "prompt": [PROMPTS[i % len(PROMPTS)] for i in range(num_rows)],
            "image": [picture(1000 * seed + i) for i in range(num_rows)],
            "score": [float(score) for score in order],
        }
    )

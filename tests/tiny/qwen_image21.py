"""A Qwen-Image 2.1 of 64-pixel images, half transparent, with latents of 4 x 4 x 4 in as many tokens."""

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from torch.nn import functional as F
from transformers import ProcessorMixin, Qwen2VLImageProcessorPil, Qwen3VLProcessor

from . import qwen_image
from .parts import qwen3_vl_lm, qwen_tokenizer, ready, sharpen
from .qwen_image_edit import VISION

RESOLUTION = 64
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "true_cfg_scale": 2.0,
    "negative_prompt": " ",
    "use_kv_cache": False,  # with which the network is called with what it kept of its first call
}
UNGUIDED = qwen_image.UNGUIDED
SETTINGS = {"max_sequence_length": 32}
SYSTEM = ["Comprehend", " and", " analyze", " the", " provided", " prompt"]
"""Words of the system prompt, which the pipeline drops, each of them one token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)


class PromptProcessor(Qwen3VLProcessor):
    """Without that of videos, which there is none of without torchvision."""

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_token, self.image_token_id = "<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.video_token, self.video_token_id = "<|video_pad|>", tokenizer.convert_tokens_to_ids("<|video_pad|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def build(seed: int = 0, sample_sigmas: list[float] | None = None, **network_kwargs) -> QwenImage21Pipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(SYSTEM, list(VISION.values()))
    transformer = QwenImage21Transformer2DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "context_in_dim": 16,
            "mlp_ratio": 2,
            "axes_dims_rope": (4, 2, 2),
            **network_kwargs,
        }
    )
    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 2, 2],
        num_res_blocks=1,
        latents_mean=[-0.75, 0.25, 0.5, 1.5],
        latents_std=[2.5, 1.5, 2.0, 3.0],
    )
    sharpen(vae, vae.quant_conv, torch.rand(4, 4, 1, RESOLUTION, RESOLUTION) * 2 - 1, std=2.0)
    # Turbo's levels are as they are
    shifts = {"use_dynamic_shifting": True, "shift_terminal": 0.02} if sample_sigmas is None else {}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION.items()}
    return ready(
        QwenImage21Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**shifts),
            vae=vae,
            text_encoder=qwen3_vl_lm(tokenizer, **ids),
            processor=PromptProcessor(
                Qwen2VLImageProcessorPil(min_pixels=32**2, patch_size=16), tokenizer, CHAT_TEMPLATE
            ),
            transformer=transformer,
            sample_sigmas=sample_sigmas,
        )
    )


def denoising_error(pipeline, pixels, prompts, draw, sources=None):
    """As train_dreambooth_lora_qwenimage21.py computes it, in batches of one.

    With images of `sources` for each row, as the `_img2img` version of the script does.
    """
    opaque = F.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0)
    noisy, timesteps, target = qwen_image.noisy_latents(pipeline, opaque, draw)
    _, channels, _, height, width = noisy.shape
    errors = []
    for row, prompt in enumerate(prompts):
        images = None if sources is None else sources[row]
        embeds, mask, image_pad_mask = pipeline.encode_prompt([prompt], images)
        frames = [pipeline.image_processor.preprocess(it.convert("RGBA")).unsqueeze(2) for it in images or ()]
        tokens, source_tokens = pipeline.prepare_latents(
            frames or None, 1, channels, height * 16, width * 16, torch.float32, "cpu", None,
            latents=pipeline._pack_latents(noisy[[row]], 1, channels, height, width),
        )  # fmt: skip
        prediction = pipeline.transformer(
            hidden_states=tokens if source_tokens is None else torch.cat([source_tokens, tokens], 1),
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            timestep=timesteps[[row]] / 1000,
            img_shapes=[[(1, height, width)] * (1 + len(frames))],
            img_mask=torch.cat([image_pad_mask, torch.ones(1, height * width // 4, dtype=torch.bool)], dim=1),
            return_dict=False,
        )[0][:, -height * width :]
        prediction = pipeline._unpack_latents(prediction, height * 16, width * 16, 16)
        errors.append(((prediction - target[row]) ** 2).mean())
    return torch.stack(errors)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the tokens of sources."""
    tokens = arguments["hidden_states"][:, -latent_shape[-2] * latent_shape[-1] :]
    latents = tokens.transpose(1, 2).reshape(1, *latent_shape)
    return latents, arguments["timestep"] * 1000

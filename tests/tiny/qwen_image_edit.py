"""A Qwen-Image-Edit of 32-pixel images, each made from another, which the pipeline brings to 64 pixels on a side."""

import re

import torch
from diffusers import QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from transformers import ProcessorMixin, Qwen2VLImageProcessorPil, Qwen2VLProcessor

from . import qwen_image
from .data import picture
from .parts import qwen_tokenizer, qwen_vl_encoder, ready

calculate_dimensions = pipeline_qwenimage_edit.calculate_dimensions
# A million pixels, which the pipeline brings sources to, would take minutes
pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: calculate_dimensions(area // 256, ratio)

RESOLUTION = 32
SOURCES = [[picture(70, (32, 32))], [picture(71, (32, 32))]]
CALL = {**qwen_image.CALL, "image": SOURCES[0][0], "max_sequence_length": 64}
UNGUIDED = qwen_image.UNGUIDED
SETTINGS = {"max_sequence_length": 64}
TEMPLATE = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate."
)
"""What precedes every prompt: the pipeline drops 64 tokens, which it is if each word is one token."""
VISION = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


class PictureProcessor(Qwen2VLProcessor):
    """Without that of videos, which there is none of without torchvision."""

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_token, self.image_token_id = "<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def build(seed: int = 0, **network_kwargs) -> QwenImageEditPipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    return ready(QwenImageEditPipeline(**components(seed, **network_kwargs)))


def components(seed: int, **network_kwargs) -> dict:
    """Those of Qwen-Image, with a text encoder that sees pictures."""
    parts = qwen_image.build(seed, **network_kwargs).components
    words = [word for word in re.findall(r"\),|'s| ?\w+| \(", TEMPLATE) if len(word) > 1]
    tokenizer = qwen_tokenizer(list(dict.fromkeys(words)), list(VISION.values()))
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION.items()}
    processor = PictureProcessor(Qwen2VLImageProcessorPil(min_pixels=28**2), tokenizer)
    torch.manual_seed(seed)
    encoder = qwen_vl_encoder(tokenizer, **ids)
    return {**parts, "tokenizer": tokenizer, "text_encoder": encoder, "processor": processor}


def denoising_error(pipeline, pixels, prompts, draw):
    """As that of Qwen-Image, with the tokens of the sources, as the pipeline makes them, behind those of the sample."""
    noisy, timesteps, target = qwen_image.noisy_latents(pipeline, pixels, draw)
    errors = []
    for row, (prompt, images) in enumerate(zip(prompts, SOURCES, strict=True)):
        image = pipeline.image_processor.resize(images[0], 64, 64)
        frame = pipeline.image_processor.preprocess(image, 64, 64).unsqueeze(2)
        embeds, _ = pipeline.encode_prompt([prompt], image)
        errors.append(edit_error(pipeline, embeds, frame, [(1, 8, 8)], noisy[[row]], timesteps[[row]], target[[row]]))
    return torch.stack(errors)


def edit_error(pipeline, embeds, frames, source_shapes, noisy, timestep, target):
    """Of one sample, with sources as the pipeline's `prepare_latents` takes them."""
    _, channels, _, height, width = noisy.shape
    tokens = pipeline._pack_latents(noisy.permute(0, 2, 1, 3, 4), 1, channels, height, width)
    latents, source_latents = pipeline.prepare_latents(
        frames, 1, channels, RESOLUTION, RESOLUTION, torch.float32, "cpu", None, latents=tokens
    )
    prediction = pipeline.transformer(
        hidden_states=torch.cat([latents, source_latents], dim=1),
        encoder_hidden_states=embeds,
        timestep=timestep / 1000,
        img_shapes=[[(1, height // 2, width // 2), *source_shapes]],
        return_dict=False,
    )[0][:, : tokens.shape[1]]
    prediction = pipeline._unpack_latents(prediction, RESOLUTION, RESOLUTION, pipeline.vae_scale_factor)
    return ((prediction - target) ** 2).mean()


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the tokens of sources."""
    _, height, width = latent_shape
    tokens = arguments["hidden_states"][:, : height * width // 4]
    return qwen_image.read_call({**arguments, "hidden_states": tokens}, latent_shape)

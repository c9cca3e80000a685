"""A FLUX.2 [dev] of 16-pixel images, with the latents and the blocks of the tiny [klein]."""

import re
from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import ProcessorMixin

from . import flux2
from .parts import mistral3_lm, qwen_tokenizer, ready

RESOLUTION = flux2.RESOLUTION
LENGTH = 64
CALL = {"height": RESOLUTION, "width": RESOLUTION, "num_inference_steps": 2, "max_sequence_length": LENGTH}
UNGUIDED = {}
SETTINGS = {"max_sequence_length": LENGTH}
AROUND = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% set kind = 'SYSTEM_PROMPT' if message['role'] == 'system' else 'INST' %}"
    "[{{ kind }}]{{ message['content'][0]['text'] }}[/{{ kind }}]{% endfor %}"
)


class TextProcessor(ProcessorMixin):
    """A `PixtralProcessor` without that of pictures, which there is none of without torchvision."""

    def __init__(self, tokenizer, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def build(seed: int = 0, widths: Sequence[int] = flux2.WIDTHS, **network_kwargs) -> Flux2Pipeline:
    """The pipeline; `widths` are its autoencoder's, and `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    words = dict.fromkeys(re.findall(r" ?\w+", SYSTEM_MESSAGE))
    tokenizer = qwen_tokenizer([word for word in words if len(word) > 2], AROUND)
    tokenizer.padding_side = "left"
    return ready(
        Flux2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=flux2.tiny_autoencoder(widths),
            text_encoder=mistral3_lm(tokenizer, num_layers=31),  # the pipeline reads the 10th, 20th and 30th
            tokenizer=TextProcessor(tokenizer, chat_template=CHAT_TEMPLATE),
            transformer=flux2.tiny_transformer(network_kwargs),
        )
    )


def denoising_error(pipeline, pixels, prompts, draw, sources=None):
    """As train_dreambooth_lora_flux2.py computes it, at the guidance that the pipeline has by itself."""
    guidance = torch.tensor([4.0]).expand(len(prompts))
    return flux2.denoising_error(pipeline, pixels, prompts, draw, LENGTH, guidance, sources)


read_call = flux2.read_call

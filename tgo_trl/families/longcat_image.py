"""LongCat-Image: FLUX's blocks without its guidance and pooled prompt, conditioned on Qwen2.5-VL's hidden states."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids
from torch import Tensor

from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base_adapters import NetworkAdapterFamily
from .base_flow import FlowMatchingFamily
from .base_packing import length_ratio, packed, unpacked
from .base_qwen import for_each


@dataclass(frozen=True)
class LongCatImageFamily(NetworkAdapterFamily, FlowMatchingFamily):
    """`LongCatImagePipeline`: LongCat-Image and LongCat-Image-Dev, of prompts as they are.

    Prompts have 512 tokens, without the template around them: longer ones are cut, and shorter ones padded, which the
    network sees. The pipeline would first have its text encoder write another prompt; samples are drawn without.
    """

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    comfyui_prefix = "transformer."
    comfyui_lacks = ("time_embed.",)
    undistilled = "meituan-longcat/LongCat-Image"
    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, 512, features]`, padding included."""
        embeds, _ = pipeline.encode_prompt(prompts)
        return {"embeds": embeds}

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """No longer than the prediction with a prompt, in each token: the channels of two by two latents."""
        guided = super().guided(with_prompt, without, scale)
        return guided * length_ratio(with_prompt, guided, epsilon=1e-8).clamp(max=1)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype, device = compute_dtype(transformer), corrupted.device
        height, width = corrupted.shape[-2:]
        embeds = conditions["embeds"].to(dtype)
        length = embeds.shape[1]
        tokens, ids = self.image_tokens(corrupted.to(dtype), length, conditions)
        prediction = transformer(
            hidden_states=tokens,
            timestep=time / 1000,
            encoder_hidden_states=embeds,
            txt_ids=_text_ids(length, device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return unpacked(prediction[:, : height * width // 4], height, width)

    def image_tokens(self, latents: Tensor, start: int, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The tokens of latents `[B, C, H, W]`, `[B, n, 4 C]`, and their ids `[n, 3]`, counted on from `start`."""
        return placed_tokens(latents, 1, start)

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One image per prompt, each from its own generator; the pipeline wants a negative prompt for each."""
        options = {**kwargs, **for_each(kwargs.get("negative_prompt") or "", len(prompts))}
        return super().sample(pipeline, prompts, generators, size, **options)

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """Without another prompt that the text encoder would write, unless it is asked for."""
        return super().call_options(pipeline, size, **{"enable_prompt_rewrite": False, **kwargs})


def placed_tokens(latents: Tensor, image: int, start: int) -> tuple[Tensor, Tensor]:
    """Tokens `[B, n, 4 C]` of latents `[B, C, H, W]`, and their ids `[n, 3]`.

    Args:
        latents: of a sample or a source.
        image: 1 for a sample, 2 for a source.
        start: the tokens of the prompt, from which places are counted on.
    """
    tokens, [(_, rows, columns)] = packed(latents)
    return tokens, _image_ids(image, rows, columns, start, latents.device)


# Kept, because the pipeline makes them on the CPU, and to bring them to a GPU waits for it.


@functools.lru_cache(maxsize=64)
def _text_ids(length: int, device: torch.device) -> Tensor:
    """0, and twice the place in the prompt, `[length, 3]`."""
    with torch.inference_mode(False):
        ids: Tensor = prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=length)
        return ids.to(device)


@functools.lru_cache(maxsize=64)
def _image_ids(image: int, rows: int, columns: int, start: int, device: torch.device) -> Tensor:
    """Which image, row and column of each token, counted on from the prompt, `[rows * columns, 3]`."""
    with torch.inference_mode(False):
        ids: Tensor = prepare_pos_ids(modality_id=image, type="image", start=(start, start), height=rows, width=columns)
        return ids.to(device)

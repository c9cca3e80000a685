"""FLUX.2 [dev] and [klein]: a transformer on packed latents, conditioned on three hidden states of a language model."""

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from torch import Tensor

from ..precision import compute_dtype
from .base_flow import FlowMatchingFamily
from .base_guidance import ToldGuidanceFamily

COMFYUI_AROUND_BLOCKS = ("x_embedder", "context_embedder", "proj_out")


@dataclass(frozen=True)
class Flux2Family(FlowMatchingFamily):
    """What pipelines of FLUX.2 share, from prompts alone.

    Attributes:
        max_sequence_length: tokens of each prompt, with the chat template around it; longer prompts are cut, and
            shorter ones padded, which the network sees.
    """

    max_sequence_length: int = 512

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders = ("text_encoder", "tokenizer")
    comfyui_prefix = "transformer."
    reads_posterior_noise = False
    # Without the single blocks' `to_out`: to peft that also names the list around `to_out.0`.
    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj",
    )  # fmt: skip

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses to leave prompts no room in the chat template."""
        super().check(pipeline)
        taken = self.num_template_tokens(pipeline)
        if self.max_sequence_length <= taken:
            raise ValueError(
                f"`max_sequence_length` is {self.max_sequence_length}, and what the pipeline puts around prompts (its "
                f"template, and the system message if it has one) takes {taken} tokens alone: prompts would be cut "
                f"away. Leave it out, or set it well above {taken}."
            )

    @abstractmethod
    def num_template_tokens(self, pipeline: DiffusionPipeline) -> int:
        """Tokens around an empty prompt."""

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean of the posterior as the network sees it, float32 `[B, 4 C, H / 2, W / 2]` of `[B, C, H, W]`.

        Two by two latents are one, and standardised by the statistics that the autoencoder keeps as weights.
        """
        mean = pipeline._patchify_latents(super().encode_images(pipeline, pixels, geometry)["mean"])
        center, scale = _statistics(pipeline.vae)
        return {"mean": (mean - center) / scale}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Hidden states of the text encoder `[B, max_sequence_length, 3 features]`, padding included."""
        embeds, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        return {"embeds": embeds}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """What [`encode_images`] returned, float32 `[B, 4 C, H / 2, W / 2]`.

        The posterior's mode instead of a sample of it, as in diffusers' training script for this network.
        """
        return image["mean"]

    def unscaled(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """As the autoencoder has them, `[B, C, H, W]`: the inverse of what [`encode_images`] does."""
        center, scale = _statistics(pipeline.vae)
        unpacked: Tensor = pipeline._unpatchify_latents(latents * scale + center)
        return unpacked

    def num_tokens(self, pipeline: DiffusionPipeline, shape: tuple[int, ...]) -> int:
        """One for each of the latents, which are two by two already."""
        return shape[-2] * shape[-1]

    def shift(self, pipeline: DiffusionPipeline, num_tokens: int, num_steps: int) -> float:
        """The pipeline's own, which was fitted to sizes and numbers of steps."""
        return float(compute_empirical_mu(num_tokens, num_steps))

    def comfyui_module(self, module: str) -> str | None:
        """The module itself, if it is of a block, or one of what ComfyUI knows around them."""
        known = ("transformer_blocks.", "single_transformer_blocks.")
        return module if module.startswith(known) or module in COMFYUI_AROUND_BLOCKS else None

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, 4 C, H / 2, W / 2]`."""
        transformer = networks["transformer"]
        dtype, device = compute_dtype(transformer), corrupted.device
        embeds = conditions["embeds"].to(dtype)
        tokens, ids = self.image_tokens(corrupted.to(dtype), conditions)
        prediction: Tensor = transformer(
            hidden_states=tokens,
            timestep=time / 1000,
            guidance=self.guidance_input(len(corrupted), device),
            encoder_hidden_states=embeds,
            txt_ids=token_ids((1, 1, embeds.shape[1]), device),
            img_ids=ids,
            return_dict=False,
        )[0][:, : corrupted[0, 0].numel()]
        return prediction.transpose(1, 2).reshape(corrupted.shape)

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens `[B, N, 4 C]` of latents `[B, 4 C, H / 2, W / 2]`, and the ids of each, int64 `[1, N, 4]`."""
        return flattened(latents), token_ids((*latents.shape[-2:], 1), latents.device)

    def guidance_input(self, batch: int, device: torch.device) -> Tensor | None:
        """What the network is told of each row, float32 `[batch]`, if anything."""
        return None


@dataclass(frozen=True)
class Flux2DevFamily(ToldGuidanceFamily, Flux2Family):
    """`Flux2Pipeline`: FLUX.2 [dev], which takes the guidance scale as an input.

    Attributes:
        max_sequence_length: Mistral tokens of each prompt, with the pipeline's system message before it, by default
            512; longer prompts are cut.
        train_guidance_scale: what the network is told while it trains, 4 by default.
    """

    usual_guidance = 4.0
    undistilled = "black-forest-labs/FLUX.2-dev"

    def num_template_tokens(self, pipeline: DiffusionPipeline) -> int:
        """Of the system message too, which is read first."""
        conversation = format_input([""], system_message=pipeline.system_message)
        (tokens,) = pipeline.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
        return len(tokens)


@dataclass(frozen=True)
class Flux2KleinFamily(Flux2Family):
    """`Flux2KleinPipeline`: FLUX.2 [klein] base, guided by no prompt, and what was distilled from it.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, with the chat template around it; longer prompts are cut.
    """

    def num_template_tokens(self, pipeline: DiffusionPipeline) -> int:
        """Of a user's turn, and what begins the answer."""
        conversation = [{"role": "user", "content": ""}]
        text = pipeline.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(pipeline.tokenizer(text)["input_ids"])

    def step_distilled_from(self, pipeline: DiffusionPipeline) -> str | None:
        """What the pipelines that say `is_distilled` were distilled from."""
        if not pipeline.config.get("is_distilled"):
            return None
        return "`black-forest-labs/FLUX.2-klein-base-4B` or `black-forest-labs/FLUX.2-klein-base-9B`"

    def guidance(self, pipeline: DiffusionPipeline, scale: float | None) -> float:
        """The scale of classifier-free guidance; 1 for a distilled pipeline, which has none."""
        if not pipeline.config.get("is_distilled"):
            return super().guidance(pipeline, scale)
        if scale is not None and scale > 1:
            raise ValueError(
                f"`sample_guidance_scale` is {scale}, and this pipeline was distilled to do without guidance: it would "
                "pass over it. Leave it out."
            )
        return 1.0


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of two by two latents, float32 `[4 C, 1, 1]`."""
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    return mean[:, None, None], (variance + vae.config.batch_norm_eps).sqrt()[:, None, None]


def flattened(latents: Tensor) -> Tensor:
    """Tokens `[B, H * W, C]`, row by row, of latents `[B, C, H, W]`."""
    return latents.flatten(2).transpose(1, 2)


@functools.lru_cache(maxsize=64)
def token_ids(sizes: tuple[int, int, int], device: torch.device, time: int = 0) -> Tensor:
    """Time, row, column and place in the prompt of each token, int64 `[1, height * width * length, 4]`, of all rows.

    Kept, because to bring numbers to a GPU waits for it.

    Args:
        sizes: height, width and length.
        device: of the ids.
        time: of all tokens: 0 but of source images.
    """
    with torch.inference_mode(False):
        ids = torch.cartesian_prod(torch.tensor([time]), *(torch.arange(size) for size in sizes))
        return ids[None].to(device)

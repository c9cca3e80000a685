"""Stable Diffusion 1.x and 2.x: a UNet on the latents of an autoencoder, conditioned on CLIP's hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from ..noise import DiffusionProcess, NoiseProcess
from ..precision import compute_dtype
from .base_latents import LatentFamily


@dataclass(frozen=True)
class StableDiffusionFamily(LatentFamily):
    """`StableDiffusionPipeline` with a text-to-image UNet, epsilon- or v-prediction."""

    network_names = ("unet",)
    has_sampler = True
    comfyui_prefix = "lora_unet_"
    prompt_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses UNets with extra input channels (inpainting, depth), distilled guidance or EDM's noise."""
        super().check(pipeline)
        scheduler = pipeline.scheduler
        has_flow = bool(scheduler.config.get("use_flow_sigmas"))
        if has_flow or not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"The scheduler is a `{type(scheduler).__name__}`{' with `use_flow_sigmas`' if has_flow else ''}, "
                "which adds noise in another way (EDM or flow matching, as in Playground v2.5 and CosXL) than Stable "
                "Diffusion and Stable Diffusion XL were trained with. If the network was trained with epsilon- or "
                "v-prediction on DDPM's schedule, set `pipeline.scheduler` to one such as `EulerDiscreteScheduler`; "
                "otherwise it cannot be trained here."
            )
        if pipeline.unet.config.time_cond_proj_dim is not None:
            raise ValueError(
                "The UNet takes the guidance scale as an input: this is a latent consistency model, which was "
                "distilled to jump to the clean image. Train the model that it was distilled from."
            )
        taken, latent = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
        if taken != latent:
            raise ValueError(
                f"The UNet takes {taken} channels and the autoencoder gives {latent}: this is an inpainting, depth or "
                "image-conditioned model, which prompts and images alone cannot train. Use a text-to-image one."
            )

    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        """The training schedule behind the pipeline's sampler, zero terminal SNR included."""
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        return DiffusionProcess(schedule.alphas_cumprod, schedule.config.prediction_type)

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """8, which the pipeline asks for, or more if the autoencoder shrinks by more."""
        return max(8, int(pipeline.vae_scale_factor))

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """CLIP's hidden states, `[B, tokens, features]`."""
        device = pipeline.text_encoder.device
        embeds, _ = pipeline.encode_prompt(prompts, device, num_images_per_prompt=1, do_classifier_free_guidance=False)
        return {"embeds": embeds}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The UNet's output, `[B, C, H, W]`."""
        unet = networks["unet"]
        dtype = compute_dtype(unet)
        embeds = conditions["embeds"].to(dtype)
        prediction: Tensor = unet(corrupted.to(dtype), time, embeds, return_dict=False)[0]
        return prediction

"""Wan 2.1 and 2.2, image to video: the transformers of Wan with the first frame beside or before the latents."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from .base_latents import standardized
from .base_sources import SourceFamily, as_images
from .wan import WanFamily, call_transformer

PROMPT_LENGTH = 512
"""At which attention parts the tokens of a prompt from those of an image (diffusers' `WanAttnProcessor`)."""


@dataclass(frozen=True)
class WanImageToVideoFamily(SourceFamily, WanFamily):
    """`WanImageToVideoPipeline` of one source image, the first frame: Wan 2.1 I2V and Wan 2.2 I2V A14B.

    The networks see the latents of a video that is grey behind its first frame, and a mask of that frame, beside those
    of the sample, all of which they denoise. Those of Wan 2.1 also see what CLIP makes of the image.

    Attributes:
        num_frames: frames of each training video and sample, by default 81: one, and a multiple of the autoencoder's 4.
        fps: their rate, frames per second, by default 16.
        max_sequence_length: T5 tokens of each prompt; Wan 2.1 takes no other number than 512.
    """

    task = "image-to-video"
    image_encoders = ("vae", "image_encoder", "image_processor")
    optional_components = ("transformer_2", "image_encoder", "image_processor")
    network_inputs = ("embeds", "source", "source_embeds")
    lora_target_modules = (*WanFamily.lora_target_modules, "add_k_proj", "add_v_proj")

    @classmethod
    def load(cls, model: str, **kwargs: Any) -> DiffusionPipeline:
        """Raises an ImportError, before anything is loaded, if the pipeline could not be called."""
        _check_ftfy()
        return super().load(model, **kwargs)

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also raises an ImportError if the pipeline cannot be called."""
        _check_ftfy()
        super().check(pipeline)

    def check_inputs(self, pipeline: DiffusionPipeline) -> None:
        """Refuses networks of text to video and of a first and a last frame, and what Wan 2.1 cannot do without."""
        if pipeline.config.expand_timesteps:
            raise ValueError(
                "The pipeline has `expand_timesteps`, as Wan 2.2 TI2V-5B does, of which image-to-video is not known "
                "here. Load it as a `WanPipeline` and train it on prompts and videos."
            )
        latent, mask = pipeline.vae.config.z_dim, pipeline.vae_scale_factor_temporal
        for name, network in self.networks(pipeline).items():
            taken = network.config.in_channels
            if taken != 2 * latent + mask:
                raise ValueError(
                    f"`{name}` takes {taken} channels, and an image-to-video network takes {latent} of the sample, "
                    f"{mask} of a mask and {latent} of the first frame. Load a text-to-video one as a `WanPipeline`; "
                    "others are not known here."
                )
            if network.config.pos_embed_seq_len is not None:
                raise ValueError(
                    f"`{name}` sees two images, as that of Wan 2.1 FLF2V does, of a first and a last frame: it is not "
                    "known here. Use an image-to-video model."
                )
            if network.config.image_dim is not None:
                self._check_image_encoder(pipeline, name)

    def _check_image_encoder(self, pipeline: DiffusionPipeline, network: str) -> None:
        for name in ("image_encoder", "image_processor"):
            if getattr(pipeline, name) is None:
                raise ValueError(f"`{network}` sees the image by CLIP, and the pipeline has no `{name}`. Load it too.")
        if self.max_sequence_length != PROMPT_LENGTH:
            raise ValueError(
                f"`max_sequence_length` is {self.max_sequence_length}, and `{network}` sees tokens of the image before "
                f"those of the prompt, which have to be {PROMPT_LENGTH} for diffusers to tell them apart. Leave it out."
            )

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """That of the pipeline's call, 480 x 832 pixels; 720 x 1280 of a model that has 720P in its name."""
        # Wan 2.1 I2V 14B comes for either size, and nothing in its configuration tells which.
        name = re.split(r"[/\\]", str(pipeline.config.get("_name_or_path") or "").rstrip("/"))[-1]
        return (720, 1280) if "720p" in name.lower() else super().default_size(pipeline)

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """What the pipeline takes of the first frame too.

        `source`, the mean of the autoencoder's posterior of a video that is grey behind it, float32 `[B, C, F, H, W]`;
        of Wan 2.1 also `source_embeds`, CLIP's last hidden states but one, `[B, patches, features]`.
        """
        first = pixels[:, 0, :, None]
        rest = first.new_zeros(*first.shape[:2], self.clip.num_frames - 1, *first.shape[3:])
        video = torch.cat([first, rest], 2).to(pipeline.vae.dtype)
        encoded = {"source": pipeline.vae.encode(video).latent_dist.mode().float()}
        if pipeline.transformer.config.image_dim is not None:
            encoded["source_embeds"] = pipeline.encode_image(as_images(pixels[:, 0]), pixels.device)
        return encoded

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With `source` standardised, behind a mask that is 1 in the first frame, `[B, 4 + C, F, H, W]`."""
        source = standardized(image["source"], pipeline.vae.config)
        batch, _, *size = source.shape
        mask = source.new_zeros(batch, pipeline.vae_scale_factor_temporal, *size)
        mask[:, :, 0] = 1
        return {**super().conditions(pipeline, image, prompt), "source": torch.cat([mask, source], 1)}

    def velocity(self, transformer: Any, corrupted: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The velocity of all frames, `[B, C, F, H, W]`, of the sample's channels with the source's behind them."""
        sample = torch.cat([corrupted, inputs["source"]], 1)
        return call_transformer(transformer, sample, time, inputs["embeds"], inputs.get("source_embeds"))


def _check_ftfy() -> None:
    # diffusers' text-to-video pipeline does without it, this one does not: `basic_clean` in pipeline_wan_i2v.py
    if importlib.util.find_spec("ftfy") is None:
        raise ImportError(
            "diffusers' `WanImageToVideoPipeline` cleans prompts with ftfy, which is missing: "
            'pip install "tgo_trl[video]"'
        )

"""Wan 2.1 and 2.2, image to video: the transformers of Wan with the first frame beside or before the latents."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from torch import Tensor

from ..media.types import Size
from .base_latents import standardized
from .base_sources import SourceFamily, as_images
from .wan import WanFamily, call_transformer

PROMPT_LENGTH = 512
"""At which attention parts the tokens of a prompt from those of an image (diffusers' `WanAttnProcessor`)."""


@dataclass(frozen=True)
class WanImageToVideoFamily(SourceFamily, WanFamily):
    """`WanImageToVideoPipeline` of one source image, the first frame: Wan 2.1 I2V, Wan 2.2 I2V A14B and TI2V-5B.

    The networks see the latents of a video that is grey behind its first frame, and a mask of that frame, beside those
    of the sample, all of which they denoise. Those of Wan 2.1 also see what CLIP makes of the image.

    TI2V-5B (`expand_timesteps`) sees the latents of the first frame in their place before those of the sample, without
    noise and with a time of 0 of their own. A sample is then what is not known: the latents behind the first.

    Attributes:
        num_frames: frames of each training video and sample: one, and a multiple of the autoencoder's 4. By default 81,
            and 121 of Wan 2.2 TI2V-5B.
        fps: their rate, frames per second: by default 16, and 24 of Wan 2.2 TI2V-5B.
        max_sequence_length: T5 tokens of each prompt; Wan 2.1 takes no other number than 512.
    """

    task = "image-to-video"
    image_encoders = ("vae", "image_encoder", "image_processor")
    optional_components = ("transformer_2", "image_encoder", "image_processor")
    network_inputs = ("embeds", "source", "source_embeds", "first_frame")
    lora_target_modules = (*WanFamily.lora_target_modules, "add_k_proj", "add_v_proj")

    @classmethod
    def load(cls, model: str, **kwargs: Any) -> DiffusionPipeline:
        """As image to video, also where the repository says text to video, as that of TI2V-5B.

        Raises:
            ImportError: if the pipeline could not be called.
        """
        _check_ftfy()
        return super().load(model, **{"pipeline_class": WanImageToVideoPipeline, **kwargs})

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses pipelines that take no image, and raises an ImportError if this one cannot be called."""
        if not isinstance(pipeline, WanImageToVideoPipeline):
            raise ValueError(
                f"A `{type(pipeline).__name__}` takes no image. Load it by `WanImageToVideoPipeline.from_pretrained`."
            )
        _check_ftfy()
        super().check(pipeline)

    def check_inputs(self, pipeline: DiffusionPipeline) -> None:
        """Refuses networks of text to video and of a first and a last frame, and what Wan 2.1 cannot do without."""
        latent, mask = pipeline.vae.config.z_dim, pipeline.vae_scale_factor_temporal
        expands = pipeline.config.expand_timesteps
        given = latent if expands else latent + mask + latent
        beside = "" if expands else f", {mask} of a mask and {latent} of the first frame"
        for name, network in self.networks(pipeline).items():
            taken = network.config.in_channels
            if taken != given:
                raise ValueError(
                    f"`{name}` takes {taken} channels, and the pipeline gives it {given}: {latent} of the sample"
                    f"{beside}. Load a text-to-video network as a `WanPipeline`; others are not known here."
                )
            if network.config.pos_embed_seq_len is not None:
                raise ValueError(
                    f"`{name}` sees two images, as that of Wan 2.1 FLF2V does, of a first and a last frame: it is not "
                    "known here. Use an image-to-video model."
                )
            if network.config.image_dim is not None:
                self._check_image_encoder(pipeline, name)
        if expands and self.clip.num_frames == 1:
            raise ValueError("`num_frames` is 1, and the first frame is given: nothing is left. Set it to 5 or more.")

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
        name = Path(str(pipeline.config.get("_name_or_path"))).name.lower()
        return (720, 1280) if "720p" in name else super().default_size(pipeline)

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation as of text to video, but of TI2V-5B without the first latent frame."""
        encoded = super().encode_images(pipeline, pixels, geometry)
        if not pipeline.config.expand_timesteps:
            return encoded
        return {name: tensor[:, :, 1:].contiguous() for name, tensor in encoded.items()}

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """What the pipeline takes of the first frame too.

        `source`, the mean of the autoencoder's posterior of a video that is grey behind it, float32 `[B, C, F, H, W]`,
        and of TI2V-5B of the frame alone, `[B, C, 1, H, W]`; of Wan 2.1 also `source_embeds`, CLIP's last hidden states
        but one, `[B, patches, features]`.
        """
        video = pixels[:, 0, :, None]
        if not pipeline.config.expand_timesteps:
            rest = video.new_zeros(*video.shape[:2], self.clip.num_frames - 1, *video.shape[3:])
            video = torch.cat([video, rest], 2)
        encoded = {"source": pipeline.vae.encode(video.to(pipeline.vae.dtype)).latent_dist.mode().float()}
        if pipeline.transformer.config.image_dim is not None:
            encoded["source_embeds"] = pipeline.encode_image(as_images(pixels[:, 0]), pixels.device)
        return encoded

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With `source` standardised, behind a mask that is 1 in the first frame, `[B, 4 + C, F, H, W]`.

        Of TI2V-5B instead `first_frame`, the standardised source, `[B, C, 1, H, W]`.
        """
        conditions = super().conditions(pipeline, image, prompt)
        source = standardized(conditions.pop("source"), pipeline.vae.config)
        if pipeline.config.expand_timesteps:
            return {**conditions, "first_frame": source}
        batch, _, *size = source.shape
        mask = source.new_zeros(batch, pipeline.vae_scale_factor_temporal, *size)
        mask[:, :, 0] = 1
        return {**conditions, "source": torch.cat([mask, source], 1)}

    def velocity(self, transformer: Any, corrupted: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The velocity of the sample, `[B, C, F, H, W]`, with the source's channels or its frame beside it."""
        embeds, image_embeds = inputs["embeds"], inputs.get("source_embeds")
        if "source" in inputs:
            sample = torch.cat([corrupted, inputs["source"]], 1)
            return call_transformer(transformer, sample, time, embeds, image_embeds)
        sample = torch.cat([inputs["first_frame"], corrupted], 2)
        times = _times_of_tokens(time, sample, transformer.config.patch_size)
        return call_transformer(transformer, sample, times, embeds, image_embeds)[:, :, 1:]


def _times_of_tokens(time: Tensor, sample: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Of `[B]` times and `[B, C, F, H, W]` latents: 0 for the tokens of the first frame, `[B, tokens]`."""
    _, height, width = patch_size
    num_frames, per_frame = sample.shape[2], (sample.shape[3] // height) * (sample.shape[4] // width)
    of_first, of_rest = time.new_zeros(len(time), per_frame), time[:, None].expand(-1, (num_frames - 1) * per_frame)
    return torch.cat([of_first, of_rest], 1)


def _check_ftfy() -> None:
    # diffusers' text-to-video pipeline does without it, this one does not: `basic_clean` in pipeline_wan_i2v.py
    if importlib.util.find_spec("ftfy") is None:
        raise ImportError(
            "diffusers' `WanImageToVideoPipeline` cleans prompts with ftfy, which is missing: "
            'pip install "tgo_trl[video]"'
        )

"""HunyuanVideo 1.5, image to video: as text to video, with the first frame beside the latents and seen by Siglip."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from .base_kept_sizes import KeptSizeFamily
from .base_sources import as_images
from .hunyuan_video15 import HunyuanVideo15Family


@dataclass(frozen=True)
class HunyuanVideo15ImageToVideoFamily(KeptSizeFamily, HunyuanVideo15Family):
    """`HunyuanVideo15ImageToVideoPipeline` of one source image, the first frame.

    Its call takes no size, and brings the image to one of its own: rows and samples have to have one of these.

    Attributes:
        num_frames: frames of each training video and sample: one, and a multiple of the autoencoder's 4. By default
            121.
        fps: their rate, frames per second, by default 24.
    """

    task = "image-to-video"
    task_type = "i2v"
    image_encoders = ("vae", "image_encoder", "feature_extractor")

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """That of an image of 16 : 9: of 480p, 480 x 848 pixels."""
        return self.kept_size(pipeline, (9, 16))

    def drawn_size(self, pipeline: DiffusionPipeline, size: Size) -> Size:
        """One of the sizes of its list, by the aspect ratio."""
        height, width = pipeline.video_processor.calculate_default_height_width(*size, pipeline.target_size)
        return int(height), int(width)

    def unread_parts(self, network: Any) -> list[str]:
        """As of text to video, but for what reads the image."""
        return [name for name in super().unread_parts(network) if name != "image_embedder"]

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """What the pipeline takes of the first frame too.

        `source`, the mean of the autoencoder's posterior, float32 `[B, C, 1, H, W]`, and `source_embeds`, Siglip's last
        hidden states, `[B, patches, features]`.

        Raises:
            ValueError: if the pipeline would bring the image to another size.
        """
        self.check_size(pipeline, (pixels.shape[-2], pixels.shape[-1]))
        frames = pixels[:, 0, :, None].to(pipeline.vae.dtype)
        means = [pipeline.vae.encode(frame[None]).latent_dist.mode().float() for frame in frames]
        dtype = pipeline.image_encoder.dtype
        embeds = pipeline.encode_image(as_images(pixels[:, 0]), 1, pixels.device, dtype)
        return {"source": torch.cat(means), "source_embeds": embeds}

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With `source` as [`clean`] scales latents, and what Siglip sees as `image_embeds`."""
        source = image["source"] * float(pipeline.vae.config.scaling_factor)
        return {**super().conditions(pipeline, image, prompt), "source": source, "image_embeds": image["source_embeds"]}

    def first_frame(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """Its latents, and zeros behind them, and a mask that is 1 there, `[B, C + 1, F, H, W]`."""
        beside = torch.zeros_like(torch.cat([sample, sample[:, :1]], 1))
        beside[:, :-1, :1] = conditions["source"].to(sample.dtype)
        beside[:, -1, 0] = 1
        return beside

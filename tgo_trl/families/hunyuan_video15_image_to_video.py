"""HunyuanVideo 1.5, image to video: as text to video, with the first frame beside the latents and seen by Siglip."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from .base_sources import SourceFamily, as_images
from .hunyuan_video15 import HunyuanVideo15Family, class_name


@dataclass(frozen=True)
class HunyuanVideo15ImageToVideoFamily(SourceFamily, HunyuanVideo15Family):
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
        return _kept_size(pipeline, (9, 16))

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
        check_size(pipeline, (pixels.shape[-2], pixels.shape[-1]))
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

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """Without the size, which is that of the image.

        Raises:
            ValueError: if the pipeline would bring the image to another size.
        """
        check_size(pipeline, size)
        call = super().call_options(pipeline, size, **kwargs)
        return {name: value for name, value in call.items() if name not in ("height", "width")}


def check_size(pipeline: DiffusionPipeline, size: Size) -> None:
    """Raises a ValueError for a height and width in pixels that the pipeline does not leave an image at."""
    drawn = _drawn_size(pipeline, size)
    if drawn != tuple(size):
        raise ValueError(
            f"Videos have {size[1]} x {size[0]} pixels, and a `{class_name(pipeline)}` draws those of such an image "
            f"with {drawn[1]} x {drawn[0]}. Set `resolution` to {list(_kept_size(pipeline, drawn))}, which it keeps, "
            "and leave `aspect_ratio_buckets` out."
        )


def _kept_size(pipeline: DiffusionPipeline, size: Size) -> Size:
    """Where an image of a size ends that is drawn from again and again: it is drawn with that very size.

    Many sizes of diffusers' own list are drawn with another of them, and this with a third; none leads back.
    """
    while (drawn := _drawn_size(pipeline, size)) != tuple(size):
        size = drawn
    return size


def _drawn_size(pipeline: DiffusionPipeline, size: Size) -> Size:
    height, width = pipeline.video_processor.calculate_default_height_width(*size, pipeline.target_size)
    return int(height), int(width)

"""LTX-2, text to video: the video branch of a transformer of video and audio, on latents of a causal autoencoder."""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base import FEW_STEPS
from .base_latents import check_num_frames
from .base_video import VideoFamily

AUDIO = ("audio_", "video_to_audio", "video_a2v", "av_cross_attn", "keyframes_")
"""What the names of the parts begin with that video alone does not pass through, or whose result it does not use."""


@dataclass(frozen=True)
class LTX2Family(VideoFamily):
    """`LTX2Pipeline` on videos without sound: LTX-2 and LTX-2.3.

    The network denoises a video and its sound beside each other, and each attends to the other. Rows hold no sound, so
    that the video is denoised alone, with `isolate_modalities`, which leaves out the attention between the two: one
    of the ways in which the pipeline itself calls the network, for guidance, and what upstream's trainer does with
    videos without sound (`with_audio` of ltx-trainer's text_to_video.py). Only the weights of the video are trained.
    Samples are drawn with sound, as the pipeline draws them, and it is left out of them.

    Attributes:
        num_frames: frames of each training video and sample: one, and a multiple of the autoencoder's 8.
        fps: their rate, frames per second, which the network is told.
        max_sequence_length: Gemma tokens of each prompt, a multiple of the registers that fill it up, 128 as published.
    """

    max_sequence_length: int = 1024

    network_names = ("transformer",)
    prompt_encoders = ("text_encoder", "tokenizer", "connectors")
    reads_posterior_noise = False
    undistilled = "Lightricks/LTX-2"
    few_step_words: ClassVar[frozenset[str]] = FEW_STEPS | {"distilled"}
    comfyui_prefix = "diffusion_model."
    lora_target_modules = tuple(
        f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses networks of other inputs, and numbers of frames and of tokens that do not fit."""
        super().check(pipeline)
        taken, given = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
        if taken != given:
            raise ValueError(
                f"`transformer` takes {taken} channels, and the autoencoder gives {given}: they are not of one model, "
                "or this is one that is not known here. Load LTX-2 or LTX-2.3."
            )
        check_num_frames(self.clip.num_frames, int(pipeline.vae_temporal_compression_ratio))
        config = pipeline.connectors.config
        for name in ("video_connector_num_learnable_registers", "audio_connector_num_learnable_registers"):
            registers = config[name]
            if registers is not None and self.max_sequence_length % registers:
                below = self.max_sequence_length // registers * registers
                near = " or ".join(str(length) for length in (below, below + registers) if length)
                raise ValueError(
                    f"`max_sequence_length` is {self.max_sequence_length}, and the pipeline's `connectors` fill "
                    f"prompts up with {registers} registers. Set it to {near}."
                )

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """That of the pipeline's call, 512 x 768 pixels."""
        parameters = inspect.signature(pipeline.__call__).parameters
        return parameters["height"].default, parameters["width"].default

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """32, which the pipeline asks for, or more if the latents are of more pixels."""
        return math.lcm(32, int(pipeline.vae_spatial_compression_ratio))

    def unread_parts(self, network: Any) -> list[str]:
        """All that is of sound, and between sound and video."""
        names = [name for name, _ in (*network.named_modules(), *network.named_parameters())]
        return [name for name in names if name.rpartition(".")[2].startswith(AUDIO)]

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean of the posterior as the network sees it, `(mean - latents_mean) * scaling_factor / latents_std`.

        float32 `[B, C, F, H, W]`, standardised by what the autoencoder keeps as weights.
        """
        vae = pipeline.vae
        mean = super().encode_images(pipeline, pixels, geometry)["mean"]
        center, scale = (tensor.float()[:, None, None, None] for tensor in (vae.latents_mean, vae.latents_std))
        return {"mean": (mean - center) * float(vae.config.scaling_factor) / scale}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """What `connectors` make of all of Gemma's hidden states for the video, `[B, max_sequence_length, features]`.

        And int64 `mask`, 1 where the network is to look: everywhere, if registers fill prompts up.
        """
        hidden, mask, _, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=pipeline.text_encoder.device,
        )
        side = getattr(pipeline.tokenizer, "padding_side", "left")
        embeds, _, mask = pipeline.connectors(hidden, mask, padding_side=side)
        return {"embeds": embeds, "mask": mask}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """What [`encode_images`] returned, float32 `[B, C, F, H, W]`.

        The posterior's mode instead of a sample of it, as upstream's autoencoder encodes for training.
        """
        return image["mean"]

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity of the video, `[B, C, F, H, W]`, beside one token of sound that it does not see."""
        transformer = networks["transformer"]
        dtype, config = compute_dtype(transformer), transformer.config
        batch, _, frames, height, width = corrupted.shape
        scale, offset = tuple(config.vae_scale_factors), config.causal_offset
        coords = _coords((frames, height, width), scale, offset, self.clip.fps, corrupted.device)
        told = config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim
        prediction: Tensor = transformer(
            hidden_states=corrupted.to(dtype).flatten(2).transpose(1, 2),
            audio_hidden_states=corrupted.new_zeros(batch, 1, config.audio_in_channels, dtype=dtype),
            encoder_hidden_states=conditions["embeds"].to(dtype),
            audio_encoder_hidden_states=corrupted.new_zeros(batch, 1, told, dtype=dtype),
            timestep=time,
            sigma=time,
            encoder_attention_mask=conditions["mask"],
            num_frames=frames,
            height=height,
            width=width,
            fps=self.clip.fps,
            audio_num_frames=1,
            video_coords=coords.expand(batch, -1, -1, -1),
            isolate_modalities=True,
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).reshape(corrupted.shape)

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One video per prompt, as its frames, without the sound that is drawn with it, each from its own generator."""
        call = {"frame_rate": self.clip.fps, **self.call_options(pipeline, size, **{"output_type": "pil", **kwargs})}
        return list(pipeline(prompt=list(prompts), generator=generators, **call).frames)

    def comfyui_module(self, module: str) -> str | None:
        """The same name in LTX-2's own code, of what is in blocks."""
        return module if module.startswith("transformer_blocks.") else None


@functools.lru_cache(maxsize=64)
def _coords(
    size: tuple[int, int, int], scale: tuple[int, int, int], offset: int, fps: float, device: torch.device
) -> Tensor:
    """Where each latent begins and ends in seconds and in pixels of height and width, float32 `[1, 3, latents, 2]`.

    The first is of `offset` frames, and the others of `scale[0]`. Kept, because the network's own way to make them
    brings numbers to a GPU, which waits for it.

    Args:
        size: frames, height and width in latents.
        scale: of each of them in frames and pixels.
        offset: frames of the first.
        fps: frames per second.
        device: of what is returned.
    """
    with torch.inference_mode(False):
        starts = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in size)).T
        bounds = torch.stack([starts, starts + 1], -1) * torch.tensor(scale, dtype=torch.float32)[:, None, None]
        bounds[0] = (bounds[0] + offset - scale[0]).clamp(min=0) / fps
        return bounds[None].to(device)

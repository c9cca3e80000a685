"""HunyuanVideo 1.5, text to video: a transformer on latents of a video autoencoder, told of Qwen2.5-VL and ByT5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base import class_name, of_row, parts_of_last_block
from .base_adapters import NetworkAdapterFamily
from .base_latents import check_num_frames
from .base_video import VideoFamily


@dataclass(frozen=True)
class HunyuanVideo15Family(NetworkAdapterFamily, VideoFamily):
    """`HunyuanVideo15Pipeline`: HunyuanVideo 1.5, text to video.

    What guides samples is a part of the pipeline, its `guider`, and no argument of its call. Prompts have as many
    tokens as the pipeline gives them; what stands in quotation marks is read letter by letter too, by ByT5.

    Attributes:
        num_frames: frames of each training video and sample: one, and a multiple of the autoencoder's 4. By
            default 121.
        fps: their rate, frames per second, by default 24.
    """

    network_names = ("transformer",)
    prompt_encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    # `torch.all(image_embeds == 0)` and masks as indices, in the forward pass of the network
    waits_for_device = True
    ignores_padding = True
    task_type: ClassVar[str] = "t2v"
    # Without `add_q_proj` and `to_add_out`: nothing reads the text that leaves the last block.
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses image-to-video and super-resolution networks, and a number of frames that does not fit."""
        super().check(pipeline)
        config, latent = pipeline.transformer.config, pipeline.vae.config.latent_channels
        if config.task_type != self.task_type or config.in_channels != 2 * latent + 1:
            raise ValueError(
                f"`transformer` has `task_type={config.task_type!r}` and takes {config.in_channels} channels, and a "
                f"`{type(pipeline).__name__}` is one of `task_type={self.task_type!r}` that gives it {2 * latent + 1}. "
                "Load it as a pipeline of its kind; super-resolution is not known here."
            )
        if config.use_meanflow:
            raise ValueError(
                "`transformer` has `use_meanflow=True`: it was distilled to few steps, and is told where each of them "
                "ends, which training has no word for. Train the model that it was distilled from."
            )
        check_num_frames(self.clip.num_frames, int(pipeline.vae_scale_factor_temporal))

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """That of the pipeline's call, of 16 : 9: of 480p, 480 x 848 pixels."""
        width, height = pipeline.default_aspect_ratio
        size = pipeline.video_processor.calculate_default_height_width(height, width, pipeline.target_size)
        return int(size[0]), int(size[1])

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """Pixels on each side of a latent, times the network's patch."""
        return int(pipeline.vae_scale_factor_spatial) * int(pipeline.transformer.config.patch_size)

    def unread_parts(self, network: Any) -> list[str]:
        """The last block's own way of the text, what reads images, and what reads quotations.

        Of the former there are none, and of the latter none in most prompts.
        """
        names = ["attn.to_add_out", "attn.add_q_proj", "attn.norm_added_q", "ff_context"]
        return ["image_embedder", "context_embedder_2", *parts_of_last_block(network, names)]

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the posterior, float32 `[B, C, F, H, W]` each, of one video after the other.

        diffusers' autoencoder takes no more at once (https://github.com/huggingface/diffusers/pull/13133).
        """
        rows = [super(HunyuanVideo15Family, self).encode_images(pipeline, row[None], geometry) for row in pixels]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Hidden states of Qwen2.5-VL and of ByT5, `[B, tokens, features]`, each with an int64 mask `[B, tokens]`.

        Of `embeds` and `glyphs`, `mask` and `glyph_mask` are 1 for tokens and 0 for padding, which is not seen.
        """
        embeds, mask, glyphs, glyph_mask = pipeline.encode_prompt(
            list(prompts), device=pipeline.text_encoder.device, batch_size=len(prompts)
        )
        return {"embeds": embeds, "mask": mask.long(), "glyphs": glyphs, "glyph_mask": glyph_mask.long()}

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With the zeros that stand for an image, `image_embeds` `[B, tokens, features]`."""
        conditions = super().conditions(pipeline, image, prompt)
        shape = (len(image["mean"]), pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim)
        return {**conditions, "image_embeds": image["mean"].new_zeros(shape)}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, F, H, W]`; beside the sample, the network sees a first frame and its mask."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        sample = corrupted.to(dtype)
        prediction: Tensor = transformer(
            hidden_states=torch.cat([sample, self.first_frame(sample, conditions)], 1),
            timestep=time.to(dtype),  # as the pipeline rounds it; the network computes in the dtype of the time
            encoder_hidden_states=conditions["embeds"].to(dtype),
            encoder_attention_mask=conditions["mask"].to(dtype),
            encoder_hidden_states_2=conditions["glyphs"].to(dtype),
            encoder_attention_mask_2=conditions["glyph_mask"].to(dtype),
            image_embeds=conditions["image_embeds"].to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def first_frame(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The channels beside those of the sample `[B, C, F, H, W]`, `[B, C + 1, F, H, W]`: empty."""
        return torch.cat([torch.zeros_like(sample), torch.zeros_like(sample[:, :1])], 1)

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One video per prompt, as its frames, one after the other, as the autoencoder takes them."""
        call = self.call_options(pipeline, size, **{"output_type": "pil", **kwargs})
        return [
            pipeline(prompt=[prompt], generator=generator, **of_row(call, i)).frames[0]
            for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True))
        ]

    @classmethod
    def check_call(cls, pipeline_class: str, call: Mapping[str, Any]) -> None:
        """Raises a ValueError for a `guidance_scale`, which the pipeline's guider has."""
        scale = call.get("guidance_scale")
        if scale is not None:
            raise ValueError(
                f"The guidance scale is {scale}, and a `{pipeline_class}` takes none: its component `guider` has it. "
                f"Leave it out, and pass a pipeline with `pipeline.guider = pipeline.guider.new(guidance_scale={scale})"
                "`, or the folder that its `save_pretrained` wrote."
            )

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """As of any videos.

        Raises:
            ValueError: if there is a `guidance_scale`, which the pipeline does not take.
        """
        self.check_call(class_name(pipeline), kwargs)
        kwargs.pop("guidance_scale", None)
        return super().call_options(pipeline, size, **kwargs)

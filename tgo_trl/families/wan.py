"""Wan 2.1 and 2.2, text to video: one or two transformers on latents of a causal video autoencoder."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..media.types import Sample, Size, VideoFormat
from ..precision import compute_dtype
from .base import (
    adapter_header,
    adapter_metadata,
    adapter_state_dict,
    load_whole_adapter,
    posterior_sample,
    strip_prefix,
)
from .base_latents import check_num_frames, standardized
from .base_video import VideoFamily

ADAPTER_FILES = {"transformer": LORA_WEIGHT_NAME_SAFE, "transformer_2": "pytorch_lora_weights_2.safetensors"}
"""`load_lora_weights` puts one file into one of the two."""
COMFYUI_LAYERS = {
    f"{number}.{layer}": f"{kind}_attn.{short}"
    for number, kind in ((1, "self"), (2, "cross"))
    for layer, short in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"2.add_k_proj": "cross_attn.k_img", "2.add_v_proj": "cross_attn.v_img"}
COMFYUI_FEED_FORWARD = {"net.0.proj": "ffn.0", "net.2": "ffn.2"}


@dataclass(frozen=True)
class WanFamily(VideoFamily):
    """`WanPipeline` with text-to-video networks: Wan 2.1, Wan 2.2 A14B and Wan 2.2 TI2V-5B.

    Of Wan 2.2 A14B both networks are trained: `transformer` at the times from `boundary_ratio * 1000` on, where there
    is much noise, and `transformer_2` below.

    Attributes:
        num_frames: frames of each training video and sample: one, and a multiple of the autoencoder's 4. By default 81,
            and 121 of Wan 2.2 TI2V-5B.
        fps: their rate, frames per second: by default 16, and 24 of Wan 2.2 TI2V-5B.
        max_sequence_length: T5 tokens of each prompt.
    """

    max_sequence_length: int = 512

    usual_format: ClassVar[VideoFormat] = VideoFormat(81, 16.0)
    network_names = ("transformer", "transformer_2")
    prompt_encoders = ("text_encoder", "tokenizer")
    optional_components: ClassVar[tuple[str, ...]] = ("transformer_2",)
    network_inputs: ClassVar[tuple[str, ...]] = ("embeds",)
    """The conditions that [`velocity`] reads."""
    comfyui_prefix = "diffusion_model."
    lora_target_modules: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    def format_of(self, pipeline: DiffusionPipeline) -> VideoFormat:
        """121 frames at 24 per second of Wan 2.2 TI2V-5B, or 81 at 16."""
        return VideoFormat(121, 24.0) if pipeline.config.expand_timesteps else self.usual_format

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses image-to-video networks, half a pair of networks, and a number of frames that does not fit."""
        super().check(pipeline)
        self.check_inputs(pipeline)
        _check_boundary(pipeline)
        check_num_frames(self.clip.num_frames, int(pipeline.vae_scale_factor_temporal))

    def check_inputs(self, pipeline: DiffusionPipeline) -> None:
        """Raises a ValueError for networks that take other inputs than they would get."""
        latent = pipeline.vae.config.z_dim
        for name, network in self.networks(pipeline).items():
            taken, image = network.config.in_channels, network.config.image_dim
            if taken != latent or image is not None:
                raise ValueError(
                    f"`{name}` takes {taken} channels{'' if image is None else ' and an image'}, and the autoencoder "
                    f"gives {latent} channels: this is an image-to-video model, which prompts and videos alone cannot "
                    "train. Use a text-to-video one, or load this one as a `WanImageToVideoPipeline`."
                )

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """That of the pipeline's call, 480 x 832 pixels; 704 x 1280 of Wan 2.2 TI2V-5B."""
        if pipeline.config.expand_timesteps:
            return 704, 1280
        parameters = inspect.signature(pipeline.__call__).parameters
        return parameters["height"].default, parameters["width"].default

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """16, which the pipeline asks for, or more if the patches of latents are larger."""
        scale = int(pipeline.vae_scale_factor_spatial)
        _, height, width = pipeline.transformer.config.patch_size
        return math.lcm(16, scale * height, scale * width)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """T5's hidden states, zero behind the prompt's end, `[B, max_sequence_length, features]`."""
        embeds, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=pipeline.text_encoder.device,
        )
        return {"embeds": embeds}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = (mean + std * noise - latents_mean) / latents_std`, float32 `[B, C, F, H, W]`."""
        return standardized(posterior_sample(image, posterior_noise), pipeline.vae.config)

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Of two networks also `boundary`, the time where the first begins, float32 `[B]`."""
        conditions = super().conditions(pipeline, image, prompt)
        if pipeline.config.boundary_ratio is not None:
            boundary = pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
            conditions["boundary"] = torch.full(image["mean"].shape[:1], boundary, device=image["mean"].device)
        return conditions

    def host_conditions(self, pipeline: DiffusionPipeline, time: Tensor) -> dict[str, tuple[Any, ...]]:
        """Of two networks `is_first`, whether each row is the first one's."""
        if pipeline.config.boundary_ratio is None:
            return {}
        boundary = pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
        return {"is_first": tuple((time >= torch.full_like(time, boundary)).tolist())}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The velocity, `[B, C, F, H, W]`; of two networks, each predicts the rows of its times."""
        inputs = {name: conditions[name] for name in self.network_inputs if name in conditions}
        if "boundary" not in conditions:
            return self.velocity(networks["transformer"], corrupted, time, inputs)
        is_first = conditions.get("is_first")
        if is_first is None:
            is_first = (time >= conditions["boundary"]).tolist()
        predictions: dict[int, Tensor] = {}
        zeros = []
        for name, is_mine in (("transformer", True), ("transformer_2", False)):
            mine = [row for row, is_of_first in enumerate(is_first) if is_of_first == is_mine]
            if mine:
                found = self._velocity_of(mine, networks[name], corrupted, time, inputs)
                predictions.update(zip(mine, found.unbind(), strict=True))
            elif _is_sharded(networks[name]):
                # every process calls both networks, whatever its rows are: to gather their weights takes all of them
                zeros.append(self._velocity_of([0], networks[name], corrupted, time, inputs).flatten()[:0])
            else:
                zeros.extend(_nothing_of(networks[name]))
        prediction = torch.stack([predictions[row] for row in range(len(is_first))])
        return prediction + torch.cat(zeros).sum() if zeros and torch.is_grad_enabled() else prediction

    def _velocity_of(
        self, rows: Sequence[int], transformer: Any, corrupted: Tensor, time: Tensor, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        def of_rows(tensor: Tensor) -> Tensor:
            return torch.stack([tensor[row] for row in rows])

        inputs = {name: of_rows(tensor) for name, tensor in inputs.items()}
        return self.velocity(transformer, of_rows(corrupted), of_rows(time), inputs)

    def velocity(self, transformer: Any, corrupted: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """What one network predicts, `[B, C, F, H, W]`.

        Args:
            transformer: the network.
            corrupted: `[B, C, F, H, W]`.
            time: `[B]`.
            inputs: of the conditions, its [`network_inputs`], `[B, ...]`.
        """
        # The pipeline of Wan 2.2 TI2V-5B repeats the time for every token (`expand_timesteps`), as image-to-video needs
        # it. Here all tokens have the same time, and one for all of them gives the same for less memory.
        return call_transformer(transformer, corrupted, time, inputs["embeds"])

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One video per prompt, as its frames, each from its own generator, as long as those of training."""
        call = self.call_options(pipeline, size, **{"output_type": "pil", **kwargs})
        return list(pipeline(prompt=list(prompts), generator=generators, **call).frames)

    def save_adapter(self, pipeline: DiffusionPipeline, adapter_name: str, folder: Path) -> None:
        """Writes a file per network, each for the pipeline's own `load_lora_weights`."""
        for name, network in self.networks(pipeline).items():
            type(pipeline).save_lora_weights(
                folder,
                transformer_lora_layers=adapter_state_dict(network, adapter_name),
                transformer_lora_adapter_metadata=adapter_metadata(network, adapter_name),
                weight_name=ADAPTER_FILES[name],
            )

    def load_adapter(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Weights of an adapter that [`save_adapter`] wrote, by network, as `set_peft_model_state_dict` takes them."""
        return {
            name: strip_prefix(load_file(folder / file), "transformer.")
            for name, file in ADAPTER_FILES.items()
            if (folder / file).is_file()
        }

    def load_adapter_configs(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Likewise, of each file's own header."""
        files = {name: folder / file for name, file in ADAPTER_FILES.items()}
        return {
            name: strip_prefix(adapter_header(path), "transformer.") for name, path in files.items() if path.is_file()
        }

    def comfyui_module(self, module: str) -> str | None:
        """The name in Wan's own code, of attention and feed-forward layers."""
        block, _, layer = module.partition(".attn") if ".attn" in module else module.partition(".ffn.")
        names = COMFYUI_LAYERS if ".attn" in module else COMFYUI_FEED_FORWARD
        return f"{block}.{names[layer]}" if layer in names and block.startswith("blocks.") else None

    def attach_adapter(self, pipeline: DiffusionPipeline, weights: str) -> None:
        """Loads a file for each network."""
        for name in self.networks(pipeline):
            is_second = name == "transformer_2"
            load_whole_adapter(pipeline, weights, weight_name=ADAPTER_FILES[name], load_into_transformer_2=is_second)

    def loading_code(self, pipeline: DiffusionPipeline, weights: str) -> str:
        """A call of `load_lora_weights` for each network."""
        if pipeline.transformer_2 is None:
            return super().loading_code(pipeline, weights)
        first, second = ADAPTER_FILES.values()
        return (
            f'pipeline.load_lora_weights("{weights}", weight_name="{first}")\n'
            f'pipeline.load_lora_weights("{weights}", weight_name="{second}", load_into_transformer_2=True)'
        )


def call_transformer(
    transformer: Any, sample: Tensor, time: Tensor, embeds: Tensor, image_embeds: Tensor | None = None
) -> Tensor:
    """A network's output, `[B, C, F, H, W]`, of inputs in its dtype.

    Args:
        transformer: the network.
        sample: `[B, channels, F, H, W]`.
        time: `[B]`, or `[B, tokens]`.
        embeds: of the prompts, `[B, tokens, features]`.
        image_embeds: of images, likewise.
    """
    dtype = compute_dtype(transformer)
    prediction: Tensor = transformer(
        hidden_states=sample.to(dtype),
        timestep=time,
        encoder_hidden_states=embeds.to(dtype),
        encoder_hidden_states_image=None if image_embeds is None else image_embeds.to(dtype),
        return_dict=False,
    )[0]
    return prediction


def _check_boundary(pipeline: DiffusionPipeline) -> None:
    boundary = pipeline.config.boundary_ratio
    if boundary is None and pipeline.transformer_2 is not None:
        raise ValueError(
            "The pipeline has a `transformer_2` and no `boundary_ratio` to say at which times it acts. Call "
            "`pipeline.register_to_config(boundary_ratio=...)`; of Wan 2.2 A14B, T2V has 0.875 and I2V 0.9."
        )
    if boundary is not None and pipeline.transformer_2 is None:
        raise ValueError(
            f"The pipeline has `boundary_ratio={boundary}` and no `transformer_2` for the times below. Load both "
            "networks, or call `pipeline.register_to_config(boundary_ratio=None)` if there is one for all times."
        )


def _is_sharded(network: nn.Module) -> bool:
    """Whether this process holds parts of the weights, by FSDP2 or ZeRO-3."""
    return isinstance(network, FSDPModule) or hasattr(next(network.parameters()), "ds_tensor")


def _nothing_of(network: nn.Module) -> list[Tensor]:
    """Of each trained weight no element, `[0]`: their sum is zero, and so are the gradients.

    DistributedDataParallel waits for a gradient of every trained weight; and an optimizer that passes over weights
    without one would make an update depend on how its rows are spread over batches.
    """
    return [weight.flatten()[:0] for weight in network.parameters() if weight.requires_grad]

"""Text to image with Meissonic: the pipeline that diffusers lacks, for the repositories as they are published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AmusedScheduler, DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .meissonic_transformer import MeissonicTransformer2DModel

PART_CLASSES: dict[str, Any] = {
    "vqvae": VQModel,
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModelWithProjection,
    "transformer": MeissonicTransformer2DModel,
    "scheduler": AmusedScheduler,
}
"""The parts of the pipeline, each in the folder of its name."""

MODEL_PARTS = ("vqvae", "text_encoder", "transformer")

HUB_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "token"})
MODEL_OPTIONS = frozenset({"variant", "use_safetensors", "low_cpu_mem_usage"})

TimestepCondition = Literal["mask_ratio", "step_index"]


# The mixin is diffusers' for a pipeline whose only trained part is its `transformer`; nothing in it is of CogVideoX.
class MeissonicPipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):  # type: ignore[misc]
    """Draws images from prompts by filling in a grid of masked tokens, surest first.

    Loads `MeissonFlow/Meissonic`, which draws 1024 x 1024 pixels, and `Collov-Labs/Monetico`, 512 x 512. The public
    scripts sample the former with the text encoder of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K` in place of its own, for
    stability: load it and pass it to `from_pretrained` as `text_encoder`.

    Args:
        vqvae: images to tokens and back.
        tokenizer, text_encoder: CLIP's, for prompts.
        transformer: predicts the tokens.
        scheduler: chooses the tokens that stay.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vqvae"

    def __init__(
        self,
        vqvae: VQModel,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModelWithProjection,
        transformer: MeissonicTransformer2DModel,
        scheduler: AmusedScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            vqvae=vqvae, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(do_normalize=False)  # the tokenizer's pixels are in [0, 1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "MeissonicPipeline":
        """A pipeline from a Hub id or a folder, as published or as `save_pretrained` writes it.

        The parts are loaded one by one with the classes that they have here, whatever `model_index.json` calls them:
        the published one names classes outside diffusers, which `DiffusionPipeline.from_pretrained` refuses. No code
        from the Hub is run.

        Args:
            pretrained_model_name_or_path: the Hub id or the folder.
            kwargs: of `DiffusionPipeline.from_pretrained`: `torch_dtype` or `dtype` (one, or a dictionary of one per
                part and `"default"`), `quantization_config` with a `quant_mapping`, `cache_dir`, `force_download`,
                `local_files_only`, `revision`, `token`, `variant`, `use_safetensors`, `low_cpu_mem_usage`, and the
                parts themselves, such as `text_encoder`.

        Raises:
            ValueError: for other arguments.
        """
        parts = {name: kwargs.pop(name) for name in PART_CLASSES if name in kwargs}
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        quantization = _quantization_of_parts(kwargs.pop("quantization_config", None))
        if unknown := kwargs.keys() - HUB_OPTIONS - MODEL_OPTIONS:
            raise ValueError(
                f"`MeissonicPipeline.from_pretrained` does not take {', '.join(sorted(unknown))}. It takes "
                f"{', '.join(sorted({'torch_dtype', 'quantization_config', *HUB_OPTIONS, *MODEL_OPTIONS}))} and the "
                f"parts {', '.join(PART_CLASSES)}. Leave it out, or load that part yourself and pass it."
            )
        hub_options = {name: value for name, value in kwargs.items() if name in HUB_OPTIONS}
        for name, part_class in PART_CLASSES.items():
            if name in parts:
                continue
            options = hub_options
            if name in MODEL_PARTS:
                options = {**kwargs, "dtype": _dtype_of_part(dtype, name)}
                if name in quantization:
                    options["quantization_config"] = quantization[name]
            parts[name] = part_class.from_pretrained(pretrained_model_name_or_path, subfolder=name, **options)
        pipeline = cls(**parts)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @property
    def vae_scale_factor(self) -> int:
        """Pixels on each side of a token: 16 for the published models."""
        return int(2 ** (len(self.vqvae.config.block_out_channels) - 1))

    @property
    def default_sample_size(self) -> int:
        """Tokens on each side of the images that the transformer was trained on: 64 if it downsamples, else 32."""
        config = self.transformer.config
        return int(config.sample_size or (64 if config.downsample else 32))

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: 32 for Meissonic, 16 for Monetico."""
        return self.vae_scale_factor * (2 if self.transformer.config.downsample else 1)

    def encode_prompt(
        self, prompt: str | list[str], device: torch.device | None = None, num_images_per_prompt: int = 1
    ) -> tuple[Tensor, Tensor]:
        """What the transformer takes of prompts, in the text encoder's dtype.

        Args:
            prompt: one or several; what CLIP has no room for (77 tokens) is cut off.
            device: where the text encoder is; by default where the pipeline runs.
            num_images_per_prompt: how often each prompt comes, one after the other.

        Returns:
            The last hidden states but one `[B, 77, features]`, and the projected pooled one `[B, features]`.
        """
        tokens = self.tokenizer(
            [prompt] if isinstance(prompt, str) else prompt,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=self.text_encoder.config.max_position_embeddings,
        ).input_ids
        outputs = self.text_encoder(tokens.to(device or self._execution_device), output_hidden_states=True)
        embeds = outputs.hidden_states[-2].repeat_interleave(num_images_per_prompt, dim=0)
        return embeds, outputs.text_embeds.repeat_interleave(num_images_per_prompt, dim=0)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 48,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        micro_conditioning_aesthetic_score: float = 6.0,
        micro_conditioning_crop_coord: tuple[int, int] = (0, 0),
        temperature: float | tuple[float, float] = (2, 0),
        timestep_condition: TimestepCondition = "mask_ratio",
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws images.

        Args:
            prompt: one or several.
            height: in pixels, a multiple of [`size_multiple`]; by default what the transformer was trained at.
            width: likewise.
            num_inference_steps: passes of the transformer.
            guidance_scale: of classifier-free guidance, `u + scale (c - u)` in logits; none at 1 or below.
            negative_prompt: what the guidance leads away from, one for all prompts or one for each; empty by default.
            num_images_per_prompt: images of one prompt stand together.
            generator: one for the whole batch, or a list of one per image, each of which then depends on its own only.
            output_type: of the images; `"latent"` gives their tokens, int64 `[B, h, w]`.
            return_dict: False for a tuple.
            micro_conditioning_aesthetic_score: what the network is told of the image, 6 for "good".
            micro_conditioning_crop_coord: likewise, top and left in pixels, of a training image that was cropped.
            temperature: of the noise in the choice of tokens that stay, falling from first to last step.
            timestep_condition: what the network is told of the progress. `"mask_ratio"`: the share of tokens that are
                still masked, times 1000, as in training. `"step_index"`: the number of steps left after this one, as
                the public code samples.

        Raises:
            ValueError: for sizes that the networks cannot draw, and lists that do not have one entry per image.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        num_images = len(prompts) * num_images_per_prompt
        height, width = self._check_size(height, width)
        _check_choice("timestep_condition", timestep_condition, ("mask_ratio", "step_index"))
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"Got {len(generator)} generators for {num_images} images. Pass one per image, or one.")

        is_guided = guidance_scale > 1
        negatives = _negative_prompts(negative_prompt, len(prompts)) if is_guided else []
        encoded = self.encode_prompt(negatives + prompts, None, num_images_per_prompt)
        embeds, pooled = (each.to(self.transformer.dtype) for each in encoded)
        micro_conds = torch.tensor(
            [width, height, *micro_conditioning_crop_coord, micro_conditioning_aesthetic_score],
            dtype=torch.float32, device=embeds.device,
        ).expand(len(embeds), -1)  # fmt: skip

        grid = (num_images, height // self.vae_scale_factor, width // self.vae_scale_factor)
        tokens = torch.full(grid, self.scheduler.config.mask_token_id, device=embeds.device)
        self.scheduler.set_timesteps(num_inference_steps, temperature, embeds.device)
        for step in self.progress_bar(self.scheduler.timesteps):
            timestep = self._timestep(tokens, step, timestep_condition)
            inputs = [torch.cat([x, x]) if is_guided else x for x in (tokens, timestep)]
            # The public code samples in the network's dtype; bfloat16 keeps 8 bits of the guided logits.
            logits = self.transformer(inputs[0], embeds, pooled, inputs[1], micro_conds).float()
            if is_guided:
                unconditional, conditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            tokens = self._choose(logits, step, tokens, generator)

        images = self._decode(tokens, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _check_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        default = self.default_sample_size * self.vae_scale_factor
        height, width = height or default, width or default
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"`height={height}` and `width={width}` must be multiples of {self.size_multiple}, which is what the "
                "networks make one token of."
            )
        return height, width

    def _timestep(self, tokens: Tensor, step: Tensor, condition: TimestepCondition) -> Tensor:
        """float32 `[B]`."""
        if condition == "step_index":
            return step.float().expand(len(tokens))
        is_masked: Tensor = tokens == self.scheduler.config.mask_token_id
        return is_masked.flatten(1).float().mean(1) * 1000

    def _choose(
        self, logits: Tensor, step: Tensor, tokens: Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """The tokens after a step, int64 `[B, h, w]`."""
        if not isinstance(generator, list):
            drawn: Tensor = self.scheduler.step(logits, step, tokens, generator=generator).prev_sample
            return drawn
        chosen = [self._choose(logits[[i]], step, tokens[[i]], own) for i, own in enumerate(generator)]
        return torch.cat(chosen)

    def _decode(self, tokens: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return tokens
        vqvae = self.vqvae
        is_upcast = vqvae.dtype == torch.float16 and vqvae.config.force_upcast
        if is_upcast:
            vqvae.float()
        shape = (*tokens.shape, vqvae.config.latent_channels)
        pixels = vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample.clip(0, 1)
        if is_upcast:
            vqvae.half()
        return self.image_processor.postprocess(pixels, output_type)


def _dtype_of_part(dtype: torch.dtype | Mapping[str, torch.dtype] | None, name: str) -> torch.dtype:
    if isinstance(dtype, Mapping):
        return dtype.get(name, dtype.get("default", torch.float32))
    return dtype or torch.float32


def _quantization_of_parts(config: Any) -> Mapping[str, Any]:
    if config is None:
        return {}
    mapping: Mapping[str, Any] | None = getattr(config, "quant_mapping", None)
    if not mapping:
        raise ValueError(
            "`quantization_config` must be a `PipelineQuantizationConfig` with a `quant_mapping`, such as "
            "`PipelineQuantizationConfig(quant_mapping={'transformer': config})`."
        )
    return mapping


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}={value!r}` is unknown. Use {' or '.join(repr(choice) for choice in choices)}.")


def _negative_prompts(negative: str | list[str] | None, num_prompts: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ""] * num_prompts
    if len(negative) != num_prompts:
        raise ValueError(f"Got {len(negative)} negative prompts for {num_prompts} prompts. Pass one for each, or one.")
    return list(negative)

"""The frozen encoders of a pipeline: what turns images and prompts into what the network takes."""

import functools
import inspect
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from typing import Any

import diffusers
import PIL
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..families.base import Family, present
from ..families.base_latents import LatentFamily
from ..precision import cast
from ..storage.fingerprints import component_fingerprint, fingerprint


class FrozenEncoders:
    """A family's encoders on a pipeline, with their place and their fingerprint.

    Args:
        family: how this pipeline is called.
        pipeline: the user's pipeline.
        device: where to encode.
        dtype: of the prompt encoders; image encoders run in float32, where no autoencoder overflows.

    Attributes:
        digests: of encoders by name, for those without weights.
    """

    def __init__(self, family: Family, pipeline: DiffusionPipeline, device: torch.device, dtype: torch.dtype) -> None:
        self.family = family
        self.digests: dict[str, str] = {}
        self.pipeline = pipeline
        self.device = device
        for names, dtype_ in ((family.image_encoders, torch.float32), (family.prompt_encoders, dtype)):
            for module in self._modules(names):
                module.requires_grad_(False).eval()
                cast(module, dtype_)

    @torch.no_grad()
    def images(self, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Encodes pixels and geometry to the tensors of [`~tgo_trl.families.Family.encode_images`]."""
        self._place(self.family.image_encoders, self.device)
        return self.family.encode_images(self.pipeline, pixels.to(self.device), geometry.to(self.device))

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encodes `B` prompts to the family's prompt tensors `[B, ...]`."""
        self._place(self.family.prompt_encoders, self.device)
        return self.family.encode_prompts(self.pipeline, list(prompts))

    @torch.no_grad()
    def sources(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encodes source images `[B, S, 3, H, W]` to the tensors of [`~tgo_trl.families.Family.encode_sources`]."""
        self._place(self.family.image_encoders, self.device)
        return self.family.encode_sources(self.pipeline, pixels.to(self.device))

    @torch.no_grad()
    def edits(self, prompts: Sequence[str], pixels: Tensor) -> dict[str, Tensor]:
        """Encodes `B` prompts beside their sources `[B, S, 3, H, W]` to the family's prompt tensors `[B, ...]`."""
        self._place(self.family.prompt_encoders, self.device)
        return self.family.encode_edits(self.pipeline, list(prompts), pixels.to(self.device))

    @torch.no_grad()
    def nothing(self) -> dict[str, Tensor]:
        """What the networks take in place of a prompt, to be guided away from, `[1, ...]`."""
        self._place(self.family.prompt_encoders, self.device)
        return self._latent_family.encode_nothing(self.pipeline)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels float `[B, 3, H, W]` of latents, about -1 to 1, with gradient."""
        self._place(self.family.image_encoders, self.device)
        return self._latent_family.decode(self.pipeline, latents)

    def recompute_decoding(self) -> None:
        """Has autoencoders recompute their blocks in the backward pass, where they can."""
        autoencoders: list[Any] = self._modules(self.family.image_encoders)
        for autoencoder in autoencoders:
            if getattr(autoencoder, "_supports_gradient_checkpointing", False):
                autoencoder.enable_gradient_checkpointing()

    def summon(self) -> None:
        """Moves everything frozen to the device, to sample from the pipeline."""
        self._place(self._frozen_names(), self.device)

    def release(self) -> None:
        """Moves everything frozen off the device; encoders come back when they are used."""
        self._place(self._frozen_names(), torch.device("cpu"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within, autoencoders decode latents of any dtype in their own, float32; pipelines pass the prompts'.

        So do they encode source images, for pipelines that make images from others.

        Instead of autocast, in which their convolutions would overflow in float16 as they do not in float32.
        """
        decoders: list[Any] = [
            module for module in self._modules(self.family.image_encoders) if hasattr(module, "decode")
        ]
        for decoder in decoders:
            dtype = next(decoder.parameters()).dtype
            decoder.decode = functools.partial(_decode_in_own_dtype, decoder.decode, dtype)
            if self.family.most_sources:
                decoder.encode = functools.partial(_encode_in_own_dtype, decoder.encode, dtype)
        try:
            yield
        finally:
            for decoder in decoders:
                del decoder.decode  # the method of its class is back
                if self.family.most_sources:
                    del decoder.encode

    @cached_property
    def image_recipe(self) -> str:
        """A fingerprint of how images are encoded."""
        return self._recipe(self.family.image_encoders)

    @cached_property
    def prompt_recipe(self) -> str:
        """A fingerprint of how prompts are encoded."""
        return self._recipe(self.family.prompt_encoders)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A digest of each encoder and tokenizer, by name."""
        names = (*self.family.image_encoders, *self.family.prompt_encoders)
        parts = present(self.pipeline, names)
        return {name: self.digests.get(name) or component_fingerprint(part) for name, part in parts.items()}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those of the encoders that have weights, by name."""
        names = (*self.family.image_encoders, *self.family.prompt_encoders)
        return {name: it for name, it in present(self.pipeline, names).items() if isinstance(it, nn.Module)}

    @property
    def _latent_family(self) -> LatentFamily:
        assert isinstance(self.family, LatentFamily)
        return self.family

    def _recipe(self, names: Sequence[str]) -> str:
        components = [self.fingerprints[name] for name in present(self.pipeline, names)]
        versions = (diffusers.__version__, transformers.__version__, PIL.__version__)
        family = self.family
        names = [field.name for field in fields(family) if field.name not in family.training_settings]
        settings = [(name, getattr(family, name)) for name in names]
        return fingerprint(*_code_version(type(family)), settings, self.device.type, *versions, *components)

    def _frozen_names(self) -> list[str]:
        return [name for name in self.pipeline.components if name not in self.family.network_names]

    def _place(self, names: Sequence[str], device: torch.device) -> None:
        for module in self._modules(names):
            module.to(device)

    def _modules(self, names: Sequence[str]) -> list[nn.Module]:
        components = [getattr(self.pipeline, name) for name in names]
        return [component for component in components if isinstance(component, nn.Module)]


def _code_version(family: type[Family]) -> list[str]:
    """What tells one way of encoding from another: a family's name, and the versions of all that it is made of.

    Of code that is not this package's, whose author may not think of the version, the source too.
    """
    package = Family.__module__.partition(".")[0]
    bases = [base for base in family.__mro__ if base not in (object, ABC)]
    versions = [str(vars(base)["encoding_version"]) for base in bases if "encoding_version" in vars(base)]
    foreign = [base for base in bases if base.__module__.partition(".")[0] != package]
    return [family.__qualname__, *versions, *map(_source, foreign)]


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # made at a prompt
        return f"{cls.__module__}.{cls.__qualname__}"


def _decode_in_own_dtype(
    decode: Callable[..., Any], dtype: torch.dtype, latents: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return decode(latents.to(dtype) if latents.is_floating_point() else latents, *args, **kwargs)


def _encode_in_own_dtype(
    encode: Callable[..., Any], dtype: torch.dtype, pixels: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """With the posterior's mean, which is what pipelines take of sources, in the dtype of the pixels."""
    output = encode(pixels.to(dtype), *args, **kwargs)
    output.latent_dist.mean = output.latent_dist.mean.to(pixels.dtype)
    return output

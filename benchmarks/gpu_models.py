"""What is timed on a GPU: published networks with random weights, in pipelines whose other parts are tiny.

At the published sizes, a network is built from its configuration on the device itself, and the rows that the trainer
reads from disk have the names, shapes and dtypes of what the family caches, filled with random numbers: the encoders of
the tests' pipelines stand in for those of the model, and what they give is replaced. So neither the Hub nor the weights
of encoders are needed, and a step is what it is with them. Prompts are as long as the family pads them, which for
networks that do not see padding (Z-Image, Qwen-Image) is the longest that they take.

At the scale `tiny`, network and rows are those of the tests.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tests.tiny import scored_rows, scored_videos
from tgo_trl.families import Family, find_family

from .lora_memory import CASES as PUBLISHED

SCALES = ("real", "tiny")


@dataclass(frozen=True)
class Model:
    """A published model at one size.

    Attributes:
        title: for tables.
        published: key of its architecture in `lora_memory.CASES`.
        tiny_name: of the module of `tests.tiny` that has its pipeline.
        latents: shape of a clean sample.
        prompt: shape of each tensor of an encoded prompt.
        batch_sizes: that are measured with an adapter.
        full_batch_sizes: with all weights trained; none where weights, gradients, moments and reference, 20 bytes of
            each number, leave a card of 80 GB no room.
        num_rows: at least so many are encoded.
    """

    title: str
    published: str
    tiny_name: str
    latents: tuple[int, ...]
    prompt: Mapping[str, tuple[int, ...]]
    batch_sizes: tuple[int, ...]
    full_batch_sizes: tuple[int, ...] = ()
    num_rows: int = 64

    @property
    def tiny(self) -> ModuleType:
        """The module of the tests' pipeline."""
        return importlib.import_module(f"tests.tiny.{self.tiny_name}")


_FLUX = {"embeds": (512, 4096), "pooled": (768,)}
_SDXL = {"embeds": (77, 2048), "pooled": (1280,)}
_SD3 = {"embeds": (333, 4096), "pooled": (2048,)}
_WAN = {"embeds": (512, 4096)}
MODELS = {
    "sd15-512": Model(
        "SD 1.5, 512", "sd15", "stable_diffusion", (4, 64, 64), {"embeds": (77, 768)}, (1, 4, 8, 16, 32), (1, 8)
    ),
    "sdxl-1024": Model("SDXL, 1024", "sdxl", "stable_diffusion_xl", (4, 128, 128), _SDXL, (1, 4, 8), (1,)),
    "sd35-medium-1024": Model(
        "SD3.5 medium, 1024", "sd35-medium", "stable_diffusion_3", (16, 128, 128), _SD3, (1, 4, 8), (1,)
    ),
    "flux-512": Model("FLUX.1, 512", "flux", "flux", (16, 64, 64), _FLUX, (1, 2, 4)),
    "flux-1024": Model("FLUX.1, 1024", "flux", "flux", (16, 128, 128), _FLUX, (1, 2, 4)),
    "wan-33": Model(
        "Wan 2.1 1.3B, 480 x 832 x 33", "wan-1.3b", "wan", (16, 9, 60, 104), _WAN, (1, 2), (1,), num_rows=16
    ),
    "wan-81": Model("Wan 2.1 1.3B, 480 x 832 x 81", "wan-1.3b", "wan", (16, 21, 60, 104), _WAN, (1,), num_rows=8),
    "z-image-1024": Model(
        "Z-Image, 1024", "z-image", "z_image", (16, 128, 128), {"embeds": (512, 2560), "mask": (512,)}, (1, 2, 4)
    ),
    "qwen-image-1024": Model(
        "Qwen-Image, 1024", "qwen-image", "qwen_image", (16, 128, 128), {"embeds": (512, 3584), "mask": (512,)}, (1, 2)
    ),
}


# ---- Networks ----


@contextmanager
def created_in(dtype: torch.dtype) -> Iterator[None]:
    """Within, parameters are put into a dtype one by one, as they are made: 12 billion in float32 would fill a card."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to(dtype), parameter.requires_grad)
        register(module, name, parameter)

    with mock.patch.object(nn.Module, "register_parameter", registered):
        yield


def build_network(model: Model, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The published network with the weights that training would begin with, on the device."""
    torch.manual_seed(0)
    with device, created_in(dtype):
        return PUBLISHED[model.published].build()


def build_pipeline(model: Model, scale: str) -> DiffusionPipeline:
    """The tests' tiny pipeline; at the scale `real`, for latents of the published network."""
    pipeline = model.tiny.build()
    config = pipeline.vae.config
    if scale == "real" and config.get("latents_mean") is not None:  # one for each channel
        channels = model.latents[0]
        pipeline.vae.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    return pipeline


# ---- Rows ----


def build_family(model: Model, scale: str, pipeline: DiffusionPipeline) -> Family:
    """The pipeline's family; at the scale `real`, with random numbers of the published shapes for what it encodes."""
    found = find_family(type(pipeline))
    shapes = {} if scale == "tiny" else {"mean": model.latents, "std": model.latents, **model.prompt}

    class WithRandomEncodings(found):  # type: ignore[misc, valid-type]
        def check(self, pipeline: DiffusionPipeline) -> None:
            """Nothing: the encoders do not fit the network."""

        def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
            return replaced(super().encode_images(pipeline, pixels, geometry), shapes)

        def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
            return replaced(super().encode_prompts(pipeline, prompts), shapes)

    return (WithRandomEncodings if shapes else found)(**model.tiny.SETTINGS)


def replaced(encoded: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Standard normal numbers, or ones of a mask, for those tensors `[B, ...]` that have a shape, in their dtypes."""
    result = dict(encoded)
    for name in encoded.keys() & shapes.keys():
        old = encoded[name]
        make = torch.randn if old.is_floating_point() else torch.ones
        result[name] = make(len(old), *shapes[name], dtype=old.dtype, device=old.device)
    return result


def encode_one(model: Model, family: Family, pipeline: DiffusionPipeline) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an image or a clip and of a prompt, `[1, ...]`, as the trainer passes them on."""
    frames = (model.tiny.NUM_FRAMES,) if len(model.latents) == 4 else ()
    pixels = torch.zeros(1, 3, *frames, model.tiny.RESOLUTION, model.tiny.RESOLUTION)
    with torch.no_grad():
        image = family.encode_images(pipeline, pixels, torch.zeros(1, 4, dtype=torch.int64))
        prompt: dict[str, Any] = family.encode_prompts(pipeline, ["a red cat"])
    if family.reads_lengths:
        prompt["lengths"] = (int(prompt["mask"].sum()),)
    return image, prompt


def build_rows(model: Model, num_rows: int) -> Dataset:
    """Random pictures or clips with prompts and scores, as small as the tests'."""
    if len(model.latents) == 4:
        return scored_videos(num_rows, model.tiny.NUM_FRAMES)
    return scored_rows(num_rows)

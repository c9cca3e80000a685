"""Published networks, as deep as they are and as narrow as they can be, and a plain loop's call of each of them.

What a plain loop asks a network is written down for each kind, without `tgo_trl`: with conditions, ids and guidance
that are there already. It does what a training script does in every step: packs latents, scales times, unpacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline, Flux2KleinPipeline, FluxPipeline, QwenImagePipeline
from torch import Tensor

from tests.cases import CASES
from tests.tiny import flux, flux2, qwen_image, scored_rows, stable_diffusion_3, stable_diffusion_xl, wan, z_image
from tests.tiny.flux_kontext import build as build_kontext
from tests.tiny.stable_diffusion import build as build_stable_diffusion

SIDE = 16
"""Latents of a picture: so many that even the lowest level of a UNet has several, between which attention tells."""

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Depth:
    """A published network, as deep as it is and as narrow as it can be.

    Attributes:
        name: of what is as deep.
        build: a pipeline that has it; keyword arguments, of its network, take the place of those of the depth.
        denoiser: of a network and a number of rows, what asks the network, of noisy latents and their time, as a plain
            loop would, with conditions that are there already.
        latents: shape of a clean sample.
        shallow: keyword arguments of `build` for a network of one or two layers.
        settings: of the run, that give such latents.
        rows: so many rows to train on.
    """

    name: str
    build: Callable[..., DiffusionPipeline]
    denoiser: Callable[[Any, int], Denoise]
    latents: tuple[int, ...] = (4, SIDE, SIDE)
    shallow: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=lambda: {"resolution": 2 * SIDE})
    rows: Callable[[int], Dataset] = scored_rows


def half(*shape: int) -> Tensor:
    """Random numbers in bfloat16, as encoded prompts are."""
    return torch.randn(*shape, dtype=torch.bfloat16)


# ---- What a plain loop asks ----


def denoiser_of_sd15(unet: Any, batch: int) -> Denoise:
    embeds = half(batch, 77, 32)
    return lambda noisy, time: unet(noisy, time, embeds, return_dict=False)[0]


def denoiser_of_sdxl(unet: Any, batch: int) -> Denoise:
    embeds = half(batch, 77, 64)
    told = {"text_embeds": half(batch, 32), "time_ids": torch.zeros(batch, 6)}
    return lambda noisy, time: unet(noisy, time, embeds, added_cond_kwargs=told, return_dict=False)[0]


def denoiser_of_sd3(transformer: Any, batch: int) -> Denoise:
    embeds, pooled = half(batch, 333, stable_diffusion_3.T5_WIDTH), half(batch, 64)
    return lambda noisy, time: transformer(noisy, embeds, pooled, time, return_dict=False)[0]


def denoiser_of_flux(transformer: Any, batch: int, has_source: bool = False) -> Denoise:
    """Of Kontext with the latents of a source, which a script encodes ahead, and packs in every step."""
    length = 512
    embeds, pooled = half(batch, length, 32), half(batch, 32)
    text_ids = torch.zeros(length, 3, dtype=torch.bfloat16)
    image_ids = FluxPipeline._prepare_latent_image_ids(batch, SIDE // 2, SIDE // 2, "cpu", torch.bfloat16)
    num_tokens, guidance = len(image_ids), torch.full((batch,), 3.5)
    source = half(batch, 4, SIDE, SIDE)
    if has_source:
        source_ids = image_ids.clone()
        source_ids[:, 0] = 1
        image_ids = torch.cat([image_ids, source_ids])

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        packed = FluxPipeline._pack_latents(noisy, batch, 4, SIDE, SIDE)
        if has_source:
            packed = torch.cat([packed, FluxPipeline._pack_latents(source, batch, 4, SIDE, SIDE)], 1)
        prediction = transformer(
            packed, embeds, pooled, time, img_ids=image_ids, txt_ids=text_ids, guidance=guidance, return_dict=False
        )[0]
        return FluxPipeline._unpack_latents(prediction[:, :num_tokens], SIDE, SIDE, 1)

    return denoise


def denoiser_of_flux2(transformer: Any, batch: int) -> Denoise:
    embeds = half(batch, 512, 48)
    image_ids = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(batch, 16, SIDE // 2, SIDE // 2))
    text_ids = Flux2KleinPipeline._prepare_text_ids(embeds)

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        prediction = transformer(
            noisy.flatten(2).transpose(1, 2), embeds, time / 1000, image_ids, text_ids, None, return_dict=False
        )[0]
        return prediction.transpose(1, 2).reshape(noisy.shape)

    return denoise


def denoiser_of_wan(transformer: Any, batch: int) -> Denoise:
    embeds = half(batch, 512, 32)
    return lambda noisy, time: transformer(noisy, time, embeds, return_dict=False)[0]


def denoiser_of_qwen_image(transformer: Any, batch: int) -> Denoise:
    embeds, shapes = half(batch, 8, 16), [[(1, SIDE // 2, SIDE // 2)]] * batch

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        packed = QwenImagePipeline._pack_latents(noisy, batch, 4, SIDE, SIDE)
        prediction = transformer(packed, embeds, None, time / 1000, shapes, return_dict=False)[0]
        return QwenImagePipeline._unpack_latents(prediction, SIDE, SIDE, 1).squeeze(2)

    return denoise


def denoiser_of_z_image(transformer: Any, batch: int) -> Denoise:
    embeds = list(half(batch, 12, 16))

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        prediction = transformer(list(noisy.unsqueeze(2)), (1000 - time) / 1000, embeds, return_dict=False)[0]
        return -torch.stack(prediction).squeeze(2)

    return denoise


# ---- Depths ----

ONE_OF_EACH = {"num_layers": 1, "num_single_layers": 1}
KONTEXT = next(case for case in CASES if case.name == "flux_kontext")
DEPTHS = {
    "sd15": Depth(
        "SD 1.5",
        partial(
            build_stable_diffusion,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=2,
            sample_size=SIDE,
        ),
        denoiser_of_sd15,
        shallow={"layers_per_block": 1},
    ),
    "sdxl": Depth(
        "SDXL",
        partial(
            stable_diffusion_xl.build,
            block_out_channels=(8, 8, 8),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(2, 2, 2),
            sample_size=SIDE,
        ),
        denoiser_of_sdxl,
        shallow={"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
    ),
    "sd35-medium": Depth(
        "SD3.5 medium",
        partial(stable_diffusion_3.build, num_layers=24, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        denoiser_of_sd3,
        shallow={"num_layers": 2, "dual_attention_layers": (0,)},
    ),
    "flux": Depth(
        "FLUX.1", partial(flux.build, num_layers=19, num_single_layers=38), denoiser_of_flux, shallow=ONE_OF_EACH
    ),
    "flux-kontext": Depth(
        "FLUX.1 Kontext, of a source",
        partial(build_kontext, num_layers=19, num_single_layers=38),
        partial(denoiser_of_flux, has_source=True),
        shallow=ONE_OF_EACH,
        rows=KONTEXT.rows,
    ),
    "flux2-klein": Depth(
        "FLUX.2 [klein] 4B",
        partial(flux2.build, num_layers=5, num_single_layers=20),
        denoiser_of_flux2,
        (16, SIDE // 2, SIDE // 2),
        ONE_OF_EACH,
    ),
    "wan-1.3b": Depth(
        "Wan 2.1 1.3B",
        partial(wan.build, num_layers=30),
        denoiser_of_wan,
        (16, 2, 4, 4),
        {"num_layers": 1},
        {"resolution": wan.RESOLUTION, "num_frames": wan.NUM_FRAMES},
        next(case for case in CASES if case.name == "wan").rows,
    ),
    "qwen-image": Depth(
        "Qwen-Image",
        partial(qwen_image.build, num_layers=60),
        denoiser_of_qwen_image,
        shallow={"num_layers": 1},
        settings={"resolution": 4 * SIDE, **qwen_image.SETTINGS},
    ),
    "z-image": Depth(
        "Z-Image",
        partial(z_image.build, n_layers=30),
        denoiser_of_z_image,
        shallow={"n_layers": 1, "n_refiner_layers": 1},
        settings={"resolution": 2 * SIDE, **z_image.SETTINGS},
    ),
}
"""By the names that `--depth` takes."""

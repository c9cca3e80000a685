"""The tiny pipelines, one case per kind, and what the tests of all families do with them.

A case is found by itself: any module of `tests.tiny` with `build`, and each of its `VARIANTS`. Such a module has

- `build(seed, **network_kwargs)`, and `VARIANTS`, other builders by name;
- `RESOLUTION`, and for videos `NUM_FRAMES`;
- `CALL`, keyword arguments of a fast call of the pipeline, and `UNGUIDED`, those that switch guidance off;
- `SETTINGS`, of the family;
- `denoising_error(pipeline, pixels, prompts, draw)`, `[B]`: the error by a second formula, written from the public
  parts of pipeline and scheduler, without `tgo_trl`: of a published training script, which its docstring names, or our
  own where there is none;
- for families of edits, `SOURCES`, the source images of each of the two [`PROMPTS`];
- `read_call(arguments, latent_shape)`: corrupted sample and time, as the family's `predict` takes them, from what the
  pipeline fed its network;
- where training makes but some of the calls that the pipeline makes, `is_like_training(arguments)`, which of them, and
  `UNSEEN`, names of arguments that change nothing of their outputs that training reads.
"""

import copy
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image
import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tgo_trl import TGOConfig
from tgo_trl.families import Family, build_family, edit_family
from tgo_trl.losses import RowErrors
from tgo_trl.media.images import image_to_tensor
from tgo_trl.media.sizes import crop_geometry
from tgo_trl.policy.denoising import Denoiser
from tgo_trl.policy.draws import Draw, draw_rows
from tgo_trl.policy.errors import row_errors
from tgo_trl.policy.policy import Policy, build_policy
from tgo_trl.policy.reference import AdapterReference

from . import tiny
from .runs import config

PROMPTS = ["a red cat", "a blue dog on a hill"]


@dataclass(frozen=True)
class Case:
    """One kind of pipeline.

    Attributes:
        name: of the module, and of the variant.
        module: in `tests.tiny`.
        build: the builder.
    """

    name: str
    module: ModuleType
    build: Callable[..., DiffusionPipeline]

    @property
    def num_frames(self) -> int | None:
        return getattr(self.module, "NUM_FRAMES", None)

    def fresh(self) -> DiffusionPipeline:
        """As `build` gives it, in less time: networks and scheduler are its own, and the rest is that of all others.

        For tests that leave encoders and tokenizers as they are.
        """
        built = _built(self)
        own = (*self.family(built).network_names, "scheduler")
        shared = [part for name, part in built.components.items() if name not in own]
        return copy.deepcopy(built, {id(part): part for part in shared})

    def family(self, pipeline: DiffusionPipeline) -> Family:
        return self.family_with(pipeline, self.module.SETTINGS)

    def family_with(self, pipeline: DiffusionPipeline, settings: dict[str, Any]) -> Family:
        """That of edits, if the case has sources."""
        family = build_family(type(pipeline), settings)
        return family if self.sources is None else edit_family(family)

    def pixels(self, num_rows: int = 2, seed: int = 0) -> Tensor:
        frames = () if self.num_frames is None else (self.num_frames,)
        shape = (num_rows, 3, *frames, self.module.RESOLUTION, self.module.RESOLUTION)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    def geometry(self, num_rows: int = 2) -> Tensor:
        size = (self.module.RESOLUTION, self.module.RESOLUTION)
        return crop_geometry(size, size).expand(num_rows, -1)

    def rows(self, num_rows: int = 8, seed: int = 0) -> Dataset:
        if self.num_frames is None:
            rows = tiny.scored_rows(num_rows, seed)
        else:
            rows = tiny.scored_videos(num_rows, self.num_frames, seed)
        if self.sources is None:
            return rows
        return tiny.with_sources(rows, [self.sources[i % 2] for i in range(num_rows)])

    @property
    def sources(self) -> list[list[PIL.Image.Image]] | None:
        return getattr(self.module, "SOURCES", None)

    def source_pixels(self, num_rows: int = 2) -> Tensor:
        """`[B, S, 3, H, W]`."""
        size = (self.module.RESOLUTION, self.module.RESOLUTION)
        rows = [self.sources[i % 2] for i in range(num_rows)]
        return torch.stack([torch.stack([image_to_tensor(image, size) for image in images]) for images in rows])

    def encode(self, family: Family, pipeline: DiffusionPipeline, num_rows: int = 2) -> tuple[dict, dict]:
        """Rows, encoded: what there is of images, sources among it, and of prompts."""
        prompts = [PROMPTS[i % 2] for i in range(num_rows)]
        with torch.no_grad():
            image = family.encode_images(pipeline, self.pixels(num_rows), self.geometry(num_rows))
            if self.sources is None:
                return image, family.encode_prompts(pipeline, prompts)
            pixels = self.source_pixels(num_rows)
            image |= family.encode_sources(pipeline, pixels)
            if family.prompts_see_sources:
                return image, family.encode_edits(pipeline, prompts, pixels)
            return image, family.encode_prompts(pipeline, prompts)

    def config(self, folder: Path, **settings: Any) -> TGOConfig:
        own = {"resolution": self.module.RESOLUTION, "gradient_checkpointing": True, **self.module.SETTINGS}
        return config(folder, **{**own, **settings})

    def setup(
        self, folder: Path, dtype: torch.dtype = torch.float32, num_rows: int = 2,
        pipeline: DiffusionPipeline | None = None, **settings: Any,
    ) -> "Setup":  # fmt: skip
        """A policy with a fresh adapter, and encoded rows: of a [`fresh`] pipeline, or of one that is given."""
        if pipeline is None:
            pipeline, encoded = self.fresh(), _encoded(self, num_rows)
        else:
            encoded = self.encode(self.family(pipeline), pipeline, num_rows)
        image, prompt = ({name: tensor.clone() for name, tensor in tensors.items()} for tensors in encoded)
        family = self.family(pipeline)
        torch.manual_seed(0)
        policy, _ = build_policy(pipeline, family, self.config(folder, **settings), None, dtype)
        return Setup(pipeline, family, policy, AdapterReference(policy, keep_copy=False), image, prompt)


@functools.cache
def _built(case: Case) -> DiffusionPipeline:
    return case.build()


@functools.cache
def _encoded(case: Case, num_rows: int) -> tuple[dict, dict]:
    pipeline = _built(case)
    return case.encode(case.family(pipeline), pipeline, num_rows)


@dataclass(frozen=True)
class Setup:
    """A policy and encoded rows."""

    pipeline: DiffusionPipeline
    family: Family
    policy: Policy
    reference: AdapterReference
    image: dict[str, Tensor]
    prompt: dict[str, Tensor]

    def draw(self, num_samples: int = 1, rows: tuple[int, ...] = (0, 1), seed: int = 0) -> Draw:
        shape = self.family.latent_shape(self.image)
        return draw_rows(seed, [0] * len(rows), rows, shape, num_samples, torch.device("cpu"))

    def errors(self, draw: Draw | None = None, order: list[int] | None = None) -> RowErrors:
        """Of the rows in an order, or of those that the order names."""
        image, prompt = (
            {name: tensor if order is None else tensor[order] for name, tensor in tensors.items()}
            for tensors in (self.image, self.prompt)
        )
        draw = draw or self.draw()
        if order is not None:
            draw = Draw(draw.quantile[order], draw.noise[order], draw.posterior_noise[order])
        denoiser = Denoiser(self.family, self.pipeline, self.family.process(self.pipeline))
        return row_errors(self.policy, self.reference, denoiser.corrupt(image, prompt, draw))


def perturb(module: nn.Module, scale: float = 0.2, seed: int = 0) -> None:
    """Adds noise to every trained weight, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * scale)


def calls_of(network: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> list[tuple[dict, Any]]:
    """The arguments, by name, and the output of every call of a network while `run(*args, **kwargs)` runs."""
    calls = []
    signature = inspect.signature(network.forward)

    def keep(_: nn.Module, given: tuple, named: dict[str, Any], output: Any) -> None:
        calls.append((dict(signature.bind(*given, **named).arguments), output))

    handle = network.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            run(*args, **kwargs)
    finally:
        handle.remove()
    return calls


def _find_cases() -> list[Case]:
    cases = []
    for info in pkgutil.iter_modules(tiny.__path__):
        module = importlib.import_module(f"{tiny.__name__}.{info.name}")
        if not hasattr(module, "build"):
            continue
        cases.append(Case(info.name, module, module.build))
        for name, build in getattr(module, "VARIANTS", {}).items():
            cases.append(Case(f"{info.name}-{name}", module, build))
    return cases


CASES = _find_cases()
RELATIVES = (
    "chroma",
    "flux2_dev",
    "flux2_dev_edit",
    "krea2",
    "longcat_image",
    "longcat_image_edit",
    "qwen_image21",
    "qwen_image21_edit",
    "qwen_image_edit_plus",
)
"""Kinds that others much like them stand for in fast tests."""


def as_parameter(case: Case, is_slow: bool) -> Any:
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if is_slow else [])


KINDS = [
    as_parameter(case, case.name in RELATIVES or ("-" in case.name and case.name != "wan-two_stage")) for case in CASES
]
"""The cases as parameters, of which relatives and variants of a kind are slow, but for one of two networks."""
FEW = ("flux", "ltx2", "meissonic", "qwen_image_edit", "stable_diffusion", "stable_diffusion_3", "wan-two_stage")
KINDS_THAT_TAKE_LONG = [as_parameter(case, case.name not in FEW) for case in CASES]
"""The cases as parameters for tests of whole runs, of which a few stand for all in fast tests."""

"""A pipeline without its weights: its networks have shapes alone, so that it can be asked what it would take."""

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .. import models
from ..families import Family
from ..families.base import present
from .named import HUB_OPTIONS
from .part_class import class_in_index, is_part
from .shapes_and_numbers import META

ASKING_FOR_VALUES = ("attention_mask", "use_cache")
"""Arguments of text encoders that change no shape, with which those of transformers look at values; left out where they
may be."""


def load_skeleton(
    model: str, pipeline_class: str, index: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> DiffusionPipeline:
    """The pipeline of a Hub id or folder, with networks on the meta device; of a Hub id, no weights are fetched.

    Schedulers and tokenizers are there.

    Args:
        model: Hub id or folder.
        pipeline_class: the name of a class of diffusers, or of this package.
        index: the pipeline's `model_index.json`.
        kwargs: for `from_pretrained`; parts that are passed as objects are taken as they are.
    """
    found: Any = pipeline_type(pipeline_class)
    hints = typing.get_type_hints(found.__init__)
    parts = {}
    for name, entry in index.items():
        part_class = None if name in kwargs else _network_class(entry, hints.get(name))
        if part_class is not None:
            options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            parts[name] = without_weights(part_class, model, name, options)
    # not of `DiffusionPipeline`, which loads what a pipeline may lack although it is passed
    pipeline: DiffusionPipeline = found.from_pretrained(model, **kwargs, **parts)
    return pipeline


def pipeline_type(name: str) -> Any:
    """The class of a pipeline, of diffusers or of this package, by its name; None if neither has it."""
    return getattr(diffusers, name, None) or getattr(models, name, None)


def _network_class(entry: Any, hint: Any) -> Any:
    """The class of a part that a `model_index.json` names, if it is a network.

    Args:
        entry: its library and class.
        hint: what the pipeline takes, which is right where the two do not go together: published indexes name classes
            that are nowhere.
    """
    if not is_part(entry):
        return None
    named, is_class = class_in_index(entry, of_diffusers_alone=False), isinstance(hint, type)
    if named is None or (is_class and not issubclass(named, hint)):
        named = hint if is_class else None
    return named if isinstance(named, type) and issubclass(named, nn.Module) else None


def without_weights(network_class: Any, model: str, name: str, options: Mapping[str, Any]) -> Any:
    """A network on the meta device.

    Args:
        network_class: its class.
        model: Hub id or folder.
        name: of the folder there with its configuration.
        options: for reading it.
    """
    if issubclass(network_class, transformers.PreTrainedModel):
        config = network_class.config_class.from_pretrained(model, subfolder=name, **options)
        with META:
            return network_class(config).eval()
    config = network_class.load_config(model, subfolder=name, **options)
    with META:
        return network_class.from_config(config).eval()


@torch.no_grad()
def encoded_shapes(
    family: Family, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor, prompt: str, num_sources: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What would be encoded of a row: of its image, of its prompt and of its sources, `[1, ...]` on the meta device.

    Of prompts that are encoded beside their sources nothing is told. What is encoded of a prompt and is no float, such
    as its mask, is there itself, on the CPU.

    Args:
        family: of the pipeline.
        pipeline: a skeleton.
        pixels: of an image or video, `[3, ..., H, W]`.
        geometry: `[4]`.
        prompt: of the row.
        num_sources: source images of the row.
    """
    image = family.encode_images(pipeline, pixels[None].to(META), geometry[None].to(META))
    sources = torch.zeros(1, num_sources, 3, *pixels.shape[-2:])  # images, of videos too
    of_sources = family.encode_sources(pipeline, sources.to(META)) if num_sources else {}
    networks = present(pipeline, family.prompt_encoders).values()
    with _on_the_host([it for it in networks if isinstance(it, nn.Module)]):
        if num_sources and family.prompts_see_sources:
            return image, {}, of_sources  # a network that sees pictures asks how many parts each has
        found = family.encode_prompts(pipeline, [prompt])
    return image, {name: it.to(META) if it.is_floating_point() else it for name, it in found.items()}, of_sources


@contextmanager
def _on_the_host(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Within, networks without weights take tensors of the CPU, and give zeros there.

    What asks how long a prompt is has to be told, which shapes alone are not.
    """

    def shapes(network: nn.Module, args: Any, kwargs: Any) -> Any:
        parameters = inspect.signature(network.forward).parameters
        given = {**dict(zip(list(parameters)[: len(args)], args, strict=True)), **kwargs}
        needless = {name for name in ASKING_FOR_VALUES if name in parameters and parameters[name].default is None}
        given = {name: it for name, it in given.items() if name not in needless}
        return (), tree_map_only(Tensor, lambda it: it.to(META), given)

    def zeros(_: nn.Module, __: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda it: torch.zeros_like(it, device="cpu"), output)

    with ExitStack() as stack:
        for network in networks:
            dtype = next(network.parameters()).dtype
            network.register_parameter("_host", nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False))
            stack.callback(network._parameters.pop, "_host")  # first, it says where they are
            for handle in (
                network.register_forward_pre_hook(shapes, with_kwargs=True),
                network.register_forward_hook(zeros),
            ):
                stack.callback(handle.remove)
        yield

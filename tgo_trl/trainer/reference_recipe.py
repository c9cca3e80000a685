"""What the errors of a reference depend on, so that those of another one are never read."""

import inspect
from collections.abc import Mapping
from dataclasses import fields

import diffusers
import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..media.readers import MediaReader
from ..noise import NoiseProcess
from ..policy.denoising import Denoiser
from ..policy.encoders import FrozenEncoders
from ..policy.policy import Policy
from ..policy.reference import AdapterReference, ModelReference, Reference
from ..storage.fingerprints import (
    component_fingerprint,
    config_fingerprint,
    fingerprint,
    stored_tensors,
    tensors_digest,
)
from .course import whole_weights_digest
from .speed import DEFAULT_BACKEND
from .tgo_config import TGOConfig

VERSION = 2
"""Of how noise is drawn, samples are corrupted and errors are measured: another one is computed anew."""


def reference_digest(reference: Reference, policy: Policy) -> str:
    """A digest of every weight of the reference, of its adapters' scales, and of its networks' configurations."""
    networks = {"": reference.model} if isinstance(reference, ModelReference) else dict(policy.networks.items())
    if isinstance(reference, AdapterReference):
        adapter, adapter_name = reference.state(), reference.copy
    else:
        adapter, adapter_name = _adapter_weights(networks), None
    scales = [
        (name, layer.disable_adapters, sorted(it for it in layer.scaling.items() if adapter_name in (None, it[0])))
        for network in networks.values()
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer) and not (isinstance(reference, AdapterReference) and adapter_name is None)
    ]
    parts = [part for network in networks.values() for part in network.modules()]
    named = [(type(part).__name__, getattr(part, "config", None)) for part in parts]
    configs = [config_fingerprint(name, config) for name, config in named if isinstance(config, Mapping)]
    return fingerprint(
        whole_weights_digest(networks),
        tensors_digest(stored_tensors(sorted(adapter.items()))),
        *map(str, scales),
        *configs,
    )


def _adapter_weights(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Those of adapters that a reference model brings along."""
    return {
        f"{network_name}.{name}": tensor
        for network_name, network in networks.items()
        for name, tensor in network.state_dict().items()
        if ".lora_" in name
    }


def reference_recipe(
    weights: str, denoiser: Denoiser, encoders: FrozenEncoders, reader: MediaReader, args: TGOConfig, batch_size: int
) -> str:
    """A fingerprint of all that the reference's error of a row depends on, beside image, prompt and draw.

    Args:
        weights: their digest.
        denoiser: of the pipeline.
        encoders: of the pipeline.
        reader: of images or videos.
        args: the run's settings.
        batch_size: rows of a forward pass, by which the errors round.
    """
    family, scheduler = denoiser.family, getattr(denoiser.pipeline, "scheduler", None)
    settings = [(field.name, getattr(family, field.name)) for field in fields(family)]
    run = (args.seed, args.num_likelihood_samples, args.time_range, args.bf16, args.fp16, batch_size, args.loss_type)
    if args.compile_repeated_blocks:  # which rounds otherwise
        weights = fingerprint(weights, args.torch_compile_backend or DEFAULT_BACKEND, args.torch_compile_mode)
    if args.attention_backend is not None:  # likewise
        weights = fingerprint(weights, args.attention_backend)
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    versions = (VERSION, torch.__version__, diffusers.__version__, peft.__version__, device, args.tf32)
    pipeline = config_fingerprint(type(denoiser.pipeline).__name__, denoiser.pipeline.config)
    encoded = (encoders.image_recipe, encoders.prompt_recipe, reader.recipe)
    noise = _noise_recipe(denoiser.noise_process)
    # where it is on, what was computed before there was a choice is still read
    autocast = () if args.bf16_autocast else ("without autocast",)
    parts = (*autocast, type(family).__qualname__, settings, pipeline, *encoded, noise, weights)
    return fingerprint(*versions, *run, None if scheduler is None else component_fingerprint(scheduler), *parts)


def _noise_recipe(process: NoiseProcess) -> str:
    """A fingerprint of a noise process of the user's own: its code, and what it holds. [`VERSION`] counts for ours."""
    kind = type(process)
    if kind.__module__.startswith("tgo_trl."):
        return ""
    own = [it for it in kind.__mro__ if not it.__module__.startswith(("tgo_trl.", "abc", "builtins"))]
    try:
        code = "".join(inspect.getsource(it) for it in own)
    except (OSError, TypeError):  # typed into a prompt
        code = kind.__qualname__
    held = vars(process).items()
    tensors = tensors_digest((name, value) for name, value in held if isinstance(value, Tensor))
    numbers = [f"{name}={value}" for name, value in held if isinstance(value, (int, float, str))]
    return fingerprint(code, tensors, *numbers)


def active_dropout(reference: Reference, policy: Policy) -> str | None:
    """The name of a layer that would give the reference other errors in training, with each draw of dropout."""
    if not isinstance(reference, AdapterReference):
        return None
    layers = [(name, layer) for name, layer in policy.named_modules() if isinstance(layer, nn.Dropout) and layer.p > 0]
    own = f"lora_dropout.{reference.copy}"
    return next((name for name, _ in layers if "lora_dropout" not in name or name.endswith(own)), None)

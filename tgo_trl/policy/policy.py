"""The policy: a pipeline's networks in one module that `transformers.Trainer` can train."""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..families import Family
from ..families.base import adapter_state_dict
from ..precision import cast, compute_dtype
from ..trainer.tgo_config import TGOConfig
from .targets import find_targets

logger = logging.getLogger(__name__)

NEW_ADAPTER = "default"
REFERENCE_ADAPTER = "ref"


class Policy(nn.Module):
    """Calls a family's networks, and speaks the few words of `PreTrainedModel` that `Trainer` expects.

    It has no `.config`: the reporters of transformers take a diffusers configuration for one of their own and fail.

    Args:
        family: how the networks are called.
        networks: the trained components by name.
        adapter_name: the adapter that is trained; None trains all weights.
    """

    def __init__(self, family: Family, networks: Mapping[str, nn.Module], adapter_name: str | None) -> None:
        super().__init__()
        self.family = family
        self.networks: Any = nn.ModuleDict(dict(networks))
        self.adapter_name = adapter_name

    def forward(self, corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The prediction in the network's native target, `[B, ...]`."""
        return self.family.predict(dict(self.networks.items()), corrupted, time, conditions)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:  # fmt: skip
        """Turns on diffusers' gradient checkpointing, which is always of the non-reentrant kind.

        Raises:
            ValueError: for options that diffusers does not have, or a network without gradient checkpointing.
        """
        options = {**(activation_checkpointing_kwargs or {})}
        if options.pop("use_reentrant", False) or options or every_n_layers != 1 or offload:
            raise ValueError(
                "diffusers checkpoints every block, non-reentrant, without offloading; "
                "`activation_checkpointing_kwargs` cannot change that. Leave it unset."
            )
        for network in self.networks.values():
            self.family.enable_gradient_checkpointing(network)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The older name of [`activation_checkpointing_enable`]."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def leave_quantized_weights_to_each_process(self) -> None:
        """Keeps `DistributedDataParallel` from exchanging frozen quantised weights, which it cannot; all load the same.

        Called when all adapters are there.
        """
        self._ddp_params_and_buffers_to_ignore = [
            f"networks.{network_name}.{name}"
            for network_name, network in self.networks.items()
            if getattr(network, "hf_quantizer", None) is not None
            for name, parameter in network.named_parameters()
            if not parameter.requires_grad
        ]

    def adapter_state(self, adapter_name: str) -> dict[str, Tensor]:
        """An adapter's weights, each under `<network>.<name>`."""
        return {
            f"{name}.{key}": value
            for name, network in self.networks.items()
            for key, value in adapter_state_dict(network, adapter_name).items()
        }

    def load_adapter_state(self, state: Mapping[str, Tensor], adapter_name: str) -> None:
        """The inverse of [`adapter_state`]; raises a ValueError if names or shapes do not fit."""
        mine = self.adapter_state(adapter_name)
        if mine.keys() != state.keys() or any(mine[key].shape != state[key].shape for key in mine):
            raise ValueError(
                f"The saved adapter has {len(state)} tensors and this one {len(mine)}, of other names or shapes. Use "
                "the `peft_config` (rank and target modules) that the checkpoint was trained with."
            )
        for name, network in self.networks.items():
            part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            set_peft_model_state_dict(network, part, adapter_name=adapter_name)


def check_policy(
    pipeline: DiffusionPipeline, family: Family, args: TGOConfig, peft_config: PeftConfig | None
) -> str | None:
    """The name of the adapter that the pipeline brings along and that training goes on with, if there is one.

    Raises:
        ValueError: if settings and pipeline do not fit together.
        TypeError: if `peft_config` is no `LoraConfig`.
    """
    networks = family.networks(pipeline)
    found = _existing_adapter(pipeline, networks)
    if peft_config is not None:
        _check_lora(peft_config)
    if not args.use_peft and (peft_config is not None or found):
        what = "`peft_config` was passed" if peft_config is not None else f"the pipeline has the adapter {found!r}"
        raise ValueError(f"`use_peft=False` trains all weights, but {what}. Drop one of the two.")
    if found and peft_config is not None:
        raise ValueError(
            f"The pipeline already has the adapter {found!r} and `peft_config` was passed too. Leave `peft_config` out "
            "to go on training that adapter. To train a new one on top, `fuse_lora()`, `unload_lora_weights()` and "
            "`save_pretrained(folder)`, and pass that folder as the model."
        )
    bare = [name for name, network in networks.items() if found and found not in getattr(network, "peft_config", {})]
    if bare:
        raise ValueError(
            f"The pipeline's adapter {found!r} is not on {', '.join(bare)}, which would be trained too. Load it into "
            "every trained network, as its model card says (for the second one of Wan 2.2, "
            "`load_lora_weights(..., load_into_transformer_2=True)`), or into none."
        )
    for name, network in networks.items():
        _check_network(name, network, args.use_peft)
        if found:
            _check_scale(network, found)
        if args.use_peft and not found:
            _target_modules(name, network, peft_config, family, args)
        if getattr(network, "hf_quantizer", None) is not None:
            _check_gradient(name, network)
    return found


def _check_network(name: str, network: nn.Module, use_peft: bool) -> None:
    if not use_peft and getattr(network, "hf_quantizer", None) is not None:
        raise ValueError(f"`{name}` is quantised, and quantised weights cannot be trained. Set `use_peft=True`.")
    if use_peft and not hasattr(network, "add_adapter"):
        raise ValueError(f"`{name}` ({type(network).__name__}) takes no LoRA adapter. Set `use_peft=False`.")


def _warn_of_unused_lora_settings(args: TGOConfig, found: str | None) -> None:
    defaults = {item.name: item.default for item in fields(TGOConfig) if item.name.startswith("lora_")}
    unused = [name for name, default in defaults.items() if getattr(args, name) != default]
    if found and unused:
        logger.warning(
            "Training goes on with the pipeline's adapter %r, which has settings of its own: %s will be ignored.",
            found,
            ", ".join(f"`{name}`" for name in unused),
        )


def build_policy(
    pipeline: DiffusionPipeline, family: Family, args: TGOConfig, peft_config: PeftConfig | None, dtype: torch.dtype
) -> tuple[Policy, bool]:
    """The policy on the pipeline's own networks, and whether it starts from an adapter that was already trained.

    Frozen weights are put into `dtype`, trained ones into float32. Raises as [`check_policy`] does.
    """
    found = check_policy(pipeline, family, args, peft_config)
    _warn_of_unused_lora_settings(args, found)
    networks = family.networks(pipeline)
    if not args.use_peft:
        for network in networks.values():
            cast(network, torch.float32)
            network.requires_grad_(True)
            for part in family.unread_parts(network):
                network.get_submodule(part).requires_grad_(False)
        return Policy(family, networks, None), False
    for name, network in networks.items():
        network.requires_grad_(False)
        cast(network, dtype)
        if not found:
            config = _new_lora(peft_config, _target_modules(name, network, peft_config, family, args), args)
            network.add_adapter(config, adapter_name=NEW_ADAPTER)
        elif REFERENCE_ADAPTER in network.peft_config:  # an earlier trainer's reference
            network.delete_adapters(REFERENCE_ADAPTER)
        network.set_adapter(found or NEW_ADAPTER)
        network.enable_adapters()  # an existing one may have been switched off
        cast_training_params(network, torch.float32)
    return Policy(family, networks, found or NEW_ADAPTER), bool(found)


def _check_lora(peft_config: PeftConfig) -> None:
    if not isinstance(peft_config, LoraConfig):
        raise TypeError(
            f"`peft_config` must be a `peft.LoraConfig`, got `{type(peft_config).__name__}`: LoRA is what diffusers' "
            "`load_lora_weights` can load."
        )
    if peft_config.modules_to_save:
        raise ValueError(
            f"`peft_config.modules_to_save` is {peft_config.modules_to_save}, which diffusers' `load_lora_weights` "
            "cannot load. Name these modules in `target_modules` instead."
        )
    if peft_config.bias != "none":
        raise ValueError(
            f"`peft_config.bias` is {peft_config.bias!r}, which trains the network's own biases: switching the adapter "
            "off for the reference does not undo that, and `load_lora_weights` does not load them. Leave it 'none'."
        )
    if isinstance(peft_config.init_lora_weights, str) and peft_config.init_lora_weights != "gaussian":
        raise ValueError(
            f"`peft_config.init_lora_weights` is {peft_config.init_lora_weights!r}, which changes the network's own "
            "weights or needs data; the reference is the network with the adapter off, and only the adapter is saved. "
            "Use `True` or 'gaussian'."
        )


def _target_modules(
    name: str, network: nn.Module, peft_config: PeftConfig | None, family: Family, args: TGOConfig
) -> list[str] | str:
    """What gets an adapter: as the user says, or the family's choice. Raises as [`find_targets`] does."""
    given = getattr(peft_config, "target_modules", None)
    if given is not None:
        return find_targets(given, network, name, family.unread_parts(network), "peft_config.target_modules")
    if args.lora_target_modules is not None:
        return find_targets(args.lora_target_modules, network, name, family.unread_parts(network))
    return list(family.lora_target_modules)


def _new_lora(peft_config: PeftConfig | None, target_modules: list[str] | str, args: TGOConfig) -> LoraConfig:
    if peft_config is None:
        return LoraConfig(
            r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=target_modules
        )
    config = copy.copy(peft_config)
    # peft's own defaults know language models only, and a list becomes a set as in its `__post_init__`
    config.target_modules = target_modules if isinstance(target_modules, str) else set(target_modules)
    return config


def _check_gradient(name: str, network: nn.Module) -> None:
    """Refuses quantised layers that stop gradients: adapters before them would train on wrong ones, silently."""
    probed: set[tuple[type, type]] = set()
    for layer in network.modules():
        kind = (type(layer), type(getattr(layer, "weight", None)))
        if not isinstance(layer, nn.Linear) or kind == (nn.Linear, nn.Parameter) or kind in probed:
            continue
        probed.add(kind)
        dtype = compute_dtype(network) if layer.bias is None else layer.bias.dtype
        inputs = torch.ones(32, layer.in_features, dtype=dtype, device=layer.weight.device, requires_grad=True)
        was_training = layer.training
        with torch.enable_grad():
            output = layer.train()(inputs)
            # without a graph there may be none to differentiate; with trainable biases there is one beside the inputs
            gradient = torch.autograd.grad(output.sum(), inputs, allow_unused=True)[0] if output.requires_grad else None
        layer.train(was_training)
        if gradient is None:
            raise ValueError(
                f"The quantised layers of `{name}` ({kind[1].__name__}) pass no gradient on, so that adapters could "
                "not be trained. Use a weight-only quantisation, such as bitsandbytes or torchao's "
                "`Int8WeightOnlyConfig`."
            )


def _check_scale(network: nn.Module, adapter_name: str) -> None:
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and adapter_name in layer.scaling:
            scale = layer.scaling[adapter_name]
            layer.set_scale(adapter_name, 1.0)
            unit = layer.scaling[adapter_name]
            layer.scaling[adapter_name] = scale
            if not math.isclose(scale, unit):
                raise ValueError(
                    f"The adapter {adapter_name!r} is weighted by {scale / unit:.6g}, which is not saved with it: what "
                    f"is saved would act differently. Call `pipeline.set_adapters({adapter_name!r}, 1.0)` first."
                )


def _existing_adapter(pipeline: DiffusionPipeline, networks: Mapping[str, nn.Module]) -> str | None:
    for name, network in networks.items():
        if isinstance(network, PeftModel):
            raise ValueError(
                f"`pipeline.{name}` is a `PeftModel`, whose adapter diffusers cannot save. Use the plain network and "
                f"pass `peft_config` to the trainer, or call `pipeline.{name}.add_adapter(...)`."
            )
    adapters = {name for network in networks.values() for name in getattr(network, "peft_config", {})}
    if adapters == {REFERENCE_ADAPTER}:
        raise ValueError(
            f"The pipeline's adapter is named {REFERENCE_ADAPTER!r}, a name that the trainer needs for the reference. "
            "Load it under another `adapter_name`."
        )
    adapters.discard(REFERENCE_ADAPTER)
    if len(adapters) > 1:
        raise ValueError(
            f"The pipeline has the adapters {', '.join(map(repr, sorted(adapters)))}, and only one can be trained. "
            "`delete_adapters()` the others; or `fuse_lora()`, `unload_lora_weights()` and `save_pretrained(folder)`, "
            "and pass that folder as the model."
        )
    for name, component in pipeline.components.items():
        if name not in networks and getattr(component, "peft_config", None):
            raise ValueError(
                f"The pipeline's `{name}` has an adapter, which stays frozen and would be missing from what is saved. "
                f"Call `pipeline.fuse_lora(components=[{name!r}])`, `unload_lora_weights()` and "
                "`save_pretrained(folder)`, and pass that folder as the model."
            )
    return next(iter(adapters), None)


def disable_dropout(module: nn.Module) -> None:
    """Sets the rate of every dropout layer to zero, but for an adapter's own, which `lora_dropout` sets."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Dropout) and "lora_dropout" not in name:
            layer.p = 0.0

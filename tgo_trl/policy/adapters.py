"""LoRA adapters: which are allowed, which a pipeline brings along, and how a new one is made."""

import copy
import math
from collections.abc import Mapping
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from ..families import Family
from ..precision import compute_dtype
from .adapter_dtype import check_factors
from .targets import find_targets

NEW_ADAPTER = "default"
REFERENCE_ADAPTER = "ref"

PLAIN_STARTS = ("gaussian", "orthogonal", "mica")
"""Named initialisations that leave the network's own weights alone, and need no data."""


class AdapterSettings(Protocol):
    """What a run's settings say of its adapter; see [`~tgo_trl.TGOConfig`]."""

    use_peft: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    bf16_autocast: bool

    @property
    def lora_target_modules(self) -> list[str] | str | None:
        """What gets an adapter; None for the family's choice."""


def check_policy(
    pipeline: DiffusionPipeline, family: Family, args: AdapterSettings, peft_config: PeftConfig | None
) -> str | None:
    """The name of the adapter that the pipeline brings along and that training goes on with, if there is one.

    Raises:
        ValueError: if settings and pipeline do not fit together.
        TypeError: if `peft_config` is no `LoraConfig`.
    """
    # Who says what the adapter is: the pipeline, `peft_config`, or the settings.
    networks = family.networks(pipeline)
    found = _existing_adapter(pipeline, networks)
    if peft_config is not None:
        _check_lora(peft_config, args, "peft_config")
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

    # Whether each network can be trained with it.
    for name, network in networks.items():
        _check_network(name, network, args)
        if found:
            _check_lora(network.peft_config[found], args, f"pipeline.{name}.peft_config[{found!r}]")
            _check_scale(network, found)
        if args.use_peft and not found:
            targets = target_modules(name, network, peft_config, family, args)
            _check_left(name, network, new_lora(peft_config, targets, args))
        if getattr(network, "hf_quantizer", None) is not None:
            _check_gradient(name, network)
    return found


def _check_network(name: str, network: nn.Module, args: AdapterSettings) -> None:
    if not args.use_peft and getattr(network, "hf_quantizer", None) is not None:
        raise ValueError(f"`{name}` is quantised, and quantised weights cannot be trained. Set `use_peft=True`.")
    if args.use_peft and not hasattr(network, "add_adapter"):
        raise ValueError(f"`{name}` ({type(network).__name__}) takes no LoRA adapter. Set `use_peft=False`.")
    if not args.bf16_autocast:
        check_factors(name, network)


def new_lora(peft_config: PeftConfig | None, targets: list[str] | str, args: AdapterSettings) -> LoraConfig:
    """The configuration of a new adapter on what [`target_modules`] found: the user's, or one of the settings."""
    if peft_config is None:
        return LoraConfig(
            r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=targets
        )
    config = copy.copy(peft_config)
    # peft's own defaults know language models only, and a list becomes a set as in its `__post_init__`
    config.target_modules = targets if isinstance(targets, str) else set(targets)
    return config


def target_modules(
    name: str, network: nn.Module, peft_config: PeftConfig | None, family: Family, args: AdapterSettings
) -> list[str] | str:
    """What gets an adapter: as the user says, or the family's choice. Raises as [`find_targets`] does."""
    given = getattr(peft_config, "target_modules", None)
    if given is not None:
        return find_targets(given, network, name, family.unread_parts(network), "peft_config.target_modules")
    if args.lora_target_modules is not None:
        return find_targets(args.lora_target_modules, network, name, family.unread_parts(network))
    return list(family.lora_target_modules)


def _check_left(name: str, network: nn.Module, config: LoraConfig) -> None:
    """Refuses a configuration that leaves no layer an adapter, which peft would find when data are prepared."""
    if any(check_target_module_exists(config, module) for module, _ in network.named_modules() if module):
        return
    left_out = {
        it: getattr(config, it)
        for it in ("exclude_modules", "layers_to_transform", "layers_pattern")
        if getattr(config, it, None) is not None
    }
    raise ValueError(
        f"`peft_config` leaves no layer of `{name}` an adapter: its `target_modules` name some, and "
        f"{', '.join(f'`{it}={value!r}`' for it, value in left_out.items())} leave all of these out. Mend either."
    )


def check_kind(peft_config: object, where: str) -> None:
    """Raises a TypeError for what is no configuration of a LoRA."""
    if not isinstance(peft_config, LoraConfig) or peft_config.peft_type != PeftType.LORA:  # AdaLoRA's is one too
        raise TypeError(
            f"`{where}` must be a `peft.LoraConfig`, got `{type(peft_config).__name__}`: LoRA is what diffusers' "
            "`load_lora_weights` can load."
        )


def _check_lora(peft_config: PeftConfig, args: AdapterSettings, where: str) -> None:
    """Refuses an adapter, a new one or the pipeline's own, that is more than what is saved of it, or another kind.

    Args:
        peft_config: its configuration.
        args: what the run's settings say of it.
        where: the configuration is.
    """
    check_kind(peft_config, where)
    assert isinstance(peft_config, LoraConfig)
    _check_factors(peft_config, where)
    if peft_config.modules_to_save:
        raise ValueError(
            f"`{where}.modules_to_save` is {peft_config.modules_to_save}, which diffusers' `load_lora_weights` "
            "cannot load. Name these modules in `target_modules` instead."
        )
    if peft_config.bias != "none":
        raise ValueError(
            f"`{where}.bias` is {peft_config.bias!r}, which trains the network's own biases: switching the adapter "
            "off for the reference does not undo that, and `load_lora_weights` does not load them. Leave it 'none'."
        )
    for name in ("target_parameters", "trainable_token_indices", "layer_replication"):
        if getattr(peft_config, name, None):
            raise ValueError(
                f"`{where}.{name}` is {getattr(peft_config, name)}, which diffusers' `load_lora_weights` cannot load. "
                "Name whole modules in `target_modules` instead."
            )
    start, is_new = peft_config.init_lora_weights, where == "peft_config"
    if isinstance(start, str) and start not in (*PLAIN_STARTS, *([] if is_new else ["eva"])):  # which read data before
        remedy = "Use `True` or 'gaussian'." if is_new else "Begin with a new adapter on the network as it was."
        raise ValueError(
            f"`{where}.init_lora_weights` is {start!r}, which changes the network's own weights or needs data; the "
            f"reference is the network with the adapter off, and only the adapter is saved. {remedy}"
        )
    if getattr(peft_config, "kasa_config", None) is not None:
        raise ValueError(
            f"`{where}.kasa_config` is set, which cuts off the smallest singular values of the network's own weights; "
            "the reference is the network with the adapter off, and would be another than the pipeline. Leave it out."
        )
    if peft_config.use_dora and not args.bf16_autocast:
        raise ValueError(
            f"`{where}.use_dora` is True, and `bf16_autocast` is False: the norms that DoRA computes are cast by "
            "autocast alone. Leave one of the two out."
        )


def _check_factors(peft_config: LoraConfig, where: str) -> None:
    if not 0 <= peft_config.lora_dropout < 1:
        raise ValueError(f"`{where}.lora_dropout` is {peft_config.lora_dropout}; it must be from 0 to below 1.")
    if peft_config.lora_alpha == 0:
        raise ValueError(f"`{where}.lora_alpha` is 0, by which the adapter is multiplied: it would learn nothing.")


def check_start(peft_config: PeftConfig, is_half: bool) -> None:
    """Raises a ValueError for a new adapter that changes the network from the start.

    Where the reference is the network with the adapter off, it would not be the policy that training begins with.

    Args:
        peft_config: its configuration.
        is_half: whether the adapter is computed with in half precision, where factors whose product is 0 have one that
            rounding makes as large as it makes the errors of the network.
    """
    start = getattr(peft_config, "init_lora_weights", True)
    if start and (start != "orthogonal" or not is_half):
        return
    why = " by what half precision rounds" if start else ""
    raise ValueError(
        f"`peft_config.init_lora_weights` is {start!r}, with which the adapter changes the network{why} before it is "
        "trained; the reference is the network with the adapter off, and would not be the policy that training begins "
        "with. Use `True` or 'gaussian'."
    )


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

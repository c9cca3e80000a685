"""Networks that are not what they seem: wrapped, renamed or altered at run time, as stock diffusers will not repeat it.

What is saved is read by a plain network, built from its configuration alone. So a network is compared with that one,
before anything is spent on it; and the names that are saved are compared once more, before anything is written.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import accelerate
import torch
from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.models.modeling_utils import no_init_weights
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..families import Family
from ..families.base import adapter_state_dict

logger = logging.getLogger(__name__)

WRAPPERS: dict[type[nn.Module], str] = {
    torch._dynamo.eval_frame.OptimizedModule: "_orig_mod",
    DataParallel: "module",
    DistributedDataParallel: "module",
}
"""Modules around a module that change nothing but the names of its weights, and where they keep it."""

SAME_FUNCTION = frozenset(
    {
        "AttnProcessor", "AttnProcessor2_0", "AttnProcessorNPU", "XFormersAttnProcessor", "SlicedAttnProcessor",
        "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "XFormersAttnAddedKVProcessor",
        "SlicedAttnAddedKVProcessor", "JointAttnProcessor2_0", "XFormersJointAttnProcessor",
    }
)  # fmt: skip
"""Attention processors of diffusers that compute the same in other ways."""

NUM_PLAIN = 8
"""Plain networks that are kept, of one process: two networks' and their references', and some more."""

_PLAIN: dict[tuple[type, str], nn.Module] = {}

LOAD_ANEW = "Load the pipeline anew, and pass it as it is."


def unwrap_networks(pipeline: DiffusionPipeline, names: tuple[str, ...]) -> None:
    """Puts the networks themselves in the place of what was wrapped around them, and says so.

    A compiled network has weights of other names, so that what is saved of it would fit no other.
    """
    for name in names:
        network = getattr(pipeline, name, None)
        plain = unwrapped(network)
        if plain is not network:
            pipeline.register_modules(**{name: plain})
            logger.warning(
                "`pipeline.%s` is wrapped as `%s`, which gives its weights other names. The wrapper is taken off, and "
                "the network itself is trained. To compile it, call `pipeline.%s.compile()`, which renames nothing.",
                name,
                type(network).__name__,
                name,
            )


def unwrapped(network: Any) -> Any:
    """The module within all the wrappers around it."""
    while (attribute := _wraps_as(network)) is not None:
        network = getattr(network, attribute)
    return network


def _wraps_as(module: Any) -> str | None:
    """Where a wrapper keeps its module; None if it is no wrapper."""
    return next((attribute for kind, attribute in WRAPPERS.items() if isinstance(module, kind)), None)


def check_networks(pipeline: DiffusionPipeline, family: Family, trains_adapter: bool) -> None:
    """Refuses networks that compute, or call their weights, otherwise than stock diffusers would.

    And, of the other parts of the pipeline, those whose layers are cast as they are called.

    Args:
        pipeline: with the networks, unwrapped.
        family: of the pipeline.
        trains_adapter: whether only an adapter is trained and saved, for a network that others load for themselves.

    Raises:
        ValueError: naming the alteration, and what to write instead.
    """
    networks = family.networks(pipeline)
    _check_layerwise_casting({name: part for name, part in pipeline.components.items() if name not in networks})
    for name, network in networks.items():
        where = f"pipeline.{name}"
        for problem in _problems(network, where):
            raise ValueError(problem)
        _warn_of_forward_hooks(network, where)
        _check_plain(network, where)
    fused = sorted(getattr(pipeline, "fused_loras", ()))
    if trains_adapter and fused:
        raise ValueError(
            f"The adapters {', '.join(map(repr, fused))} are fused into the pipeline's weights, and what is trained on "
            "top of them would be loaded without them. Call `unload_lora_weights()` and `save_pretrained(folder)`, and "
            "pass that folder as the model; or `unfuse_lora()`."
        )


def check_saved_names(network: nn.Module, name: str, adapter_name: str | None) -> None:
    """Raises a ValueError if weights would be saved under names that the plain network does not have.

    Args:
        network: to be saved.
        name: of the network in its pipeline.
        adapter_name: of the adapter that is saved; None if it is the whole network.
    """
    plain = plain_network(network)
    if plain is None:
        return
    if adapter_name is None:
        saved, known = set(network.state_dict()), set(plain.state_dict())
        wrong = (saved ^ known) if getattr(network, "hf_quantizer", None) is None else set()
    else:
        modules = {key.partition(".lora_")[0]: key for key in adapter_state_dict(network, adapter_name)}
        known = {module for module, _ in plain.named_modules()}
        wrong = {key for module, key in modules.items() if module not in known}
    if wrong:
        raise ValueError(
            f"`{name}` would be saved with weights that a plain `{type(plain).__name__}` does not have, or without "
            f"those that it has: {_some(sorted(wrong))}. Stock diffusers could not load them, so nothing is written. "
            "What was wrapped around the network, or put into it, since the trainer was made has to be taken off."
        )


def plain_network(network: Any) -> nn.Module | None:
    """The network as its configuration alone builds it, without memory; None if it has no configuration of diffusers'.

    The same object for equal configurations, which a run compares with more than once: it is read, and never changed.

    Raises:
        ValueError: if its configuration builds none.
    """
    network = unwrapped(network)
    if not isinstance(network, ConfigMixin):
        return None
    key = (type(network), repr([item for item in network.config.items() if item[0] != "_name_or_path"]))
    if key not in _PLAIN:
        if len(_PLAIN) == NUM_PLAIN:
            _PLAIN.pop(next(iter(_PLAIN)))
        _PLAIN[key] = _build_plain(network)
    return _PLAIN[key]


def _build_plain(network: ConfigMixin) -> nn.Module:
    try:
        with no_init_weights(), accelerate.init_empty_weights():  # as `from_pretrained` builds it
            plain: nn.Module = type(network).from_config(network.config)
    except Exception as error:
        raise ValueError(
            f"The configuration of this `{type(network).__name__}` builds no network ({error}), so that it was changed "
            f"after it was loaded. {LOAD_ANEW}"
        ) from error
    return plain


# ---- What is looked for ----


def _problems(network: nn.Module, where: str) -> Iterator[str]:
    """What is wrong with a network in itself."""
    for path, module in network.named_modules():
        part = f"`{where}{'.' if path else ''}{path}`"
        if isinstance(module, (FullyShardedDataParallel, FSDPModule)):
            yield f"{part} is sharded (FSDP), and what is saved needs its weights whole. {LOAD_ANEW}"
        if any(hasattr(weight, "ds_tensor") for weight in module.parameters(recurse=False)):
            yield f"{part} is sharded (DeepSpeed), and what is saved needs its weights whole. {LOAD_ANEW}"
        attribute = _wraps_as(module)
        if attribute is not None:
            yield (
                f"{part} is wrapped as `{type(module).__name__}`, which gives its weights other names. Put "
                f"`.{attribute}` of it in its place; to compile it, call `.compile()` on the module."
            )
        if isinstance(module, PeftModel):
            yield (
                f"{part} is a `PeftModel`, whose adapter diffusers cannot save. Use the plain network and pass "
                f"`peft_config` to the trainer, or call `{where}.add_adapter(...)`."
            )
        yield from _problems_of(module, part)
    is_tuned = any(isinstance(module, BaseTunerLayer) for module in network.modules())
    if is_tuned and not getattr(network, "_hf_peft_config_loaded", False):
        yield (
            f"`{where}` has layers of an adapter which diffusers does not know of: `get_peft_model` put them into it. "
            "Take them out with `unload()` of the `PeftModel`, and pass `peft_config` to the trainer."
        )


def _problems_of(module: Any, part: str) -> Iterator[str]:
    if isinstance(module, BaseTunerLayer) and module.merged:
        yield f"{part} has a fused adapter. Call `pipeline.unfuse_lora()` first."
    hooks = _hooks(module)
    if hooks:
        undo = "Call `disable_cache()` on it, or load" if getattr(module, "is_cache_enabled", False) else "Load"
        yield (
            f"{part} has the hooks {', '.join(map(repr, hooks))} (layerwise casting, caches), which change what it "
            f"computes while it trains. {undo} the pipeline without them."
        )
    elif _has_other_forward(module):
        yield (
            f"{part} has another `forward` than its class (accelerate's `prepare`, DeepCache and the like put one "
            f"there), which stock diffusers will not repeat. Take it off, or load the pipeline anew."
        )
    if any(getattr(module, name, None) is not None for name in ("s1", "s2", "b1", "b2")):
        yield f"{part} has FreeU switched on, which acts in training only. Call `pipeline.disable_freeu()`."
    if getattr(module, "fused_projections", False):
        yield (
            f"{part} has fused projections (`fuse_qkv_projections()`), so that adapters on `to_q`, `to_k` and `to_v` "
            f"would never act, and unfusing leaves some behind. {LOAD_ANEW}"
        )
    if type(module).__name__ in ("MultiIPAdapterImageProjection", "IPAdapterAttnProcessor2_0"):
        yield f"{part} is of an IP-Adapter. Call `pipeline.unload_ip_adapter()`."


def _check_layerwise_casting(parts: Mapping[str, Any]) -> None:
    """Refuses it in encoders: they are put into the dtype that they encode in, which its hooks undo at each call."""
    for name, part in parts.items():
        modules = part.modules() if isinstance(part, nn.Module) else ()
        if any("layerwise_casting" in _hooks(module) for module in modules):
            raise ValueError(
                f"`pipeline.{name}` has layerwise casting (`enable_layerwise_casting`), which keeps its weights in "
                "another dtype than it encodes and decodes in, and cannot be undone. Load the pipeline without it: the "
                "trainer keeps encoders off the device while they are not used."
            )


def _hooks(module: nn.Module) -> list[str]:
    """The names of diffusers' hooks on a module."""
    return sorted(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))


def _has_other_forward(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    is_own = getattr(forward, "__func__", None) is type(module).forward  # hooks that were removed leave it
    return forward is not None and not is_own and not hasattr(module, "_diffusers_hook")


def _warn_of_forward_hooks(network: nn.Module, where: str) -> None:
    hooked = [name or "itself" for name, module in network.named_modules() if _has_forward_hooks(module)]
    if hooked:
        logger.warning(
            "`%s` has forward hooks (on %s). If one of them changes an input or an output, what is trained fits only a "
            "network that has it too.",
            where,
            _some(hooked),
        )


def _has_forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


# ---- Compared with the plain network ----


def _check_plain(network: nn.Module, where: str) -> None:
    plain = plain_network(network)
    if plain is None:
        return
    mine, others = _modules(network), dict(plain.named_modules())
    is_quantized = getattr(network, "hf_quantizer", None) is not None
    for path, other in others.items():
        if path in mine:
            _check_module(mine[path], other, f"`{where}{'.' if path else ''}{path}`", is_quantized)
    shapes, expected = _shapes(mine), _shapes(others)
    wrong = shapes.keys() ^ expected.keys()
    if not is_quantized:
        wrong |= {name for name in shapes.keys() & expected.keys() if shapes[name] != expected[name]}
    if wrong:
        raise ValueError(
            f"`{where}` is no plain `{type(plain).__name__}` of its configuration: {_some(sorted(wrong))} would have "
            "other names or shapes, or are missing. Reparametrised weights (`remove_parametrizations`), pruned ones "
            f"and added layers have to be undone, since what is saved is loaded without them. {LOAD_ANEW}"
        )


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules by their names in a network without adapters."""
    modules: dict[str, nn.Module] = {}
    tuned: list[str] = []
    for path, module in network.named_modules():
        owner = next((name for name in reversed(tuned) if path.startswith(f"{name}.")), None)
        if isinstance(module, BaseTunerLayer):
            tuned.append(path)
            modules[path] = module.get_base_layer()
        elif owner is None:
            modules[path] = module
        elif path.startswith(f"{owner}.base_layer."):  # of a base layer that has parts
            modules[f"{owner}.{path.removeprefix(f'{owner}.base_layer.')}"] = module
    return modules


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    return {
        f"{path}.{name}".lstrip("."): tuple(parameter.shape)
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
    }


def _check_module(mine: Any, other: Any, part: str, is_quantized: bool) -> None:
    is_leaf = next(other.children(), None) is None
    if type(mine) is not type(other) and not (is_leaf and (is_quantized or isinstance(mine, type(other)))):
        raise ValueError(
            f"{part} is a `{type(mine).__name__}`, where its configuration has a `{type(other).__name__}` (ToMe and "
            f"the like put one there). Stock diffusers will not repeat that. {LOAD_ANEW}"
        )
    processor, default = (type(getattr(module, "processor", None)) for module in (mine, other))
    if processor is not default and not {processor.__name__, default.__name__} <= SAME_FUNCTION:
        raise ValueError(
            f"{part} has the attention processor `{processor.__name__}` instead of `{default.__name__}`. Stock "
            "diffusers will not repeat that, and what is trained would fit only a network that has it too. Call "
            "`set_default_attn_processor()` on the network, `pipeline.unload_ip_adapter()`, or load the pipeline anew."
        )


def _some(names: list[str]) -> str:
    """The first few of some names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

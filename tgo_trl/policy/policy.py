"""The policy: a pipeline's networks in one module that `transformers.Trainer` can train."""

import logging
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import PeftConfig, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families import Family
from ..families.base import adapter_state_dict
from ..precision import cast
from .adapter_dtype import cast_factors, check_factors
from .adapter_switch import put_on
from .adapters import NEW_ADAPTER, REFERENCE_ADAPTER, AdapterSettings, check_policy, new_lora, target_modules
from .recomputation import checked_interval

logger = logging.getLogger(__name__)

_OWNERS: "WeakKeyDictionary[nn.Module, ref[Policy]]" = WeakKeyDictionary()
"""The policy that was made last of each network."""
_TRAINED: "WeakKeyDictionary[nn.Module, object]" = WeakKeyDictionary()
"""The mark of the policy, which may be gone, that was trained last of each network."""


class Policy(nn.Module):
    """Calls a family's networks, and speaks the few words of `PreTrainedModel` that `Trainer` expects.

    It has no `.config`: the reporters of transformers take a diffusers configuration for one of their own and fail.

    Args:
        family: how the networks are called.
        networks: the trained components by name.
        adapter_name: the adapter that is trained; None trains all weights.
        autocasts: False to call the networks without autocast, whatever is around the call.

    Attributes:
        recomputes_calls: whether each call is recomputed in the backward pass, so that of several calls in a row only
            inputs and outputs are kept.
    """

    recomputes_calls = False

    def __init__(
        self, family: Family, networks: Mapping[str, nn.Module], adapter_name: str | None, autocasts: bool = True
    ) -> None:
        super().__init__()
        self.family = family
        self.networks: Any = nn.ModuleDict(dict(networks))
        self.adapter_name = adapter_name
        self.autocasts = autocasts
        self._trained: list[nn.Parameter] | None = None
        self._mark = object()

    # ---- What a run does to it at every step ----

    def put_adapter_on(self) -> None:
        """The adapter on, alone and trained, whatever a pipeline has switched since."""
        if self.adapter_name is not None:
            put_on((it for it in self.modules() if isinstance(it, BaseTunerLayer)), self.adapter_name)

    @property
    def is_in_run(self) -> bool:
        """Whether it is being trained."""
        return self._trained is not None

    def check_owner(self) -> None:
        """Raises a ValueError if another policy was made of the same networks since, whose weights they have."""
        for name, network in self.networks.items():
            owner = _OWNERS[network]() if network in _OWNERS else None
            is_trained_since = _TRAINED.get(network, self._mark) is not self._mark
            if owner is not self and (owner is not None or is_trained_since):
                raise ValueError(
                    f"Another trainer was made of this pipeline since, and `{name}` is trained by that one. Make a "
                    "new one to go on, or load a pipeline for each."
                )

    def begin_run(self, optimized: Iterable[nn.Parameter]) -> None:
        """Notes which weights are trained, once they are where a run wants them, until [`end_run`].

        A network has thousands of modules, and to look through all of them at each step takes longer than the GPU takes
        for a small batch.

        Args:
            optimized: the weights of the optimizer, some of which may be thawed later.
        """
        super().train()
        _TRAINED.update(dict.fromkeys(self.networks.values(), self._mark))
        self._trained = None
        self._trained = [*dict.fromkeys([*self.trained_weights(), *optimized])]

    def end_run(self) -> None:
        """Forgets them."""
        self._trained = None

    def trained_weights(self) -> list[nn.Parameter]:
        """The weights that are trained, in the order of the networks."""
        if self._trained is not None:
            return self._trained
        return [weight for weight in self.parameters() if weight.requires_grad]

    def train(self, mode: bool = True) -> "Policy":
        """As of any module; within a run, nothing where policy and networks are in that mode already."""
        is_known = self._trained is not None and self.training is mode
        if is_known and all(network.training is mode for network in self.networks.values()):
            return self
        return super().train(mode)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module; within a run, of the trained weights alone, as others have no gradient."""
        if self._trained is None or not set_to_none:
            super().zero_grad(set_to_none)
            return
        for weight in self._trained:
            weight.grad = None

    # ---- Calling it ----

    def forward(self, corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """The prediction in the network's native target, `[B, ...]`."""
        if self.autocasts:
            return self._predict(corrupted, time, conditions)
        with torch.autocast(corrupted.device.type, enabled=False):
            return self._predict(corrupted, time, conditions)

    def _predict(self, corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        inputs = (dict(self.networks.items()), corrupted, time, conditions)
        if self.recomputes_calls and torch.is_grad_enabled():
            # in here, where no wrapper of distributed training takes the recomputation for another step
            prediction: Tensor = checkpoint(self.family.predict, *inputs, use_reentrant=False)
            return prediction
        return self.family.predict(*inputs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:  # fmt: skip
        """Turns on diffusers' gradient checkpointing, which is always of the non-reentrant kind.

        Args:
            activation_checkpointing_kwargs: `every_n_layers` too, where transformers passes it here.
            every_n_layers: of each kind of block, which are recomputed: the first, and every so many after it.
            offload: refused, where it is on.

        Raises:
            ValueError: for options that diffusers does not have, or a network without gradient checkpointing.
        """
        every = checked_interval({"every_n_layers": every_n_layers, **(activation_checkpointing_kwargs or {})}, offload)
        for network in self.networks.values():
            if every == 1:
                self.family.enable_gradient_checkpointing(network)
            else:  # which a family of somebody else's may not know
                self.family.enable_gradient_checkpointing(network, every_n_layers=every)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The older name of [`activation_checkpointing_enable`]."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    @property
    def lora_config(self) -> Any:
        """The configuration of the adapter that is trained, the same in every network; None if all weights are."""
        if self.adapter_name is None:
            return None
        return next(iter(self.networks.values())).peft_config[self.adapter_name]

    @property
    def rank_and_alpha(self) -> tuple[int, float] | None:
        """Of the adapter; None if there is none, or they differ from layer to layer."""
        config = self.lora_config
        if config is None or config.rank_pattern or config.alpha_pattern or config.use_rslora:
            return None
        return config.r, config.lora_alpha

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


def build_policy(
    pipeline: DiffusionPipeline,
    family: Family,
    args: AdapterSettings,
    peft_config: PeftConfig | None,
    dtype: torch.dtype,
) -> tuple[Policy, bool]:
    """The policy on the pipeline's own networks, and whether it starts from an adapter that was already trained.

    Frozen weights are put into `dtype`, trained ones into float32. Raises as [`check_policy`] does.
    """
    found = check_policy(pipeline, family, args, peft_config)
    networks = family.networks(pipeline)
    if found and any(network in _OWNERS for network in networks.values()):
        logger.warning(
            "This pipeline's adapter %r was trained by an earlier trainer, and is gone on with. To begin anew, load "
            "the pipeline once more, or call `unload_lora_weights()`.",
            found,
        )
    policy = _prepared(pipeline, family, args, peft_config, dtype, found)
    _OWNERS.update(dict.fromkeys(networks.values(), ref(policy)))
    return policy, bool(found)


def _prepared(
    pipeline: DiffusionPipeline, family: Family, args: AdapterSettings, peft_config: PeftConfig | None,
    dtype: torch.dtype, found: str | None,
) -> Policy:  # fmt: skip
    """The policy, its networks in their dtypes, with the adapter that was found or a new one, or none."""
    networks = family.networks(pipeline)
    if not args.use_peft:
        for network in networks.values():
            cast(network, torch.float32)
            network.requires_grad_(True)
            for part in family.unread_parts(network):
                attrgetter(part)(network).requires_grad_(False)
        return Policy(family, networks, None)
    for name, network in networks.items():
        network.requires_grad_(False)
        cast(network, dtype)
        if not found:
            config = new_lora(peft_config, target_modules(name, network, peft_config, family, args), args)
            network.add_adapter(config, adapter_name=NEW_ADAPTER)
        elif REFERENCE_ADAPTER in network.peft_config:  # an earlier trainer's reference
            network.delete_adapters(REFERENCE_ADAPTER)
        network.set_adapter(found or NEW_ADAPTER)
        network.enable_adapters()  # an existing one may have been switched off
        cast_training_params(network, torch.float32)
        if not args.bf16_autocast:
            check_factors(name, network)
        cast_factors(network, not args.bf16_autocast)
    return Policy(family, networks, found or NEW_ADAPTER, args.bf16_autocast)


def disable_dropout(module: nn.Module) -> None:
    """Sets the rate of every dropout layer to zero, but for an adapter's own, which `lora_dropout` sets."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Dropout) and "lora_dropout" not in name:
            layer.p = 0.0

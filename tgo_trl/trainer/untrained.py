"""Finds layers that are meant to be trained and that nothing trains."""

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..policy.distributed import full_tensor
from ..policy.policy import Policy
from ..policy.replication import Replication

logger = logging.getLogger(__name__)


class PolicyTrainer(Protocol):
    """Whatever trains a policy."""

    @property
    def policy(self) -> Policy:
        """What is trained."""

    @property
    def strategy(self) -> Replication:
        """How weights are spread over processes."""


class UntrainedLayersCallback(TrainerCallback):
    """Stops a run before its first update if layers got no gradient, and names them.

    An adapter's factors start with `B = 0`, so that of a layer that acts `B` has a gradient, and `A` has none yet. Of
    several networks, one may have no row in an update, and is looked at in the first update in which it has some.

    The gradients are looked at once, which is the only time that the device is waited for.
    """

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer = trainer
        self._waiting: list[str] = []
        self._num_updates = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Every network is to be looked at."""
        self._waiting = list(self.trainer.policy.networks)
        self._num_updates = 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the gradients of all micro-steps of the update.

        Raises:
            ValueError: naming the layers without one.
        """
        self._num_updates += 1
        if not self._waiting:
            return
        policy = self.trainer.policy
        gradient = self.trainer.strategy.gradient
        if all(gradient(weight) is None for weight in policy.parameters() if weight.requires_grad):
            return  # the update is left out, for NaN or infinity in it
        untrained = {
            name: untrained_layers(policy.networks[name], policy.adapter_name is not None, gradient)
            for name in self._waiting
        }
        none_is_trained = all(all(layers.values()) for layers in untrained.values())
        # In the middle of a run, a loss may be so small that all its gradients are zero.
        may_wait = state.global_step > 0 or not none_is_trained
        for name, layers in untrained.items():
            found = [layer for layer, is_untrained in layers.items() if is_untrained]
            if len(found) == len(layers) and may_wait:
                continue
            if found:
                raise ValueError(_message(name, found, len(layers)))
            self._waiting.remove(name)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says which network was never trained."""
        if self._waiting and self._num_updates:
            logger.warning(
                "No row of this run had a gradient for %s, which is as it was before.",
                " and ".join(f"`{name}`" for name in self._waiting),
            )


def untrained_layers(
    network: nn.Module, is_adapter: bool, gradient: Callable[[nn.Parameter], Tensor | None] = attrgetter("grad")
) -> dict[str, bool]:
    """Whether each layer's trained weights have no gradient.

    Args:
        network: after the backward passes of an update.
        is_adapter: whether only adapters are trained. Their gradients count if they are not zero; of a network that is
            trained as a whole, some may be zero by chance, and only those that are missing count.
        gradient: of a weight; None if there is none.
    """
    device = next(network.parameters()).device
    nothing, something = torch.tensor([False, True], device=device)
    layers: dict[str, list[Tensor]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            layer = name.partition(".lora_")[0] if is_adapter else name
            found = gradient(weight)
            act = nothing if found is None else full_tensor(found).any() if is_adapter else something
            layers.setdefault(layer, []).append(act)
    acts = [torch.stack(weights).any() for weights in layers.values()]
    return {layer: not act for layer, act in zip(layers, torch.stack(acts).tolist(), strict=True)} if acts else {}


def _message(name: str, found: list[str], num_layers: int) -> str:
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return (
        f"{len(found)} of {num_layers} trained layers of `{name}` got no gradient in their first update: {shown}. "
        "Nothing that the loss depends on goes through them, so they would stay as they are. Leave them out of "
        "`lora_target_modules` (or `peft_config.target_modules`), or undo what replaced them in the network, and start "
        "again: nothing was saved."
    )

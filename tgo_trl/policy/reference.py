"""The reference policy `pi_ref`: the adapter switched off, a frozen copy of it, or a second model."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..precision import cast, compute_dtype
from .adapter_dtype import cast_factors
from .adapter_switch import AdapterSwitch
from .adapters import REFERENCE_ADAPTER
from .denoising import Corrupted
from .policy import Policy


class Reference(ABC):
    """What the policy is compared with: asked for errors or predictions, whether networks or a file answer."""

    has_predictions: ClassVar[bool] = False
    """Whether it can give predictions, and not errors alone, as a table of remembered ones would."""

    @abstractmethod
    def errors(self, model: nn.Module, corrupted: Corrupted) -> Tensor:
        """How far the reference is off, float32 `[K, B]`, without gradient.

        Args:
            model: the policy as wrapped for training, whose networks may be the reference's too.
            corrupted: what the policy is asked about.
        """

    @abstractmethod
    def predictions(self, model: nn.Module, corrupted: Corrupted) -> Tensor:
        """What the reference says, in the native target, `[K * B, ...]`, without gradient; arguments as of [`errors`].

        Raises:
            ValueError: if it knows errors only.
        """

    @abstractmethod
    @contextmanager
    def sampling(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Within, the pipeline samples from the reference."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The reference's own weights; empty if it has none."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of [`state`]."""

    @torch.no_grad()
    def sync(self, policy_state: Mapping[str, Tensor], alpha: float) -> None:
        """`ref = alpha * policy + (1 - alpha) * ref`, parameter by parameter (TR-DPO, arXiv 2404.09656).

        With adapters, the parameters are the adapter's two factors: with `alpha = 1` the reference becomes the policy,
        below 1 it is an exponential moving average of the factors, as is usual for adapters, not of their product.
        """
        mixed = {
            name: torch.lerp(value, policy_state[name].to(value), alpha) if value.is_floating_point() else value
            for name, value in self.state().items()
        }
        self.load_state(mixed)


class NetworkReference(Reference):
    """A reference of networks that are there, and are called at each step."""

    has_predictions: ClassVar[bool] = True

    @abstractmethod
    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the module to call instead of the policy `model` (as wrapped for training)."""

    def predictions(self, model: nn.Module, corrupted: Corrupted) -> Tensor:
        """Calls the networks."""
        with torch.no_grad(), self.acting(model) as acting:
            return corrupted.predictions(acting)

    def errors(self, model: nn.Module, corrupted: Corrupted) -> Tensor:
        """Calls the networks."""
        with torch.no_grad():
            return corrupted.errors(self.predictions(model, corrupted))


class OwnReference(NetworkReference):
    """The policy's own networks, which are the reference for as long as they are not trained."""

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the same module."""
        yield model

    @contextmanager
    def sampling(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """The pipeline's networks are those."""
        yield

    def state(self) -> dict[str, Tensor]:
        """It has none of its own."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to replace."""


class PastReference(OwnReference):
    """A reference that is no longer in memory: whoever asks it is told so."""

    def predictions(self, model: nn.Module, corrupted: Corrupted) -> Tensor:
        """Raises a ValueError."""
        raise ValueError(
            "The reference is no longer in memory (`precompute_ref_log_probs=True`): its errors are known of the "
            "trainer's own data sets. Pass this one as `eval_dataset` when the trainer is made."
        )


class AdapterReference(NetworkReference):
    """The policy's networks with the adapter off, or with its frozen copy on.

    Args:
        policy: trains an adapter.
        keep_copy: freeze a copy of the adapter as it is now. Needed if it has been trained before, or if the reference
            is to move.
    """

    def __init__(self, policy: Policy, keep_copy: bool) -> None:
        assert policy.adapter_name is not None
        self.policy = policy
        self.trained = policy.adapter_name
        self.copy = REFERENCE_ADAPTER if keep_copy else None
        if self.copy is not None:
            for network in policy.networks.values():
                config = copy.deepcopy(network.peft_config[self.trained])
                with warnings.catch_warnings():  # peft takes a second adapter for a mistake
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    network.add_adapter(config, adapter_name=self.copy)
                cast_training_params(network, torch.float32)  # as the original is; peft makes it in the network's dtype
                cast_factors(network, not policy.autocasts)
            policy.load_adapter_state(policy.adapter_state(self.trained), self.copy)
        layers = [layer for layer in policy.modules() if isinstance(layer, BaseTunerLayer)]
        self._switch = AdapterSwitch(layers, self.trained, self.copy)

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Switches the adapter for the time of the context, and yields the same module."""
        self._switch.to_reference()
        try:
            yield model
        finally:
            self._switch.to_trained()

    @contextmanager
    def sampling(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """The pipeline's networks are the policy's, so switching the adapter is all."""
        with self.acting(pipeline.components[self.policy.family.network_names[0]]):
            yield

    def state(self) -> dict[str, Tensor]:
        """The copied adapter's weights."""
        return {} if self.copy is None else self.policy.adapter_state(self.copy)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the copied adapter's weights."""
        assert self.copy is not None
        self.policy.load_adapter_state(state, self.copy)


class ModelReference(NetworkReference):
    """A second set of networks, frozen.

    It keeps the dtype of the policy's weights: in another one, norms would round differently and the first log-ratio
    would not be zero.

    Args:
        networks: by name; they are frozen here.
        policy: the policy that it stands beside.
    """

    def __init__(self, networks: Mapping[str, nn.Module], policy: Policy) -> None:
        self.names = list(networks)
        for name, network in networks.items():
            cast(network, compute_dtype(policy.networks[name]))
        model = Policy(policy.family, networks, None, policy.autocasts)
        self.model: nn.Module = model.requires_grad_(False).eval()
        self._plain = self.model

    @property
    def networks(self) -> list[nn.Module]:
        """The networks themselves, whatever was put around them for training."""
        return [self._plain.get_submodule(f"networks.{name}") for name in self.names]

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the second model."""
        yield self.model

    @contextmanager
    def sampling(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Swaps the second model's networks into the pipeline."""
        trained = {name: getattr(pipeline, name) for name in self.names}
        pipeline.register_modules(**dict(zip(self.names, self.networks, strict=True)))
        try:
            yield
        finally:
            pipeline.register_modules(**trained)

    def state(self) -> dict[str, Tensor]:
        """All weights of the second model."""
        return self._plain.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces all weights of the second model."""
        self._plain.load_state_dict(state)

"""Switching between the adapter that is trained and the reference, in the same networks, twice at every step."""

from collections.abc import Iterable, Sequence
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_Attributes = list[tuple[dict[str, Any], dict[str, Any]]]
"""Of each layer its attributes, and those of them that a switch sets."""


class AdapterSwitch:
    """The trained adapter on, or the reference's copy in its place, or none, with the trained weights still trained.

    peft's own switch sets `requires_grad` of every factor too, and with the adapter off of none of them: it takes most
    of its time, and whoever looks at the weights while the reference acts finds none that is trained, as FSDP2 does. So
    what peft's switch does to the attributes of each layer is looked at once, when this is made, and done by itself
    from then on. Where that does not give what peft gives, peft's own switch is used, and `requires_grad` put right
    behind it.

    Args:
        layers: of all networks.
        trained: the adapter that is trained.
        reference: the reference's adapter; None for none.
    """

    def __init__(self, layers: Sequence[BaseTunerLayer], trained: str, reference: str | None) -> None:
        self._layers = list(layers)
        self._trained, self._reference = trained, reference
        put_on(self._layers, trained)
        self._is_trained = [{name: weight.requires_grad for name, weight in _factors(layer)} for layer in self._layers]
        watched = [(layer, name) for layer in self._layers for name, it in _factors(layer) if it.requires_grad]
        # Of the first and of the last network; by name, as sharding puts another weight in its place.
        of_ends = watched[:1] + watched[-1:]
        self._watched = [(layer, *_place(layer, name), layer.scaling[trained]) for layer, name in of_ends]
        self._attributes = self._look()

    def to_trained(self) -> None:
        """Puts the trained adapter on."""
        self._to(self._trained)

    def to_reference(self) -> None:
        """Puts the reference's adapter on, or all off."""
        self._to(self._reference)

    def _to(self, adapter: str | None) -> None:
        if not self._is_as_left():
            self._by_peft(self._trained)  # somebody has used peft's own since, as a pipeline does
        if self._attributes is None:
            self._by_peft(adapter)
        else:
            _set(self._attributes[adapter])

    def _is_as_left(self) -> bool:
        known = (self._trained, [self._trained], self._reference, [self._reference])
        for layer, weights, name, scale in self._watched:
            if not weights[name].requires_grad or layer.active_adapter not in known:
                return False
            if layer.scaling[self._trained] != scale:
                return False
        return True

    def _by_peft(self, adapter: str | None) -> None:
        """As peft does, with `requires_grad` as it is for the trained adapter."""
        put_on(self._layers, adapter)
        for layer, is_trained in zip(self._layers, self._is_trained, strict=True):
            for name, weight in _factors(layer):
                weight.requires_grad_(is_trained.get(name, False))  # an adapter that came since is not trained

    def _look(self) -> dict[str | None, _Attributes] | None:
        """What each switch sets in each layer; None if that is not all it does."""
        both = (self._trained, self._reference)
        seen, told = [], []
        for adapter in both:
            self._by_peft(adapter)
            seen.append([dict(vars(layer)) for layer in self._layers])
            told.append(self._state())
        self._by_peft(self._trained)
        switches: dict[str | None, _Attributes] = {adapter: [] for adapter in both}
        for layer, *states in zip(self._layers, *seen, strict=True):
            one, other = states
            names = [name for name in one.keys() & other.keys() if one[name] is not other[name]]
            for adapter, state in zip(both, states, strict=True):
                switches[adapter].append((vars(layer), {name: state[name] for name in names}))
        for adapter, expected in reversed(list(zip(both, told, strict=True))):  # the trained one last
            _set(switches[adapter])
            if self._state() != expected:
                self._by_peft(self._trained)
                return None
        return switches

    def _state(self) -> list[tuple[bool, list[str]]]:
        return [(layer.disable_adapters, list(layer.active_adapters)) for layer in self._layers]


def put_on(layers: Iterable[BaseTunerLayer], adapter: str | None) -> None:
    """Puts an adapter on alone, or all off, by peft's own switch, which makes what is on trainable and all else not.

    It is weighted by 1, whatever a pipeline's `set_adapters` has said since: so it is trained, and saved.
    """
    for layer in layers:
        if adapter is not None:
            layer.set_adapter(adapter)
            if isinstance(layer, LoraLayer) and adapter in layer.scaling:
                layer.set_scale(adapter, 1.0)
        layer.enable_adapters(adapter is not None)


def _set(attributes: _Attributes) -> None:
    for of_layer, values in attributes:
        of_layer.update(values)


def _place(layer: Any, name: str) -> tuple[dict[str, Any], str]:
    """The weights of the module that has a weight of a layer, and its name among them."""
    path, _, name = name.rpartition(".")
    return layer.get_submodule(path)._parameters, name


def _factors(layer: Any) -> list[tuple[str, nn.Parameter]]:
    """The weights of all adapters of a layer, by name."""
    base = {id(weight) for weight in layer.get_base_layer().parameters()}
    return [(name, weight) for name, weight in layer.named_parameters() if id(weight) not in base]

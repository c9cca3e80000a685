"""Which modules of a network get an adapter: `lora_target_modules` and `peft_config.target_modules`, as in TRL."""

import logging
import re
from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..messages.values import nearest

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose adapters diffusers can save and load."""

Targets = str | Sequence[str]


def check_target_names(setting: str, given: object) -> None:
    """Raises a ValueError if target modules are no name, regular expression or list of names.

    Args:
        setting: what they were given as.
        given: the value.
    """
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple, set)) or not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(
            f"`{setting}` is {given!r}; it must be a name such as 'to_q', a list of names, a regular expression for "
            f"whole names of modules, or {ALL_LINEAR!r}."
        )
    if not entries:
        raise ValueError(f"`{setting}` is empty, so that nothing would be trained. Leave it out, or name modules.")
    if len(entries) > 1 and ALL_LINEAR in entries:
        raise ValueError(f"`{setting}` has {ALL_LINEAR!r} and other names. Give {ALL_LINEAR!r} alone, or the names.")


def find_targets(
    given: Targets, network: nn.Module, where: str, unread: Sequence[str], setting: str = "lora_target_modules"
) -> list[str] | str:
    """What `LoraConfig` takes as `target_modules`, for one network.

    Args:
        given: one name of modules (its last parts, such as `to_q` or `attn.to_out.0`) or a regular expression for whole
            names, a list of names, or `"all-linear"`.
        network: that gets the adapter.
        where: its name.
        unread: names of its modules that nothing reads, which `"all-linear"` leaves out, and so do others, with a
            warning.
        setting: what the user wrote them as.

    Raises:
        ValueError: if something of it fits no module, only some that nothing reads, or one that adapters cannot be put
            on.
    """
    check_target_names(setting, given)
    entries = [given] if isinstance(given, str) else sorted(given)
    layers = {name: layer for name, layer in network.named_modules() if name and not _is_of_adapter(name)}
    if entries == [ALL_LINEAR]:
        return _read([name for name, layer in layers.items() if _is_linear(layer)], unread)
    if len(entries) > 1 or any(_ends_with(name, entries[0]) for name in layers):
        fits = {entry: [name for name in layers if _ends_with(name, entry)] for entry in entries}
        for entry, found in fits.items():
            _check(entry, found, layers, where, setting)
        return _without_unread(entries, fits, unread, where, setting)
    pattern = entries[0]
    try:
        found = [name for name in layers if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(
            f"`{setting}` is {pattern!r}, which is neither the name of modules of `{where}` nor a regular expression "
            f"({error}). {_known(pattern, layers)}"
        ) from None
    _check(pattern, found, layers, where, setting)
    return _without_unread(pattern, {pattern: found}, unread, where, setting)


def _without_unread(
    given: list[str] | str, fits: dict[str, list[str]], unread: Sequence[str], where: str, setting: str
) -> list[str] | str:
    """What was given, or the names of what it fits where that would put an adapter on modules that nothing reads.

    Distributed training waits for the gradient of every trained weight.
    """
    alive = {entry: _read(found, unread) for entry, found in fits.items()}
    read = {name for names in alive.values() for name in names}
    dead = [name for found in fits.values() for name in found if name not in read]
    if not dead:
        return given
    for entry, found in fits.items():
        if not alive[entry]:
            raise ValueError(
                f"`{setting}` has {entry!r}, which fits only modules of `{where}` that nothing reads in training, such "
                f"as `{found[0]}`: no adapter could learn there. Leave it out."
            )
    logger.warning(
        f"`{setting}` also fits {len(dead)} modules of `{where}` that nothing reads in training, such as `{dead[0]}`: "
        "these get no adapter."
    )
    return sorted(read)


def _read(names: Sequence[str], unread: Sequence[str]) -> list[str]:
    return [name for name in names if not any(f"{name}.".startswith(f"{part}.") for part in unread)]


def _check(entry: str, found: Sequence[str], layers: dict[str, nn.Module], where: str, setting: str) -> None:
    if not found:
        raise ValueError(
            f"`{setting}` has {entry!r}, which fits no module of `{where}`, neither as the end of its name nor, given "
            f"alone, as a regular expression for all of it. {_known(entry, layers)}"
        )
    wrong = [name for name in found if not isinstance(_base(layers[name]), ADAPTABLE)]
    if wrong:
        raise ValueError(
            f"`{setting}` has {entry!r}, which fits `{wrong[0]}` of `{where}`, a `{type(layers[wrong[0]]).__name__}`. "
            f"Adapters are put on linear layers and convolutions: let the name or the expression end with one. "
            f"{_known(entry, layers)}"
        )


def _known(entry: str, layers: dict[str, nn.Module]) -> str:
    """What might have been meant, and what there is."""
    names = sorted({_last_parts(name) for name, layer in layers.items() if _is_linear(layer)})
    wanted = re.split(r"[\\.*+?()\[\]|,\s]+", entry)
    near = [name for part in wanted if part for name in nearest(part, names, 2)]
    meant = f"Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}? " if near else ""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"{meant}Its linear layers are called {shown}; {ALL_LINEAR!r} takes them all."


def _last_parts(name: str) -> str:
    """The end of a name that says something: of `attn.to_out.0` also the part before the number."""
    parts = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdecimal():
        start -= 1
    return ".".join(parts[start:])


def _ends_with(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _is_of_adapter(name: str) -> bool:
    return ".lora_" in name or name.endswith(".base_layer") or ".base_layer." in name


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(_base(layer), nn.Linear)

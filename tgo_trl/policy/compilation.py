"""Regional compilation: the blocks that a network repeats, each kind of which is compiled once."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch._dynamo.utils import counters

from ..families import Family
from .index import Index, network_classes

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Graphs that one kind of block may have, where dynamo takes 8. Stable Diffusion 1.5 makes 13 in training: blocks of
four sizes, of policy and reference; evaluations, and the smaller batch at the end of an epoch, make as many again."""
GIVEN_UP = ("graph_break", "unimplemented")
"""What dynamo counts of the code that it leaves to Python: where a graph breaks, and what has too many graphs."""
INSTEAD = "Leave `compile_repeated_blocks` out, or set `torch_compile=True` for the whole network, which takes longer."


class RepeatedBlocks:
    """The repeated blocks of networks, compiled within [`compiled`], and as they were outside of it.

    They are compiled in place (`nn.Module.compile`), so that no weight and no module gets another name.

    Args:
        networks: of policy and reference, adapters and all.
        backend, mode: of `torch.compile`.
        dynamic: whether rows have several sizes, so that sizes are variables of a graph; else each size gets graphs of
            its own, which are faster.

    Raises:
        ValueError: if diffusers names no repeated blocks of a network, or it has none of them.
    """

    def __init__(self, networks: Iterable[Any], backend: str, mode: str | None, dynamic: bool) -> None:
        self._compiled: dict[nn.Module, Callable[..., Any] | None] = {}
        for network in networks:
            check_repeated(type(network))
            for block in repeated_blocks(network):
                forward = torch.compile(block.forward, backend=backend, mode=mode, dynamic=dynamic)
                self._compiled[block] = _with_forward(block, forward)
        self._known = _given_up()

    @property
    def description(self) -> str:
        """How many there are of each kind."""
        kinds = Counter(type(block).__name__.removeprefix("FSDP") for block in self._compiled)
        return ", ".join(f"{number} {kind}" for kind, number in kinds.items())

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within, blocks are compiled: at their first call, and where a call is another than all before."""
        name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # 2.6
        limits = {name: max(MOST_GRAPHS, getattr(torch._dynamo.config, name))}
        with torch._dynamo.config.patch(limits), _calling(self._compiled):
            yield

    def forget(self, networks: Iterable[nn.Module]) -> None:
        """Lets go of networks that are not called any more, so that they can be freed."""
        for network in networks:
            for module in network.modules():
                self._compiled.pop(module, None)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Within [`compiled`], blocks are called as they are, as for samples, whose sizes would take more graphs."""
        with _calling(dict.fromkeys(self._compiled)):
            yield

    def warn_of_eager_code(self) -> None:
        """Warns, once for each reason, of what was called and could not be compiled."""
        found = _given_up()
        for reason in sorted(found.keys() - self._known.keys()):
            logger.warning(
                "`compile_repeated_blocks` is True, and part of the blocks is not compiled, so that it is not as fast "
                "as it could be: %s",
                reason,
            )
        self._known = found


def check_repeated(network_class: type) -> None:
    """Raises a ValueError if diffusers names no repeated blocks of such a network."""
    if not getattr(network_class, "_repeated_blocks", None):
        raise ValueError(
            f"`compile_repeated_blocks` is True, and `{network_class.__name__}` does not say which of its blocks are "
            f"repeated. {INSTEAD}"
        )


def check_compilable(
    model: str | DiffusionPipeline, init_kwargs: Mapping[str, Any] | None, family: Family | None, index: Index | None
) -> None:
    """Raises a ValueError if a pipeline that is still to be loaded cannot be compiled block by block.

    Args:
        model: Hub id, folder or `.safetensors` file, or the pipeline.
        init_kwargs: for `from_pretrained`.
        family: given by the user, or None to look it up.
        index: of the model, if it is named and has one.
    """
    for network_class in network_classes(model, init_kwargs, family, index):
        check_repeated(network_class)
    if accelerate_compiles():
        raise ValueError(
            "`compile_repeated_blocks` is True, and accelerate compiles the whole network (`dynamo_config` of its "
            "configuration, or `ACCELERATE_DYNAMO_BACKEND`). Leave one of the two out."
        )


def accelerate_compiles() -> bool:
    """Whether accelerate's settings ask for the whole network to be compiled."""
    return os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"


@contextmanager
def _calling(calls: Mapping[nn.Module, Callable[..., Any] | None]) -> Iterator[None]:
    """Within, modules are called by these functions, or as they are where there is none."""
    before = {module: module._compiled_call_impl for module in calls}
    for module, call in calls.items():
        module._compiled_call_impl = call
    try:
        yield
    finally:
        for module, call in before.items():
            module._compiled_call_impl = call


def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a module with another `forward`, between its hooks, at which a graph would break where they gather shards.

    The module has the other one while it is called, and no longer.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        before = vars(module).get("forward")  # of hooks, as accelerate puts them around a module
        module.forward = forward
        try:
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            if before is None:
                del module.forward
            else:
                module.forward = before

    return call


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that diffusers names, also where `fully_shard` made them a class of its own, derived from theirs."""
    names = set(network._repeated_blocks)  # type: ignore[arg-type]
    blocks = [it for it in network.modules() if names & {kind.__name__ for kind in type(it).__mro__}]
    if not blocks:
        raise ValueError(
            f"`compile_repeated_blocks` is True, and this `{type(network).__name__}` has no "
            f"{' or '.join(sorted(names))}, which are the blocks that diffusers says are repeated. {INSTEAD}"
        )
    return blocks


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered one at a time, the inner ones first: what diffusers calls its blocks."""
    names = {*(getattr(network, "_no_split_modules", None) or ()), *(getattr(network, "_repeated_blocks", None) or ())}
    inner = [module for module in network.modules() if module is not network and type(module).__name__ in names]
    return [module for module in reversed(inner) if next(module.parameters(), None) is not None]


def _given_up() -> Counter[str]:
    reasons: Counter[str] = Counter()
    for kind in GIVEN_UP:
        for text, number in counters[kind].items():
            reasons[" ".join(str(text).partition("Explanation:")[0].split())] += number
    return reasons

"""Fake tensors beside real ones, for networks that read what their inputs say: where a prompt ends, say."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._subclasses import DynamicOutputShapeException, FakeTensor
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tgo_trl.policy.shapes_and_numbers import INDEXING, by_number

FEW, MANY = 10**4, 2**20
"""Numbers that are computed without asking, and that are no longer."""


class NumbersBesideShapes(TorchDispatchMode):
    """Within it, inside a `FakeTensorMode`, what no fake tensor goes into is computed, unless it has many numbers.

    `tgo_trl.policy.shapes_and_numbers` does the same with the meta device, on which attention takes other ways.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [it for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)]
        if any(map(_is_shape, given)):
            if func in INDEXING:
                with unset_fake_temporarily():
                    args = (args[0], by_number(args[1], _is_shape), *args[2:])
            return func(*args, **kwargs)
        if sum(it.numel() for it in given) > FEW:
            shapes = _shapes(func, args, kwargs)
            if any(isinstance(it, Tensor) and it.numel() > MANY for it in tree_leaves(shapes)):
                return shapes
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _is_shape(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def _shapes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives, as fake tensors; None if that depends on numbers."""
    try:
        return func(*args, **kwargs)
    except (DynamicOutputShapeException, DataDependentOutputException):
        return None

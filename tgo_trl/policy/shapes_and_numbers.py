"""Networks without weights, called with real inputs: what weights have no say in is computed, the rest has a shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class ShapesBesideNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, an operation on tensors of the CPU and of the meta device gives one of the meta device.

    So a network of shapes alone can read what its inputs say by themselves: where a mask ends, or whether an image is
    there. What weights come into has no numbers, and to read it raises PyTorch's NotImplementedError or RuntimeError.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._overwritten: dict[int, torch.UntypedStorage] = {}  # of the CPU, whose numbers are none any more

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, on shapes where one of its tensors is one, also if that was written into numbers."""
        kwargs = kwargs or {}
        tensors = [it for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)]
        if not any(map(self._is_shape, tensors)):
            return func(*args, **kwargs)
        written = [it for it in _written(func, args, kwargs) if not it.is_meta]
        if func in INDEXING:
            args = (args[0], by_number(args[1], self._is_shape), *args[2:])
        if func is torch.ops.aten._to_copy.default:
            kwargs = {**kwargs, "device": META}  # a shape is nowhere else
        args, kwargs = tree_map_only(Tensor, as_shape, (args, kwargs))
        result = func(*args, **kwargs)
        self._overwritten |= {it.untyped_storage()._cdata: it.untyped_storage() for it in written}
        return written[0] if written else result

    def _is_shape(self, tensor: Tensor) -> bool:
        return tensor.is_meta or tensor.untyped_storage()._cdata in self._overwritten


def by_number(indices: Sequence[Tensor | None], is_shape: Callable[[Tensor], bool]) -> list[Tensor | None]:
    """Indices, with the places of what is true in place of each mask that has numbers.

    Args:
        indices: of a tensor that is a shape.
        is_shape: whether a tensor has no numbers.
    """
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or is_shape(index):
            found.append(index)
        else:
            found += index.nonzero().unbind(1)
    return found


def as_shape(tensor: Tensor) -> Tensor:
    """The same on the meta device."""
    return tensor.to(META)


def as_numbers(tensor: Tensor) -> Tensor:
    """Ones on the CPU in place of a tensor of the meta device; of others, the same on the CPU."""
    return torch.ones_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu()


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes into."""
    named = zip(func._schema.arguments, args, strict=False)
    given = [*named, *((it, kwargs[it.name]) for it in func._schema.arguments if it.name in kwargs)]
    return [it for argument, it in given if argument.alias_info is not None and argument.alias_info.is_write]

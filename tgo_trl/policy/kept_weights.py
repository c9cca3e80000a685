"""What autograd keeps of gathered weights until the backward pass: where they will be gathered again, and no copy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _View(NamedTuple):
    """A part of a weight, in whichever memory that is gathered."""

    weight: Any
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _view_of(weight: Any, tensor: Tensor) -> _View | None:
    """A tensor as a part of a weight; None if it is none."""
    if tensor.dtype != weight.dtype or not tensor.numel() or not weight.is_contiguous():
        return None
    if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
        return None
    first = tensor.storage_offset() - weight.storage_offset()
    last = first + sum((size - 1) * step for size, step in zip(tensor.size(), tensor.stride(), strict=True))
    is_within = first >= 0 and last < weight.numel()  # of several weights in one memory, that of another is not
    return _View(weight, tensor.size(), tensor.stride(), first) if is_within else None


@contextmanager
def keeping_no_gathered(weights_here: Callable[[], Iterator[Any]]) -> Iterator[None]:
    """Within, autograd keeps no memory of weights that are gathered for a call, and released after it.

    A linear layer keeps its weight transposed for its backward pass, which is a tensor of its own in the same memory:
    DeepSpeed puts nothing in the weight's place, and the memory stays. After a forward pass, each process would hold
    all weights. They are gathered again before the backward pass of their module.

    That is of weights that are computed with as they are. What autocast makes of a float32 weight is a tensor of its
    own, which is kept as without this: half the bytes of the weight. PyTorch hands it over without saying of which
    weight it is. Blocks that are recomputed keep none of either.

    Args:
        weights_here: the weights of the module that is being called, gathered.
    """

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pack(tensor: Tensor) -> Any:
        return next((view for weight in weights_here() if (view := _view_of(weight, tensor)) is not None), tensor)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def unpack(kept: Any) -> Tensor:
        if not isinstance(kept, _View):
            return kept  # type: ignore[no-any-return]
        weight = kept.weight.detach()
        return weight.as_strided(kept.size, kept.stride, weight.storage_offset() + kept.offset)  # type: ignore[no-any-return]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield

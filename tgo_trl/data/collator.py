"""Batches of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import default_collate

from .batch import HOST_FIELDS, Batch


class RowCollator:
    """Stacks rows; row numbers, epochs and texts stay lists, so that reading them waits for no device."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch with a leading dimension of `len(rows)` on every tensor."""
        host = {name: [row[name] for row in rows] for name in HOST_FIELDS if name in rows[0]}
        tensors = [{name: value for name, value in row.items() if name not in HOST_FIELDS} for row in rows]
        return {**host, **default_collate(tensors)}

"""Batches of rows, and the noise that is drawn for them ahead of the step."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from ..policy.draws import Draw, DrawPlan
from .batch import HOST_FIELDS, Batch

Shape = tuple[int, ...]


class RowCollator:
    """Stacks rows; row numbers, epochs and texts stay lists, so that reading them waits for no device."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch with a leading dimension of `len(rows)` on every tensor."""
        host = {name: [row[name] for row in rows] for name in HOST_FIELDS if name in rows[0]}
        tensors = [{name: value for name, value in row.items() if name not in HOST_FIELDS} for row in rows]
        return {**host, **default_collate(tensors)}


class DrawingCollator(RowCollator):
    """Also draws for the rows, as the batch's `draw`, while the steps before it are made.

    A data loader's worker draws by itself. Elsewhere a thread does, and `draw` is a `Future` of it: the loader collates
    each batch before it hands out the one before.

    Args:
        plan: how the run draws.
        latent_shape: of the image encoder's tensors of a batch, the shape of one clean sample.
        is_pinned: whether to draw into pinned memory.

    Attributes:
        known_shapes: of a stream, whose images are encoded in the step: the shape of one clean sample by that of one
            image's pixels. As long as it is not there, the step draws.
    """

    def __init__(
        self, plan: DrawPlan, latent_shape: Callable[[Mapping[str, Tensor]], Shape], is_pinned: bool = False
    ) -> None:
        self.plan = plan
        self.latent_shape = latent_shape
        self.is_pinned = is_pinned
        self.known_shapes: dict[Shape, Shape] = {}
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """As of any rows, and `draw`, what [`~tgo_trl.policy.draws.DrawPlan.draw`] returns, or a `Future` of it."""
        batch = super().__call__(rows)
        shape = self._shape(batch)
        if shape is None:
            return batch
        work = (batch["epoch"], batch["row"], shape)
        if get_worker_info() is not None:  # where there is no GPU; the loader pins what it gets
            return {**batch, "draw": self.plan.draw(*work)}
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "draws")
        return {**batch, "draw": self._thread.submit(self.plan.draw, *work, self.is_pinned)}

    def _shape(self, batch: Batch) -> Shape | None:
        if "image" in batch:
            return self.latent_shape(batch["image"])
        return self.known_shapes.get(tuple(batch["pixels"].shape[1:]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}  # threads do not travel to data loader workers


def draw_of(batch: Batch) -> Draw | None:
    """What was drawn ahead for a batch, waiting for it if it is still being drawn; None if nothing was."""
    draw: Draw | Future[Draw] | None = batch.get("draw")
    return draw.result() if isinstance(draw, Future) else draw

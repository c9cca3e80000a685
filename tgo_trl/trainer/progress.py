"""How far a run has come, counted in rows: what the batches were does not matter for where it goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: that is under way; of a stream, whose passes follow each other without a seam, always 0.
        rows: that the sampler or the stream has given in it, padding included.
        block: what rows of one size came in, see [`~tgo_trl.trainer.preparation.training_block`].
    """

    epoch: int = 0
    rows: int = 0
    block: int = 1

    def after(self, batches: Sequence[Mapping[str, Any]], num_processes: int, is_stream: bool) -> "Progress":
        """The progress when these batches, of this process, and those of the others have been trained on."""
        epoch = 0 if is_stream else batches[-1]["epoch"][-1]
        before = self.rows if epoch == self.epoch else 0
        return Progress(epoch, before + num_processes * sum(map(len, map(itemgetter("row"), batches))), self.block)

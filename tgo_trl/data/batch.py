"""What a prepared row, and with it a batch, holds: the names of all fields, in one place."""

from typing import Any, TypedDict

from torch import Tensor


class PreparedRow(TypedDict, total=False):
    """A row as it is trained on.

    Attributes:
        row: its index in the user's data set.
        epoch: that its draw belongs to.
        valid: False for padding.
        score, weight: float32.
        is_positive: bool.
        relative_score: float32, where the loss reads it.
        reference_error: float32 `[S]`, of each sample of its draw, where it was computed before training.
        image, prompt: the encoders' tensors by name, of map-style data.
        prompt_length: tokens of the prompt, where its tensors have a mask of them.
        pixels, geometry, prompt_text: of a stream, whose rows are encoded in the training step.
    """

    row: int
    epoch: int
    valid: bool
    score: Tensor
    is_positive: Tensor
    weight: Tensor
    relative_score: Tensor
    reference_error: Tensor
    image: dict[str, Tensor]
    prompt: dict[str, Tensor]
    prompt_length: int
    pixels: Tensor
    geometry: Tensor
    prompt_text: str


Batch = dict[str, Any]
"""The same fields: tensors with a leading dimension of rows, and lists of the [`HOST_FIELDS`].

Beside them `draw`, if it was drawn ahead ([`~tgo_trl.data.collator.DrawingCollator`]).
"""

FIELDS = tuple(PreparedRow.__annotations__)
HOST_FIELDS = ("row", "epoch", "prompt_text", "prompt_length")
"""What stays a list in a batch, so that reading it waits for no device."""

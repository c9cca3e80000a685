"""One pass of policy and reference over the same corrupted samples."""

from torch import nn

from ..losses import Predictions, RowErrors
from .denoising import Corrupted
from .reference import Reference


def row_errors(
    model: nn.Module, reference: Reference | None, corrupted: Corrupted, with_predictions: bool = False
) -> RowErrors:
    """Errors of policy and reference, for all draws of all rows in one forward pass each.

    Args:
        model: the policy as wrapped for training.
        reference: None to leave it out.
        corrupted: `K` draws of each of `B` rows.
        with_predictions: keep what the errors are of.

    Raises:
        ValueError: `with_predictions`, if the reference has none.
    """
    if not with_predictions:
        # The reference goes first: its networks may be the policy's own, whose graph is then the last to be built.
        reference_errors = None if reference is None else reference.errors(model, corrupted)
        return RowErrors(corrupted.errors(corrupted.predictions(model)), reference_errors)
    target = corrupted.by_row(corrupted.target())
    theirs = None if reference is None else reference.predictions(model, corrupted)
    mine = corrupted.predictions(model)
    return RowErrors(
        corrupted.errors(mine),
        None if theirs is None else corrupted.errors(theirs),
        Predictions(corrupted.by_row(mine), None if theirs is None else corrupted.by_row(theirs), target),
    )

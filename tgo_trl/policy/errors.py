"""One pass of policy and reference over the same corrupted samples."""

from torch import Tensor, nn

from ..losses import Predictions, RowErrors
from ..losses.likelihood import squared_difference
from .denoising import Corrupted
from .reference import Reference


def row_errors(
    model: nn.Module, reference: Reference | None, corrupted: Corrupted, with_predictions: bool = False,
    known: Tensor | None = None,
) -> RowErrors:  # fmt: skip
    """Errors of policy and reference, for all draws of all rows in one forward pass each.

    Args:
        model: the policy as wrapped for training.
        reference: None to leave it out.
        corrupted: `K` draws of each of `B` rows.
        with_predictions: keep what the errors are of.
        known: the reference's errors, float32 `[K, B]`, if they are known already: it is not asked then.

    Raises:
        ValueError: `with_predictions`, if the reference has none.
    """
    # The reference goes first: its networks may be the policy's own, whose graph is then the last to be built.
    theirs, reference_errors = None, known
    if reference is not None and known is None:
        can_subtract = reference.has_predictions and corrupted.noise_process.has_target
        if with_predictions or can_subtract:  # what its errors are of: no pass more
            theirs = reference.predictions(model, corrupted)
            reference_errors = corrupted.errors(theirs)
        else:
            reference_errors = reference.errors(model, corrupted)
    mine = corrupted.predictions(model)
    errors = corrupted.errors(mine)
    mine = corrupted.by_row(mine)
    difference = None
    if theirs is not None:
        theirs = corrupted.by_row(theirs)
        difference = squared_difference(mine.detach(), theirs)
    if not with_predictions:
        return RowErrors(errors, reference_errors, prediction_difference=difference)
    predictions = Predictions(mine, theirs, corrupted.by_row(corrupted.target()))
    return RowErrors(errors, reference_errors, predictions, difference)

"""NaN and infinity end a run, or leave an update out, before they reach the weights.

Looked for on the device, without waiting for it: what was found in an update is read while the next one is computed,
and at the latest before anything is saved. The optimizer does not take such an update in the first place.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..labels.checks import list_rows

logger = logging.getLogger(__name__)

BatchLosses: TypeAlias = tuple[Sequence[int], Tensor]
"""The rows of a batch by their index in the data set, and their losses, 0 for padding, `[B]`."""

MOST_IN_A_ROW = 10
"""Updates that may be left out one after the other: then it is the run that is at fault, not its rows."""


class NonFiniteError(ValueError):
    """A loss, a gradient or a weight is NaN or infinite."""


class UpdateGuard:
    """Keeps updates with a row loss or a gradient norm that is not finite from the weights.

    With float16 a gradient norm that overflows is what the gradient scaler is there for: it leaves such updates out by
    itself, and only losses are looked at. One that is infinite may have a finite gradient.

    Args:
        accelerator: of the run.
        skip: whether such updates are left out and counted, instead of ending the run.
        made: called for each update that was not bad, once that is known, before the optimizer takes its next step.
        levers: what makes steps smaller, for messages.

    Attributes:
        num_left_out: updates that were.
        asked_to_stop: whether any process has told [`before_step`] so.
    """

    def __init__(
        self, accelerator: Accelerator, skip: bool, made: Callable[[], None] = lambda: None,
        levers: str = "`learning_rate`",
    ) -> None:  # fmt: skip
        self.accelerator = accelerator
        self.levers = levers
        self.skip = skip
        self._made = made
        self.num_left_out = 0
        self.asked_to_stop = False
        self._num_in_a_row = 0
        self._rows: list[BatchLosses] = []
        self._evaluated: list[BatchLosses] = []
        self._found: _Found | None = None

    def add(
        self, rows: Sequence[int], row_loss: Tensor, valid: Tensor, is_training: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Notes the losses of some rows, of the update or of an evaluation; padding does not count.

        Args:
            rows: by their index in the data set.
            row_loss: `[B]`.
            valid: bool `[B]`, False for padding.
            is_training: whether they belong to an update.

        Returns:
            The losses, 0 for what does not count, `[B]`, which hold gradient; and which rows count, bool `[B]`: where
            bad ones are left out, they count in no mean.
        """
        losses = row_loss.masked_fill(~valid, 0)
        (self._rows if is_training else self._evaluated).append((rows, losses.detach()))
        if self.skip:
            valid = valid & row_loss.isfinite()
            losses = losses.masked_fill(~valid, 0)
        return losses, valid

    def before_step(self, update: int, norm: Tensor | float | None, optimizer: Any, stop: bool = False) -> None:
        """Keeps the optimizer from taking the update if it is bad, and reads what was found in the one before.

        Args:
            update: its number.
            norm: of the gradient, over all processes.
            optimizer: about to take its step.
            stop: whether this process has been asked to end the run.

        Raises:
            NonFiniteError: of the update before.
        """
        self.settle()
        rows, self._rows = self._rows, []
        values = [losses for _, losses in rows]
        scaler = getattr(self.accelerator, "scaler", None)
        if norm is not None and scaler is None:
            values.append(torch.as_tensor(norm, device=values[0].device).reshape(1))
        every = torch.cat(values)
        bad = (every - every).sum().ne(0).float()  # a number less itself is 0, and NaN if it is not finite
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(torch.stack([bad, torch.full_like(bad, stop)]), "sum")
            bad, stop = (flags[0] > 0).float(), False
        else:
            flags = bad[None]
        _leave_out(optimizer, bad, scaler is not None)
        self._found = _Found.read_later(update, flags, rows, stop)

    def settle(self) -> None:
        """Acts on what was found in the last update. All processes come here together.

        Raises:
            NonFiniteError: if it was bad, unless such updates are left out; if too many were in a row.
        """
        found, self._found = self._found, None
        if found is None:
            return
        bad, stop = found.read()
        self.asked_to_stop |= stop
        if not bad:
            self._num_in_a_row = 0
            self._made()
            return
        self.num_left_out += 1
        self._num_in_a_row += 1
        reason = self._describe(found)
        if not self.skip:
            raise NonFiniteError(
                f"{reason} The update was not made; weights and checkpoints are as before. Lower {self.levers}, mend "
                "or drop these rows, or set `on_bad_row='skip'` to leave such updates out."
            )
        logger.warning("%s The update is left out.", reason)
        if self._num_in_a_row == MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{MOST_IN_A_ROW} updates in a row had to be left out, up to update {found.update}: the network itself "
                "gives NaN or infinity. Go on from an earlier checkpoint with a lower `learning_rate`."
            )

    def begin_evaluation(self) -> None:
        """Forgets the rows of an evaluation that was broken off."""
        self._evaluated = []

    def check_evaluated(self) -> None:
        """Acts on the bad rows of an evaluation, which all processes have come to the end of.

        Raises:
            NonFiniteError: if there are any, unless they are left out.
        """
        losses, self._evaluated = self._evaluated, []
        bad_rows = gather_object(_bad_rows(losses)) if self.accelerator.num_processes > 1 else _bad_rows(losses)
        if not bad_rows:
            return
        reason = f"The loss of {list_rows(sorted({*bad_rows}))} of the evaluated data set is not finite."
        if not self.skip:
            raise NonFiniteError(
                f"{reason} Mend or drop these rows, lower `learning_rate`, or set `on_bad_row='skip'` to leave them "
                "out."
            )
        logger.warning("%s They are left out of the metrics.", reason)

    def check_share(self, num_updates: int) -> None:
        """Ends a run of which more was left out than made, and tells of a run of which something was.

        Raises:
            NonFiniteError: if more than half of the updates were left out.
        """
        if 2 * self.num_left_out > num_updates:
            raise NonFiniteError(
                f"{self.num_left_out} of {num_updates} updates had a loss or a gradient that is not finite and were "
                "left out: what is left is no training. Lower `learning_rate`, or mend or drop the rows named above."
            )
        if self.num_left_out:
            logger.warning(
                "%d of %d updates had a loss or a gradient that is not finite and were left out.",
                self.num_left_out,
                num_updates,
            )

    def _describe(self, found: "_Found") -> str:
        bad_rows, rows = _bad_rows(found.rows), [row for part, _ in found.rows for row in part]
        if self.accelerator.num_processes > 1:
            bad_rows, rows = gather_object(bad_rows), gather_object(rows)
        if bad_rows:
            return f"Update {found.update}: the loss of {list_rows(sorted({*bad_rows}))} of the data set is not finite."
        return f"Update {found.update}: the gradient norm is not finite ({list_rows(sorted({*rows}))} of the data set)."


@dataclass(frozen=True)
class _Found:
    """What was found in an update, on its way from the device."""

    update: int
    flags: Tensor  # `[1]`, above 0 if it was bad; of several processes `[2]`, whether any was asked to stop too
    rows: list[BatchLosses]
    stop: bool  # as far as this process knows
    arrived: Any

    @classmethod
    def read_later(cls, update: int, flags: Tensor, rows: list[BatchLosses], stop: bool) -> "_Found":
        if flags.device.type != "cuda":
            return cls(update, flags, rows, stop, None)
        host = torch.empty_like(flags, device="cpu", pin_memory=True).copy_(flags, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(update, host, rows, stop, arrived)

    def read(self) -> tuple[bool, bool]:
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, *stops = self.flags.tolist()
        return bad > 0, self.stop or sum(stops) > 0


def _bad_rows(found: Iterable[BatchLosses]) -> list[int]:
    bad = ((rows, (~losses.isfinite()).tolist()) for rows, losses in found)
    return [row for rows, flags in bad for row, flag in zip(rows, flags, strict=True) if flag]


def _leave_out(optimizer: Any, is_bad: Tensor, is_scaled: bool) -> None:
    """Makes the next step of the optimizer leave weights and state as they are if the update is bad: 1, and not 0.

    A gradient scaler has looked at the gradients by then, and says itself to the fused ones what it found there.
    """
    plain = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    if not is_scaled and getattr(plain, "_step_supports_amp_scaling", False):  # PyTorch's fused look on the device
        plain.found_inf = is_bad
    elif is_bad:  # others pass over parameters without a gradient
        plain.zero_grad(set_to_none=True)


def check_finite_tensors(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raises a [`NonFiniteError`] that names the first tensor that is not finite.

    Args:
        tensors: by name.
        what: the subject of the message, such as "The adapter in 'folder'".
    """
    named = list(tensors)
    finite = [tensor.detach().isfinite().all() for _, tensor in named]
    if not named or bool(torch.stack([flag.cpu() for flag in finite] if _on_several(named) else finite).all()):
        return
    bad = [name for (name, _), flag in zip(named, finite, strict=True) if not flag]
    raise NonFiniteError(
        f"{what} has NaN or infinity in {len(bad)} of {len(named)} tensors, {bad[0]!r} among them, and would draw "
        "nothing. Go back to an earlier checkpoint, or train anew with a lower `learning_rate`."
    )


def _on_several(named: Sequence[tuple[str, Tensor]]) -> bool:
    return len({tensor.device for _, tensor in named}) > 1

"""A number of some prompts with its interval, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number and how far it may be off.

    Attributes:
        value: of all prompts.
        interval: 95 %, by the bootstrap over prompts; None of one prompt.
    """

    value: float
    interval: tuple[float, float] | None

    def text(self, write: Callable[[float], str], unit: str = "") -> str:
        """`value unit [low, high]`, without brackets if there is no interval.

        Args:
            write: a number.
            unit: after the value.
        """
        text = write(self.value) + unit
        if self.interval is None:
            return text
        low, high = map(write, self.interval)
        return f"{text} [{low}, {high}]"

    def percent(self) -> str:
        """Of a share, from 0 to 1."""
        return self.text(lambda value: f"{100 * value:.1f}", " %")

"""Which parameters of a test are left to the slow suite."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def some_slow(values: Mapping[str, Any], slow: Collection[str]) -> list[Any]:
    """Values as parameters by their names, of which those of some names are slow."""
    assert set(slow) <= values.keys()
    return [pytest.param(it, id=name, marks=[pytest.mark.slow] if name in slow else []) for name, it in values.items()]


def some_fast(values: Mapping[str, Any], fast: Collection[str]) -> list[Any]:
    """The same, of which all but those of some names are slow."""
    assert set(fast) <= values.keys()
    return some_slow(values, values.keys() - set(fast))

"""The versions that the tests run on: pinned for every Python, and such as `pyproject.toml` allows."""

import re
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
DIRECT = [Requirement(line) for line in requires("tgo_trl")]
EXTRAS = {"", *metadata("tgo_trl").get_all("Provides-Extra")}


def test_a_line_is_a_name_and_a_version():
    pattern = r"[a-z0-9-]+==[a-z0-9.]+( ; [^@/]+)?"
    assert [line for line in LINES if not re.fullmatch(pattern, line)] == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_pins_of_what_is_needed_are_allowed(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = [pin for pin in map(Requirement, LINES) if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    for requirement in DIRECT:
        name, marker = canonicalize_name(requirement.name), requirement.marker
        needed = marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in EXTRAS)
        if needed and name not in ("torch", "tgo-trl"):  # the Makefile names torch
            assert requirement.specifier.contains(versions[name]), name


def test_every_direct_dependency_has_a_lower_bound():
    bare = [str(one) for one in DIRECT if not any(part.operator == ">=" for part in one.specifier)]
    assert all(canonicalize_name(line).startswith("tgo-trl") for line in bare)

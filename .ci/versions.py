"""The versions of what the tests run on.

`python .ci/versions.py lowest` prints the lower bounds of `pyproject.toml` as pins.
`python .ci/versions.py differences` prints what is installed in another version than `constraints.txt` holds.
`python .ci/versions.py installed` prints what is installed as pins, for this Python and newer ones.

All read the metadata of the environment that they run in, where the package itself is installed.
"""

import platform
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
# The package, what installs it, and what the Makefile names.
APART = {"pip", "uv", "tgo-trl", "torch"}


def lowest() -> list[str]:
    """A pin of each direct dependency, extras included, to its lower bound."""
    found = set()
    for requirement in map(Requirement, requires("tgo_trl") or []):
        bounds = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        if bounds and requirement.name not in APART:
            found.add(f"{requirement.name}=={max(bounds)}")
    return sorted(found)


def pinned() -> dict[str, str]:
    """The version of each name that `constraints.txt` holds for this Python and platform."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def installed() -> dict[str, str]:
    """The version of each name in this environment."""
    return {canonicalize_name(found.name): found.version for found in distributions()}


def differences() -> list[str]:
    """A table of what is not installed as it is pinned."""
    here, held = installed(), pinned()
    names = sorted((held.keys() | here.keys()) - APART)
    rows = [(name, held.get(name, "none"), here.get(name, "none")) for name in names]
    apart = [("name", "pinned", "installed"), *(row for row in rows if row[1] != row[2])]
    title = f"Python {platform.python_version()}, torch {here.get('torch', 'none')}; apart from {CONSTRAINTS.name}:"
    return [title, *("{:26}{:20}{}".format(*row) for row in apart)]


def main(command: str) -> None:
    """Prints what the command asks for."""
    if command == "lowest":
        lines = lowest()
    elif command == "installed":
        # A local version, as of torch's build for the CPU, is on no index.
        versions = {name: version.partition("+")[0] for name, version in installed().items() if name != "tgo-trl"}
        marker = "python_version >= '{}.{}'".format(*platform.python_version_tuple())
        lines = [f"{name}=={version} ; {marker}" for name, version in sorted(versions.items())]
    else:
        lines = differences()
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])

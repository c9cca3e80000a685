"""Settings as people write them: YAML 1.2 files for `--config`, and JSON on a command line. Loads no heavy library.

PyYAML reads YAML 1.1, for which `no` is false, `1e-6` is text and `010` is eight; here its loader gets the core schema
of YAML 1.2.2 (section 10.3), under which a value means what the same text means on the command line.
"""

import argparse
import contextlib
import dataclasses
import json
import numbers
import os
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Union

import yaml

from .messages import values

MAX_VALUES = 100_000
"""Of a file, aliases spelled out: more is no configuration, but a file that is made to fill the memory."""

MAX_FLOAT32 = 3.4028234663852886e38

shown = partial(values.shown, limit=80)
"""Settings in messages: names with values take more room than cells of a data set."""

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": (r"null|Null|NULL|~|", "nN~"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),  # of YAML 1.1, which configurations use all the same
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader with the types of YAML 1.2."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def construct_yaml_int(self, node: Any) -> int:
        """Decimal with leading zeros too; octal as `0o17`, hexadecimal as `0x1f`."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_yaml_float(self, node: Any) -> float:
        """A number, `.inf` or `.nan`."""
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def construct_yaml_str(self, node: Any) -> str:
        """Text, in which JSON may write a letter as two halves."""
        text = str(self.construct_scalar(node))
        return text.encode("utf-16", "surrogatepass").decode("utf-16")


for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), [*_first, *([""] * (_name == "null"))])
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_yaml_float)
_Loader.add_constructor(f"{_TAG}str", _Loader.construct_yaml_str)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """PyYAML's safe dumper, with quotes around text that either version of YAML would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: a value that comes twice is written twice."""
        return True

    def represent_str(self, data: str) -> Any:
        """Text, with what else ends a line in quotes: unquoted, PyYAML writes it so that it reads as a space."""
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _name, (_pattern, _first) in _CORE.items():
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), [*_first, *([""] * (_name == "null"))])


@dataclass(frozen=True)
class Setting:
    """A value of a file.

    Attributes:
        value: as YAML has it.
        text: as it is written; None for lists and mappings.
        line: where it is written, from 1 on.
        entries: of a list.
    """

    value: Any
    text: str | None
    line: int
    entries: tuple["Setting", ...] = ()


def read_settings(path: Path) -> dict[str, Setting]:
    """The settings of a YAML file, by name.

    Raises:
        ValueError: with the line, if the file holds no names and values.
    """
    loader = None
    try:
        loader = _Loader(path.read_bytes())
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path} must hold names and values, such as `learning_rate: 1e-5`.")
        _check_node(node, {}, [])
        loader.flatten_mapping(node)
        return {_name_of(key): _setting(loader, value, key) for key, value in node.value}
    except _NodeError as error:
        raise ValueError(f"{path}, line {error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where}: this is no YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for settings.") from None
    finally:
        if loader is not None:
            loader.dispose()


def yaml_text(settings: Mapping[str, Any]) -> str:
    """The settings as a file that [`read_settings`] reads as the same values, in their order."""
    return str(yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def apply_settings(
    parser: argparse.ArgumentParser, classes: Sequence[type], settings: Mapping[str, Setting], path: Path, command: str
) -> None:
    """Makes the settings of a file the defaults of a parser, each of the type that its field has.

    Args:
        parser: of the command, made from `classes`.
        classes: the dataclasses of its settings.
        settings: of the file.
        path: of the file, for errors.
        command: for errors.

    Raises:
        ValueError: with the line, for a setting that does not exist, or a value that does not fit it.
    """
    hints: dict[str, Any] = {}
    for settings_class in classes:
        hints |= typing.get_type_hints(settings_class, include_extras=True)
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest in hints}
    for name, setting in settings.items():
        where = f"{path}, line {setting.line}"
        if name not in actions:
            meant = values.did_you_mean(name.replace("-", "_"), actions, "`") or " See --help."
            raise ValueError(f"{where}: the file has `{name}`, which `{command}` does not know.{meant}")
        try:
            value = _converted(setting, actions[name], hints[name])
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: `{name}` is {shown(setting.value)}; {error}") from None
        for action in parser._actions:  # `--no_...` has the same destination
            if action.dest == name:
                action.default, action.required = value, False


def environment(path: Path, setting: Setting | None) -> dict[str, str]:
    """The environment variables that a file sets under `env`."""
    if setting is None:
        return {}
    if not isinstance(setting.value, dict) or any(isinstance(value, (dict, list)) for value in setting.value.values()):
        raise ValueError(f"{path}, line {setting.line}: `env` must hold names of variables and their values.")
    return {name: "" if value is None else str(value) for name, value in setting.value.items()}


Several: typing.TypeAlias = typing.Annotated[str, "or a list of them"]
"""An entry of a list of texts that may be several: in YAML a list, on a command line one as JSON."""


def several(entry: Any) -> Any:
    """An entry of a list as it is meant: a list for the JSON text of a list, unless that is the name of a file."""
    if isinstance(entry, str) and entry.lstrip().startswith("[") and not os.path.exists(entry):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(entry)
    return list(entry) if isinstance(entry, (list, tuple)) else entry


def files_of(entry: Any) -> list[Any]:
    """The files of the source images of one prompt, as an entry of the setting has them."""
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def as_dictionary(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The dictionary that a setting is, or that it is the JSON text of, as on a command line.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` is no JSON ({error}). Write it as {EXAMPLE}.") from None
        except RecursionError:
            raise ValueError(f"`{name}` is nested too deeply.") from None
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` is a `{type(value).__name__}`, not names with values. Write it as {EXAMPLE}.")
    check_finite(name, value)
    return dict(value or {})


EXAMPLE = """'{"name": "value"}'"""
PIPELINE_CLASS = "pipeline_class"
"""The setting, and the keyword argument that it becomes where a pipeline is loaded."""


def with_pipeline_class(init_kwargs: Mapping[str, Any] | None, name: str | None) -> dict[str, Any] | None:
    """Keyword arguments for a pipeline that is loaded under a class; as they are if it is None.

    Raises:
        ValueError: if they name the class themselves.
    """
    if init_kwargs is not None and PIPELINE_CLASS in init_kwargs:
        raise ValueError(
            "`model_init_kwargs` has `pipeline_class`, which is a setting of its own. Set `pipeline_class`."
        )
    if name is None:
        return None if init_kwargs is None else dict(init_kwargs)
    return {**(init_kwargs or {}), PIPELINE_CLASS: name}


def check_types(settings: object, names: Iterable[str]) -> None:
    """Raises a ValueError for a setting whose value is of none of the types that its field has; lists are passed over.

    Args:
        settings: an object of a dataclass.
        names: of its fields.
    """
    hints = typing.get_type_hints(type(settings))
    for name in names:
        value, kinds = getattr(settings, name), _kinds(hints[name])
        if list not in kinds and not any(_fits(value, kind) for kind in kinds):
            wanted = " or ".join(sorted(_TYPE_NAMES[kind] for kind in kinds - {type(None)}))
            raise ValueError(f"`{name}` is {shown(value)}; it must be {wanted}.")


def numbers_of(config: type) -> list[str]:
    """Names of the fields of a dataclass that take numbers, or None, and nothing else."""
    hints = typing.get_type_hints(config)
    return [item.name for item in dataclasses.fields(config) if _kinds(hints[item.name]) - {type(None)} <= {int, float}]


def take_plain_numbers(settings: Any) -> None:
    """Puts Python's numbers into an object of a dataclass, see [`plain_numbers`]."""
    for item in dataclasses.fields(settings):
        setattr(settings, item.name, plain_numbers(getattr(settings, item.name)))


def plain_numbers(value: Any) -> Any:
    """The value with Python's numbers for those of numpy and others, which JSON does not take; through lists and dicts.

    A float32 stays the number that it is: 0.1 becomes 0.10000000149011612.
    """
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    if type(value) is dict:
        return {name: plain_numbers(entry) for name, entry in value.items()}
    if type(value) in (bool, int, float) or isinstance(value, Enum):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    is_bool = str(getattr(value, "dtype", "")) == "bool" and getattr(value, "shape", None) == ()  # numpy's is no number
    return bool(value) if is_bool else value


def check_finite(name: str, value: Any) -> None:
    """Raises a ValueError for a number, also in lists and mappings, that is infinite in float32, as 1e39 is."""
    if isinstance(value, (int, float)) and not abs(value) <= MAX_FLOAT32:
        raise ValueError(f"`{name}` is {shown(value)}; it must be finite in float32 (at most 3.4e38).")
    if isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            check_finite(f"{name}[{i}]", entry)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            check_finite(f"{name}[{shown(key)}]", entry)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises a ValueError for a setting that is none of its choices."""
    if value not in choices:
        meant = values.did_you_mean(value, choices)
        raise ValueError(f"`{name}` is {shown(value)}; it must be one of {', '.join(map(repr, choices))}.{meant}")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float and isinstance(value, int) and value.bit_length() >= sys.float_info.max_exp:
        return False
    return isinstance(value, _TAKEN_FOR.get(kind, kind))


_TAKEN_FOR: dict[type, Any] = {
    float: numbers.Real, int: numbers.Integral, str: (str, os.PathLike), dict: Mapping,
}  # fmt: skip
_TYPE_NAMES = {
    bool: "true or false", float: "a number within the range of floats", int: "a whole number", str: "text",
    dict: "names with values",
}  # fmt: skip


# ---- Reading ----


class _NodeError(Exception):
    def __init__(self, message: str, node: Any) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def _check_node(node: Any, sizes: dict[int, int], ancestors: list[int]) -> int:
    """How many values a node has with all aliases spelled out."""
    if id(node) in ancestors:
        raise _NodeError("this holds itself, through an alias.", node)
    if id(node) not in sizes:
        ancestors.append(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_names(node)
        sizes[id(node)] = 1 + sum(_check_node(child, sizes, ancestors) for child in _children(node))
        ancestors.pop()
        if sizes[id(node)] > MAX_VALUES:
            raise _NodeError(f"with its aliases spelled out, this has more than {MAX_VALUES:,} values.", node)
    return sizes[id(node)]


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_names(node: Any) -> None:
    names: set[str] = set()
    for key, _ in node.value:
        if key.tag == f"{_TAG}merge":
            continue
        name = _name_of(key)
        if name in names:
            raise _NodeError(f"`{name}` comes twice. Leave one of them out.", key)
        names.add(name)


def _name_of(key: Any) -> str:
    if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
        raise _NodeError(f"{shown(getattr(key, 'value', key))} is no name. Put quotes around it if it is one.", key)
    return str(key.value)


def _setting(loader: Any, node: Any, key: Any = None) -> Setting:
    entries = node.value if isinstance(node, yaml.SequenceNode) else ()
    try:
        value = loader.construct_object(node, deep=True)
    except (AttributeError, KeyError, TypeError, ValueError):  # what PyYAML makes of `!!bool 7`, or of 5000 digits
        kind = node.tag.rpartition(":")[2]
        raise _NodeError(
            f"{shown(getattr(node, 'value', None))} cannot be read as {shown(kind)}.", key or node
        ) from None
    return Setting(
        value=value,
        text=node.value if isinstance(node, yaml.ScalarNode) else None,
        line=(key or node).start_mark.line + 1,
        entries=tuple(_setting(loader, entry) for entry in entries),
    )


# ---- Types ----


def _kinds(hint: Any) -> set[Any]:
    """The types that a field takes: of `list[str] | None`, `list` and `NoneType`."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return {kind for part in typing.get_args(hint) for kind in _kinds(part)}
    return {typing.get_origin(hint) or hint}


def _nests(hint: Any) -> bool:
    """Whether a field takes lists of [`Several`]."""
    return hint is Several or any(map(_nests, typing.get_args(hint)))


def _converted(setting: Setting, action: argparse.Action, hint: Any) -> Any:
    value, kinds = setting.value, _kinds(hint)
    if value is None:
        if action.default is not None and type(None) not in kinds:
            raise ValueError("it needs a value. Leave it out for the default.")
        return None
    if isinstance(value, dict):
        if dict not in kinds:
            raise ValueError("it takes one value, not names with values.")
        return value
    if isinstance(value, list):
        if list not in kinds:
            raise ValueError("it takes one value, not a list.")
        nests = _nests(hint)
        return [
            [_scalar(part, action) for part in entry.entries] if nests and entry.entries else _scalar(entry, action)
            for entry in setting.entries
        ]
    return [_scalar(setting, action)] if action.nargs == "+" else _scalar(setting, action)


def _scalar(setting: Setting, action: argparse.Action) -> Any:
    """What the value would be on the command line."""
    if setting.text is None or setting.value is None:
        raise ValueError(f"{shown(setting.value)} in it must be a single value.")
    is_number = isinstance(setting.value, (int, float)) and not isinstance(setting.value, bool)
    convert: Any = action.type or str
    text = setting.text.lower() if isinstance(setting.value, bool) else setting.text
    try:
        value = convert(repr(setting.value) if is_number and convert is not str else text)
    except ValueError:
        raise ValueError(f"it must be {_KIND_NAMES.get(getattr(convert, '__name__', ''), 'something else')}.") from None
    if action.choices is not None and value not in action.choices:
        meant = values.did_you_mean(value, action.choices)
        raise ValueError(f"it must be one of {', '.join(map(repr, action.choices))}.{meant}")
    return value


_KIND_NAMES = {"int": "a whole number", "float": "a number"}

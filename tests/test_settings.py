"""Configuration files are read as YAML 1.2, with errors that name file and line."""

import math
import os
from dataclasses import dataclass, field

import pytest
from trl import TrlParser

from tgo_trl.parser import SettingsParser
from tgo_trl.settings import apply_settings, as_dictionary, read_settings


@dataclass
class Example:
    text: str = "before"
    number: float = 0.0
    count: int = 1
    flag: bool = False
    names: list[str] | None = None
    weights: list[float] | None = None
    options: dict[str, object] | str | None = None
    optional_count: int | None = None
    choice: str = field(default="a", metadata={"choices": ["a", "b"]})
    on_by_default: bool = True


def values(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {name: setting.value for name, setting in read_settings(path).items()}


def example(tmp_path, text, *arguments):
    """The dataclass that a file makes, under arguments of a command line."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    parser = TrlParser([Example])
    apply_settings(parser, [Example], read_settings(path), path, "tgo-trl example")
    return parser.parse_args_into_dataclasses(list(arguments))[0]


# ---- The core schema of YAML 1.2.2 ----

SCALARS = {
    "no": "no", "No": "No", "off": "off", "yes": "yes", "on": "on", "y": "y", "n": "n",
    "true": True, "True": True, "FALSE": False, "tRue": "tRue",
    "null": None, "~": None, "": None, "Null": None, "nUll": "nUll", "none": "none",
    "1e-6": 1e-6, "1E5": 1e5, "-1.5e+3": -1500.0, ".5": 0.5, "5.": 5.0, "1.5": 1.5, "+1.0": 1.0, "1e": "1e", ".": ".",
    "0": 0, "-7": -7, "+7": 7, "010": 10, "0o17": 15, "0x1F": 31, "0b11": "0b11", "1_000": "1_000", "09": 9,
    "1:30": "1:30", "190:20:30": "190:20:30", "2024-01-01": "2024-01-01", "2001-12-14t21:59:43.10-05:00":
    "2001-12-14t21:59:43.10-05:00", ".inf": math.inf, "-.INF": -math.inf, "inf": "inf", "nan": "nan", "=": "=",
    '"1"': "1", "'no'": "no", "!!str 1": "1", "!!int '3'": 3, "1 2": "1 2", "é": "é", "-": [None], "1e400": math.inf,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items(), ids=SCALARS)
def test_scalars_have_the_types_of_yaml_1_2(tmp_path, text, value):
    found = values(tmp_path, f"a:\n  - {text}\nb: {{c: [{text if text != '-' else 'x'}]}}\n")
    assert found["a"] == [value]
    assert type(found["a"][0]) is type(value)
    if text != "-":
        assert found["b"] == {"c": [value] if text else []}


def test_not_a_number(tmp_path):
    assert all(math.isnan(value) for value in values(tmp_path, "a: [.nan, .NaN, .NAN]")["a"])


def test_merge_keys_and_aliases_are_read(tmp_path):
    text = "base: &base {a: 1, b: no}\nother:\n  <<: *base\n  b: 2\nagain: *base\n"
    assert values(tmp_path, text)["other"] == {"a": 1, "b": 2}
    assert values(tmp_path, text)["again"] == {"a": 1, "b": "no"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_yaml(tmp_path, encoding):
    assert values(tmp_path, "a: é\n".encode(encoding)) == {"a": "é"}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x1: 1, x2: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "a bomb of aliases": (BOMB, r"line 5: with its aliases spelled out, this has more than 100,000 values"),
    "a bomb of merges": (MERGE_BOMB, r"line \d: with its aliases spelled out"),
    "itself": ("a: &a [*a]\n", "line 1: this holds itself, through an alias"),
    "a name twice": ("a: 1\nb: 2\na: 3\n", "line 3: `a` comes twice"),
    "a nested name twice": ("a:\n  b: 1\n  b: 2\n", "line 3: `b` comes twice"),
    "a tab": ("a: 1\nb:\n\t- 2\n", r"line 3: this is no YAML: found character '\\t'"),
    "no end": ("a: [1\nb: 2", "this is no YAML"),
    "an unknown tag": ("a: !!python/object:os.system {}\n", "line 1: this is no YAML: could not determine a constr"),
    "an unknown alias": ("a: *b\n", "line 1: this is no YAML: found undefined alias 'b'"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2: this is no YAML: but found another document"),
    "a list": ("- a\n", "must hold names and values"),
    "nothing": ("", "must hold names and values"),
    "a word": ("train", "must hold names and values"),
    "a number for a name": ("1: 2\n", "line 1: '1' is no name. Put quotes around it"),
    "nothing for a name": ("a: {~: 1}\n", "line 1: '~' is no name"),
    "a list for a name": ("? [a]\n: 1\n", "is no name"),
    "bytes": (b"a: \xff\xfe\xfa\n", "is no YAML file"),
    "a control character": (b"a: \x01\n", "is no YAML file: .*special characters are not allowed"),
    "too deep": ("a: " + "[" * 5000, "is nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_holds_no_settings_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"(?s)settings.yaml.*{message}") as raised:
        values(tmp_path, text)
    assert len(str(raised.value)) < 500


# ---- Settings of a command ----


def test_a_value_means_what_it_means_on_the_command_line(tmp_path):
    read = example(
        tmp_path,
        "text: 010\nnumber: 1\ncount: 0x10\nflag: yes\nnames: [1, no, 1e-5, true]\nweights: 2\n"
        "options: {min_lr: 1e-6, on: no}\noptional_count: null\nchoice: b\non_by_default: false\n",
    )
    assert read == Example(
        "010", 1.0, 16, True, ["1", "no", "1e-5", "true"], [2.0], {"min_lr": 1e-6, "on": "no"}, None, "b", False
    )
    assert type(read.number) is float


def test_the_command_line_overrides_the_file(tmp_path):
    read = example(tmp_path, "text: a\nweights: [1, 2]\nflag: true\n", "--text", "b", "--weights", "3", "--flag", "no")
    assert (read.text, read.weights, read.flag) == ("b", [3.0], False)


def test_a_single_entry_is_a_list(tmp_path):
    assert example(tmp_path, "names: to_q\n").names == ["to_q"]


def test_nothing_is_the_default_of_what_may_be_nothing(tmp_path):
    assert example(tmp_path, "names:\noptions: ~\noptional_count: null\n") == Example()


MISFITS = {
    "count: 1.5": "`count` is 1.5; it must be a whole number",
    "count: 1e3": "`count` is 1000.0; it must be a whole number",
    "count: many": "`count` is 'many'; it must be a whole number",
    "count: true": "`count` is True; it must be a whole number",
    "count:": "`count` is None; it needs a value",
    "number: fast": "`number` is 'fast'; it must be a number",
    "number: [1]": r"`number` is \[1\]; it takes one value, not a list",
    "text: {a: 1}": "`text` is {'a': 1}; it takes one value, not names with values",
    "flag: off": "`flag` is 'off'; Truthy value expected",
    "choice: c": "`choice` is 'c'; it must be one of 'a', 'b'",
    "weights: [1, x]": r"`weights` is \[1, 'x'\]; it must be a number",
    "names: [[a]]": r"`names` is \[\['a'\]\]; \['a'\] in it must be a single value",
    "options: [1]": "`options` is .*; it takes one value, not a list",
    "nmbr: 1": "has `nmbr`, which `tgo-trl example` does not know. Did you mean `number`",
    "on-by-default: 1": "Did you mean `on_by_default`",
    "zzz: 1": "which `tgo-trl example` does not know. See --help",
}


@pytest.mark.parametrize(("text", "message"), MISFITS.items(), ids=MISFITS)
def test_a_value_that_does_not_fit_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"settings.yaml, line 3: .*{message}"):
        example(tmp_path, f"# settings\n\n{text}\n")


def test_a_required_setting_may_stand_in_the_file(tmp_path):
    @dataclass
    class Required:
        text: str

    path = tmp_path / "settings.yaml"
    path.write_text("text: no\n")
    parser = TrlParser([Required])
    apply_settings(parser, [Required], read_settings(path), path, "tgo-trl example")
    assert parser.parse_args_into_dataclasses([]) == (Required("no"),)


# ---- JSON ----


def test_a_dictionary_or_its_json():
    assert as_dictionary("a", '{"b": 1e-6, "c": "no"}') == {"b": 1e-6, "c": "no"}
    assert as_dictionary("a", {"b": 1}) == {"b": 1}
    assert as_dictionary("a", None) == {}


@pytest.mark.parametrize("text", ["{'b': 1}", "b=1", "[1]", "3", '{"token": "hf_secret', "[" * 100_000])
def test_what_is_no_dictionary_is_refused_and_not_repeated(text):
    with pytest.raises(ValueError, match=r"^`a` is ") as raised:
        as_dictionary("a", text)
    assert len(str(raised.value)) < 200
    assert "secret" not in str(raised.value)


def test_a_script_of_ones_own_reads_yaml_1_2_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TGO_TRL_TEST", "before")
    path = tmp_path / "settings.yaml"
    path.write_text("text: no\nnumber: 1e-6\nenv: {TGO_TRL_TEST: no}\n")
    (read,) = SettingsParser((Example,)).parse_args_and_config(["--config", str(path), "--count", "3"])
    assert (read.text, read.number, read.count) == ("no", 1e-6, 3)
    assert os.environ["TGO_TRL_TEST"] == "no"
    path.write_text("txt: no\n")
    with pytest.raises(ValueError, match=r"line 1: the file has `txt`.*Did you mean `text`"):
        SettingsParser((Example,)).parse_args_and_config(["--config", str(path)])
    with pytest.raises(ValueError, match="needs the path"):
        SettingsParser((Example,)).parse_args_and_config(["--config"])

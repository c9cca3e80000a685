"""Configuration files of any settings: what is written is what is read, and any text is settings or refused."""

import json
import math

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tgo_trl.settings import read_settings

names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda name: name not in ("null", "true", "false"))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["no", "yes", "on", "off", "1e-6", "010", "0x1f", "1_000", "12:30", "2024-01-01", "~", "null"]),
    st.sampled_from([".inf", "=", "<<"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
flow = st.sampled_from(
    [*"{}[]:,-#|>?'\"\n\t\0\x85\ufeffé", ": ", "- ", "&a", "*a", "<<: *a", "!!python/object:os.system", "!x", "\n  ",
     "a: ", "b: ", "1e-6", "%YAML 1.1", "---", "..."]
)  # fmt: skip


def read(folder, data):
    path = folder.getbasetemp() / "settings.yaml"
    path.write_bytes(data)
    return {name: setting.value for name, setting in read_settings(path).items()}


@given(st.dictionaries(names, values, min_size=1, max_size=4))
@example({"a": "no", "b": "1e-6", "c": "010"})
def test_json_is_read_as_json_has_it(tmp_path_factory, written):
    """YAML 1.2 takes JSON as it is, with every letter that YAML allows."""
    assert read(tmp_path_factory, json.dumps(written).encode()) == written


@given(
    st.dictionaries(
        names, st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)), min_size=1, max_size=4
    )
)
def test_plain_scalars_are_what_they_look_like(tmp_path_factory, written):
    def spelt(value):
        if isinstance(value, float) and math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
        return json.dumps(value)

    text = "\n".join(f"{name}: {spelt(value)}  # a comment" for name, value in written.items())
    assert read(tmp_path_factory, text.encode()) == written


@given(
    st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12), min_size=1, max_size=4)
)
def test_what_pyyaml_quotes_stays_text(tmp_path_factory, written):
    text = yaml.safe_dump(written, default_style='"', allow_unicode=True)
    assert read(tmp_path_factory, text.encode()) == written


@settings(max_examples=300)
@given(
    st.one_of(
        st.lists(flow | st.text(max_size=3), max_size=14).map(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
        ),
        st.binary(max_size=40),
    )
)
@example(b"a: &a [*a]")
@example(b"a: 0x")
@example(b"a: " + b"9" * 5000)
@example(b"a: !!int x")
@example(b"a: !!float []")
@example(b"a: 2024-13-45")
@example(b"a: !!bool 7")
@example(b"a: !!timestamp x")
@example(b"a: [!!bool 7]")
@example(b'a: "\\ud800"')
@example(b"a: !!binary x")
@example(b"a: !!set [x]")
@example(b"? [a]\n: b")
def test_any_text_is_settings_or_refused(tmp_path_factory, data):
    try:
        found = read(tmp_path_factory, data)
    except ValueError as error:
        found, reason = None, str(error)
    if found is None:
        assert "settings.yaml" in reason
        assert len(reason) < 600
    else:
        assert all(isinstance(name, str) for name in found)

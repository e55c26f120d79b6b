"""The YAML 1.2 reader: scalars, places, refusals."""

import math

import pytest
import yaml

from tunesmith.configuring.reader import read_file, read_scalar, read_value, read_yaml
from tunesmith.configuring.writer import write_yaml
from tunesmith.errors import TunesmithError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("", None), ("~", None), ("null", None), ("NULL", None), ("nil", "nil"),
        ("010", 10), ("-7", -7), ("+3", 3), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("12:30", "12:30"),
        ("1e-5", 1e-5), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0), (".inf", math.inf),
        ("-.inf", -math.inf), ("e5", "e5"), (".", "."), ("1e", "1e"), ("2024-01-01", "2024-01-01"),
        ("9" * 200, "9" * 200),
    ],
)  # fmt: skip
def test_scalars_of_the_core_schema(text, value):
    found = read_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read():
    assert math.isnan(read_scalar(".nan"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("[a, 1]", ["a", 1]), ("{a: no}", {"a": "no"}), ("'1'", "1"), ("a: b", "a: b"), ("x #1.jsonl", "x #1.jsonl")],
)
def test_values_of_overrides(text, value):
    assert read_value(text) == value


def test_places_count_from_one():
    tree = read_yaml("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "f.yaml")
    assert tree.value == {"a": {"b": 1, "c": ["x", {"d": 2}]}}
    places = {key: (where.line, where.column) for key, where in tree.places.items()}
    assert places["a", "b"] == (2, 3)
    assert places["a", "c", 1, "d"] == (5, 8)


def test_plain_tags_decide():
    assert read_yaml("[!!str 1, !!int '1', !!float \"2e0\", ! 3]", "").value == ["1", 1, 2.0, "3"]


def test_keys_are_words_as_written():
    assert read_yaml("{no: 1, 010: 2, null: 3}", "").value == {"no": 1, "010": 2, "null": 3}


def test_aliases_are_expanded():
    assert read_yaml("a: &x {b: 1}\nc: *x\n", "").value == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a: [1\nb: 2", "E011", 2),
        ("a: 'x\n", "E011", 2),
        ("a: *nobody", "E011", 1),
        ("a: &a [*a]", "E011", 1),
        ("a: 1\n---\nb: 2", "E011", 2),
        ("{[1]: 2}", "E011", 1),
        ("a: {{ x }}", "E011", 1),
        ("a: !mine 3", "E011", 1),
        ("x: 1\ny: !!python/name:os.system", "E017", 2),
        ("a: 1\nb: \x00", "E011", 2),
        ("a: 1\na: 2", "E012", 2),
    ],
)
def test_refusals_name_the_line(text, code, line):
    with pytest.raises(TunesmithError) as caught:
        read_yaml(text, "f.yaml")
    assert (caught.value.diagnostic.code, caught.value.diagnostic.where.line) == (code, line)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"a: \xff\n", "E011"), ("a: 1".encode("utf-16"), "E011"), (b"- 1\n", None), (b"\xef\xbb\xbfa: 1", None)],
)
def test_encodings(tmp_path, content, code):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    if code is None:
        assert read_file(path).value in ([1], {"a": 1})
        return
    with pytest.raises(TunesmithError) as caught:
        read_file(path)
    assert caught.value.diagnostic.code == code


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(TunesmithError, match="E015"):
            read_file(path)


@pytest.mark.parametrize(
    "text", ["no", "1e-5", "a: b", "# x", "", " x ", "a\nb", "é\u2028", "'", '"', "- x", "[", "null", "\t"]
)
def test_written_text_is_read_back(text):
    value = {"a": text, "b": [text], "c": {"d": 1e-5, "e": None, "f": True, "g": 10**20, "h": 1e300}}
    assert read_yaml(write_yaml(value), "").value == value
    assert yaml.safe_load(write_yaml({"a": text})) == {"a": text}

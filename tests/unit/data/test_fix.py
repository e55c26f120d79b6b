import json

import pytest

from tunesmith.data.fix import fix_file, fixed_name
from tunesmith.data.sources import read_records
from tunesmith.errors import DataError, UsageError


def fix(tmp_path, content: bytes, name: str = "a.jsonl"):
    src = tmp_path / name
    src.write_bytes(content)
    report = fix_file(src, fixed_name(src))
    assert src.read_bytes() == content
    return report, fixed_name(src)


@pytest.mark.parametrize(
    ("line", "value", "kind"),
    [
        (b'{"a": [1, 2, ], }', {"a": [1, 2]}, "commas too many"),
        (b'{"a": 1},', {"a": 1}, "commas too many"),
        (b"{'a': 'it\\'s \"b\", {ok'}", {"a": 'it\'s "b", {ok'}, "single quotes"),
        (b'{"a": /* , */ 1} // end', {"a": 1}, "comments"),
        (b"{'a': True, 'b': [None, False]}", {"a": True, "b": [None, False]}, "Python words"),
        (b'{"a": "x, ] // # \' True"}\r', {"a": "x, ] // # ' True"}, "CRLF line ends"),
    ],
)
def test_d02_fix_mends_without_touching_texts(tmp_path, line, value, kind):
    report, out = fix(tmp_path, b'{"a": 0}\n' + line + b"\n")
    assert [record.value for record in read_records(out)] == [{"a": 0}, value]
    assert report.fixed[kind] >= 1
    assert not report.unfixable


def test_fix_splits_lines_drops_marks_and_comment_lines(tmp_path):
    report, out = fix(tmp_path, b'\xef\xbb\xbf# made by hand\n{"a": 1} {"a": 2}\n\n\xef\xbb\xbf{"a": 3}\n')
    assert [record.value["a"] for record in read_records(out)] == [1, 2, 3]
    assert report.fixed["byte order marks"] == 2
    assert report.fixed["objects put on lines of their own"] == 2


def test_fix_lists_what_would_need_a_guess(tmp_path):
    lines = [
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": "cut',
        b"[1]",
        b'{"a": "caf\xe9"}',
        b'{"a": "\\ud83d"}',
        b'{"a": 9}',
    ]
    report, out = fix(tmp_path, b"\n".join(lines))
    assert [record.value for record in read_records(out)] == [{"a": 9}]
    assert [(found.code, found.where.line) for found in report.unfixable] == [
        ("E035", 1),
        ("E036", 2),
        ("E030", 3),
        ("E034", 4),
        ("E037", 5),
        ("E038", 6),
    ]
    assert report.lines == 7


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_d17_fix_converts_utf16(tmp_path, encoding):
    report, out = fix(tmp_path, '{"a": "caf\u00e9 and more"}\r\n{"a": "b",}\r\n'.encode(encoding))
    assert [record.value["a"] for record in read_records(out)] == ["caf\u00e9 and more", "b"]
    assert any(name.startswith("UTF-16") for name in report.fixed)


def test_fix_of_a_list_and_of_a_table(tmp_path):
    _, out = fix(tmp_path, b"[\n// two\n{'a': 1,},\n{'a': 2},\n]\n", "a.json")
    assert json.loads(out.read_text()) == [{"a": 1}, {"a": 2}]
    _, out = fix(tmp_path, b'\xef\xbb\xbfa,b\r\n"1,",//2\r\n', "a.csv")
    assert out.read_bytes() == b'a,b\n"1,",//2\n'


def test_fix_never_overwrites(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    for out in (tmp_path / "a.jsonl", tmp_path / "b.jsonl"):
        (tmp_path / "b.jsonl").write_bytes(b"mine")
        with pytest.raises(UsageError):
            fix_file(tmp_path / "a.jsonl", out)
    assert (tmp_path / "b.jsonl").read_bytes() == b"mine"
    with pytest.raises(DataError):
        fix_file(tmp_path / "gone.jsonl", tmp_path / "c.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]

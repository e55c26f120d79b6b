import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from tunesmith.data.sources import read_records
from tunesmith.errors import DataError, Unsafe

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def refused(path: Path, kind: type[DataError] | type[Unsafe] = DataError):
    """Read the file to its end and return the error that must come."""
    with pytest.raises(kind) as caught:
        list(read_records(path))
    return caught.value


def refused_bytes(tmp_path: Path, content: bytes, name: str = "a.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert error.diagnostic.where.file == str(path)
    return error


def values(path: Path) -> list[dict]:
    return [record.value for record in read_records(path)]


def test_d01_truncated_json_names_the_place_and_asks_for_the_download(tmp_path):
    error = refused_bytes(tmp_path, GOOD + b'{"instruction": "Say something nice", "output": "You are v')
    where = error.diagnostic.where
    assert (where.line, where.column, where.field) == (3, 59, "output")
    assert error.diagnostic.code == "E030"
    assert error.diagnostic.evidence[0] == ', "output": "You are v'[-20:]
    assert "did the download finish" in error.diagnostic.fixes[0].label
    assert error.exit_code == 4


@pytest.mark.parametrize(
    ("line", "column", "words"),
    [
        (b'{"text": "a",}', 13, "a comma with nothing after it"),
        (b'{"text": ["a", ]}', 14, "a comma with nothing after it"),
        (b"{'text': \"a\"}", 2, "single quotes"),
        (b"{\"text\": 'a'}", 10, "single quotes"),
        (b'{"text": "a"} // note', 15, "follows the object"),
        (b'{"text": /* note */ "a"}', 10, "a comment"),
        (b"# note", 1, "a comment"),
        (b'{"text": "a", "ok": True}', 21, "True is not JSON"),
        (b'{"text": "a"},', 14, "a comma after the object"),
        (b'{"text": "a\tb"}', 12, "a raw tab"),
    ],
)
def test_d02_broken_rules_are_named(tmp_path, line, column, words):
    error = refused_bytes(tmp_path, GOOD + line + b"\n")
    assert words in error.diagnostic.message
    assert (error.diagnostic.where.line, error.diagnostic.where.column) == (3, column)


def test_d02_a_repairable_line_offers_the_repair(tmp_path):
    error = refused_bytes(tmp_path, b'{"text": "a",}\n')
    assert f"tunesmith data fix {tmp_path / 'a.jsonl'}" in [fix.command for fix in error.diagnostic.fixes]


def test_d03_several_objects_on_one_line_are_counted(tmp_path):
    error = refused_bytes(tmp_path, GOOD + b'{"text": "a"} {"text": "b"}{"text": "c"}\n')
    assert error.diagnostic.code == "E033"
    assert error.diagnostic.message == "3 objects on one line; one per line"
    assert (error.diagnostic.where.line, error.diagnostic.where.column) == (3, 15)


@pytest.mark.parametrize(
    ("line", "name"),
    [(b"[1, 2]", "a list"), (b'"a"', "a text"), (b"3", "a number"), (b"null", "null"), (b"true", "a truth value")],
)
def test_d04_a_line_must_be_an_object(tmp_path, line, name):
    error = refused_bytes(tmp_path, GOOD + line)
    assert error.diagnostic.code == "E034"
    assert error.diagnostic.message.startswith(f"line 3 is {name}; want an object")


def test_d04_a_list_in_jsonl_is_told_its_name(tmp_path):
    error = refused_bytes(tmp_path, b'[{"text": "a"}]\n')
    assert "name it .json" in error.diagnostic.fixes[0].label


def test_d05_duplicate_key_with_both_columns(tmp_path):
    error = refused_bytes(tmp_path, b'{"a": {"text": 1}, "text": "x", "te\\u0078t": "y"}\n')
    assert error.diagnostic.code == "E035"
    assert "columns 20 and 33" in error.diagnostic.message
    assert error.diagnostic.where.column == 33


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e400", b"9" * 5000])
def test_d06_numbers_that_cannot_be_kept_name_their_field(tmp_path, number):
    error = refused_bytes(tmp_path, b'{"text": "NaN 1e999", "meta": {"scores": [1.5, ' + number + b"]}}\n")
    assert error.diagnostic.code == "E036"
    assert error.diagnostic.where.field == "meta.scores[1]"
    assert error.diagnostic.where.column == 48


def test_d06_ordinary_numbers_are_kept_exactly(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 123456789012345678901234567890, "b": -1.5e300, "c": 0.1}')
    assert values(tmp_path / "a.jsonl") == [{"a": 123456789012345678901234567890, "b": -1.5e300, "c": 0.1}]


def test_d14_empty_files_have_0_records(tmp_path):
    for name, content in [
        ("a.jsonl", b""),
        ("b.jsonl", b"\n \r\n\n"),
        ("c.json", b"[]"),
        ("d.csv", b"a,b\n"),
        ("e.txt", b"\n\n"),
    ]:
        error = refused_bytes(tmp_path, content, name)
        assert error.diagnostic.code == "E042"
        assert "0 records" in error.diagnostic.message
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b""))
    assert "0 records" in refused(tmp_path / "f.jsonl.gz").diagnostic.message


def test_d15_harmless_differences_give_the_same_records(tmp_path):
    plain = b'{"text": "one"}\n{"text": "t\\r\\nwo"}\n'
    (tmp_path / "plain.jsonl").write_bytes(plain)
    expected = values(tmp_path / "plain.jsonl")
    variants = {
        "bom": b"\xef\xbb\xbf" + plain,
        "crlf": plain.replace(b"\n", b"\r\n"),
        "blank": b"\n\n" + plain.replace(b"\n", b"\n \t\n\n"),
        "no_end": plain.rstrip(b"\n"),
        "all": b"\xef\xbb\xbf\r\n" + plain.replace(b"\n", b"\r\n\r\n").rstrip(),
    }
    for name, content in variants.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
        assert values(tmp_path / f"{name}.jsonl") == expected, name
        assert values(tmp_path / f"{name}.jsonl.gz") == expected, name


def test_d14_d15_millions_of_blank_lines_take_no_time_and_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    blank = b"\n" * (3 * 2**20) + b" \n" * 2**20 + b"  "
    path.write_bytes(blank + b'\n{"text": "one"}\n' + b"\n \r" * 2**20 + b'\n{"text": 3')
    begin = time.process_time()
    error = refused(path)
    assert time.process_time() - begin < 1
    assert error.diagnostic.where.line == path.read_bytes().count(b"\n") + 1
    path.write_bytes(blank + b'\n{"text": "one"}\n')
    assert [record.line for record in read_records(path)] == [blank.count(b"\n") + 2]
    path.write_bytes(b'{"text": "' + b"x" * (17 * 2**20) + b'"\n' + b"\n" * 2**21)
    assert refused(path).diagnostic.code == "E039"


def test_d15_lines_count_physically(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"text": "one"}\r\n\r\n{"text": "two"}')
    assert [record.line for record in read_records(tmp_path / "a.jsonl")] == [2, 4]


def test_d16_invalid_utf8_gives_the_byte_offset_and_hex(tmp_path):
    error = refused_bytes(tmp_path, GOOD + '{"text": "caf\u00e9 '.encode() + b'\xc3\x28 and \xff"}\n')
    assert error.diagnostic.code == "E037"
    assert (error.diagnostic.where.line, error.diagnostic.where.column) == (3, 16)
    assert f"byte {len(GOOD) + 16} is not UTF-8: 0xc3 28" in error.diagnostic.message
    assert "c3 28" in error.diagnostic.evidence[1]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt"])
def test_d16_invalid_utf8_in_every_kind_of_text(tmp_path, name):
    head = {"a.json": b'[{"text": "a"},\n{"text": "', "a.csv": b"text,b\n", "a.txt": b"line\n"}[name]
    error = refused_bytes(tmp_path, head + b"\xc3\x28\xfe", name)
    assert error.diagnostic.code == "E037"
    assert error.diagnostic.where.line == 2
    assert f"byte {len(head)} " in error.diagnostic.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_d17_utf16_is_detected_with_the_command(tmp_path, encoding):
    error = refused_bytes(tmp_path, '{"text": "a word"}\n'.encode(encoding))
    assert error.diagnostic.code == "E037"
    assert error.diagnostic.fixes[0].command.startswith(
        f"iconv -f {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')} "
    )


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "ISO-8859-1"), ("cp1252", "WINDOWS-1252")])
def test_d17_latin_text_is_detected_with_the_command(tmp_path, encoding, name):
    text = '{"text": "na\u00efve caf\u00e9"}\n' if encoding == "latin-1" else '{"text": "\u201ccaf\u00e9\u201d"}\n'
    error = refused_bytes(tmp_path, GOOD + text.encode(encoding))
    assert f"looks like {name}" in error.diagnostic.message
    out = tmp_path / "a.utf8.jsonl"
    assert error.diagnostic.fixes[0].command == f"iconv -f {name} -t UTF-8 {tmp_path / 'a.jsonl'} > {out}"


def test_d17_the_printed_command_works(tmp_path):
    error = refused_bytes(tmp_path, '{"text": "a word"}\n'.encode("utf-16"))
    subprocess.run(error.diagnostic.fixes[0].command, shell=True, check=True)
    assert values(tmp_path / "a.utf8.jsonl") == [{"text": "a word"}]


def test_d18_raw_nul_is_refused_with_its_offset(tmp_path):
    for name, head in [("a.jsonl", GOOD + b'{"text": "a'), ("a.json", b'[\n\n{"text": "a'), ("a.txt", b"a\n\na")]:
        error = refused_bytes(tmp_path, head + b'\0b"}]\n', name)
        assert error.diagnostic.code == "E038"
        assert f"byte {len(head)}:" in error.diagnostic.message
        assert error.diagnostic.where.line == 3


def test_d18_half_a_surrogate_pair_is_refused(tmp_path):
    line = b'{"ok": "\\ud83d\\ude00", "turns": [{"text": "\\ud83d\\ude00\\ud83d"}]}\n'
    error = refused_bytes(tmp_path, line)
    assert error.diagnostic.code == "E038"
    assert error.diagnostic.where.field == "turns[0].text"
    assert error.diagnostic.where.column == line.rindex(b"\\ud83d") + 1


def test_d18_surrogate_pairs_are_one_character(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}')
    assert values(tmp_path / "a.jsonl") == [{"text": "\U0001f600"}]


def test_d19_a_64_mb_line_is_refused_within_twice_the_limit(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"text": "')
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "after"}\n{"text": 3')
    tracemalloc.start()
    error = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.diagnostic.code == "E039"
    assert error.diagnostic.where.line == 3
    assert [other.where.line for other in error.others] == [5]
    assert peak < 2 * 16 * 2**20


def test_d19_a_64_mb_object_in_a_list_is_refused(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b'[\n{"text": "')
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b'"}]')
    error = refused(path)
    assert error.diagnostic.code == "E039"
    assert error.diagnostic.where.line == 2


@pytest.mark.nightly
def test_d19_a_1_gb_line_is_refused_within_twice_the_limit(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"text": "' + b"x" * 2**20)
        file.seek(2**30)
        file.write(b'"}\n')
    code = (
        "import resource, sys, pathlib\n"
        "from tunesmith.data.sources import read_records\n"
        "from tunesmith.errors import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    list(read_records(pathlib.Path(sys.argv[1])))\n"
        "except DataError as error:\n"
        "    print(error.diagnostic.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    name, grown = done.stdout.split()
    assert name == "E039"
    assert int(grown) * 1024 < 2 * 16 * 2**20


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_d20_deep_nesting_is_refused(tmp_path, name, brackets):
    deep = b'{"a": ' + brackets[0] * 100_000 + b"1" + brackets[1] * 100_000 + b"}"
    error = refused_bytes(tmp_path, b"[\n" + deep + b"]" if name == "a.json" else b"\n" + deep, name)
    assert error.diagnostic.code == "E039"
    assert error.diagnostic.where.line == 2


@pytest.mark.parametrize(("depth", "accepted"), [(64, True), (65, False)])
def test_d20_the_limit_is_64_and_brackets_in_texts_do_not_count(tmp_path, depth, accepted):
    line = b'{"text": "' + b"[{" * 200 + b'", "a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    for name, content in [("a.jsonl", line), ("a.json", b"[" + line + b"]")]:
        path = tmp_path / name
        path.write_bytes(content)
        if accepted:
            assert len(values(path)) == 1
        else:
            assert refused(path).diagnostic.code == "E039"


def test_d21_a_truncated_gzip_file_names_the_last_good_record(tmp_path):
    lines = [json.dumps({"text": f"{index} {os.urandom(40).hex()}"}).encode() + b"\n" for index in range(1000)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines))[:-9000])
    records = read_records(path)
    error, last = None, 0
    while error is None:
        try:
            last = next(records).line
        except DataError as found:
            error = found
    assert 100 < last < 1000
    assert error.diagnostic.code == "E045"
    assert error.diagnostic.where.line == last + 1
    end = sum(map(len, lines[:last]))
    assert error.diagnostic.evidence == (
        f"the last whole line is {last}; it ends {end:,} bytes into the unpacked text",
    )


def test_d21_damaged_gzip_and_wrong_magic(tmp_path):
    packed = bytearray(gzip.compress(GOOD * 100))
    packed[-6] ^= 1  # the checksum
    assert refused_bytes(tmp_path, bytes(packed), "a.jsonl.gz").diagnostic.code == "E045"
    assert refused_bytes(tmp_path, bytes(packed[:10]) + b"\xff" * 40, "b.jsonl.gz").diagnostic.code == "E045"
    assert refused_bytes(tmp_path, GOOD, "c.jsonl.gz").diagnostic.code == "E040"
    assert refused_bytes(tmp_path, gzip.compress(b"[" + GOOD[:16])[:-9], "d.json.gz").diagnostic.code in (
        "E045",
        "E030",
    )


@pytest.mark.row("S24")
@pytest.mark.parametrize("content", [b"\0" * 2**20, (b'{"text": "' + b"a" * 16370 + b'"}\n') * 64])
def test_d21_a_gzip_bomb_stops_at_the_ratio_cap(tmp_path, content):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(content)
    assert path.stat().st_size < 100 * 2**20 / 150
    begin = time.perf_counter()
    error = refused(path, Unsafe)
    assert error.exit_code == 9
    assert error.diagnostic.code == "E046"
    assert time.perf_counter() - begin < 10


def test_d21_a_well_packed_small_file_is_no_bomb(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"text": "ab" * 10**6}).encode()))
    assert path.stat().st_size * 200 < 2 * 10**6
    assert len(values(path)) == 1


def test_d22_content_that_is_not_what_the_name_says(tmp_path):
    cases = {
        b"<!DOCTYPE html>\n<html><head><title>404 Gone</title></head></html>": "web page with the title '404 Gone'",
        b"\n<html lang=en><body>": "web page",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n": "Git LFS pointer",
        b"PAR1\x15\x04\x15": "Parquet",
        gzip.compress(GOOD): "compressed by gzip",
        b"PK\x03\x04aaaa": "zip archive",
        b"\x80\x04\x95\x00\x00": "pickle",
    }
    for index, (content, words) in enumerate(cases.items()):
        for name in (f"{index}.jsonl", f"{index}.json", f"{index}.csv"):
            error = refused_bytes(tmp_path, content, name)
            assert error.diagnostic.code == "E040"
            assert words in error.diagnostic.message
    assert "git lfs pull" in refused(tmp_path / "2.csv").diagnostic.fixes[0].label

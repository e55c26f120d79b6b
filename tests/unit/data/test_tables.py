import gzip
from pathlib import Path

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.content import LINE_LIMIT
from tunesmith.data.entries import read_entries
from tunesmith.data.sources import read_records
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Unsafe

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")


def refused(path: Path):
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    return caught.value


def refused_text(tmp_path: Path, text: str, name: str = "a.csv"):
    (tmp_path / name).write_text(text, newline="")
    error = refused(tmp_path / name)
    assert error.diagnostic.where.file == str(tmp_path / name)
    return error


def write(path: Path, table: dict, **options) -> Path:
    pq.write_table(pa.table(table), path, **options)
    return path


def test_csv_rows_are_records_of_texts(tmp_path):
    text = 'instruction,output\r\n\r\n"a, ""b""\r\n\r\nc",1\r\nd,\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = [(record.line, record.value) for record in read_records(tmp_path / "a.csv")]
    expected = [
        (3, {"instruction": 'a, "b"\n\nc', "output": "1"}),
        (6, {"instruction": "d", "output": ""}),
    ]
    assert found == expected
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.replace("\r\n", "\n").rstrip().encode()))
    assert [(record.line, record.value) for record in read_records(tmp_path / "b.csv.gz")] == expected


def test_tsv_and_long_cells(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tn\n" + "x" * 300_000 + "\t1\n")
    (record,) = read_records(tmp_path / "a.tsv")
    assert len(record.value["text"]) == 300_000


def test_one_column_keeps_empty_looking_rows_apart(tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n\ntwo\n")
    assert [record.value for record in read_records(tmp_path / "a.csv")] == [{"text": "one"}, {"text": "two"}]


def test_d24_ragged_rows_give_line_and_expected_count(tmp_path):
    error = refused_text(tmp_path, 'a,b,c\n1,2,3\n"x\ny",2,3\n1,2\n1,2,3\n1,2,3,4\n')
    assert [(found.where.line, found.message) for found in error.diagnostics] == [
        (5, "2 columns; the header has 3"),
        (7, "4 columns; the header has 3"),
    ]


def test_d24_skipped_rows_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text('text,b\n1\n2,3\n"4"5,6\n7,8\n')
    tally = Tally("skip")
    assert [record.value["text"] for record in read_records(tmp_path / "a.csv", tally)] == ["2", "7"]
    assert tally.skipped == {"broken CSV row": 2}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('a,b\n1,2\n"open,2\n3,4\n', 3, "never closed"),
        ('a,b\n1,"2"3\n', 2, "not CSV"),
        ("a;b;c\n1;2;3\n", 1, "separated by ';'"),
        ("a\tb\n1\t2\n", 1, "separated by a tab"),
        ("a,b\n1,2\0\n", 2, "NUL"),
    ],
)
def test_d24_broken_csv(tmp_path, text, line, words):
    error = refused_text(tmp_path, text)
    assert words in error.diagnostic.message
    assert error.diagnostic.where.line == line


def test_d05_duplicate_columns(tmp_path):
    error = refused_text(tmp_path, "a,b,a\n1,2,3\n")
    assert error.diagnostic.code == "E035"
    assert "columns 1 and 3" in error.diagnostic.message


def test_parquet_rows_are_records(tmp_path):
    turns = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": None}]
    path = write(tmp_path / "a.parquet", {"messages": [turns, turns], "n": [1, None]}, row_group_size=1)
    found = [(record.line, record.value) for record in read_records(path)]
    assert found == [(1, {"messages": turns, "n": 1}), (2, {"messages": turns, "n": None})]
    assert [len(entry.messages) for entry in read_entries(SourceConfig(path=str(path)))] == [2, 2]


def test_parquet_dictionary_columns_are_texts(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert [record.value["text"] for record in read_records(path)] == ["a", "b", "a"]


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_d23_truncated_parquet(tmp_path, keep):
    path = write(tmp_path / "a.parquet", {"text": [f"row {index}" for index in range(1000)]})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    error = refused(path)
    assert error.diagnostic.code == "E043"
    assert error.diagnostic.where.file == str(path)
    assert error.exit_code == 4


def test_d23_damage_names_row_group_and_column(tmp_path):
    rows = {"id": list(range(300)), "text": [f"row {index} " * 20 for index in range(300)]}
    path = write(tmp_path / "a.parquet", rows, row_group_size=100, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    for index in range(start + 40, start + column.total_compressed_size):
        content[index] ^= 0x55
    path.write_bytes(content)
    error = refused(path)
    assert error.diagnostic.code == "E043"
    assert "row group 1, column 'text'" in error.diagnostic.message
    assert error.diagnostic.where.field == "text"


def test_d23_wrong_column_type_names_row_group_and_column(tmp_path):
    rows = {"prompt": ["a"] * 30, "completion": list(range(30))}
    path = write(tmp_path / "a.parquet", rows, row_group_size=10)
    with pytest.raises(DataError) as caught:
        list(read_entries(SourceConfig(path=str(path))))
    found = caught.value.diagnostic
    assert (found.code, found.where.line, found.where.field) == ("E048", 1, "completion")
    assert "want a text" in found.message
    assert "row 1 is in row group 0" in found.evidence
    rows["completion"] = ["b"] * 25 + [None] + ["b"] * 4
    write(path, rows, row_group_size=10)
    with pytest.raises(DataError) as caught:
        list(read_entries(SourceConfig(path=str(path))))
    assert "row 26 is in row group 2" in caught.value.diagnostic.evidence


def test_d23_a_dict_column_where_a_text_is_wanted(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": [{"body": "a"}]})
    with pytest.raises(DataError, match="text is an object; want a text"):
        list(read_entries(SourceConfig(path=str(path))))


def test_d23_columns_without_text_are_refused_only_when_wanted(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {"text": ["a"], "image": [b"\x00\xff"], "pairs": pa.array([[("k", "v")]], pa.map_("string", "string"))},
    )
    tally = Tally()
    assert [entry.text for entry in read_entries(SourceConfig(path=str(path)), tally)] == ["a"]
    assert {warning.where.field for warning in tally.warnings} <= {"image", "pairs"}
    assert tally.warnings[0].code == "W031"
    with pytest.raises(DataError) as caught:
        list(read_entries(SourceConfig(path=str(path), columns={"text": "image"})))
    assert caught.value.diagnostic.code == "E043"
    assert caught.value.diagnostic.where.field == "image"
    assert "row group 0" in caught.value.diagnostic.evidence[0]


@pytest.mark.parametrize(
    "table",
    [{"prompt": ["a" * 70_000_000]}, {"text": pa.array(["a"]).take(pa.array([0] * 10_000_000))}],
    ids=["one long text", "many rows"],
)
def test_d21_a_parquet_bomb_is_refused_from_its_footer(tmp_path, table):
    path = write(tmp_path / "a.parquet", table, compression="zstd")
    with pytest.raises(Unsafe, match=r"MB from [0-9,]+ bytes: a compression bomb") as caught:
        next(read_records(path))
    found = caught.value.diagnostic
    assert (found.code, found.where.file) == ("E046", str(path))
    assert found.fixes[0].label == "save it as .jsonl yourself if you trust it"


def test_d21_honest_columns_that_repeat_themselves_are_read(tmp_path):
    length, rows = 100_000, 2000  # two hundred megabytes of text, in a file a thousand times as small
    path = write(tmp_path / "a.parquet", {"system": ["x" * length] * rows, "text": ["a"] * rows}, compression="zstd")
    assert length * rows > 1000 * path.stat().st_size
    assert sum(len(record.value["system"]) for record in read_records(path)) == length * rows


def test_d19_a_parquet_record_over_the_limit_is_refused_by_its_row(tmp_path):
    turns = [{"role": "user", "content": "b" * LINE_LIMIT}, {"role": "assistant", "content": "c"}]
    texts = ["a", "b", "c" * (LINE_LIMIT - 1), "d"]
    path = write(tmp_path / "a.parquet", {"text": texts, "turns": [None, turns, None, None]})
    found = refused(path).diagnostic
    assert (found.code, found.where.line) == ("E039", 2)
    assert "longer than 16 MB" in found.message
    read = read_records(path, tally=Tally("skip"))
    assert [record.line for record in read] == [1, 3, 4]


def test_d19_a_dictionary_is_not_the_length_of_its_rows(tmp_path):
    texts = ["a" * (LINE_LIMIT // 2), "b" * (LINE_LIMIT // 2), "c" * 100]
    path = write(tmp_path / "a.parquet", {"text": pa.array(texts).dictionary_encode()})
    assert [len(record.value["text"]) for record in read_records(path)] == [len(text) for text in texts]


def test_d14_a_parquet_file_without_rows(tmp_path):
    assert refused(write(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})).diagnostic.code == "E042"


def test_d22_jsonl_named_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text('{"text": "a"}\n')
    assert refused(tmp_path / "a.parquet").diagnostic.code == "E043"


def test_a_parquet_of_pairs_with_scores(tmp_path):
    turns = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": text, "weight": None}] for text in "ab"
    ]
    path = write(tmp_path / "a.parquet", {"prompt": ["q"], "chosen": [turns[0]], "rejected": [turns[1]],
                                          "score_chosen": [4.5], "score_rejected": [4.0]})  # fmt: skip
    (entry,) = read_entries(SourceConfig(path=str(path)), kind="pair")
    assert (entry.prompt[0].content, entry.chosen[0].content, entry.margin) == ("q", "a", 0.5)

"""The one reader of CSV files: what it reads, and what it refuses in one line."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesstune.data.labels import read_clean_labels
from hesstune.data.load import load_examples, load_task
from hesstune.errors import DataError, RunError
from hesstune.storage import columns, tables
from hesstune.storage.columns import Column
from hesstune.storage.tables import read_rows, read_table
from hesstune.weak.vote_sources import read_vote_file


@given(
    st.lists(st.lists(st.sampled_from(["", "a", "b", "c ", "ä"]), max_size=30), max_size=4), st.integers(0, 3)
)
def test_a_column_is_its_cells_however_many_are_shared(chunks, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "MOST_SHARED", most)
        column = Column()
        for chunk in chunks:
            column.extend(chunk)
    whole = [cell for chunk in chunks for cell in chunk]
    codes, values = column.coded()
    assert column.cells() == [values[code] for code in codes] == whole
    assert values == list(dict.fromkeys(whole))
    assert [column.row_of(code) for code in range(len(values))] == [whole.index(v) + 2 for v in values]


def test_rows_in_many_chunks_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 7)
    path = tmp_path / "x.csv"
    rows = [[f"x{i}", 'he said "yes", twice\nand more' if i % 5 else "", "ab"[i % 2]] for i in range(50)]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["id", "text", "label"], *rows[:20], [], *rows[20:]])
    table = read_table(path)
    assert [list(row.values()) for row in table.rows()] == rows
    assert (len(table), "label" in table, "split" in table) == (50, True, False)
    assert read_rows(path)[3] == dict(zip(("id", "text", "label"), rows[3], strict=True))


def test_in_tab_separated_files_quotes_are_text(tmp_path):
    path = tmp_path / "x.TSV"
    path.write_text('text\tlabel\n"half a quote, and a comma\t1\n')
    assert list(read_table(path).rows()) == [{"text": '"half a quote, and a comma', "label": "1"}]


WRONG = {
    "": "empty",
    "text,label\n": "no rows",
    "text,label,text\na,1,b\n": "'text'",
    "text,label\na,1\nb\n": r"row 3.*\(1, not 2\)",
    "text,label\na,1,2\n": r"row 2.*\(3, not 2\)",
    f"text,label\nb,1\n{'a' * 200_001},1\n": "line 3.*200,000",
    'text,label\nb,1\n"a,1\n': "line 3",
    'text,label\n"a"b,1\n': "line 2",
    b"text,label\ncaf\xe9,1\n": "0xe9 in line 2.*'café,1'",
    b"PK\x03\x04rest of a workbook": "spreadsheet or archive",
    b"PAR1....": "Parquet",
    b"\xff\xfet\0e\0x\0": "needs|no rows|cannot be read as UTF-16|empty",
}


@pytest.mark.parametrize(("content", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_every_reader_of_tables_refuses_the_same(tmp_path, content, message, monkeypatch):
    monkeypatch.setattr(tables, "MOST_CHARACTERS", 200_000)
    path = tmp_path / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (
        lambda: load_task(f"csv:{path}", size=16),
        lambda: load_examples(f"csv:{path}", size=16, classes=["0", "1"]),
        lambda: read_vote_file(path),
        lambda: read_clean_labels(path, ["0", "1"]),
    ):
        with pytest.raises(DataError, match=message) as raised:
            read()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(RunError, match=message):
        read_rows(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"the file of clean labels .*gone.csv does not exist"):
        read_clean_labels(tmp_path / "gone.csv", ["0", "1"])
    with pytest.raises(RunError, match="is a folder"):
        read_rows(tmp_path)


def test_repeated_cells_of_a_large_file_are_kept_once(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,vote_a\n" + "".join(f"x{i},{'cat' if i % 3 else ''}\n" for i in range(30_000)))
    table = read_table(path)
    codes, values = table.columns["vote_a"].coded()
    assert (codes.dtype, values) == (np.int32, ["", "cat"])
    assert len({id(cell) for cell in table.cells("vote_a")}) == 2
    assert len(set(table.cells("id"))) == 30_000

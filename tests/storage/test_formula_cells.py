"""CSV files for spreadsheets: no cell is computed by them, and every cell is read back as it was."""

import ast
import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hesstune
from hesstune.data.labels import read_clean_labels
from hesstune.labeling.clean import LabelIssues
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.predictions import Predictions
from hesstune.storage.tables import read_rows, read_table, restored_cell, safe_cell, write_csv, write_rows

SIGNS = "=+-@\t\r\n＝＋－＠"
texts = st.text(st.sampled_from([*SIGNS, "'", '"', ",", "1", ".", "e", "a", " "]), max_size=6)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_no_cell_is_a_formula_and_every_cell_is_restored(rows):
    file = io.StringIO()
    write_rows(file, ["=a", "-b"], rows)
    read = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    for cell in (cell for row in read for cell in row):
        assert cell[:1] not in tuple(SIGNS) or math.isfinite(float(cell))  # a number, which is to stay one
    assert [tuple(map(restored_cell, row)) for row in read] == [("=a", "-b"), *rows]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *((n, n) for n in ("-0.5", "+3", "-1e-9", -0.5, -7, None)),
        *(
            (t, "'" + t)
            for t in ("=1+1", "+1 for it", "-ism", "@all", "\tx", "\rx", "'=1", "''-a", "-", "＝1")
        ),
    ],
)
def test_numbers_stay_numbers_and_formulas_are_marked(value, cell):
    assert safe_cell(value) == cell


def test_files_of_the_product_are_safe_and_read_back(tmp_path):
    names = ["=cmd|' /C calc'!A0", "@cat", "plain"]
    ids = ["=1+1", "-x/1.png", "-5", "'=quoted", "c"]
    rows = [[name, names[at % 3], ""] for at, name in enumerate(ids)]
    path = tmp_path / "sheet.csv"
    write_csv(path, ["id", "clean_label", "note"], rows)
    assert [[row["id"], row["clean_label"], row["note"]] for row in read_rows(path)] == rows
    assert read_clean_labels(path, names) == {name: at % 3 for at, name in enumerate(ids)}
    assert any("apostrophe" in note for note in read_table(path).notes)

    posterior = np.full((5, 3), 1 / 3)
    found = LabelIssues(
        ids, names, np.arange(5) % 3, posterior, np.zeros(5, bool), NoiseMatrix.identity(3), ""
    )
    found.save(tmp_path / "clean.csv")
    Predictions(ids, names, posterior, None, None, []).save(tmp_path / "new.csv")
    for name in ("clean.csv", "new.csv"):
        table = read_table(tmp_path / name)
        assert sorted(table.cells("id")) == sorted(ids)
        assert {f"p_{each}" for each in names} <= set(table.columns)
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple(SIGNS) and cell != "-5"]


def test_every_csv_file_is_written_by_one_function():
    for path in Path(hesstune.__file__).parent.rglob("*.py"):
        if path.name == "tables.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr in ("DictWriter", "to_csv")), path
            is_writer = isinstance(node, ast.Attribute) and node.attr == "writer"
            assert not (is_writer and isinstance(node.value, ast.Name) and node.value.id == "csv"), path

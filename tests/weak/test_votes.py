"""Votes, their analysis, and how class names and columns of tables are read."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesstune.data.formats import listing
from hesstune.errors import ConfigError, DataError
from hesstune.labeling.label_data import label_data
from hesstune.storage.columns import CsvTable
from hesstune.weak.vote_files import class_index, class_of, classes_named, vote_columns, votes_in
from hesstune.weak.vote_sources import apply_functions, load_functions
from hesstune.weak.votes import MOST_CELLS, Votes, patterns

tables = hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.integers(-1, 3))


@given(tables)
def test_analysis_is_its_definition_example_by_example(table):
    votes = Votes(table, k=4)
    n, m = table.shape
    true = np.arange(n) % 4
    for j, row in enumerate(votes.analysis(true)):
        own = [i for i in range(n) if table[i, j] != -1]
        others = {i: [table[i, o] for o in range(m) if o != j and table[i, o] != -1] for i in own}
        assert row["coverage"] == pytest.approx(len(own) / n)
        assert row["overlaps"] == pytest.approx(sum(bool(others[i]) for i in own) / n)
        conflicts = sum(any(v != table[i, j] for v in others[i]) for i in own)
        assert row["conflicts"] == pytest.approx(conflicts / n)
        assert row["polarity"] == sorted({table[i, j] for i in own})
        right = sum(table[i, j] == true[i] for i in own)
        assert row["accuracy"] == (pytest.approx(right / len(own)) if own else None)
    assert votes.silent.tolist() == [i for i in range(n) if (table[i] == -1).all()]
    assert votes.counts.sum() == (table != -1).sum()
    first, of = patterns(votes)
    assert (table[first][of] == table).all()
    assert len(np.unique(table, axis=0)) == len(first)


def test_snorkels_own_example():
    # The table of Snorkel's LFAnalysis documentation: coverage, overlaps and conflicts as it prints them.
    table = np.array([[-1, 0, 1], [-1, -1, 0], [1, -1, 1], [-1, 0, 0], [1, -1, -1]])
    rows = Votes(table, k=2).analysis(np.array([0, 0, 1, 0, 1]))
    for name, expected in (
        ("coverage", [0.4, 0.4, 0.8]), ("overlaps", [0.2, 0.4, 0.6]), ("conflicts", [0.0, 0.2, 0.2]),
        ("accuracy", [1.0, 1.0, 0.75]), ("polarity", [[1], [0], [0, 1]]),
    ):  # fmt: skip
        assert [row[name] for row in rows] == expected


def test_one_a_row_or_a_table_is_the_same():
    rng = np.random.default_rng(0)
    dense = Votes(rng.integers(-1, 3, (40, 5)), 3)
    order = rng.permutation(len(dense.vote))
    rows = (dense.example[order], dense.annotator[order], dense.vote[order])
    sparse = Votes.of_rows(*rows, n=40, k=3, names=dense.names)
    assert (sparse.is_table, dense.is_table) == (False, True)
    true = rng.integers(0, 3, 40)
    assert sparse.analysis(true) == dense.analysis(true)
    assert sparse.problems() == dense.problems()
    np.testing.assert_array_equal(sparse.counts, dense.counts)
    some, kept = np.array([3, 30, 7]), np.array([4, 0])
    for votes in (sparse, dense):
        np.testing.assert_array_equal(votes.take(some, kept).table, dense.table[some][:, kept])
        np.testing.assert_array_equal(votes.spread(np.arange(40)[::-1], 41).table[:40][::-1], dense.table)


def test_a_table_that_would_not_fit_is_refused():
    n, m = 100_000, MOST_CELLS // 100_000 + 1
    zeros = np.zeros(n, dtype=np.int64)
    votes = Votes.of_rows(np.arange(n), zeros, zeros, n=n, k=2, names=[str(j) for j in range(m)])
    with pytest.raises(DataError, match="too large"):
        _ = votes.table


def test_problems_name_what_is_weak():
    votes = Votes([[0, -1], [0, -1], [-1, -1]], k=3, names=["rule", "mute"])
    never, absent, silent = votes.problems(["cat", "dog", "cow"])
    assert "mute" in never
    assert "dog, cow" in absent
    assert "1 of 3" in silent
    assert Votes([[0], [1]], k=2).problems() == []


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ([[0, 3]], {}, r"annotator1 gave 3 to example 0"),
        ([[0, -2]], {}, "gave -2"),
        ([0, 1], {}, r"\(N, m\)"),
        ([[0.5, 1]], {}, "integers"),
        ([[0, 1]], {"names": ["a", "a"]}, "different names"),
        ([[0, 1]], {"soft": np.ones((1, 2, 2))}, r"\(1, 2, 3\)"),
    ],
)
def test_wrong_votes_are_refused(table, options, message):
    with pytest.raises(DataError, match=message):
        Votes(table, 3, **options)


WRITTEN = ["none", "some", "", "-1", "NaN", "Abstain", "None", " some ", "0"]


def test_votes_mean_the_same_whoever_reads_them(tmp_path):
    """`csv:` data, `hesstune label` and functions: a class may be named none."""
    path = tmp_path / "votes.csv"
    rows = [f"x{i},text {i},{('none', 'some')[i % 2]},{vote}" for i, vote in enumerate(WRITTEN)]
    path.write_text("id,text,label,vote_a\n" + "\n".join(rows) + "\n")
    data, label = listing(f"csv:{path}", 16).votes, label_data(f"csv:{path}", label_model="majority").votes
    functions = apply_functions(
        [("a", lambda row: WRITTEN[int(row["id"])])], [{"id": str(i)} for i in range(9)], ["none", "some"]
    )
    for votes in (data, label, functions):
        assert votes.table[:, 0].tolist() == [0, 1, -1, -1, -1, -1, -1, 1, 0]
    # If no class has this name, they all abstain.
    path.write_text(path.read_text().replace(",none,", ",any,"))
    for votes in (listing(f"csv:{path}", 16).votes, label_data(f"csv:{path}", label_model="majority").votes):
        assert votes.table[:, 0].tolist() == [-1, 1, -1, -1, -1, -1, -1, 1, 0]


def test_votes_of_numbers_are_indices_if_classes_have_names(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("text,label,vote_a,vote_b\na,cat,0,\nb,dog,1,dog\nc,,1,cow\nd,,,0\n")
    data, label = listing(f"csv:{path}", 16), label_data(f"csv:{path}", label_model="majority")
    assert data.classes == label.classes == ["cat", "cow", "dog"]
    assert data.votes.table.tolist() == label.votes.table.tolist() == [[0, -1], [1, 2], [1, 1], [-1, 0]]
    assert data.labels.tolist() == [0, 2, 1, 0]


def test_classes_of_labels_and_votes():
    assert classes_named(["2"], ["0"], 3, "x") == ["0", "1", "2"]
    assert classes_named([], ["01", "0"], 3, "x") == ["0", "1"]
    assert class_of("01", class_index(["0", "1"]), "x") == 1
    assert class_of(1, class_index(["b", "1"]), "x") == 1
    assert class_of(0, class_index(["b", "1"]), "x") == 0
    assert classes_named(["a"], ["b"], 3, "x", soft=["c", "b", "a"]) == ["a", "b", "c"]
    assert classes_named(["10"], ["2"], 20, "x", soft=["2", "10"]) == ["2", "10"]
    assert classes_named(["9" * 5000], ["2"], 20, "x") == ["2", "9" * 5000]  # too long for a number
    for named, message in ((["99"], "99.*3"), (["a"], "'a'")):
        with pytest.raises(DataError, match=message):
            classes_named(named, [], 3, "x")
    with pytest.raises(DataError, match="gave True"):
        class_of(True, class_index(["a", "b"]), "x")


def test_columns_of_votes():
    cells = {"id": "x", "label": "cat", "vote_a": "cat", "b": "0", "p_x": "1", "": "-1"}
    table = CsvTable.of({name: [cell] for name, cell in cells.items()}, "the table")
    assert vote_columns(table) == ["vote_a"]
    assert vote_columns(table, ["b", "label"]) == ["b", "label"]
    assert votes_in(table, ["vote_a", "b", ""], ["cat", "dog"]).table.tolist() == [[0, 0, -1]]
    with pytest.raises(DataError, match="'id'"):
        vote_columns(table, ["id"])
    with pytest.raises(DataError, match="row 2, column vote_a gave 'cat'"):
        votes_in(table, ["vote_a"], ["dog", "cow"])


def test_labeling_functions_from_a_module(tmp_path, monkeypatch):
    (tmp_path / "rules_of_mine.py").write_text(
        "def long(row):\n    return 'dog' if len(row['text']) > 5 else None\n"
        "def first(row):\n    return 0\n"
        "def broken(row):\n    return row['gone']\n"
        "def odd(row):\n    return 'horse'\n"
        "ALL = [long, first]\nNONE = 3\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    rows = [{"id": "1", "text": "short"}, {"id": "2", "text": "longer text"}]
    votes = apply_functions(load_functions("py:rules_of_mine:ALL"), rows, ["cat", "dog"])
    assert votes.table.tolist() == [[-1, 0], [1, 0]]
    assert votes.names == ["long", "first"]
    for name, message in (
        ("broken", "broken .* example 1: KeyError"),
        ("odd", "odd, example 1, gave 'horse'"),
    ):
        with pytest.raises(DataError, match=message):
            apply_functions(load_functions(f"py:rules_of_mine:{name}"), rows, ["cat", "dog"])
    for spec, message in (
        ("py:rules_of_mine:lang", "did you mean 'long'"),
        ("py:rules_of_mine:NONE", "int"),
        ("py:gone_module:x", "gone_module"),
        ("rules", "py:module:name"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_functions(spec)

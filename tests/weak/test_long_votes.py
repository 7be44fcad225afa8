"""Votes one a row, as crowds give them: read, guessed, told apart from a table with a row an example."""

import json

import numpy as np
import pytest

from conftest import SHARED
from hesstune import label_data
from hesstune.cli.main import run as command_line
from hesstune.errors import DataError
from hesstune.storage.tables import CsvTable
from hesstune.weak.vote_files import classes_in, long_columns, long_votes, other_columns
from hesstune.weak.votes import MOST_CELLS, Ballots, Votes

ROWS = [
    ("t0", "ann", "cat"), ("t0", "bob", "dog"), ("t1", "ann", "dog"), ("t1", "cyd", "dog"),
    ("t2", "bob", "cat"), ("t2", "cyd", "cat"), ("t0", "cyd", "cat"), ("t1", "bob", "dog"),
]  # fmt: skip


def table(names=("task", "worker", "label"), rows=ROWS, **more):
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return CsvTable.of(columns | {k: list(v) for k, v in more.items()}, "votes.csv")


def write(path, names, rows):
    path.write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("task", "worker", "label"),
        ("Task ID", "Workers", "Answer"),
        ("item_id", "annotator", "response"),
        ("example", "rater", "vote"),
        ("id", "user_id", "class"),
    ],
)
def test_columns_are_guessed_where_their_names_are_clear(names):
    found = long_columns(table(names))
    assert (found.task, found.worker, found.label) == names
    assert "by the names" in found.note()


def test_each_vote_is_where_it_was_given():
    long = table()
    columns = long_columns(long)
    assert classes_in(long, columns) == {"cat", "dog"}
    ids, votes, notes = long_votes(long, columns, ["cat", "dog"])
    assert (ids, votes.names, notes) == (["t0", "t1", "t2"], ["ann", "bob", "cyd"], [])
    assert votes.table.tolist() == [[0, 1, 0], [1, 1, 1], [-1, 0, 0]]
    _, ordered, _ = long_votes(long, columns, ["cat", "dog"], ["t2", "t9", "t0", "t1"])
    assert ordered.table.tolist() == [[-1, 0, 0], [-1, -1, -1], [0, 1, 0], [1, 1, 1]]


def test_names_that_are_given_win_and_what_cannot_be_told_is_asked_for():
    odd = table(("a", "b", "c"))
    assert long_columns(odd) is None
    found = long_columns(odd, "a", "b", "c")
    assert (found.task, found.guessed) == ("a", False)
    with pytest.raises(DataError, match=r"the worker .*a, b, c.* --worker-column"):
        long_columns(odd, task="a")
    with pytest.raises(DataError, match=r"unknown column of votes\.csv 'tusk'; did you mean 'task'"):
        long_columns(table(), task="tusk")


def test_a_table_with_a_row_an_example_is_none():
    wide = table(("id", "worker", "label"), [("1", "ann", "cat"), ("2", "bob", "dog")])
    assert long_columns(wide) is None
    assert long_columns(table(vote_x=["cat"] * len(ROWS))) is None


def test_repeated_empty_and_strange_votes():
    rows = [*ROWS, ("t0", "ann", "dog"), ("t2", "ann", ""), ("t2", "ann", "abstain")]
    long = table(rows=rows)
    _, votes, notes = long_votes(long, long_columns(long), ["cat", "dog"])
    assert votes.table[0, 0] == 1  # the last one
    assert votes.table[2, 0] == -1
    assert notes == ["1 votes are repeated by the same labeler: the last one counts"]
    with pytest.raises(DataError, match=r"row 2, label gave 'cat', which is no class"):
        long_votes(long, long_columns(long), ["cow", "dog"])
    nameless = table(rows=[*ROWS, ("t0", "", "cat")])
    with pytest.raises(DataError, match="does not say who votes"):
        long_votes(nameless, long_columns(nameless), ["cat", "dog"])
    with pytest.raises(DataError, match="no example's id"):
        long_votes(long, long_columns(long), ["cat", "dog"], ["x"])


def test_one_a_row_or_a_table_is_the_same():
    rng = np.random.default_rng(0)
    dense = Votes(rng.integers(-1, 3, (40, 5)), 3)
    shuffled = rng.permutation(len(dense.ballots))
    b = dense.ballots
    rows = Ballots(b.example[shuffled], b.labeler[shuffled], b.vote[shuffled], b.n, b.m, b.k)
    sparse = Votes.of_ballots(rows, dense.names)
    assert not sparse.is_table
    true = rng.integers(0, 3, 40)
    assert sparse.analysis(true) == dense.analysis(true)
    assert sparse.problems() == dense.problems()
    np.testing.assert_array_equal(sparse.counts, dense.counts)
    some, kept = np.array([3, 30, 7]), np.array([4, 0])
    np.testing.assert_array_equal(sparse.take(some, kept).table, dense.take(some, kept).table)
    np.testing.assert_array_equal(sparse.table, dense.table)


def test_a_table_that_would_not_fit_is_refused_and_labels_need_none():
    n, m = 100_000, MOST_CELLS // 100_000 + 1
    rng = np.random.default_rng(0)
    example = np.repeat(np.arange(n), 2)
    labeler = np.column_stack([rng.integers(0, m // 2, n), rng.integers(m // 2, m, n)]).ravel()
    votes = Votes.of_ballots(
        Ballots(example, labeler, rng.integers(0, 2, 2 * n), n, m, 2), [str(j) for j in range(m)]
    )
    with pytest.raises(DataError, match="too large; use the label model auto"):
        _ = votes.table


def test_the_command_says_how_it_read_them(tmp_path, capsys):
    path = write(tmp_path / "long.csv", ("task", "worker", "label"), ROWS)
    out = tmp_path / "labels.csv"
    with pytest.raises(SystemExit) as ended:
        command_line(["label", "--votes", str(path), "--out", str(out), "--json"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "one a row, by the names of its columns: 'task'" in said
    record = json.loads(said.splitlines()[-1])
    assert (record["classes"], record["labelled"]) == (["cat", "dog"], 3)
    assert out.read_text().splitlines()[0] == "id,label,label_source,p_cat,p_dog"


@pytest.mark.parametrize(
    "more",
    [
        ["--task-column", "tusk"],
        ["--worker-column", "label"],
        ["--vote-columns", "a", "--task-column", "task"],
    ],
)
def test_wrong_columns_end_in_one_line(tmp_path, capsys, more):
    path = write(tmp_path / "long.csv", ("task", "worker", "label"), ROWS)
    with pytest.raises(SystemExit) as ended:
        command_line(["label", "--votes", str(path), "--out", str(tmp_path / "x.csv"), *more])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_columns_that_are_no_votes_are_left_out_and_told(tmp_path):
    rng = np.random.default_rng(0)
    votes = [("cat", "dog")[i] for i in rng.integers(0, 2, 40)]
    other = [("cat", "dog")[i] for i in rng.integers(0, 2, 40)]
    times = [str(t) for t in rng.integers(10_000, 99_999, 40)]
    wide = CsvTable.of({"id": times, "ann": votes, "bob": other, "seconds": times}, "wide.csv")
    assert other_columns(wide) == (["ann", "bob"], ["seconds"])
    path = tmp_path / "wide.csv"
    rows = [(str(i), a, b, t) for i, (a, b, t) in enumerate(zip(votes, other, times, strict=True))]
    found = label_data(votes=str(write(path, ("id", "ann", "bob", "seconds"), rows)))
    assert any("left out, no votes by their values: seconds" in note for note in found.notes)
    assert found.classes == ["cat", "dog"]


@pytest.mark.slow
def test_a_real_crowd():
    path = SHARED / "amazon_isbook" / "votes_long.csv"
    if not path.is_file():
        pytest.skip(f"no crowd at {path}")
    found = label_data(f"csv:{path.with_name('texts.csv')}", votes=str(path))
    assert found.classes == ["book", "other"]
    assert found.accuracy(found.labels) >= 0.964
    assert found.noise.matrix.rate < 0.08  # 3.6 % of the labels are wrong

"""Files of votes in every layout: a column for each annotator, a row for each vote, and probabilities."""

import json

import numpy as np
import pytest

from conftest import SHARED
from hesstune import label_data
from hesstune.cli.main import run as command_line
from hesstune.errors import DataError
from hesstune.storage.columns import CsvTable
from hesstune.weak.vote_files import other_columns
from hesstune.weak.vote_sources import RoleColumns, read_vote_file, soft_columns, votes_by_row

ROWS = [
    ("t0", "ann", "cat"), ("t0", "bob", "dog"), ("t1", "ann", "dog"), ("t1", "cyd", "dog"),
    ("t2", "bob", "cat"), ("t2", "cyd", "cat"), ("t0", "cyd", "cat"), ("t1", "bob", "dog"),
]  # fmt: skip
NAMES = ("task", "worker", "label")


def table(names=NAMES, rows=ROWS, **more):
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return CsvTable.of(columns | more, "votes.csv")


def write(path, names, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")
    return str(path)


def as_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.mark.parametrize(
    "names",
    [
        NAMES, ("Task ID", "Workers", "Answer"), ("item_id", "annotator", "response"),
        ("example", "rater", "vote"), ("id", "user_id", "class"),
    ],
)  # fmt: skip
def test_columns_are_recognised_by_their_names(names):
    written = votes_by_row(table(names), RoleColumns())
    assert written.classes == {"cat", "dog"}
    assert all(f"'{name}'" in written.notes[0] for name in names)
    votes, notes = written.votes(["cat", "dog"])
    assert (written.ids, votes.names, notes) == (["t0", "t1", "t2"], ["ann", "bob", "cyd"], [])
    assert votes.table.tolist() == [[0, 1, 0], [1, 1, 1], [-1, 0, 0]]


def test_named_columns_win_and_a_row_for_each_example_is_another_layout():
    odd = table(("a", "b", "c"))
    assert votes_by_row(odd, RoleColumns()) is None
    assert votes_by_row(odd, RoleColumns("a", "b", "c")).ids == ["t0", "t1", "t2"]
    for columns, named, message in (
        (odd, RoleColumns("a"), "--worker-column"),
        (table(), RoleColumns("tusk"), "'tusk'; did you mean 'task'"),
        (table(), RoleColumns(worker="label"), "--label-column"),
        (table(rows=[*ROWS, ("t0", "", "cat")]), RoleColumns(), "row 10"),
    ):
        with pytest.raises(DataError, match=message):
            votes_by_row(columns, named)
    once = table(("id", "worker", "label"), [("1", "ann", "cat"), ("2", "bob", "dog")])
    assert votes_by_row(once, RoleColumns()).votes(["cat", "dog"])[0].table.tolist() == [[0, -1], [-1, 1]]
    wide = table(("id", "user", "label"), [("1", "cat", "cat"), ("2", "dog", "dog")], gpt=["dog", "cat"])
    assert votes_by_row(wide, RoleColumns()) is None
    assert votes_by_row(table(vote_x=["cat"] * len(ROWS)), RoleColumns()) is None


def test_repeated_empty_and_strange_votes():
    rows = [*ROWS, ("t0", "ann", "dog"), ("t2", "ann", ""), ("t2", "ann", "abstain")]
    written = votes_by_row(table(rows=rows), RoleColumns())
    votes, notes = written.votes(["cat", "dog"])
    assert votes.table[0, 0] == 1  # the last one
    assert votes.table[2, 0] == -1
    assert [note[:1] for note in notes] == ["1"]
    with pytest.raises(DataError, match=r"row 2, column label gave 'cat'"):
        written.votes(["cow", "dog"])


def test_a_crowd_through_the_command(tmp_path, capsys):
    path, out = write(tmp_path / "long.csv", NAMES, ROWS), tmp_path / "labels.csv"
    for more, code in (
        (["--json"], 0), (["--task-column", "tusk"], 2), (["--vote-columns", "a", "--task-column", "task"], 2)
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            command_line(["label", "--votes", path, "--out", str(out), *more, "--overwrite"])
        said = capsys.readouterr()
        assert ended.value.code == code
        assert len(said.err.splitlines()) == bool(code)
        if not code:
            record = json.loads(said.out.splitlines()[-1])
            assert any("'task'" in note for note in record["notes"])
    assert (record["classes"], record["labelled"]) == (["cat", "dog"], 3)
    assert out.read_text().splitlines()[0] == "id,label,label_source,p_cat,p_dog"
    # Votes join a target by id.
    target = write(tmp_path / "target.csv", ["id", "text"], [(f"t{i}", i) for i in (2, 9, 0, 1)])
    found = label_data(f"csv:{target}", votes=path, label_model="majority")
    assert found.votes.table.tolist() == [[-1, 0, 0], [-1, -1, -1], [0, 1, 0], [1, 1, 1]]


def test_columns_that_are_no_votes_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    ann, bob = (np.array(["cat", "dog"])[rng.integers(0, 2, 40)].tolist() for _ in range(2))
    times = [str(t) for t in rng.integers(10_000, 99_999, 40)]
    wide = CsvTable.of({"id": times, "ann": ann, "bob": bob, "seconds": times}, "wide.csv")
    assert other_columns(wide) == (["ann", "bob"], ["seconds"])
    rows = zip(range(40), ann, bob, times, strict=True)
    found = label_data(votes=write(tmp_path / "wide.csv", ("id", "ann", "bob", "seconds"), rows))
    assert any("seconds" in note for note in found.notes)
    assert (found.classes, found.votes.names) == (["cat", "dog"], ["ann", "bob"])


def test_hard_and_soft_votes_stand_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    y, names = rng.integers(0, 2, 90), ["no", "yes"]
    soft = np.round(
        np.clip(np.eye(2)[y][:, None] * 0.6 + rng.random((90, 2, 1)) * [0.2, -0.2] + 0.2, 0, 1), 4
    )
    soft[..., 1] = 1 - soft[..., 0]
    header = ["id", "vote_rule", "p_gpt_no", "p_gpt_yes", "p_my_llm_no", "p_my_llm_yes", "vote_gpt"]
    rows = [
        [f"x{n}", names[y[n]] if n % 3 else "", *soft[n].ravel(), names[soft[n, 0].argmax()]]
        for n in range(90)
    ]
    found = label_data(votes=write(tmp_path / "votes.csv", header, rows))
    assert found.classes == names
    assert found.votes.names == ["rule", "gpt", "my_llm"]
    assert found.votes.soft[:, 1:] == pytest.approx(soft)
    assert found.votes.soft[1, 0].tolist() == np.eye(2)[y[1]].tolist()


def test_probabilities_by_example_and_by_vote_say_the_same(tmp_path):
    p = np.random.default_rng(0).dirichlet([1, 1], (60, 3))
    by_name = [
        {name: dict(zip(("no", "yes"), map(float, p[n, j]), strict=True)) for j, name in enumerate("abc")}
        for n in range(60)
    ]
    wide = as_lines(tmp_path / "wide.jsonl", [{"id": f"x{n}", **by_name[n]} for n in range(60)])
    votes = [{"id": f"x{n}", "annotator": a, "p": by_name[n][a]} for a in "abc" for n in range(60)]
    long = as_lines(tmp_path / "long.jsonl", votes)
    rows = [(f"x{n}", "abc"[j], *p[n, j]) for n in range(60) for j in range(3)]
    csv = write(tmp_path / "long.csv", ("task", "worker", "p_no", "p_yes"), rows)
    one, *others = (label_data(votes=path) for path in (wide, long, csv))
    assert one.votes.soft == pytest.approx(p)
    for other in others:
        assert one.ids == other.ids
        assert one.posterior == pytest.approx(other.posterior)


def test_a_class_that_an_object_leaves_out_has_no_probability(tmp_path):
    rows = [
        {"id": "a", "gpt": {"yes": 0.7, "no": 0.3}, "llama": {"yes": 0.4, "no": 0.4, "maybe": 0.2}},
        {"id": "b", "gpt": {"no": 1}, "llama": {"maybe": 1}},
        {"id": "c", "gpt": None, "llama": {"no": 0.9, "yes": 0.1}},
    ]
    found = label_data(votes=as_lines(tmp_path / "v.jsonl", rows))
    assert found.classes == ["maybe", "no", "yes"]
    assert found.votes.soft[0, 0] == pytest.approx([0, 0.3, 0.7])
    assert found.votes.table[:, 0].tolist() == [2, 1, -1]


def test_a_row_for_each_vote_names_the_annotator_and_the_object(tmp_path):
    yes, no = {"yes": 0.9, "no": 0.1}, {"yes": 0.2, "no": 0.8}
    one = {"id": "x", "worker": "gpt", "p": yes, "q": no}
    other = {"id": "y", "worker": "gpt", "p": no, "q": yes}
    again = {**other, "worker": "llama"}
    with pytest.raises(DataError, match="--label-column"):
        label_data(votes=as_lines(tmp_path / "two.jsonl", [one, other, again]))
    chosen = label_data(votes=str(tmp_path / "two.jsonl"), label_column="q")
    assert [chosen.classes[c] for c in chosen.labels] == ["no", "yes"]
    rows = [{k: v for k, v in row.items() if k != "q"} for row in (one, other, again, again)]
    silent = {"id": "x", "worker": "llama", "label": "yes"}
    found = label_data(votes=as_lines(tmp_path / "silent.jsonl", [*rows, silent]))
    for said in ("1 votes give no probabilities", "1 votes are repeated"):
        assert any(note.startswith(said) for note in found.notes)
    with pytest.raises(DataError, match="row 6"):
        label_data(votes=as_lines(tmp_path / "who.jsonl", [*rows, silent, {**rows[0], "worker": ""}]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x", "gpt": {"yes": 90, "no": 10}}, "90 of yes"),
        ({"id": "x", "gpt": {"yes": -0.1, "no": -2.3}}, "-0.1 of yes"),
        ({"id": "x", "gpt": {"yes": "much", "no": 0.1}}, "'much'"),
        ({"id": "x", "gpt": {"yes": "", "no": 0.1}}, "missing"),
        ({"id": "x", "gpt": {"yes": {"a": 1}}}, "'gpt' must be"),
        ({"id": "x", "gpt": 0.9}, "'gpt' must be"),
        (["x"], "must be an object"),
    ],
)
def test_what_is_no_probability_is_refused_by_its_line(tmp_path, row, said):
    good = {"id": "w", "gpt": {"yes": 0.5, "no": 0.5}}
    with pytest.raises(DataError, match=f"(line|row) 2.*{said}"):
        label_data(votes=as_lines(tmp_path / "v.jsonl", [good, row]))


def test_broken_json_and_empty_files_are_one_line(tmp_path):
    path = tmp_path / "v.jsonl"
    for text, message in (('{"id": 1}\n{"id": \n', "line 2"), ("\n\n", "empty")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_vote_file(path)


def test_names_of_probability_columns_are_split_at_the_class():
    def split(*names, known=()):
        return soft_columns(CsvTable.of({name: ["0.5"] for name in names}, "v.csv"), known)

    assert split("p_a", "p_b", known=["a", "b"]) == {}  # soft labels
    assert split("p_a", "p_b") == {}
    found = split("p_m_not_sure", "p_m_sure", known=["sure", "not_sure"])
    assert found == {"m": {"not_sure": "p_m_not_sure", "sure": "p_m_sure"}}
    assert split("p_gpt_4_yes", "p_gpt_4_no") == {"gpt_4": {"yes": "p_gpt_4_yes", "no": "p_gpt_4_no"}}
    assert split("p_cat", "p_dog", "p_hot_dog", known=["cat", "dog"]) == {}  # no example is labelled hot_dog
    with pytest.raises(DataError, match="'p_b_no'"):
        split("p_a_yes", "p_a_no", "p_b_yes", known=["yes", "no"])


@pytest.mark.slow
def test_a_real_crowd():
    path = SHARED / "amazon_isbook" / "votes_long.csv"
    if not path.is_file():
        pytest.skip(f"no crowd at {path}")
    found = label_data(f"csv:{path.with_name('texts.csv')}", votes=str(path))
    assert found.classes == ["book", "other"]
    assert found.accuracy(found.labels) >= 0.964
    assert found.noise.matrix.rate < 0.08  # 3.6 % of the labels are wrong

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesstune.data.formats import listing
from hesstune.errors import ConfigError, DataError
from hesstune.labeling.label_data import label_data
from hesstune.storage.tables import CsvTable
from hesstune.weak.functions import apply_functions, load_functions
from hesstune.weak.vote_files import class_index, class_of, classes_named, read_votes, vote_columns
from hesstune.weak.votes import Votes

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
        assert row["conflicts"] == pytest.approx(
            sum(any(v != table[i, j] for v in others[i]) for i in own) / n
        )
        assert row["polarity"] == sorted({table[i, j] for i in own})
        right = sum(table[i, j] == true[i] for i in own)
        assert row["accuracy"] == (pytest.approx(right / len(own)) if own else None)
    assert votes.silent.tolist() == [i for i in range(n) if (table[i] == -1).all()]
    assert votes.counts.sum() == (table != -1).sum()


def test_snorkels_own_example():
    # The table of Snorkel's LFAnalysis documentation: coverage, overlaps and conflicts as it prints them.
    table = np.array([[-1, 0, 1], [-1, -1, 0], [1, -1, 1], [-1, 0, 0], [1, -1, -1]])
    rows = Votes(table, k=2).analysis(np.array([0, 0, 1, 0, 1]))
    assert [r["polarity"] for r in rows] == [[1], [0], [0, 1]]
    assert [r["coverage"] for r in rows] == pytest.approx([0.4, 0.4, 0.8])
    assert [r["overlaps"] for r in rows] == pytest.approx([0.2, 0.4, 0.6])
    assert [r["conflicts"] for r in rows] == pytest.approx([0.0, 0.2, 0.2])
    assert [r["accuracy"] for r in rows] == pytest.approx([1.0, 1.0, 0.75])


def test_problems_name_what_is_weak():
    votes = Votes([[0, -1], [0, -1], [-1, -1]], k=3, names=["rule", "mute"])
    told = " ".join(votes.problems(["cat", "dog", "cow"]))
    assert "mute never votes" in told
    assert "no labeler ever votes for dog, cow" in told
    assert "1 of 3 examples have no vote" in told
    assert Votes([[0], [1]], k=2).problems() == []


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ([[0, 3]], {}, r"\[0, 3\).*labeler1 gave 3 to example 0"),
        ([[0, -2]], {}, "gave -2"),
        ([0, 1], {}, r"\(N, m\)"),
        ([[0.5, 1]], {}, "integers"),
        ([[0, 1]], {"names": ["a", "a"]}, "different names"),
        ([[0, 1]], {"soft": np.ones((1, 2, 2))}, "soft votes"),
    ],
)
def test_wrong_votes_are_told(table, options, message):
    with pytest.raises(DataError, match=message):
        Votes(table, 3, **options)


def test_csv_of_names_indices_and_abstentions(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("id,image,a,b,c\nx,x.png,cat,0,\ny,y.png,dog,,-1\nz,z.png,,1,abstain\n")
    ids, votes = read_votes(path, ["cat", "dog"])
    assert ids == ["x", "y", "z"]
    assert votes.table.tolist() == [[0, 0, -1], [1, -1, -1], [-1, 1, -1]]
    assert votes.names == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"row 2, column a.*'cat'.*no class"):
        read_votes(path, ["dog", "cow"])
    with pytest.raises(DataError, match="did you mean 'a'"):
        read_votes(path, ["cat", "dog"], ["aa"])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column 'id'"):
        read_votes(path, ["cat", "dog"])


WRITTEN = ["none", "some", "", "-1", "NaN", "Abstain", "None", " some ", "0"]


def test_votes_mean_the_same_whoever_reads_them(tmp_path):
    """`csv:` data, `hesstune label`, a file of votes and functions: a class may be called none."""
    path = tmp_path / "votes.csv"
    rows = [f"x{i},text {i},{('none', 'some')[i % 2]},{vote}" for i, vote in enumerate(WRITTEN)]
    path.write_text("id,text,label,vote_a\n" + "\n".join(rows) + "\n")
    wanted = [0, 1, -1, -1, -1, -1, -1, 1, 0]
    _, own = read_votes(path, ["none", "some"])
    data = listing(f"csv:{path}", 16).votes
    label = label_data(f"csv:{path}").votes
    functions = apply_functions(
        [("a", lambda row: WRITTEN[int(row["id"])])], [{"id": str(i)} for i in range(9)], ["none", "some"]
    )
    for votes in (own, data, label, functions):
        assert votes.table[:, 0].tolist() == wanted
    # Where no class is called so, they all abstain.
    path.write_text(path.read_text().replace(",none,", ",any,"))
    for votes in (listing(f"csv:{path}", 16).votes, label_data(f"csv:{path}").votes):
        assert votes.table[:, 0].tolist() == [-1, 1, -1, -1, -1, -1, -1, 1, 0]


def test_votes_of_numbers_are_indices_where_classes_have_names(tmp_path):
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
    assert classes_named(["a"], ["b"], 3, "x", soft=["c", "b", "a"]) == ["a", "b", "c"]
    assert classes_named(["10"], ["2"], 20, "x", soft=["2", "10"]) == ["2", "10"]
    assert classes_named(["9" * 5000], ["2"], 20, "x") == ["2", "9" * 5000]  # no number of ours
    for named, message in ((["99"], "class 99 is out of range for 3 examples"), (["a"], "one class only")):
        with pytest.raises(DataError, match=message):
            classes_named(named, [], 3, "x")


def test_columns_of_votes(tmp_path):
    table = CsvTable.of({c: ["x"] for c in ("id", "label", "vote_a", "b", "p_x", "")}, "the table")
    assert vote_columns(table) == vote_columns(table, others=True) == ["vote_a"]
    assert vote_columns(table, ["b", "label"]) == ["b", "label"]
    with pytest.raises(DataError, match="unknown column of the table 'id'"):
        vote_columns(table, ["id"])
    plain = CsvTable.of({c: ["x"] for c in ("id", "split", "b", "p_x", "")}, "the table")
    assert (vote_columns(plain), vote_columns(plain, others=True)) == ([], ["b"])
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.png").touch()
    with pytest.raises(ConfigError, match="--vote-columns are of csv data"):
        label_data(f"folder:{folder}", functions="py:a:b", vote_columns=["b"])


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
    with pytest.raises(DataError, match="broken failed on example 1: KeyError"):
        apply_functions(load_functions("py:rules_of_mine:broken"), rows, ["cat", "dog"])
    with pytest.raises(DataError, match="odd, example 1, gave 'horse', which is no class"):
        apply_functions(load_functions("py:rules_of_mine:odd"), rows, ["cat", "dog"])
    for spec, message in (
        ("py:rules_of_mine:lang", "did you mean 'long'"),
        ("py:rules_of_mine:NONE", "must be a function"),
        ("py:gone_module:x", "cannot import"),
        ("rules", "py:module:name"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_functions(spec)

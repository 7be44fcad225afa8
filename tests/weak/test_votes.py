import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesstune.errors import ConfigError, DataError
from hesstune.weak.csv_table import read_votes
from hesstune.weak.functions import apply_functions, load_functions
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

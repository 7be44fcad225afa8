"""Probabilities of labelers that are surer than they should be, and how files write them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hesstune.errors import ConfigError, DataError
from hesstune.labeling.label_data import label_data
from hesstune.storage.tables import CsvTable, read_json_lines
from hesstune.weak import Votes, label
from hesstune.weak.label_models import at_balance, read_balance
from hesstune.weak.label_models.calibrated import calibrated_votes, weighed_counts
from hesstune.weak.vote_files import soft_columns


def overconfident(n=1500, k=3, accuracies=(0.8, 0.7, 0.6), sure=0.98, seed=0):
    """Labelers that are right so often, and say so surely, whatever they know."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    soft = np.full((n, len(accuracies), k), (1 - sure) / (k - 1))
    for j, accuracy in enumerate(accuracies):
        said = np.where(rng.random(n) < accuracy, y, (y + rng.integers(1, k, n)) % k)
        soft[np.arange(n), j, said] = sure
    return y, soft


def log_loss(q, y):
    return float(-np.log(np.maximum(q[np.arange(len(y)), y], 1e-12)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_posteriors_are_as_sure_as_they_are_right(seed):
    y, soft = overconfident(seed=seed)
    votes = Votes.of_probabilities(soft)
    found = calibrated_votes(votes)
    raw = soft.prod(axis=1)
    raw /= raw.sum(axis=1, keepdims=True)
    right, said = (found.posterior.argmax(axis=1) == y).mean(), found.posterior.max(axis=1).mean()
    assert said == pytest.approx(right, abs=0.04)
    assert raw.max(axis=1).mean() > right + 0.08
    assert log_loss(found.posterior, y) < 0.7 * log_loss(raw, y)
    assert log_loss(found.posterior, y) < log_loss(soft.mean(axis=1), y)
    # Who is right more often is believed more; the power of one who is right in a share a is
    # ln(a(K − 1)/(1 − a)) / ln(p(K − 1)/(1 − p)) at the sureness p.
    ideal = [np.log(2 * a / (1 - a)) / np.log(2 * 0.98 / 0.02) for a in (0.8, 0.7, 0.6)]
    assert found.power == pytest.approx(ideal, abs=0.12)
    assert found.power[0] > found.power[2]


def test_a_labeler_that_says_the_same_of_all_is_not_heard():
    y, soft = overconfident()
    soft[:, 2] = [0.98, 0.01, 0.01]
    found = calibrated_votes(Votes.of_probabilities(soft))
    assert found.power[2] == pytest.approx(0, abs=0.1)
    assert (found.posterior.argmax(axis=1) == y).mean() > 0.75


def test_one_labeler_is_calibrated_by_checked_examples_alone():
    y, soft = overconfident(accuracies=(0.7,))
    votes = Votes.of_probabilities(soft)
    alone = label(votes, "auto")
    assert alone.posterior == pytest.approx(soft[:, 0])
    assert any("checked-labels" in said for said in alone.details["reasons"])
    told = label(votes, "auto", clean=(np.arange(200), y[:200]))
    rest = np.arange(200, len(y))
    assert told.posterior[rest].max(axis=1).mean() == pytest.approx(0.7, abs=0.06)
    assert (told.labels[:200] == y[:200]).all()


def test_beside_features_several_answers_count_as_several():
    """A posterior of all labelers in one would count as one answer, however many agree."""
    y, soft = overconfident(n=400, accuracies=(0.75, 0.7, 0.65))
    x = np.eye(3)[y] + 0.9 * np.random.default_rng(9).normal(size=(400, 3))  # features that know half of it
    votes = Votes.of_probabilities(soft)
    counts = weighed_counts(votes)
    assert counts.sum() == pytest.approx(3 * len(y), rel=0.01)
    unanimous = votes.counts.max(axis=1) == 3
    assert counts[unanimous].max(axis=1).mean() > 2.5
    found = label(votes, "auto", features=x)
    assert found.details["chosen"] == "latent"
    assert (found.labels == y).mean() > (label(votes, "auto").labels == y).mean() + 0.01


@pytest.mark.parametrize("model", ["majority", "weighted", "auto", "soft"])
def test_checked_examples_keep_their_labels_whatever_the_model(model):
    y, soft = overconfident(n=300)
    votes = Votes.of_probabilities(soft) if model == "soft" else Votes(soft.argmax(axis=2), 3)
    found = label(votes, model, clean=(np.arange(50), y[:50]))
    assert (found.labels[:50] == y[:50]).all()
    assert (label(votes, model).labels[:50] != y[:50]).any()


def test_hard_and_soft_votes_stand_side_by_side(tmp_path):
    y, soft = overconfident(n=400, k=2, accuracies=(0.85, 0.8))
    names = ["no", "yes"]
    rows = ["id,vote_rule,p_gpt_no,p_gpt_yes,p_my_llm_no,p_my_llm_yes,vote_gpt"]
    for n in range(400):
        rule = names[y[n]] if n % 3 else ""
        numbers = ",".join(f"{p:.4f}" for p in soft[n].ravel())
        rows.append(f"x{n},{rule},{numbers},{names[soft[n, 0].argmax()]}")
    path = tmp_path / "votes.csv"
    path.write_text("\n".join(rows))
    found = label_data(votes=str(path))
    assert found.classes == names
    assert found.votes.names == ["rule", "gpt", "my_llm"]
    assert found.votes.soft[:, 1:] == pytest.approx(soft)
    assert found.votes.soft[1, 0].tolist() == np.eye(2)[y[1]].tolist()
    assert (found.labels == y).mean() > 0.9


def as_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_json_lines_of_examples_and_of_votes_say_the_same(tmp_path):
    _, soft = overconfident(n=120, k=2, accuracies=(0.85, 0.8, 0.7))
    by_name = [
        {name: dict(zip(("no", "yes"), map(float, soft[n, j]), strict=True)) for j, name in enumerate("abc")}
        for n in range(120)
    ]
    wide = as_lines(tmp_path / "wide.jsonl", [{"id": f"x{n}", **by_name[n]} for n in range(120)])
    votes = [
        {"id": f"x{n}", "annotator": name, "probabilities": by_name[n][name]}
        for name in "abc"
        for n in range(120)
    ]
    long = as_lines(tmp_path / "long.jsonl", votes)
    one, other = label_data(votes=wide), label_data(votes=long)
    assert one.ids == other.ids
    assert one.posterior == pytest.approx(other.posterior)
    assert one.votes.soft == pytest.approx(soft)
    table = tmp_path / "long.csv"
    table.write_text(
        "task,worker,p_no,p_yes\n"
        + "\n".join(f"x{n},{'abc'[j]},{soft[n, j, 0]},{soft[n, j, 1]}" for n in range(120) for j in range(3))
    )
    assert label_data(votes=str(table)).posterior == pytest.approx(one.posterior)


def test_classes_that_one_labeler_never_names_have_no_probability_by_it(tmp_path):
    rows = [
        {"id": "a", "gpt": {"yes": 0.7, "no": 0.3}, "llama": {"yes": 0.4, "no": 0.4, "maybe": 0.2}},
        {"id": "b", "gpt": {"no": 1}, "llama": {"maybe": 1}},
        {"id": "c", "gpt": None, "llama": {"no": 0.9, "yes": 0.1}},
    ]
    found = label_data(votes=as_lines(tmp_path / "v.jsonl", rows))
    assert found.classes == ["maybe", "no", "yes"]
    assert found.votes.soft[0, 0] == pytest.approx([0, 0.3, 0.7])
    assert found.votes.table[:, 0].tolist() == [2, 1, -1]


def test_a_row_a_vote_says_who_votes_and_what_counts(tmp_path):
    yes, no = {"yes": 0.9, "no": 0.1}, {"yes": 0.2, "no": 0.8}
    one = {"id": "x", "worker": "gpt", "p": yes, "q": no}
    other = {"id": "y", "worker": "gpt", "p": no, "q": yes}
    again = {**other, "worker": "llama"}
    with pytest.raises(DataError, match="--label-column"):
        label_data(votes=as_lines(tmp_path / "two.jsonl", [one, other, again]))
    chosen = label_data(votes=str(tmp_path / "two.jsonl"), label_column="q")
    assert [chosen.classes[c] for c in chosen.labels] == ["no", "yes"]
    rows = [{k: v for k, v in row.items() if k != "q"} for row in (one, other, again)]
    silent = {"id": "x", "worker": "llama", "label": "yes"}
    found = label_data(votes=as_lines(tmp_path / "silent.jsonl", [*rows, silent]))
    assert "1 votes give no probabilities; they are left out" in found.notes
    with pytest.raises(DataError, match="does not say who votes"):
        label_data(votes=as_lines(tmp_path / "who.jsonl", [*rows, {**rows[0], "worker": ""}]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x", "gpt": {"yes": 90, "no": 10}}, "percentages are divided by 100"),
        ({"id": "x", "gpt": {"yes": -0.1, "no": -2.3}}, "logarithms exponentiated"),
        ({"id": "x", "gpt": {"yes": "much", "no": 0.1}}, "no number"),
        ({"id": "x", "gpt": {"yes": {"a": 1}}}, "must be a text, a number, or an object"),
        ({"id": "x", "gpt": 0.9}, "is an object in other lines"),
        (["x"], "must be an object"),
    ],
)
def test_what_is_no_probability_is_refused_by_its_line(tmp_path, row, said):
    good = {"id": "w", "gpt": {"yes": 0.5, "no": 0.5}}
    path = as_lines(tmp_path / "v.jsonl", [good, row])
    with pytest.raises(DataError, match=said) as caught:
        label_data(votes=path)
    assert "line 2" in str(caught.value)


def test_broken_json_and_empty_files_are_one_line(tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(DataError, match="line 2 is no JSON"):
        read_json_lines(path)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="empty"):
        read_json_lines(path)


def table_of(*names):
    return CsvTable.of({name: ["0.5"] for name in names}, "v.csv")


def test_columns_are_split_where_the_classes_are_known_or_told_by_their_pattern():
    assert soft_columns(table_of("p_a", "p_b"), ["a", "b"]) == {}  # soft labels
    assert soft_columns(table_of("p_a", "p_b")) == {}
    found = soft_columns(table_of("p_m_not_sure", "p_m_sure"), ["sure", "not_sure"])
    assert found == {"m": {"not_sure": "p_m_not_sure", "sure": "p_m_sure"}}
    assert soft_columns(table_of("p_gpt_4_yes", "p_gpt_4_no")) == {
        "gpt_4": {"yes": "p_gpt_4_yes", "no": "p_gpt_4_no"}
    }
    soft_labels = table_of("p_cat", "p_dog", "p_hot_dog")  # no example is labelled hot_dog
    assert soft_columns(soft_labels, ["cat", "dog"]) == {}
    with pytest.raises(DataError, match="no column 'p_b_no'"):
        soft_columns(table_of("p_a_yes", "p_a_no", "p_b_yes"), ["yes", "no"])


def test_classes_keep_their_told_shares():
    y, soft = overconfident(n=2000, k=2, accuracies=(0.75, 0.7, 0.65))
    rare = np.flatnonzero((y == 0) | (np.random.default_rng(3).random(2000) < 0.1))
    votes, y = Votes.of_probabilities(soft[rare]), y[rare]
    shares = np.bincount(y) / len(y)
    plain, told = label(votes, "auto"), label(votes, "auto", balance=shares)
    assert told.posterior.mean(axis=0) == pytest.approx(shares, abs=1e-4)
    assert (told.labels == y).mean() > (plain.labels == y).mean() + 0.05
    assert log_loss(told.posterior, y) < log_loss(plain.posterior, y)
    sure = label(Votes(np.tile(y[:, None], 3), 2), "majority", balance=[0.5, 0.5])
    assert "too many examples are certain" in " ".join(sure.details["reasons"])


def test_the_balance_is_the_nearest_in_kullback_leibler():
    """Against a general solver on a small case."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    p, balance = rng.dirichlet(np.ones(3), 6), np.array([0.5, 0.3, 0.2])
    q, off = at_balance(p, balance)

    def kl(flat):
        found = np.abs(flat.reshape(p.shape)) + 1e-12
        return float((found * np.log(found / p)).sum())

    rules = [
        {"type": "eq", "fun": lambda f: f.reshape(p.shape).sum(axis=1) - 1},
        {"type": "eq", "fun": lambda f: (f.reshape(p.shape).mean(axis=0) - balance)[:2]},
    ]
    best = minimize(kl, p.ravel(), constraints=rules, bounds=[(1e-9, 1)] * p.size, options={"maxiter": 500})
    assert off < 1e-5
    assert q == pytest.approx(best.x.reshape(p.shape), abs=2e-3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["a=0.5"], "no share of"),
        (["a=0.5", "b=0.9"], "sum to"),
        (["a=0.5", "c=0.5"], "unknown class"),
        (["a=0.5", "a=0.5"], "twice"),
        (["half"], "CLASS=SHARE"),
        (["a=much", "b=0.5"], "CLASS=SHARE"),
    ],
)
def test_a_balance_that_is_none_is_refused(told, said):
    with pytest.raises(ConfigError, match=said):
        read_balance(told, ["a", "b"], np.array([0.5, 0.5]))


def test_a_balance_is_an_option_of_label(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text(
        "id,vote_x,vote_y\n" + "".join(f"e{n},{'ab'[n % 2]},{'ab'[n % 3 == 0]}\n" for n in range(60))
    )
    found = label_data(votes=str(path), class_balance=["a=0.8", "b=0.2"])
    assert found.posterior.mean(axis=0)[0] > label_data(votes=str(path)).posterior.mean(axis=0)[0]

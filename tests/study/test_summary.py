import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.bounds.record import Certificate
from hesstune.report.study_page import render_study
from hesstune.study.options import CellRecord, StudyResults
from hesstune.study.results import differences, markdown, means, paired_difference, ranks, smallest_of


def cell(task, method, seed, accuracy, status="done"):
    metrics = {"test_accuracy": accuracy, "certificate": {"risk": accuracy}}
    return CellRecord(task=task, method=method, seed=seed, status=status, metrics=metrics)


def test_one_task_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5), rng.normal(size=5)
    found = paired_difference([a - b])
    interval = ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_several_tasks_cover_fresh_seeds_at_the_stated_rate():
    """Strata of unequal spread and size; the interval is for the mean of the strata's means."""
    rng = np.random.default_rng(1)
    truth, spread, sizes = np.array([0.0, 3.0, -1.0]), np.array([0.1, 1.0, 3.0]), (4, 3, 6)
    hits = 0
    for _ in range(2000):
        strata = [rng.normal(m, s, n) for m, s, n in zip(truth, spread, sizes, strict=True)]
        found = paired_difference(strata)
        hits += found["low"] <= truth.mean() <= found["high"]
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_equal_strata_agree_with_the_two_sample_formula():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 5.0, 1.0])
    found = paired_difference([a, b])
    variances = np.array([a.var(ddof=1), b.var(ddof=1)]) / 3
    stderr = np.sqrt(variances.sum()) / 2
    freedom = variances.sum() ** 2 / (variances**2 / 2).sum()
    assert found["stderr"] == pytest.approx(stderr)
    assert found["high"] - found["mean"] == pytest.approx(t.ppf(0.975, freedom) * stderr)


def test_a_single_seed_has_no_interval():
    found = paired_difference([[1.0], [2.0, 3.0]])
    assert (found["mean"], found["stderr"], found["low"]) == (1.75, None, None)


CELLS = [
    cell("a", "plain", 0, 0.5), cell("a", "plain", 1, 0.6), cell("a", "new", 0, 0.7),
    cell("a", "new", 1, 0.9), cell("b", "plain", 0, 0.1), cell("b", "new", 0, 0.1),
    cell("b", "new", 1, 0.9), cell("b", "plain", 1, None, "failed"),
]  # fmt: skip


def test_pairs_are_of_the_same_task_and_seed_and_failures_are_left_out():
    rows = {(r["task"], r["metric"]): r for r in differences(CELLS, "plain")}
    assert rows["a", "test_accuracy"]["mean"] == pytest.approx((0.2 + 0.3) / 2)
    assert (rows["b", "test_accuracy"]["mean"], rows["b", "test_accuracy"]["n"]) == (0.0, 1)
    assert rows[None, "test_accuracy"]["mean"] == pytest.approx(0.125)
    assert rows["a", "certificate"]["mean"] == pytest.approx(0.25)


def test_means_over_tasks_weigh_tasks_alike():
    rows = {(r["task"], r["method"]): r for r in means(CELLS) if r["metric"] == "test_accuracy"}
    assert rows[None, "new"]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert rows["a", "plain"]["stderr"] == pytest.approx(0.05)


def test_ranks_share_ties_and_put_the_best_first():
    rows = ranks(CELLS)
    assert [r["method"] for r in rows] == ["new", "plain"]
    assert rows[1]["mean_rank"] == pytest.approx((2 + 2 + 1.5) / 3)
    assert rows[0]["mean_rank"] == pytest.approx((1 + 1 + 1.5 + 1) / 4)


def certified(method, seed, errors, n=200):
    found = Certificate.of_network(
        "holdout",
        {"errors": errors, "mean": errors / n, "low": 0.0, "high": 1.0},
        n=n,
        delta=0.05,
        classes=3,
    )
    told = {"risk": found.risk, "delta": 0.05, "facts": found.facts()}
    return CellRecord(task="t", method=method, seed=seed, status="done", metrics={"certificate": told})


def test_the_smallest_certificate_pays_for_the_choice():
    cells = [
        certified("a", 0, 10.0),
        certified("a", 1, 14.0),
        certified("b", 0, 9.0),
        certified("b", 1, 20.0),
    ]
    found = smallest_of(cells, "t")
    assert (found.cell.method, found.cell.seed, found.count) == ("b", 0, 4)
    assert found.risk == pytest.approx(confidence_upper(9, 200, 0.05 / 4))
    assert found.delta == 0.05
    assert smallest_of(cells, "other") is None


def test_tables_give_each_certificate_and_call_a_mean_a_mean():
    cells = [certified("a", 0, 10.0), certified("b", 0, 9.0), certified("b", 1, 20.0)]
    results = StudyResults(
        tasks=["t"], methods=["a", "b"], seeds=[0, 1], baseline="a", means=means(cells), cells=cells
    )
    text = markdown(results)
    assert "certified error" not in text
    assert "mean of certificates" in text
    for cell in cells:
        assert f"{cell.metrics['certificate'].risk:.3f}" in text
    assert f"| smallest of 3 (b, seed 0), probability 0.95 | {smallest_of(cells, 't').risk:.3f} |" in text
    page = render_study(results)
    assert "certified error" not in page
    assert "smallest of 3 (b, seed 0)" in page

import numpy as np
import pytest
from scipy.stats import ttest_rel

from hesstune.bounds.record import Certificate
from hesstune.noise.confidence import confidence_upper
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
    for _ in range(1000):
        strata = [rng.normal(m, s, n) for m, s, n in zip(truth, spread, sizes, strict=True)]
        found = paired_difference(strata)
        hits += found["low"] <= truth.mean() <= found["high"]
    assert hits / 1000 == pytest.approx(0.95, abs=0.02)


def test_a_single_seed_has_no_interval():
    found = paired_difference([[1.0], [2.0, 3.0]])
    assert (found["mean"], found["stderr"], found["low"]) == (1.75, None, None)


CELLS = [
    cell("a", "plain", 0, 0.5), cell("a", "plain", 1, 0.6), cell("a", "new", 0, 0.7),
    cell("a", "new", 1, 0.9), cell("b", "plain", 0, 0.1), cell("b", "new", 0, 0.1),
    cell("b", "new", 1, 0.9), cell("b", "plain", 1, None, "failed"),
]  # fmt: skip


def test_means_differences_and_ranks_are_paired_and_leave_out_failures():
    rows = {(r["task"], r["metric"]): r for r in differences(CELLS, "plain")}
    assert rows["a", "test_accuracy"]["mean"] == pytest.approx((0.2 + 0.3) / 2)
    assert (rows["b", "test_accuracy"]["mean"], rows["b", "test_accuracy"]["n"]) == (0.0, 1)
    assert rows[None, "test_accuracy"]["mean"] == pytest.approx(0.125)
    assert rows["a", "certificate"]["mean"] == pytest.approx(0.25)
    rows = {(r["task"], r["method"]): r for r in means(CELLS) if r["metric"] == "test_accuracy"}
    assert rows[None, "new"]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert rows["a", "plain"]["stderr"] == pytest.approx(0.05)
    best, other = ranks(CELLS)
    assert (best["method"], other["method"]) == ("new", "plain")
    assert other["mean_rank"] == pytest.approx((2 + 2 + 1.5) / 3)
    assert best["mean_rank"] == pytest.approx((1 + 1 + 1.5 + 1) / 4)


def certified(method, seed, errors, n=200):
    numbers = {"errors": errors, "mean": errors / n, "low": 0.0, "high": 1.0}
    found = Certificate.of_network("holdout", numbers, n=n, delta=0.05, classes=3)
    record = {"risk": found.risk, "delta": 0.05, "facts": found.facts()}
    return CellRecord(task="t", method=method, seed=seed, status="done", metrics={"certificate": record})


def test_the_smallest_certificate_is_taken_by_a_union_bound():
    some = [certified(*own) for own in (("a", 0, 10.0), ("a", 1, 14.0), ("b", 0, 9.0), ("b", 1, 20.0))]
    found = smallest_of(some, "t")
    assert (found.cell.method, found.cell.seed, found.count) == ("b", 0, 4)
    assert found.risk == pytest.approx(confidence_upper(9, 200, 0.05 / 4))
    assert found.delta == 0.05
    assert smallest_of(some, "other") is None
    results = StudyResults(
        tasks=["t"], methods=["a", "b"], seeds=[0, 1], baseline="a", means=means(some), cells=some
    )
    text = markdown(results)
    for cell in some:
        assert f"{cell.metrics['certificate'].risk:.3f}" in text
    assert f"| smallest of 4 (b, seed 0), probability 0.95 | {found.risk:.3f} |" in text
    page = render_study(results)
    assert "smallest of 4 (b, seed 0)" in page
    for shown in (text, page):  # a mean of certificates is not a bound
        assert "certified error" not in shown
        assert "mean of certificates" in shown

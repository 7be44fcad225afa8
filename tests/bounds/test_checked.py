"""The true error from a few checked labels and all noisy ones: exact, and found to hold by simulation."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

import hesstune as ht
from hesstune.analysis.certify import certify_run, check_run
from hesstune.bounds.checked import _masses, checked_bound
from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError, RunError


def drawn(rng, n, m, q, p1, p0):
    """Counts of one sample: V of all, the truth of m drawn at random."""
    v = rng.random(n) < q
    wrong = rng.random(n) < np.where(v, p1, p0)
    some = rng.permutation(n)[:m]
    apart = v[some]
    return (
        (int(wrong[some][apart].sum()), int(apart.sum())),
        (int(wrong[some][~apart].sum()), int((~apart).sum())),
        int(v.sum()),
    )


@pytest.mark.parametrize(
    ("q", "p1", "p0"),
    [(0.3, 0.8, 0.02), (0.45, 0.6, 0.1), (0.2, 0.05, 0.4), (0.05, 1.0, 0.0), (0.5, 0.5, 0.5)],
)
def test_it_holds_whatever_the_noise(q, p1, p0):
    rng, delta, trials = np.random.default_rng(0), 0.2, 30
    truth = q * p1 + (1 - q) * p0
    failed = 0
    for _ in range(trials):
        first, second, disagree = drawn(rng, 400, 60, q, p1, p0)
        failed += checked_bound(first, second, disagree, 400, delta) < truth
    # δ beyond a binomial 99 % margin.
    assert failed <= 12


def test_the_probability_that_rejects_is_the_exact_one_or_just_above_it():
    # P(T ≤ t) summed over every V̄, k₁ and k₀, against the levels and cells that stand for them.
    (k1, m1), (k0, m0), n, q = (5, 9), (2, 14), 120, 0.4
    disagree, others = 50, n - m1 - m0
    seen = disagree / n * k1 / m1 + (1 - disagree / n) * k0 / m0
    masses = _masses((k1, m1), (k0, m0), disagree, n, (q - 1e-3, q + 1e-3))
    firsts, seconds = np.arange(m1 + 1)[:, None], np.arange(m0 + 1)
    for p1, p0 in ((0.6, 0.2), (0.2, 0.5), (0.9, 0.05)):
        chances = stats.binom.pmf(firsts, m1, p1) * stats.binom.pmf(seconds, m0, p0)
        exact = 0.0
        for count in range(others + 1):
            mean = (m1 + count) / n
            low = mean * firsts / m1 + (1 - mean) * seconds / m0 <= seen + 1e-9
            exact += stats.binom.pmf(count, others, q) * chances[low].sum()
        found = stats.binom.pmf(firsts[:, 0], m1, p1) @ masses @ stats.binom.cdf(seconds, m0, p0)
        assert exact <= found <= 1.1 * exact + 0.01


def test_many_noisy_labels_make_it_tighter_than_the_checked_ones_alone():
    found = checked_bound((70, 90), (4, 210), 3000, 10000, 0.05)
    assert 74 / 300 < found < confidence_upper(74, 300, 0.05) - 0.01
    # Where labels are noisy and the network errs often too, it is still no looser.
    plain = checked_bound((60, 105), (20, 195), 1400, 4000, 0.05)
    assert 80 / 300 < plain < confidence_upper(80, 300, 0.05)
    # Labels without noise tell it all: the checked ones are right where the network agrees.
    sure = checked_bound((90, 90), (0, 210), 3000, 10000, 0.05)
    assert sure < confidence_upper(90, 300, 0.05)
    # Nothing checked where the network disagrees: there it may always be wrong.
    assert checked_bound((0, 0), (3, 50), 10, 200, 0.05) > 10 / 200 + confidence_upper(3, 50, 0.05) * 0.9
    for wrong in (((5, 4), (0, 3), 5, 20), ((0, 4), (0, 3), 3, 20), ((0, 4), (0, 17), 4, 20)):
        with pytest.raises(ConfigError, match="do not fit together"):
            checked_bound(*wrong, 0.05)


def test_a_sheet_is_drawn_filled_in_and_certified(tmp_path, capsys):
    options = {"data": "digits", "limit": 200, "train": "head", "image_size": 32, "val_fraction": 0,
               "method": "vanilla", "epochs": 3, "inject_noise": "instance:0.3"}  # fmt: skip
    run = ht.finetune(options, out=str(tmp_path / "a"))
    with pytest.raises(SystemExit) as end:
        cli(["check", str(run.path), "--sample", "40", "--prior-fraction", "0.5"])
    assert end.value.code == 0
    sheet = run.path / "to_check.csv"
    rows = list(csv.DictReader(sheet.open()))
    assert len(rows) == 40
    assert set(rows[0]) == {"id", "true_label"}
    with pytest.raises(SystemExit):  # labels that a person gave are never lost
        cli(["check", str(run.path), "--sample", "40"])
    assert "exists" in capsys.readouterr().err
    task = run.task()
    true = dict(zip(task.train.ids, task.train.true, strict=True))
    with sheet.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerows([("id", "true_label"), *((r["id"], task.classes[true[r["id"]]]) for r in rows)])
    # This noise depends on the example: no noise matrix could certify it.
    with pytest.raises(DataError, match="depend on the input"):
        certify_run(run, prior_fraction=0.5)
    found = certify_run(run, checked_labels=sheet, prior_fraction=0.5)
    assert found.n == 100
    assert found.bound == "checked"
    assert found.numbers["checked_disagreeing"] + found.numbers["checked_agreeing"] == 40
    assert not {r["id"] for r in rows} & {
        r["id"] for r in ht.Run.load(run.path / "prior").labels() if r["part"] == "train"
    }
    assert json.loads((run.path / "certificate.json").read_text())["risk"] == found.risk == found.at(0.05)
    assert "drawn uniformly at random" in found.summary()
    with pytest.raises(DataError, match="none of the 359 examples"):
        certify_run(run, checked_labels=sheet)
    with pytest.raises(ConfigError, match="bound of its own"):
        certify_run(run, checked_labels=sheet, bound="holdout")
    with pytest.raises(RunError, match="may hold labels already"):
        check_run(run)

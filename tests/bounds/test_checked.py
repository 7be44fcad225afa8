"""The true error from a few checked labels and all noisy ones: exact, and found to hold by simulation."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

import hesstune as ht
from coverage_worlds import Flat, ruled
from hesstune.analysis.certify import certify_run, check_run
from hesstune.bounds.kinds.checked import _masses, checked_bound
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.noise.confidence import confidence_upper
from hesstune.runs.guarantee_log import certificates, sheets
from hesstune.runs.records import CERTIFICATE, GUARANTEES, TO_CHECK


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
    [(0.3, 0.8, 0.02), (0.2, 0.05, 0.4), (0.05, 1.0, 0.0)],
)
def test_it_holds_whatever_the_noise(q, p1, p0):
    rng, delta, trials = np.random.default_rng(0), 0.2, 20
    truth = q * p1 + (1 - q) * p0
    failed = 0
    for _ in range(trials):
        first, second, disagree = drawn(rng, 400, 60, q, p1, p0)
        failed += checked_bound(first, second, disagree, 400, delta) < truth
    # δ beyond a binomial 99 % margin.
    assert failed <= 9


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


pytestmark = pytest.mark.usefixtures("distinct_images")
OPTIONS = {"method": "vanilla", "train": "head", "image_size": 8, "epochs": 3, "val_fraction": 0,
           "test_fraction": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of noisy labels, which other tests may not change."""
    x, y, _ = ruled(np.random.default_rng(0), 200)
    out = tmp_path_factory.mktemp("runs") / "a"
    return ht.finetune((x, y), model=Flat(2), out=str(out), inject_noise="instance:0.3", **OPTIONS)


@pytest.fixture
def fresh(run):
    """The same, as if nothing had been asked of it."""
    for name in (GUARANTEES, TO_CHECK, CERTIFICATE):
        (run.path / name).unlink(missing_ok=True)
    return run


def fill(path, labels):
    """Write labels into a sheet; those of ids that are not in it are further rows."""
    ids = [row["id"] for row in csv.DictReader(path.open())]
    with path.open("w", newline="") as file:
        rows = [(name, labels.get(name, "")) for name in dict.fromkeys([*ids, *labels])]
        csv.writer(file).writerows([("id", "true_label"), *rows])
    return path


def truth_of(part, classes):
    true = part.labels if part.true is None else part.true
    return {name: classes[at] for name, at in zip(part.ids, true, strict=True)}


def test_a_sheet_is_drawn_filled_in_and_certified(fresh, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ht.Run, "load", lambda *_: fresh)  # with its data, which no file holds
        for code in (0, 2):  # labels that a person gave are never lost
            with pytest.raises(SystemExit) as end:
                cli(["check", str(fresh.path), "--sample", "20", "--prior-fraction", "0.5"])
            assert end.value.code == code
    assert "exists" in capsys.readouterr().err
    sheet = fresh.path / TO_CHECK
    rows = list(csv.DictReader(sheet.open()))
    assert len(rows) == 20
    assert set(rows[0]) == {"id", "true_label"}
    task = fresh.task()
    true = truth_of(task.train, task.classes)
    fill(sheet, {row["id"]: true[row["id"]] for row in rows})
    # This noise depends on the example: no noise matrix could certify it.
    with pytest.raises(DataError, match="depend on the input"):
        certify_run(fresh, prior_fraction=0.5)
    found = certify_run(fresh, checked_labels=sheet, prior_fraction=0.5)
    assert (found.n, found.bound) == (len(task.train) - round(len(task.train) / 2), "checked")
    assert found.numbers["checked_disagreeing"] + found.numbers["checked_agreeing"] == 20
    prior = {r["id"] for r in ht.Run.load(fresh.path / "prior").labels() if r["part"] == "train"}
    assert not {r["id"] for r in rows} & prior
    assert json.loads((fresh.path / CERTIFICATE).read_text())["risk"] == found.risk == found.at(0.05)
    assert "drawn uniformly at random" in found.summary()
    with pytest.raises(DataError, match="none of the 100 examples"):
        certify_run(fresh, checked_labels=sheet)
    with pytest.raises(ConfigError, match="bound of its own"):
        certify_run(fresh, checked_labels=sheet, bound="holdout")
    with pytest.raises(RunError, match="may hold labels already"):
        check_run(fresh)


def test_a_line_that_a_kill_cut_off_loses_no_other(fresh):
    sheet = check_run(fresh, sample=5)
    log = fresh.path / GUARANTEES
    log.write_bytes(log.read_bytes() + b'{"kind": "sheet", "ids": ["0"')
    sheet.unlink()
    check_run(fresh, sample=6)
    assert [len(ids) for ids in sheets(fresh.path)] == [5, 6]
    log.write_text("no JSON\n" + log.read_text())
    with pytest.raises(RunError, match=GUARANTEES):
        certificates(fresh.path)


def test_examples_left_empty_count_as_errors_and_chosen_ones_are_refused(fresh):
    task = fresh.task()
    truth = truth_of(task.test, task.classes)
    sheet = fresh.path / TO_CHECK
    sheet.write_text("id,true_label\n" + f"{next(iter(truth))},{next(iter(truth.values()))}\n")
    with pytest.raises(DataError, match="no examples were drawn"):
        certify_run(fresh, checked_labels=sheet)
    sheet.unlink()
    sheet = check_run(fresh, sample=40)
    drawn = sheets(fresh.path)[0]
    whole = certify_run(fresh, checked_labels=fill(sheet, {name: truth[name] for name in drawn}))
    assert whole.shares["checked"] == 0.05
    wrong = whole.numbers["wrong_disagreeing"] + whole.numbers["wrong_agreeing"]
    # Ten examples are left empty, as hard ones are.
    hard = drawn[:10]
    left = certify_run(
        fresh, checked_labels=fill(sheet, {n: truth[n] if n not in hard else "" for n in drawn})
    )
    assert left.numbers["unchecked"] == 10
    assert left.numbers["checked_disagreeing"] + left.numbers["checked_agreeing"] == 40
    assert left.numbers["wrong_disagreeing"] + left.numbers["wrong_agreeing"] >= max(wrong, 10)
    assert left.risk >= whole.risk
    # Rows that were removed from the sheet were drawn all the same.
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "true_label"), *((n, truth[n]) for n in drawn[10:])])
    assert certify_run(fresh, checked_labels=sheet).numbers == left.numbers
    other = next(name for name in truth if name not in drawn)
    with pytest.raises(DataError, match=f"'{other}'"):
        certify_run(fresh, checked_labels=fill(sheet, {n: truth[n] for n in [*drawn, other]}))
    # A further sheet pays a part of delta.
    sheet.unlink()
    sheet = check_run(fresh, sample=30, seed=1)
    second = certify_run(
        fresh, checked_labels=fill(sheet, {name: truth[name] for name in sheets(fresh.path)[-1]})
    )
    assert np.isclose(second.shares["checked"], 0.025)
    assert np.isclose(sum(second.shares.values()), 0.05)


def test_the_smallest_of_many_certificates_pays_the_union(tmp_path):
    x, y, _ = ruled(np.random.default_rng(0), 200)
    run = ht.finetune((x, y), model=Flat(2), out=str(tmp_path / "a"), **OPTIONS)
    found = [certify_run(run, bound="holdout", prior_fraction=0.5, seed=seed) for seed in range(3)]
    assert [one.number for one in found] == [1, 2, 3]
    last = found[-1]
    assert last.smallest == min(one.at(0.05 / 3) for one in found) > min(one.risk for one in found)
    assert "certificate 3" in last.summary()
    assert ht.bounds.Certificate.load(run.path / CERTIFICATE).number == 3
    # The same certificate again is not another one.
    assert certify_run(run, bound="holdout", prior_fraction=0.5, seed=2).number == 3
    # A run that replaces this one does not forget them.
    again = ht.finetune((x, y), model=Flat(2), out=str(tmp_path / "a"), overwrite=True, seed=1, **OPTIONS)
    one = certify_run(again, bound="holdout")
    assert one.number == 4
    assert one.smallest == min(c.at(0.05 / 4) for c in (*found, one))

"""Several certificates of one run, and sheets that are not filled in whole, do not fool anybody."""

import csv

import numpy as np
import pytest

import hesstune as ht
from hesstune.analysis.certify import certify_run, check_run
from hesstune.errors import DataError, RunError
from hesstune.runs.guarantee_log import certificates, sheets
from hesstune.runs.records import CERTIFICATE, GUARANTEES, TO_CHECK

OPTIONS = {"data": "digits", "limit": 200, "train": "head", "image_size": 32, "val_fraction": 0,
           "method": "vanilla", "epochs": 3}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of noisy labels, which other tests may not change."""
    out = tmp_path_factory.mktemp("runs") / "a"
    return ht.finetune({**OPTIONS, "inject_noise": "instance:0.3"}, out=str(out))


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


def truth_of(run):
    task = run.task()
    return {name: task.classes[at] for name, at in zip(task.test.ids, task.test.labels, strict=True)}


def test_the_smallest_of_many_certificates_pays_the_union(tmp_path):
    run = ht.finetune(OPTIONS, out=str(tmp_path / "a"))
    found = [certify_run(run, bound="holdout", prior_fraction=0.5, seed=seed) for seed in range(3)]
    assert [one.number for one in found] == [1, 2, 3]
    last = found[-1]
    assert last.smallest == min(one.at(0.05 / 3) for one in found) > min(one.risk for one in found)
    assert "certificate 3" in last.summary()
    assert ht.bounds.Certificate.load(run.path / CERTIFICATE).number == 3
    # The same certificate again is not another one.
    assert certify_run(run, bound="holdout", prior_fraction=0.5, seed=2).number == 3
    # A run that replaces this one does not forget them.
    again = ht.finetune({**OPTIONS, "seed": 1}, out=str(tmp_path / "a"), overwrite=True)
    one = certify_run(again, bound="holdout")
    assert one.number == 4
    assert one.smallest == min(c.at(0.05 / 4) for c in (*found, one))


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


def test_examples_left_empty_count_as_errors(fresh):
    sheet = check_run(fresh, sample=60)
    truth = truth_of(fresh)
    drawn = sheets(fresh.path)[0]
    whole = certify_run(fresh, checked_labels=fill(sheet, {name: truth[name] for name in drawn}))
    wrong = whole.numbers["wrong_disagreeing"] + whole.numbers["wrong_agreeing"]
    # The ten that the network gets wrong, and whoever fills in the sheet finds hard.
    hard = drawn[:10]
    partly = {n: truth[n] if n not in hard else "" for n in drawn}
    left = certify_run(fresh, checked_labels=fill(sheet, partly))
    assert left.numbers["unchecked"] == 10
    checked = left.numbers["checked_disagreeing"] + left.numbers["checked_agreeing"]
    assert checked == 60
    assert left.numbers["wrong_disagreeing"] + left.numbers["wrong_agreeing"] >= max(wrong, 10)
    assert left.risk >= whole.risk
    # Rows that were removed from the sheet were drawn all the same.
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "true_label"), *((n, truth[n]) for n in drawn[10:])])
    assert certify_run(fresh, checked_labels=sheet).numbers == left.numbers


def test_chosen_examples_are_refused(fresh):
    truth = truth_of(fresh)
    sheet = fresh.path / TO_CHECK
    sheet.write_text("id,true_label\n" + f"{next(iter(truth))},{next(iter(truth.values()))}\n")
    with pytest.raises(DataError, match="no examples were drawn"):
        certify_run(fresh, checked_labels=sheet)
    sheet.unlink()
    sheet = check_run(fresh, sample=20)
    drawn = set(sheets(fresh.path)[0])
    other = next(name for name in truth if name not in drawn)
    with pytest.raises(DataError, match=f"'{other}'"):
        certify_run(fresh, checked_labels=fill(sheet, {n: truth[n] for n in [*drawn, other]}))


def test_every_sheet_pays_a_part_of_delta(fresh):
    truth, found = truth_of(fresh), []
    for seed in range(2):
        sheet = check_run(fresh, sample=40, seed=seed)
        found.append(certify_run(fresh, checked_labels=fill(sheet, truth_in(truth, sheets(fresh.path)[-1]))))
        sheet.unlink()
    assert found[0].shares["checked"] == 0.05
    assert np.isclose(found[1].shares["checked"], 0.025)
    assert np.isclose(sum(found[1].shares.values()), 0.05)


def truth_in(truth, ids):
    return {name: truth[name] for name in ids}

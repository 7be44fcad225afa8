"""The verdict on wrong labels and the test of a given noise matrix, against runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits

import hesstune as ht
from hesstune.analysis.label_issues import check_matrix, compare_agreement, judge_fit
from hesstune.noise.matrix import NoiseMatrix
from hesstune.report.narrative import onset, provenance, training_words, verdict
from hesstune.report.write import write_report
from hesstune.runs.records import Agreement, NoiseFit


def counts(wrong, right, expected=0.0, known=False):
    (a, n), (b, m) = wrong, right
    return NoiseFit(
        wrong=Agreement(agreed=a, examples=n),
        right=Agreement(agreed=b, examples=m),
        expected_right=expected,
        known=known,
    )


VERDICTS = [
    (counts((98, 100), (300, 300)), "most"),
    (counts((30, 100), (300, 300)), "some"),
    (counts((3, 100), (285, 300)), "not"),
    (counts((3, 100), (150, 300)), "not"),  # inaccurate, yet it does not repeat wrong labels
    (counts((40, 100), (60, 100)), "unknown"),  # its errors explain the agreement
    (counts((9, 9), (300, 300)), "unknown"),  # too few
    (counts((0, 0), (300, 300)), "unknown"),
    (counts((25, 100), (270, 300), expected=0.15), "unknown"),  # of these, 15 are right
    (counts((20, 100), (300, 300), expected=0.2), "not"),
    (None, "unknown"),
]


def test_verdicts_follow_the_clopper_pearson_intervals():
    for fit, kind in VERDICTS:
        found = judge_fit(fit)
        assert found.kind == kind
        assert bool(found.reason) == (kind == "unknown")
    exact = binomtest(40, 100).proportion_ci(0.95, "exact")
    found = judge_fit(counts((40, 100), (300, 300), expected=0.1))
    np.testing.assert_allclose(
        (found.low, found.high), [(end - 0.1) / 0.9 for end in (exact.low, exact.high)], rtol=1e-6
    )


def test_labels_are_suspected_by_their_own_posterior_unless_the_truth_is_known():
    posterior = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.49, 0.51]])
    labels, predicted, true = np.array([0, 0, 1, 0]), np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    suspected = compare_agreement(predicted, labels, posterior)
    assert (suspected.wrong.agreed, suspected.wrong.examples) == (1, 3)
    assert (suspected.right.agreed, suspected.right.examples) == (1, 1)
    assert suspected.expected_right == pytest.approx((0.3 + 0.4 + 0.49) / 3)
    known = compare_agreement(predicted, labels, posterior, true)
    assert (known.wrong.agreed, known.wrong.examples, known.known) == (0, 1, True)
    assert compare_agreement(predicted, labels, None) is None


PAIR = NoiseMatrix.pair(4, 0.3)


MATRICES = [
    (NoiseMatrix.symmetric(4, 0.3), NoiseMatrix.symmetric(4, 0.3), None),
    (NoiseMatrix.symmetric(4, 0.4), NoiseMatrix.symmetric(4, 0.05), "too little noise"),
    (NoiseMatrix.symmetric(4, 0.05), NoiseMatrix.symmetric(4, 0.3), "too much noise"),
    (PAIR, PAIR, None),
    (PAIR, NoiseMatrix.identity(4), "too little noise"),
]


def test_a_given_matrix_is_tested_out_of_sample():
    rng = np.random.default_rng(0)
    classes = rng.integers(4, size=1200)
    seen = np.where(rng.random(1200) < 0.95, classes, rng.integers(4, size=1200))  # predictions err a little
    probabilities = np.full((1200, 4), 0.1)
    probabilities[np.arange(1200), seen] = 0.7 + 0.1 * rng.random(1200)
    for true, given, contradiction in MATRICES:
        found = check_matrix(probabilities, true.corrupt(classes, seed=1), given)
        assert found.contradiction == contradiction
        assert found.examples == 600
        assert found.low < found.differing / found.examples < found.high


class Tiny(torch.nn.Sequential):
    """A small convolutional network, whose untrained features tell digits apart."""

    def __init__(self):
        conv = torch.nn.Conv2d
        super().__init__(
            conv(3, 24, 5, stride=2, padding=2), torch.nn.ReLU(), conv(24, 24, 3, stride=2, padding=1),
            torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(384, 64), torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )  # fmt: skip


def trained(tmp_path, rate, **options):
    """A run on labels whose noise nothing records, and whether each training label is wrong."""
    digits = load_digits()
    images, clean = digits.images[:500] / 16, digits.target[:500]
    labels = NoiseMatrix.symmetric(10, rate).corrupt(clean, seed=0) if rate else clean
    run = ht.finetune(
        (images, labels), model=Tiny(), out=str(tmp_path / "run"), image_size=16, augment="none", **options
    )
    write_report(run)
    part = run.task().train
    ids = np.array([int(example) for example in part.ids])
    return run, part.labels != clean[ids]


LONG = {"method": "vanilla", "epochs": 25, "lr": 3e-3, "schedule": "constant"}
SHORT = {"method": "vanilla", "epochs": 8, "lr": 1e-3}


@pytest.mark.parametrize(
    ("rate", "options", "kind", "contradiction"),
    [
        (0.4, LONG, "most", None),
        (0.4, {"method": "auto", "train": "head"}, "not", None),
        (0.4, SHORT | {"method": "robust", "noise_matrix": "0.05"}, "not", "too little noise"),
        (0.0, SHORT | {"method": "robust", "noise_matrix": "0.3"}, "unknown", "too much noise"),
    ],
)
def test_the_verdict_on_a_run_is_its_truth(tmp_path, rate, options, kind, contradiction):
    run, wrong = trained(tmp_path, rate, **options)
    kept = run.records.label_issues_record
    found, check = judge_fit(kept.fit), kept.matrix_check
    assert found.kind == kind
    assert (check and check.contradiction) == contradiction
    assert not kept.fit.known
    said = verdict(run.records)
    assert f"{kept.fit.wrong.share:.1%}" in said or kind == "unknown"
    assert ("contradict" in provenance(run.records)) == (contradiction is not None)
    if kind != "unknown":
        assert abs(kept.fit.wrong.examples - wrong.sum()) < 0.25 * wrong.sum()
    if options["method"] == "auto":  # solved in closed form: nothing is fitted in epochs
        assert onset(run.records) is None
        assert "closed form" in training_words(run.records)

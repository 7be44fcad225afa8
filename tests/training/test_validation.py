"""Validation under label noise: losses of epochs and radii, checked labels, and noise by example."""

import csv
import json

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.data.examples import raw_features
from hesstune.inputs.batches import predict_logits
from hesstune.noise.instance import instance_transitions
from hesstune.training.finetune import FACTORS
from hesstune.training.metrics import Validation


@pytest.fixture
def head(tiny):
    return {**tiny, "train": "head", "epochs": 2, "method": "robust", "warmup_epochs": 1}


def observed(options):
    """A run, and the logits and examples of its validation part."""
    seen = []
    run = ht.finetune(options, observe=seen.append)
    return run, predict_logits(seen[0].net, seen[0].feeds["val"]), seen[0].task.val


def least_loss(logits, targets, matrix, clean=None):
    """The mean of −ln q·Fᵀp at the best of many temperatures, by hand; F = I for checked examples."""
    found = []
    for temperature in np.geomspace(0.1, 10, 25):
        p = np.exp(temperature * logits.double().numpy())
        p /= p.sum(axis=1, keepdims=True)
        noisy = p @ matrix if clean is None else np.where(clean[:, None], p, p @ matrix)
        found.append(-(targets * np.log(noisy)).sum(axis=1).mean())
    return min(found)


def test_radii_are_chosen_by_the_likelihood_of_noisy_checked_and_soft_labels(head, voted, tmp_path):
    checked = tmp_path / "checked.csv"
    _, _, val = observed({**head, "radius": 1.0})
    with checked.open("w", newline="") as file:
        names = ("dark", "light")
        rows = [(val.ids[i], names[val.true[i]]) for i in (0, 1)]
        csv.writer(file).writerows([("id", "true_label"), *rows])
    soft = {"data": f"csv:{voted}", "inject_noise": None, "noise_matrix": "0.1", "soft_labels": True}
    for more in ({}, {"checked_labels": str(checked)}, {**soft, "epochs": 1, "warmup_epochs": 0}):
        run = ht.finetune({**head, **more, "radius": "auto"})
        risk = json.loads((run.path / "radius.json").read_text())["curve"][-1]["risk"]
        _, logits, val = observed({**head, **more, "radius": {"head": 2.0 * FACTORS[-1]}})
        targets = val.soft if "soft_labels" in more else np.eye(2)[val.labels]
        assert (val.clean is not None) == ("checked_labels" in more)
        expected = least_loss(logits, targets, run.noise_matrix.array, val.clean)
        assert risk == pytest.approx(expected, rel=1e-6)


def test_epochs_of_a_corrected_loss_are_compared_by_likelihood_under_the_noise_matrix(head):
    """Not by the consistent loss, whose variance is large."""
    run, logits, val = observed(head)
    expected = least_loss(logits, np.eye(2)[val.labels], run.noise_matrix.array)
    assert run.records.epochs[-1].val_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("matrix", [None, ht.NoiseMatrix.pair(4, 0.3)])
def test_hard_labels_are_soft_ones_that_are_sure(matrix):
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(30, 4))), rng.integers(0, 4, 30)
    for clean in (None, rng.random(30) < 0.4):
        validation = Validation(matrix, tempered=True)
        hard = validation.losses(logits, labels, clean)
        torch.testing.assert_close(hard, validation.losses(logits, np.eye(4)[labels], clean))


def test_the_gap_under_noise_by_example_takes_each_examples_own(tiny):
    seen = []
    options = {**tiny, "inject_noise": "instance:0.3", "epochs": 2, "test_fraction": 0.4}
    run = ht.finetune(options, method="vanilla", observe=seen.append)
    test = seen[0].task.test
    losses = -predict_logits(seen[0].net, seen[0].feeds["test"]).double().log_softmax(1).numpy()
    rows = instance_transitions(raw_features(test), test.labels, 2, 0.3, 0)
    assert run.outcome.test_loss == pytest.approx(float((rows * losses).sum(axis=1).mean()))
    average = np.stack([rows[test.labels == k].mean(axis=0) for k in range(2)])[test.labels]
    assert run.outcome.test_loss != pytest.approx(float((average * losses).sum(axis=1).mean()), rel=1e-6)
    assert run.outcome.gap == pytest.approx(run.outcome.test_loss - run.outcome.train_loss)

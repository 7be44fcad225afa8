"""Checked labels and noise that depends on the example, where averages over classes would be wrong."""

import csv
import json

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.data.examples import raw_features
from hesstune.inputs.batches import predict_logits
from hesstune.noise.instance import instance_transitions
from hesstune.training.metrics import Validation


def test_the_gap_under_noise_by_example_takes_each_examples_own(tiny):
    seen = []
    told = {**tiny, "inject_noise": "instance:0.3", "epochs": 2, "test_fraction": 0.4}
    run = ht.finetune(told, method="vanilla", observe=seen.append)
    test = seen[0].task.test
    logits = predict_logits(seen[0].net, seen[0].feeds["test"])
    rows = instance_transitions(raw_features(test), test.labels, 2, 0.3, 0)
    losses = -torch.log_softmax(logits.double(), dim=1).numpy()
    assert run.outcome.test_loss == pytest.approx(float((rows * losses).sum(axis=1).mean()))
    average = np.stack([rows[test.labels == k].mean(axis=0) for k in range(2)])[test.labels]
    assert run.outcome.test_loss != pytest.approx(float((average * losses).sum(axis=1).mean()), rel=1e-6)
    assert run.outcome.gap == pytest.approx(run.outcome.test_loss - run.outcome.train_loss)


def test_radii_are_chosen_by_checked_labels_as_they_are(tiny, tmp_path):
    seen = []
    head = {**tiny, "train": "head", "epochs": 2, "method": "robust", "warmup_epochs": 1}
    plain = ht.finetune({**head, "radius": 1.0}, observe=seen.append)
    val = seen[0].task.val
    clean = tmp_path / "clean.csv"
    with clean.open("w", newline="") as file:
        rows = [(val.ids[i], plain.facts.classes[val.true[i]]) for i in (0, 1)]
        csv.writer(file).writerows([("id", "true_label"), *rows])
    head |= {"clean_labels": str(clean)}
    run = ht.finetune({**head, "radius": "auto"}, out=str(tmp_path / "run"))
    last = json.loads((run.path / "radius.json").read_text())["curve"][-1]
    ht.finetune({**head, "radius": {"head": 2.0 * last["factor"]}}, observe=seen.append)
    val = seen[-1].task.val
    logits = predict_logits(seen[-1].net, seen[-1].feeds["val"]).double().numpy()
    noise = ht.NoiseMatrix.symmetric(2, 0.2).array
    rows = np.arange(len(logits))

    def foretold(temperature):
        p = np.exp(temperature * logits)
        p /= p.sum(axis=1, keepdims=True)
        likely = np.where(val.clean, p[rows, val.labels], (p @ noise)[rows, val.labels])
        return -np.log(likely).mean()

    assert sum(val.clean) == 2
    assert last["risk"] == pytest.approx(min(map(foretold, np.geomspace(0.1, 10, 25))), rel=1e-6)


@pytest.mark.parametrize("matrix", [None, ht.NoiseMatrix.pair(4, 0.3)])
def test_hard_labels_are_judged_as_soft_ones_that_are_sure(matrix):
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(30, 4))), rng.integers(0, 4, 30)
    for clean in (None, rng.random(30) < 0.4):
        judge = Validation(matrix, tempered=True)
        hard = judge.losses(logits, labels, clean)
        torch.testing.assert_close(hard, judge.losses(logits, np.eye(4)[labels], clean))


def test_epochs_of_a_corrected_loss_are_judged_by_foretelling_under_f(tiny):
    """Not by the consistent loss, whose variance is large."""
    seen = []
    options = {**tiny, "train": "head", "method": "robust", "epochs": 2, "warmup_epochs": 1}
    run = ht.finetune(options, observe=seen.append, keep_weights=False)
    part, net = seen[0].task.val, seen[0].net
    losses = Validation(run.noise_matrix).losses(predict_logits(net, seen[0].feeds["val"]), part.labels, None)
    assert run.noise_matrix is not None
    assert run.records.epochs[-1].val_loss == pytest.approx(float(losses.mean()), rel=1e-5)

"""Noise that depends on the example: its rate, its definition, and its record."""

import json

import numpy as np
import pytest
from scipy.special import softmax

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.data.examples import Examples, Texts, raw_features
from hesstune.errors import DataError, HesstuneError, NoiseMatrixError
from hesstune.noise.instance import average, instance_transitions
from hesstune.noise.matrix import draw_classes
from hesstune.runs.loading import run_task


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_the_rate_is_the_share_that_changes(rate):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20_000, 6)), rng.integers(0, 4, 20_000)
    p = instance_transitions(x, y, 4, rate, seed=3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert 1 - p[np.arange(len(y)), y].mean() == pytest.approx(rate, abs=0.004)
    assert (draw_classes(p, 5) != y).mean() == pytest.approx(rate, abs=0.02)
    means = [[p[y == i, j].mean() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(average(p, y, 4).array, means)


def test_wrong_labels_are_drawn_by_a_softmax_of_a_projection_for_each_class():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 5)), rng.integers(0, 3, 50)
    p = instance_transitions(x, y, 3, 0.3, seed=7)
    weights = np.random.default_rng([7, 0x1D]).standard_normal((3, 5, 3))
    for n in range(50):
        others = [j for j in range(3) if j != y[n]]
        want = softmax((x[n] @ weights[y[n]])[others])
        np.testing.assert_allclose(p[n, others] / (1 - p[n, y[n]]), want)
    assert (instance_transitions(x, y, 3, 0.3, seed=8) != p).any()
    with pytest.raises(DataError, match="features must be finite"):
        instance_transitions(x[:, 0], y, 3, 0.3)
    with pytest.raises(NoiseMatrixError, match="noise rate"):
        instance_transitions(x, y, 3, 1.3)


def test_examples_look_alike_in_every_part(image_folder):
    texts = Texts([("good film", None), ("bad", "film"), ("good film", None)])
    x = raw_features(Examples(texts, np.array([0, 1, 2]), ["a", "b", "c"], None))
    assert (x[0] == x[2]).all()
    assert (x[0] != x[1]).any()
    part = raw_features(Examples(texts, np.array([2]), ["c"], None))
    assert (part[0] == x[2]).all()


def test_a_run_keeps_which_labels_were_changed_and_claims_no_matrix_for_them(tiny, tmp_path):
    run = ht.finetune(tiny, inject_noise="instance:0.4", epochs=1, train="head", out=str(tmp_path / "run"))
    rows = run.labels()
    flipped = {r["id"] for r in rows if r["part"] == "train" and r["label"] != r["true_label"]}
    assert run.record["noise"]["realised_rate"] == pytest.approx(len(flipped) / 14, abs=0.02)
    assert flipped
    again = run_task(run.config, run.config.seed).train
    assert {again.ids[i] for i in np.flatnonzero(again.labels != again.true)} == flipped
    # The loss uses the mean of each class's noise.
    record = json.loads((run.path / "noise_matrix.json").read_text())
    assert record["rate"] == pytest.approx(0.4, abs=0.15)
    with pytest.raises(HesstuneError, match="known to depend on the input"):
        certify_run(run)
    with pytest.raises(NoiseMatrixError, match="must be a number"):
        ht.finetune(tiny, inject_noise="instance:much", epochs=1)


def test_a_file_of_noise_names_its_classes(tiny, tmp_path):
    path = tmp_path / "F.json"
    path.write_text(json.dumps({"matrix": [[1, 0], [1, 0]], "classes": ["light", "dark"]}))
    run = ht.finetune(
        tiny, inject_noise=f"file:{path}", noise_matrix="0.1", epochs=1, train="head", method="vanilla"
    )
    given = {r["label"] for r in run.labels() if r["part"] == "train"}
    assert given == {"light"}  # every dark one becomes light

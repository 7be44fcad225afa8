"""Noise that depends on the input is refused beside a certificate; noise of the class alone is not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis import certify as certifying
from hesstune.analysis import label_provenance
from hesstune.analysis.certify import certify_run
from hesstune.analysis.label_provenance import check_confident, run_noise_knowledge
from hesstune.bounds.noisy import TEST_SHARE
from hesstune.bounds.record import Certificate
from hesstune.errors import DataError, NoiseMatrixError, RefutedNoiseError
from hesstune.noise.instance import Conditional
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import make_config
from hesstune.runs.loading import run_task

HALF = NoiseMatrix([[0.8, 0.2], [0.2, 0.8]])


def clouds(seed, n):
    """Two classes, by the sign of the first of four features; features and true labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    x[:, 0] += np.sign(x[:, 0])
    return x, (x[:, 0] > 0).astype(np.int64)


def flipped(true, order):
    """Flip a fifth of each class, the first ones by an order."""
    noisy = true.copy()
    for label in (0, 1):
        rows = np.flatnonzero(true == label)
        rows = rows[np.argsort(order[rows])[: len(rows) // 5]]
        noisy[rows] = 1 - label
    return noisy


def by_input(x, true):
    """Labels by a turned line: a network that learns them has no noisy error, and a true one of a fifth."""
    return flipped(true, x[:, 1] / x[:, 0])


def test_noise_that_depends_on_the_input_is_below_the_floor_where_a_probe_is_sure():
    x, true = clouds(0, 600)
    hard = flipped(true, np.abs(x[:, 0]))  # the examples next to the border; the matrix is right on average
    for labels in (by_input(x, true), hard):
        with pytest.raises(RefutedNoiseError, match="most confident"):
            check_confident(x, labels, 2, HALF.array, 0.05)
    check_confident(x, HALF.corrupt(true, seed=0), 2, HALF.array, 0.05)


def test_noise_of_the_class_alone_is_refused_no_more_often_than_the_level():
    """A large delta, so that refusals occur; the classes are told apart without an error."""
    refused, trials, delta = 0, 25, 10.0
    for seed in range(trials):
        x, true = clouds(seed, 120)
        try:
            check_confident(x, HALF.corrupt(true, seed=seed), 2, HALF.array, delta, seed)
        except RefutedNoiseError:
            refused += 1
    assert refused <= TEST_SHARE * delta * trials + 3 * np.sqrt(TEST_SHARE * delta * trials)


class Through(torch.nn.Module):
    """A network whose features are its pixels."""

    def __init__(self):
        super().__init__()
        self.flat, self.head = torch.nn.Flatten(), torch.nn.Linear(192, 2)

    def forward(self, x):
        return self.head(self.flat(x))


@pytest.fixture
def matrix_file(tmp_path, distinct_images):
    """Write a matrix; images of four plain quarters look alike, so no copies are searched."""

    def written(origin="stated", matrix=HALF):
        path = tmp_path / f"{origin}.json"
        path.write_text(json.dumps(matrix.known_as(origin).to_dict()))
        return str(path)

    return written


def trained(tmp_path, name, seed, noise, n=400, **options):
    """A run on small pictures of known true labels; and what makes them."""
    x, true = clouds(seed, n)
    quarters = np.clip(128 + 25 * x, 0, 255).astype(np.uint8).reshape(n, 2, 2)
    pixels = quarters.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
    labels = by_input(x, true) if noise == "input" else HALF.corrupt(true, seed=seed)
    how = {"method": "vanilla", "train": "head", "epochs": 10, "val_fraction": 0, "test_fraction": 0.5,
           "image_size": 8}  # fmt: skip
    return ht.finetune((pixels, labels), model=Through(), out=tmp_path / name, **{**how, **options})


@pytest.mark.parametrize("bound", ["pac_bayes", "holdout"])
def test_a_run_under_noise_that_depends_on_the_input_is_refused(tmp_path, matrix_file, bound):
    run = trained(tmp_path, "a", 0, "input", noise_matrix=matrix_file())
    with pytest.raises(NoiseMatrixError):
        certify_run(run, bound=bound, repeats="allow", draws=64)
    assert not (run.path / "certificate.json").exists()


def test_noise_of_the_class_alone_and_a_rejection_of_the_permutation_test(tmp_path, matrix_file, monkeypatch):
    run = trained(tmp_path, "a", 1, "class", noise_matrix=matrix_file())
    found = certify_run(run, bound="holdout", repeats="allow")
    assert found.noise_dependence["depends"] == 0
    assert found.noise_dependence["p_value"] >= 0.01
    assert "that shows nothing" in found.summary()
    assert Certificate.load(run.path / "certificate.json") == found
    with monkeypatch.context() as patch:
        rejected = Conditional(0.9, 0.7, 0.003, 100)
        patch.setattr(label_provenance, "dependence_on_input", lambda *_: rejected)
        found = certify_run(run, bound="holdout", repeats="allow")
    assert found.noise_dependence["depends"] == 1
    assert any("p = 0.003" in text for text in found.assumptions)
    # No other bound is printed if one refutes the matrix.
    monkeypatch.setattr(certifying, "evaluate_bound", refuted)
    with pytest.raises(RefutedNoiseError):
        certify_run(run, bound="best")


def refuted(case, prior, name, delta):
    if name == "holdout":
        raise RefutedNoiseError("refuted")
    return Certificate(risk=0.1, empirical=0.1, empirical_bound=0.1, n=9, delta=delta, shares={}, classes=2)


FILES = ("stated", "estimated", "instance_dependent")
# {(--inject-noise, --noise-matrix): how the noise of the bound's labels is known}.
KNOWN = {
    (None, None): "none",
    (None, "0.2"): "known",
    (None, "stated"): "known",
    (None, "estimated"): "estimated",
    (None, "instance_dependent"): "instance_dependent",
    (None, "estimate:confident"): "estimated",
    ("symmetric:0.2", None): "known",
    ("symmetric:0.2", "true"): "known",
    ("symmetric:0.2", "0.3"): "known",
    ("symmetric:0.2", "stated"): "known",
    ("symmetric:0.2", "estimated"): "estimated",
    ("symmetric:0.2", "instance_dependent"): "instance_dependent",
    ("symmetric:0.2", "estimate:confident"): "known",
    ("estimated", None): "known",
    ("instance:0.2", None): "instance_dependent",
    ("instance:0.2", "0.2"): "instance_dependent",
    ("instance:0.2", "estimated"): "instance_dependent",
}


def test_how_the_noise_is_known_for_every_combination_of_options(tiny, tmp_path):
    def option(name):
        if name not in FILES:
            return name
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(HALF.known_as(name).to_dict()))
        return str(path)

    # As `Run.noise_matrix` gives it: the matrix that the loss used, with its origin.
    used = {None: None, "true": HALF.known_as("injected"), "estimate:confident": HALF.known_as("estimated")}
    for (injected, given), expected in KNOWN.items():
        asked = {"method": "vanilla", "inject_noise": option(injected), "noise_matrix": option(given)}
        config = make_config({**tiny, **asked}).resolved()
        task = run_task(config, config.seed)
        matrix = used[given] if given in used else NoiseMatrix.parse(option(given), 2)
        case = (injected, given)
        assert run_noise_knowledge(config, task, "auto", matrix) == expected, case
        stated = run_noise_knowledge(config, task, "known", matrix)
        assert stated == (expected if expected != "none" else "known"), case
        if injected:
            with pytest.raises(DataError):
                run_noise_knowledge(config, task, "none", matrix)
        for made in ({"soft": np.full((len(task.train), 2), 0.5)}, {"votes": object()}):
            modelled = replace(task, train=replace(task.train, **made))
            for how in ("auto", "known"):
                assert run_noise_knowledge(config, modelled, how, matrix) == "instance_dependent", case


def test_injected_noise_beside_an_estimated_matrix_is_no_known_noise(tmp_path, matrix_file):
    chosen = {"n": 120, "inject_noise": "symmetric:0.1", "method": "robust"}
    run = trained(tmp_path, "a", 2, "class", noise_matrix=matrix_file("estimated"), **chosen)
    with pytest.raises(DataError, match="estimated"):
        certify_run(run, repeats="allow")
    with pytest.raises(DataError, match="estimated"):
        certify_run(run, repeats="allow", noise_is="known")
    known = trained(tmp_path, "b", 2, "class", noise_matrix=matrix_file("stated"), **chosen)
    found = certify_run(known, repeats="allow", draws=64)
    assert any("true before --inject-noise symmetric:0.1" in text for text in found.assumptions)
    assert not found.noise_dependence

"""What is changed in a run folder after training, and would make its certificate false, is refused.

Labels are drawn at random, so the true error of every network is .9, and a network that has seen the
examples that are counted gets them all right.
"""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import hesstune as ht
from coverage_worlds import Flat, Seeing, guessed, noisy, ruled, true_error
from hesstune.analysis.certify import certify_run, check_run
from hesstune.errors import RunError
from hesstune.runs.records import CONFIG, GUARANTEES, MODEL, NOISE_MATRIX, PRIOR, REFERENCE
from hesstune.storage.tensors import load_tree, save_tree

pytestmark = pytest.mark.usefixtures("distinct_images")
K, TRUTH = 10, 0.9
OPTIONS = {"method": "vanilla", "train": "head", "image_size": 8, "epochs": 8, "lr": 0.05,
           "val_fraction": 0.0, "test_fraction": 0.5, "weight_decay": 0.0}  # fmt: skip
HALF = {"bound": "holdout", "prior_fraction": 0.5}


@pytest.fixture(scope="module")
def data():
    return guessed(np.random.default_rng(0), 120, K)


@pytest.fixture
def train(data, tmp_path):
    """Train on labels at random: called with the name of the run and options."""

    def train(name, model=None, data=data, **options):
        return ht.finetune(data, model=model or Flat(K), out=str(tmp_path / name), **{**OPTIONS, **options})

    return train


def put(run, source, name):
    """Put a file in the place of one that training wrote."""
    shutil.copyfile(source, run.path / name)


def blind(monkeypatch):
    """Turn the check of the run's files off, to see that what it refuses is a false certificate."""
    monkeypatch.setattr("hesstune.analysis.certify.check_files", lambda run: None)
    monkeypatch.setattr("hesstune.analysis.trained_prior.changed_files", lambda run: [])


def test_weights_that_were_replaced(train, tmp_path, monkeypatch):
    run, more = train("a"), train("b", test_fraction=0.1)
    save_file(load_file(more.path / MODEL), tmp_path / "plain")  # without the record of what they have seen
    put(run, tmp_path / "plain", MODEL)
    for ask in (lambda: certify_run(run, bound="holdout"), lambda: check_run(run)):
        with pytest.raises(RunError, match=MODEL):
            ask()
    assert not (run.path / GUARANTEES).exists()
    blind(monkeypatch)
    assert certify_run(run, bound="holdout").risk < TRUTH


def test_a_prior_that_was_replaced_is_made_anew(train, monkeypatch):
    run, more = train("a"), train("b", test_fraction=0.1)
    honest = certify_run(run, **HALF)
    put(run, more.path / MODEL, f"{PRIOR}/{MODEL}")
    assert certify_run(run, **HALF).facts() == honest.facts()
    put(run, more.path / MODEL, f"{PRIOR}/{MODEL}")
    blind(monkeypatch)
    assert certify_run(run, **HALF).risk < TRUTH < honest.risk


def test_a_start_or_a_configuration_that_was_replaced(train, monkeypatch):
    run, edited = train("a"), train("b", epochs=16)
    ht.Reference.of(run.model()).save(run.path / REFERENCE)
    path = edited.path / CONFIG
    path.write_text(path.read_text().replace("method: vanilla", "method: pick_to_learn"))
    edited = ht.Run.load(edited.path, data=run.given.data, model=run.given.model)
    attacks = ((run, REFERENCE, "pac_bayes"), (edited, CONFIG, "compression"))
    for attacked, name, bound in attacks:
        with pytest.raises(RunError, match=name):
            certify_run(attacked, bound=bound, draws=32)
    blind(monkeypatch)
    for attacked, _, bound in attacks:
        assert certify_run(attacked, bound=bound, draws=32).risk < TRUTH


def test_a_noise_matrix_that_was_edited(train, tmp_path, monkeypatch):
    """Labels with 5 % noise, and a matrix that claims 25 % after training."""
    x, true, _ = ruled(np.random.default_rng(0), 1500, flip := 0.3, strength := 30.0)
    given = noisy(np.random.default_rng(1), true, np.array([[0.95, 0.05], [0.05, 0.95]]))
    matrices = {rate: tmp_path / f"{rate}.json" for rate in (0.05, 0.25)}
    for rate, path in matrices.items():
        ht.NoiseMatrix.symmetric(2, rate).save(path, ["0", "1"])
    known = {"noise_matrix": str(matrices[0.05]), "epochs": 3, "test_fraction": 0.8}
    run = train("a", Seeing(), (x, given), **known)
    honest = certify_run(run, bound="holdout", test_labels="noisy")
    put(run, matrices[0.25], NOISE_MATRIX)
    with pytest.raises(RunError, match=NOISE_MATRIX):
        certify_run(run, bound="holdout", test_labels="noisy")
    with monkeypatch.context() as patch:
        blind(patch)
        truth = true_error(run.model(), None, flip, strength)
        assert certify_run(run, bound="holdout", test_labels="noisy").risk < truth < honest.risk
    (run.path / NOISE_MATRIX).unlink()  # removed
    with pytest.raises(RunError, match=NOISE_MATRIX):
        certify_run(run, bound="holdout", test_labels="noisy")


def interrupted(train, name, at, **options):
    class Stopped(Exception):
        pass

    def stop(done, total, text):
        if done >= at * total:
            raise Stopped

    with pytest.raises(Stopped):
        train(name, progress=stop, **options)


def test_a_checkpoint_of_another_run_is_not_resumed(train, tmp_path, monkeypatch):
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    often = {"checkpoint_minutes": 1e-9}
    interrupted(train, "a", 0.3, **often)
    interrupted(train, "b", 0.9, **often, test_fraction=0.1, batch_size=64)
    for path in (tmp_path / "a").glob("checkpoint-*"):
        path.unlink()
    for path in (tmp_path / "b").glob("checkpoint-*"):
        shutil.copyfile(path, tmp_path / "a" / path.name)
    with pytest.raises(RunError, match="other examples or weights"):
        train("a", resume=True, **often)
    # The same with the check turned off.
    start = ht.Run.load(tmp_path / "a").facts.checksums
    for path in (tmp_path / "a").glob("checkpoint-*"):
        save_tree(path, {**load_tree(path), "start": start})
    run = train("a", resume=True, **often)
    assert certify_run(run, bound="holdout").risk < TRUTH


def test_a_log_that_lacks_the_last_certificate(train):
    run, other = train("a", epochs=1), train("b", epochs=1)
    for seed in range(2):
        certify_run(run, bound="holdout", prior_fraction=0.8, seed=seed)
    certify_run(other, bound="holdout")
    log = run.path / GUARANTEES
    for left in (None, log.read_text().splitlines(keepends=True)[0], (other.path / GUARANTEES).read_text()):
        log.unlink(missing_ok=True)
        if left is not None:
            log.write_text(left)
        with pytest.raises(RunError, match=GUARANTEES):
            certify_run(run, bound="holdout", prior_fraction=0.8, seed=2)

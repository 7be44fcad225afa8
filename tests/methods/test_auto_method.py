"""`auto`: the head it solves, what it says of it, when deeper layers follow, and its peers."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import hesstune as ht
from hesstune import NoiseMatrix
from hesstune.cli.main import run as run_command
from hesstune.data.examples import Examples, Texts
from hesstune.methods import method_class
from hesstune.methods._head import HeadMaterial
from hesstune.report.write import write_report
from hesstune.training.evaluate import Validation
from hesstune.training.solve import votes_given
from hesstune.weak import Votes

SMALL = {"data": "digits", "image_size": 32, "limit": 150, "batch_size": 50}


def material(n=240, k=3, noise="pair:0.3", **more):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = np.eye(k)[y] + 0.25 * rng.normal(size=(n, k))
    given = NoiseMatrix.parse(noise, k).corrupt(y, seed=0) if noise else y
    return HeadMaterial(x, given, k, **more), y


@pytest.mark.parametrize("name", ["auto", "sklearn_cv", "cleanlab"])
@pytest.mark.parametrize("noise", ["pair:0.3", None])
def test_solved_heads_tell_the_classes_apart(name, noise):
    made, y = material(noise=noise)
    found = method_class(name).solve_head(made)
    logits = made.features @ found.weight.T + found.bias
    assert (logits.argmax(axis=1) == y).mean() > (0.95 if name != "sklearn_cv" else 0.85)
    assert found.name
    assert found.reason


def test_a_peers_head_is_the_other_packages():
    made, _ = material()
    found = method_class("sklearn_cv").solve_head(made)
    from sklearn.preprocessing import StandardScaler

    strength = float(found.name.rpartition("= ")[2].rstrip(")"))
    scaled = StandardScaler().fit_transform(made.features)
    other = LogisticRegression(C=strength, max_iter=1000).fit(scaled, made.labels)
    mine = torch.softmax(torch.from_numpy(made.features @ found.weight.T + found.bias), 1).numpy()
    assert np.abs(mine - other.predict_proba(scaled)).max() < 1e-2


@pytest.mark.parametrize("name", ["sklearn_cv", "cleanlab"])
def test_peers_do_without_a_class(name):
    made, _ = material(k=3)
    keep = made.labels < 2
    two = HeadMaterial(made.features[keep], made.labels[keep], 3)
    found = method_class(name).solve_head(two)
    assert set((two.features @ found.weight.T + found.bias).argmax(axis=1)) == {0, 1}


def test_a_told_matrix_is_believed_and_budgets_try_more():
    told, _ = material(noise_matrix=NoiseMatrix.pair(3, 0.3))
    found = method_class("auto").solve_head(told)
    assert found.noise_matrix is told.noise_matrix
    tried = {
        budget: len(method_class("auto").solve_head(material(budget=budget)[0]).details["scores"])
        for budget in ("fast", "thorough")
    }
    assert tried["fast"] < tried["thorough"]


def test_the_head_alone_is_solved_and_said(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["finetune", "--data", "digits", "--image-size", "32", "--limit", "150", "--train", "head"]
    with pytest.raises(SystemExit) as ended:
        run_command([*arguments, "--inject-noise", "pair:0.3", "--out", str(out), "--json"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Head: " in said
    record = json.loads(said.splitlines()[-1])
    assert record["recipe"]["details"]["scores"]
    assert record["result"]["epochs"] == 0
    run = ht.Run.load(out)
    assert [epoch.epoch for epoch in run.records.epochs] == [0]
    if run.noise_matrix is not None:  # found, never taken for known
        assert run.noise_matrix.origin == "estimated"
    # The weights are the solved ones.
    assert run.outcome.test_accuracy == pytest.approx(record["result"]["test_accuracy"])


def test_deeper_layers_are_kept_only_if_validation_wants_them(tmp_path):
    run = ht.finetune(SMALL, epochs=2, lr=1e-3, out=tmp_path / "deep", inject_noise="symmetric:0.2")
    epochs = run.records.epochs
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    assert run.outcome.epochs == 2
    assert run.config.select == "best"
    # Balls that let nothing move: no gain, so the solved head is what is kept.
    held = ht.finetune(SMALL, epochs=1, out=tmp_path / "held", method_options={"share": 1e-6})
    start = held.records.epochs[0]
    alone = ht.finetune(SMALL, train="head", out=tmp_path / "alone")
    assert held.outcome.test_accuracy == alone.outcome.test_accuracy
    assert start.val_loss == pytest.approx(alone.records.epochs[0].val_loss)


def test_a_fast_budget_stops_at_the_head_and_says_so(tmp_path):
    run = ht.finetune(SMALL, budget="fast", out=tmp_path / "fast")
    assert any("the head alone" in note for note in run.facts.notes)
    assert run.outcome.epochs == 0


def test_without_validation_examples_the_head_alone_is_fitted(tmp_path):
    run = ht.finetune(SMALL, val_fraction=0.0, epochs=1, out=tmp_path / "run")
    assert any("no validation examples" in note for note in run.facts.notes)
    assert run.outcome.epochs == 0


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    def stop(done, total, text):
        if done == 5:
            raise KeyboardInterrupt

    options = {**SMALL, "epochs": 2, "lr": 1e-3, "inject_noise": "symmetric:0.2", "select": "last"}
    whole = ht.finetune(options, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, out=tmp_path / "cut", progress=stop)
    resumed = ht.finetune(options, out=tmp_path / "cut", resume=True)
    assert resumed.outcome.test_loss == pytest.approx(whole.outcome.test_loss, rel=1e-5)


class Odd(nn.Module):
    """A head that is not the last operation."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return 2 * self.head(x.mean(dim=(2, 3)))


def test_a_network_without_features_is_trained_plainly(tmp_path):
    run = ht.finetune(SMALL, model=Odd(), epochs=1, out=tmp_path / "run")
    assert any("none was solved" in note for note in run.facts.notes)
    assert run.outcome.epochs == 1
    assert run.facts.recipe is None


def test_foretelling_validation_is_the_likelihood_at_the_best_temperature():
    rng = np.random.default_rng(0)
    matrix = NoiseMatrix.pair(3, 0.3)
    labels = rng.integers(0, 3, 50)
    logits = torch.from_numpy(rng.normal(size=(50, 3)) + 2 * np.eye(3)[labels])
    found = float(Validation(matrix, foretelling=True).losses(logits, labels, None).mean())

    def by_hand(temperature):
        p = torch.softmax(temperature * logits, dim=1).numpy() @ matrix.array
        return -np.log(p[np.arange(50), labels]).mean()

    assert found == pytest.approx(min(by_hand(t) for t in np.geomspace(0.1, 10, 25)))
    # Scaling the logits changes nothing but the temperature that suits them.
    scaled = float(Validation(matrix, foretelling=True).losses(3 * logits, labels, None).mean())
    assert scaled == pytest.approx(found, abs=2e-3)


def test_votes_stand_for_labels_that_are_their_majority():
    votes = Votes([[0, 0, 1], [1, -1, 1], [-1, -1, -1]], 2)
    part = Examples(Texts([("a", None)] * 3), np.arange(3), list("abc"), np.array([0, 1, 1]), votes=votes)
    assert np.allclose(votes_given(part, 2), [[2, 1], [0, 2], [0, 1]])
    assert votes_given(replace(part, labels=np.array([1, 1, 1])), 2) is None  # somebody knew better
    assert votes_given(replace(part, votes=None), 2) is None


def test_the_page_shows_the_candidates_and_why_one_was_chosen(tmp_path):
    run = ht.finetune(SMALL, train="head", inject_noise="pair:0.3", out=tmp_path / "run")
    page = write_report(run)[0].read_text()
    assert f"Head: {run.facts.recipe.chosen}" in page
    assert page.count("<td>chosen</td>") == 1


def test_options_of_steps_without_steps_and_a_balanced_sampler_are_heard(tmp_path):
    run = ht.finetune(SMALL, train="head", epochs=7, lr=0.5, out=tmp_path / "run")
    said = [note for note in run.facts.notes if "takes no steps" in note]
    assert len(said) == 1
    assert "--epochs" in said[0]
    assert "--lr" in said[0]
    plain = {name: value for name, value in SMALL.items() if name != "batch_size"}
    usual = ht.finetune(plain, train="head", out=tmp_path / "usual")
    assert not any("no steps" in note or "patience" in note for note in usual.facts.notes)
    balanced = ht.finetune(plain, train="head", sampler="balanced", out=tmp_path / "balanced")
    heads = [dict(r.model().named_parameters())["_fc.weight"] for r in (usual, balanced)]
    assert not torch.equal(*heads)


def test_a_prior_of_auto_is_solved_on_its_part_alone(tmp_path):
    """The matrix that the run found is of all examples: a prior trained with it would know the bound's."""
    run = ht.finetune(SMALL, train="head", val_fraction=0.0, out=tmp_path / "run")
    run.certify(prior_fraction=0.5, noise_is="none", draws=8, diagnostic=True)
    prior = ht.Run.load(run.path / "prior")
    assert prior.facts.recipe is not None
    assert prior.facts.examples.train == 75
    assert prior.outcome.epochs == 0
    assert prior.facts.recipe.details["scores"] != run.facts.recipe.details["scores"]


@pytest.mark.parametrize("name", ["auto", "sklearn_cv", "cleanlab"])
@pytest.mark.parametrize("limit", [1, 2, 3, 12])
def test_a_handful_of_examples_is_fitted_or_told(tmp_path, name, limit):
    folder = tmp_path / "run"
    with contextlib.suppress(ht.HesstuneError):
        ht.finetune(SMALL, train="head", limit=limit, method=name, out=folder)
    # Either there is a whole run, or an error of our own and nothing at all.
    if name == "auto":
        assert (folder / "run.json").exists() == (limit > 1)
    if (folder / "run.json").exists():
        assert ht.Run.load(folder).outcome.test_accuracy is not None


def test_cleanlab_starts_no_process(monkeypatch):
    """One forked beside torch's threads may wait for ever."""
    pytest.importorskip("cleanlab")

    def forked(*_args, **_kwargs):
        raise AssertionError("a process was forked")

    monkeypatch.setattr("os.fork", forked)
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    noisy = np.where(rng.random(120) < 0.2, (y + 1) % 3, y)
    x = np.eye(3)[y] + 0.2 * rng.normal(size=(120, 3))
    found = method_class("cleanlab").solve_head(HeadMaterial(x, noisy, 3))
    assert (np.asarray(x @ found.weight.T + found.bias).argmax(axis=1) == y).mean() > 0.9

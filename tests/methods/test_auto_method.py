"""`auto`: the head it solves, its record, and the training of deeper layers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune import NoiseMatrix
from hesstune.cli.main import run as run_command
from hesstune.data.examples import Examples, Texts
from hesstune.methods import method_class
from hesstune.methods._base import Batch, ClassEvidence, HeadMaterial, MethodSetup, SolvedHead
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.head import robust_head
from hesstune.report.write import write_report
from hesstune.training.estimates import votes_given
from hesstune.training.metrics import Validation
from hesstune.weak import Votes

SMALL = {"data": "digits", "image_size": 16, "limit": 150, "batch_size": 50}


@pytest.fixture
def net():
    """A small network, with the pixels of digits as features."""
    torch.manual_seed(0)
    pooled = nn.AdaptiveAvgPool2d(8), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *pooled, nn.Linear(512, 10))


def material(n=240, k=3, noise="pair:0.3", **more):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = np.eye(k)[y] + 0.25 * rng.normal(size=(n, k))
    given = NoiseMatrix.parse(noise, k).corrupt(y, seed=0) if noise else y
    return HeadMaterial(x, given, k, **more), y


@pytest.mark.parametrize("noise", ["pair:0.3", None])
def test_solved_heads_separate_the_classes(noise):
    made, y = material(noise=noise)
    found = method_class("auto").solve_head(made)
    assert ((made.features @ found.weight.T + found.bias).argmax(axis=1) == y).mean() > 0.95
    assert found.name
    assert found.reason


def test_a_given_matrix_is_kept_and_budgets_try_more():
    given, _ = material(noise_matrix=NoiseMatrix.pair(3, 0.3))
    assert method_class("auto").solve_head(given).noise_matrix is given.noise_matrix
    fast, thorough = (
        method_class("auto").solve_head(material(budget=budget)[0]).details for budget in ("fast", "thorough")
    )
    assert len(fast["scores"] | fast["dropped"]) < len(thorough["scores"] | thorough["dropped"])


def test_the_head_alone_is_solved_and_reported(tmp_path, capsys):
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
    if run.noise_matrix is not None:
        assert run.noise_matrix.origin == "estimated"
    assert run.outcome.test_accuracy == pytest.approx(record["result"]["test_accuracy"])
    page = write_report(run)[0].read_text()
    assert f"Head: {run.facts.recipe.chosen}" in page
    assert page.count("<td>chosen</td>") == 1


def test_deeper_layers_are_kept_only_if_validation_improves(net, tmp_path):
    run = ht.finetune(
        SMALL, model=net, epochs=2, lr=1e-3, out=tmp_path / "deep", inject_noise="symmetric:0.2"
    )
    epochs = run.records.epochs
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    assert run.outcome.epochs == 2
    assert run.config.select == "best"
    assert run.config.patience == (None if run.noise_matrix is None else 4)
    # Without a gain the solved head is kept.
    held = ht.finetune(SMALL, model=net, epochs=1, lr=1e-12, out=tmp_path / "held")
    start = held.records.epochs[0]
    assert held.config.patience is None
    assert any("to the last epoch" in note for note in held.facts.notes)
    alone = ht.finetune(SMALL, model=net, train="head", out=tmp_path / "alone")
    assert held.outcome.test_accuracy == alone.outcome.test_accuracy
    assert start.val_loss == pytest.approx(alone.records.epochs[0].val_loss)
    # Deeper layers start from that head, its logits damped.
    options = {"epochs": 1, "lr": 1e-12, "select": "last", "method_options": {"damping": 0.25}}
    damped = ht.finetune(SMALL, model=net, out=tmp_path / "damped", **options).model().state_dict()
    solved = alone.model().state_dict()
    for name in ("4.weight", "4.bias"):
        torch.testing.assert_close(damped[name], 0.25 * solved[name], rtol=1e-3, atol=1e-6)


class Narrow(nn.Module):
    """A body of one layer and a head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def ready(epochs=3, **options):
    """`auto` on a small network, and what its steps start from."""
    torch.manual_seed(0)
    net, rng = Narrow(), np.random.default_rng(0)
    given = np.arange(6) % 3
    evidence = ClassEvidence(rng.dirichlet(np.full(3, 5.0), 6), NoiseMatrix.pair(3, 0.3).array[:, given].T)
    head = rng.normal(size=(3, 4)), rng.normal(size=3)
    solved = SolvedHead(*head, NoiseMatrix.pair(3, 0.3), "name", "reason", evidence=evidence)
    setup = MethodSetup(
        net, ht.Reference.of(net), None, np.bincount(given), None, "frobenius", 0,
        head="head", labels=given, solved=solved, options=options, epochs=epochs,
    )  # fmt: skip
    return method_class("auto")(setup), net, evidence, torch.from_numpy(given)


INPUTS = torch.linspace(-1, 1, 18).reshape(6, 3)
ROWS = torch.tensor([4, 0, 3])


def posterior(evidence, net, share):
    """Posteriors from the probe, with this part in a geometric mean, the network and the given labels."""
    p = torch.softmax(net(INPUTS), dim=1).detach().numpy()
    q = evidence.probabilities**share * p ** (1 - share) * evidence.likelihood
    return q / q.sum(axis=1, keepdims=True)


def test_steps_use_the_networks_predictions_after_two_epochs():
    method, net, evidence, given = ready(probe=0.25)
    batch = Batch(net, INPUTS[ROWS], given[ROWS], ROWS, 0, lambda: INPUTS[ROWS])

    def by_hand(q):
        logs = torch.log_softmax(net(INPUTS[ROWS]), dim=1).detach().numpy()
        return pytest.approx(-(q[ROWS.numpy()] * logs).sum(axis=1).mean(), rel=1e-5)

    for epoch in (0, 1, 2):
        method.start_epoch(epoch, lambda network: network(INPUTS))
        q = posterior(evidence, net, 1.0 if epoch < 2 else 0.25)
        assert float(method.batch_loss(batch)[0].detach()) == by_hand(q)
    other = ready(probe=0.25)[0]  # a resumed method continues with the same posteriors
    other.load_state(method.state())
    assert torch.equal(other.posteriors, method.posteriors)


def test_longer_training_damps_the_head_more_and_uses_its_probe_less():
    """Twice the steps (one an epoch, of 64): a quarter of the logits, a quarter of the probe's part."""
    method, net, evidence, _ = ready(epochs=128, probe=0.4, damping=0.2)
    before = net.head.weight.detach().clone()
    method.start_epoch(0, lambda network: network(INPUTS))
    torch.testing.assert_close(net.head.weight, 0.05 * before)
    method.start_epoch(2, lambda network: network(INPUTS))
    assert np.allclose(method.posteriors.numpy(), posterior(evidence, net, 0.1), atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_is_counted_in_steps_not_in_batches(net, monkeypatch, tmp_path, accumulate):
    auto, seen = method_class("auto"), []
    monkeypatch.setattr(auto, "finish", lambda self: seen.append((self.steps, self.horizon, self.fall)))
    steps = {"limit": 60, "epochs": 2, "batch_size": 4, "accumulate": accumulate, "select": "last"}
    ht.finetune(SMALL, model=net, out=tmp_path / "run", **steps)
    [(taken, horizon, fall)] = seen
    assert abs(taken - 2 * horizon) <= 2
    assert fall == pytest.approx(min(1.0, 64 / (2 * horizon)) ** 2)


def test_the_heads_constraint_contains_its_damped_start():
    method, net, *_ = ready()
    before = net.head.weight.detach().clone()
    method.start_epoch(0, lambda network: network(torch.zeros(6, 3)))
    method.after_step()
    torch.testing.assert_close(net.head.weight, 0.3 * before)
    radii = method.radii()
    assert method.fall == 1.0
    assert radii["head.weight"] == pytest.approx(float(before.norm()), rel=1e-5)
    assert radii["body.weight"] == pytest.approx(0.2 * float(net.body.weight.norm()), rel=1e-5)


def test_a_checked_example_counts_as_four():
    checked = (np.arange(20), np.arange(20) % 3)
    made, y = material(checked=checked)
    weight = np.ones(len(made.labels))
    weight[:20] = 4.0
    by_hand = robust_head(made.features, Observed.of(made.labels, 3, None, checked, weight), seed=made.seed)
    found = method_class("auto").solve_head(made)
    np.testing.assert_allclose(found.weight, by_hand.linear.weight.T)
    assert found.details["checked"] == {"examples": 20, "counts": 4.0}
    assert np.allclose(found.evidence.posterior()[:20], np.eye(3)[y[:20]])
    assert (found.evidence.posterior().argmax(axis=1) == y).mean() > 0.95 > (made.labels == y).mean()
    # The weights of a balanced sampler multiply it.
    twice = method_class("auto").solve_head(replace(made, weight=np.full(len(made.labels), 2.0)))
    again = robust_head(made.features, Observed.of(made.labels, 3, None, checked, 2 * weight), seed=made.seed)
    np.testing.assert_allclose(twice.weight, again.linear.weight.T)
    # Steps weigh them alike.
    method, net, evidence, given = ready()
    clean = torch.tensor([True, False, False])
    batch = Batch(net, INPUTS[ROWS], given[ROWS], ROWS, 0, lambda: INPUTS[ROWS], clean=clean)
    logs = torch.log_softmax(net(INPUTS[ROWS]), dim=1).detach().numpy()
    losses = -(evidence.posterior()[ROWS.numpy()] * logs).sum(axis=1)
    expected = (4 * losses[0] + losses[1] + losses[2]) / 6
    assert float(method.batch_loss(batch)[0].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "note"), [({"budget": "fast"}, "head alone"), ({"val_fraction": 0.0}, "no validation")]
)
def test_the_head_alone_is_fitted_with_a_fast_budget_or_without_validation(net, tmp_path, options, note):
    run = ht.finetune(SMALL, model=net, epochs=1, out=tmp_path / "run", **options)
    assert any(note in said for said in run.facts.notes)
    assert run.outcome.epochs == 0
    again = ht.finetune(SMALL, model=net, epochs=1, out=tmp_path / "run", resume=True, **options)
    assert again.outcome == run.outcome


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(net, tmp_path):
    def stop(done, total, text):
        if done == 7:  # in the fourth epoch, which uses the network's own predictions
            raise KeyboardInterrupt

    chosen = {"limit": 100, "epochs": 4, "lr": 1e-3, "inject_noise": "symmetric:0.2", "select": "last"}
    options = {**SMALL, **chosen}
    whole = ht.finetune(options, model=net, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, model=net, out=tmp_path / "cut", progress=stop)
    resumed = ht.finetune(options, model=net, out=tmp_path / "cut", resume=True)
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


def test_the_validation_loss_is_the_likelihood_at_the_best_temperature():
    rng = np.random.default_rng(0)
    matrix = NoiseMatrix.pair(3, 0.3)
    labels = rng.integers(0, 3, 50)
    logits = torch.from_numpy(rng.normal(size=(50, 3)) + 2 * np.eye(3)[labels])
    found = float(Validation(matrix).losses(logits, labels, None).mean())

    def by_hand(temperature):
        p = torch.softmax(temperature * logits, dim=1).numpy() @ matrix.array
        return -np.log(p[np.arange(50), labels]).mean()

    assert found == pytest.approx(min(by_hand(t) for t in np.geomspace(0.1, 10, 25)))
    # Scaled logits have another temperature and the same loss.
    scaled = float(Validation(matrix).losses(3 * logits, labels, None).mean())
    assert scaled == pytest.approx(found, abs=2e-3)


def test_votes_replace_labels_that_are_their_majority():
    votes = Votes([[0, 0, 1], [1, -1, 1], [-1, -1, -1]], 2)
    part = Examples(Texts([("a", None)] * 3), np.arange(3), list("abc"), np.array([0, 1, 1]), votes=votes)
    assert np.allclose(votes_given(part, 2), [[2, 1], [0, 2], [0, 1]])
    assert votes_given(replace(part, labels=np.array([1, 1, 1])), 2) is None  # other labels
    assert votes_given(replace(part, votes=None), 2) is None


def test_unused_options_are_reported_and_a_balanced_sampler_changes_the_head(net, tmp_path):
    run = ht.finetune(SMALL, model=net, train="head", epochs=7, lr=0.5, out=tmp_path / "run")
    said = [note for note in run.facts.notes if "takes no steps" in note]
    assert len(said) == 1
    assert "--epochs" in said[0]
    assert "--lr" in said[0]
    plain = {name: value for name, value in SMALL.items() if name != "batch_size"}
    usual = ht.finetune(plain, model=net, train="head", out=tmp_path / "usual")
    assert not any("no steps" in note or "patience" in note for note in usual.facts.notes)
    balanced = ht.finetune(plain, model=net, train="head", sampler="balanced", out=tmp_path / "balanced")
    heads = [dict(r.model().named_parameters())["4.weight"] for r in (usual, balanced)]
    assert not torch.equal(*heads)


def test_a_prior_of_auto_is_solved_on_its_part_alone(net, tmp_path):
    """The matrix that the run found is of all examples: a prior trained with it would know the bound's."""
    run = ht.finetune(SMALL, model=net, train="head", val_fraction=0.0, out=tmp_path / "run")
    run.certify(prior_fraction=0.5, noise_is="none", draws=8, diagnostic=True)
    prior = ht.Run.load(run.path / "prior", model=net)
    assert prior.facts.recipe is not None
    assert prior.facts.examples.train == 75
    assert prior.outcome.epochs == 0
    assert prior.facts.recipe.details["scores"] != run.facts.recipe.details["scores"]

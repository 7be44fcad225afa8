"""A run certified from its folder: what it counts on, what it refuses, and the prior trained on a part."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.measure import InputExamples
from hesstune.analysis.trained_prior import split_prior_and_bound
from hesstune.bounds.data import BoundData
from hesstune.bounds.record import Certificate
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError, LayerError, ModelError, RunError
from hesstune.inputs.batches import make_inputs
from hesstune.runs.loading import run_task


@pytest.fixture
def plain(tiny, tmp_path):
    """Options of a certified run on true labels, in a folder."""
    options = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size")}
    return {**options, "method": "certified", "epochs": 2, "val_fraction": 0, "out": str(tmp_path / "a")}


def test_a_run_is_certified_on_its_training_examples_and_leaves_the_certificate(plain):
    run = ht.finetune(plain)
    found = certify_run(run, draws=64)
    task = run_task(run.config)
    assert found.n == len(task.train)
    assert found.noise == "clean"
    assert "the given labels are the true ones" in found.assumptions
    assert set(found.sigma) == {name for name, _ in run.model().named_parameters()}
    assert found.sigma == pytest.approx(run.result["posterior"])
    assert found.held_out["n"] == len(task.test)
    # The network beside the certificate is the unperturbed one.
    assert found.held_out["error"] == pytest.approx(1 - run.result["test_accuracy"])
    assert Certificate.load(run.path / "certificate.json") == found
    # Twice gives the same.
    assert certify_run(run, draws=64) == found


def test_the_posterior_learnt_is_a_member_of_the_family(plain):
    """Then prior and posterior share their deviations, and the KL is the distance's share alone."""
    run = ht.finetune(plain)
    found = certify_run(run, draws=64)
    assert found.sigma == pytest.approx(found.prior_sigma, rel=1e-9)
    expected = sum(found.distance[n] ** 2 / (2 * found.sigma[n] ** 2) for n in found.sigma)
    assert found.kl == pytest.approx(expected, rel=1e-6)


def test_injected_noise_is_known_and_the_clean_risk_is_bounded(tiny, tmp_path):
    options = {**tiny, "method": "certified", "val_fraction": 0, "train": "head", "out": str(tmp_path / "a")}
    run = ht.finetune({k: v for k, v in options.items() if k not in ("lr", "batch_size")})
    found = certify_run(run)
    assert found.noise == "noisy, with a known noise matrix"
    assert found.loss != "zero_one"
    with pytest.raises(DataError, match="estimated from noisy data alone"):
        certify_run(run, noise_is="estimated")
    marked = certify_run(run, noise_is="instance_dependent", diagnostic=True)
    assert marked.diagnostic
    assert json.loads((run.path / "certificate.json").read_text())["kind"] == "diagnostic"


def test_a_clean_sample_leaves_the_bound_and_gives_a_confidence_set(tiny, tmp_path):
    options = {k: v for k, v in tiny.items() if k not in ("lr", "batch_size")}
    run = ht.finetune(options, method="certified", train="head", val_fraction=0, out=str(tmp_path / "a"))
    task = run_task(run.config)
    rows = [f"{i},{task.classes[y]}" for i, y in zip(task.train.ids[:6], task.train.true[:6], strict=True)]
    sample = tmp_path / "clean.csv"
    sample.write_text("\n".join(["id,label", *rows]) + "\n")
    found = certify_run(run, clean_sample=sample)
    assert found.n == len(task.train) - 6
    assert found.noise == "noisy, with a confidence set for the noise matrix"
    assert found.shares["noise"] == pytest.approx(0.01)
    sample.write_text("id,label\nnobody,dark\n")
    with pytest.raises(DataError, match="'nobody'"):
        certify_run(run, clean_sample=sample)
    sample.write_text("id,label\nx,drak\n")
    with pytest.raises(DataError, match="did you mean 'dark'"):
        certify_run(run, clean_sample=sample)


def test_a_trained_prior_never_sees_the_examples_of_the_bound(plain, monkeypatch):
    run = ht.finetune(plain)
    seen = []
    original = BoundData.__init__

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.append(set(self.digests))

    monkeypatch.setattr(BoundData, "__init__", spy)
    found = certify_run(run, prior_fraction=0.5, draws=32)
    task = run_task(run.config)
    assert found.n == len(task.train) - round(len(task.train) / 2)
    bound, prior, _ = seen
    assert not bound & prior
    trained_on = [r["id"] for r in ht.Run.load(run.path / "prior").labels() if r["part"] == "train"]
    assert len(trained_on) == round(len(task.train) / 2)
    everything = [r["id"] for r in ht.Run.load(run.path / "posterior").labels() if r["part"] == "train"]
    assert set(everything) == set(task.train.ids)
    assert any("the prior was trained and selected" in text for text in found.assumptions)
    # The posterior's reference is the prior's result, and a second call trains nothing again.
    prior_model = dict(ht.Run.load(run.path / "prior").model().named_parameters())
    reference = ht.Run.load(run.path / "posterior").reference()
    for name, weight in prior_model.items():
        assert torch.equal(weight, reference[name])
    monkeypatch.setattr("hesstune.analysis.trained_prior.fit_prepared", None)
    assert certify_run(run, prior_fraction=0.5, draws=32) == found


def test_changing_bound_labels_does_not_change_the_prior(plain):
    """Leakage by any path would show: flip every label outside of the prior's part."""
    from dataclasses import replace

    from hesstune.analysis.near_copies import NearCopies
    from hesstune.analysis.trained_prior import PriorSplit

    run = ht.finetune(plain)
    task = run_task(run.config)
    rows, cpu = np.arange(len(task.train)), torch.device("cpu")
    first = PriorSplit(run, task, rows, 0.5, 0, cpu, NearCopies.of(task)).randomised()
    labels = task.train.labels.copy()
    labels[first.rows] = 1 - labels[first.rows]
    flipped = replace(task, train=replace(task.train, labels=labels))
    for name in ("prior", "posterior"):
        (run.path / name / "run.json").unlink()
    second = PriorSplit(run, flipped, rows, 0.5, 0, cpu, NearCopies.of(flipped)).randomised()
    for name in first.reference.names():
        assert torch.equal(first.reference[name], second.reference[name])
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.loaded.model.parameters(), second.loaded.model.parameters(), strict=True)
    )


def test_what_used_the_examples_is_refused(tiny, plain, tmp_path):
    run = ht.finetune(plain, mean=[0.4], std=[0.2])
    with pytest.raises(DataError, match="normalisation"):
        certify_run(run, draws=32)
    assert any("vouch" in t for t in certify_run(run, draws=32, vouch=["normalisation"]).assumptions)
    moved = {**plain, "out": str(tmp_path / "b"), "batch_norm": "adapt", "method": "vanilla"}
    with pytest.raises((ModelError, DataError), match="batch"):
        certify_run(ht.finetune(moved), draws=32)
    stratified = ht.finetune({**plain, "out": str(tmp_path / "c"), "split": "stratified"})
    with pytest.raises(DataError, match="split"):
        certify_run(stratified, draws=32)
    with pytest.raises(ConfigError, match="prior_fraction must be below 1"):
        certify_run(stratified, prior_fraction=1.0)


def test_repeats_and_unfinished_runs_are_refused(plain, image_folder, tmp_path):
    for i in range(12):
        path = image_folder / "dark" / f"{i:02d}.png"
        (image_folder / "dark" / f"copy{i:02d}.png").write_bytes(path.read_bytes())
    run = ht.finetune(plain)
    with pytest.raises(DataError, match="repeat"):
        certify_run(run, draws=32)
    run.add(result=None)
    with pytest.raises(RunError, match="not finished"):
        certify_run(run)


def test_padding_does_not_tell_texts_apart():
    """The same text padded to two lengths in two blocks is one text."""
    ids = [[5, 6, 0, 0], [7, 8, 9, 4], [5, 6, 0, 0]]

    class Texts:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            raise AssertionError("read by batches")

        def batch(self, part):
            width = 2 if list(part) == [2] else 4
            rows = torch.tensor([ids[i][:width] for i in part])
            return {"input_ids": rows, "attention_mask": (rows > 0).long()}, np.zeros(len(part), np.int64)

    data = BoundData(Texts(), 1, 0)
    assert len(set(data.digests)) == 2
    with pytest.raises(DataError, match="repeated"):
        data.check_repeats()


def test_fed_examples_read_alone_are_those_read_together(plain):
    run = ht.finetune(plain)
    task = run_task(run.config)
    rows = np.array([3, 0, 5])
    feed = make_inputs(task.train, run.loaded(), torch.device("cpu"))
    data = InputExamples(feed, rows, task.train.labels)
    inputs, labels = data.batch([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(data[i][0], inputs[i])
        assert data[i][1] == labels[i]


def test_certify_needs_all_that_moved(plain, tmp_path):
    run = ht.finetune({**plain, "method": "vanilla", "lr": 1e-3, "out": str(tmp_path / "v")})
    model, ref = run.model(), run.reference()
    model[0].weight.requires_grad_(False)
    x = torch.randn(20, 3, 16, 16)
    data = torch.utils.data.TensorDataset(x, torch.arange(20) % 2)
    with pytest.raises(LayerError, match="requires_grad=False moved"):
        ht.certify(model, ref, data)


def test_what_the_run_shows_of_its_labels_is_not_overruled(tiny, tmp_path):
    """Votes are never class-conditional, injected noise is never nothing, an estimate is never known."""
    from dataclasses import replace

    from hesstune.analysis.label_provenance import run_noise_knowledge

    run = ht.finetune(tiny, method="vanilla", epochs=1, out=str(tmp_path / "a"))
    task = run_task(run.config)
    assert run_noise_knowledge(run.config, task) == "known"
    with pytest.raises(DataError, match="put noise into its labels"):
        certify_run(run, noise_is="none")
    voted = replace(task, train=replace(task.train, votes=object()))
    checked = replace(task, train=replace(task.train, clean=np.zeros(len(task.train), bool)))
    for told in ("auto", "known"):
        assert run_noise_knowledge(run.config, voted, told) == "instance_dependent"
        with pytest.raises(DataError, match="checked by a person"):
            run_noise_knowledge(run.config, checked, told)
    plain = run.config.model_copy(update={"inject_noise": None, "noise_matrix": None})
    assert run_noise_knowledge(plain, task) == "none"
    estimated = plain.model_copy(update={"noise_matrix": "estimate:confident"})
    assert run_noise_knowledge(estimated, task, "known") == "estimated"


def test_a_clean_sample_does_not_make_votes_class_conditional(tiny, tmp_path, monkeypatch):
    run = ht.finetune(tiny, method="vanilla", epochs=1, train="head", out=str(tmp_path / "a"))
    task = run_task(run.config)
    rows = [f"{i},{task.classes[y]}" for i, y in zip(task.train.ids[:4], task.train.true[:4], strict=True)]
    (tmp_path / "clean.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    monkeypatch.setattr(
        "hesstune.analysis.label_provenance.run_noise_knowledge", lambda *_: "instance_dependent"
    )
    with pytest.raises(DataError, match="depend on the input"):
        certify_run(run, clean_sample=tmp_path / "clean.csv")


@pytest.mark.parametrize(("method", "train"), [("vanilla", "head"), ("robust", "head"), ("auto", "last:2")])
def test_a_prior_depends_on_nothing_of_the_examples_of_its_bound(tmp_path, method, train):
    """Penalty, radii, head and patience: the run finds them on all examples, the prior on its part."""
    task = load_task("digits", size=32, limit=150)
    n, told = len(task.train), {} if method == "auto" else {"noise_matrix": "symmetric:0.2"}
    first, rest = split_prior_and_bound(np.arange(n), 0.5, 0)
    other = task.train.labels.copy()
    other[rest] = np.random.default_rng(1).integers(0, task.k, len(rest))
    found = []
    for name, labels in (("as they are", task.train.labels), ("others", other)):
        given = replace(task, train=replace(task.train, labels=labels))
        run = ht.finetune(given, method=method, train=train, epochs=2, out=tmp_path / name, **told)
        certify_run(run, bound="holdout", prior_fraction=0.5, diagnostic=True)
        prior = ht.Run.load(run.path / "prior")
        used = [line["id"] for line in prior.labels() if line["part"] == "train"]
        assert set(used) <= {task.train.ids[at] for at in first}
        found.append((run, prior))
    prior, prior_of_others = (prior for _, prior in found)
    weights = dict(prior_of_others.model().named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in prior.model().named_parameters())
    assert prior.outcome.radii == prior_of_others.outcome.radii
    settled = [(each.config.weight_decay, each.config.patience, each.outcome.radii) for each, _ in found]
    assert settled[0] != settled[1]  # what must not reach the prior


def test_a_prior_keeps_what_its_user_asked_for(tmp_path):
    run = ht.finetune(
        "digits", image_size=32, limit=150, val_fraction=0.0, method="vanilla", train="head", epochs=2,
        weight_decay=0.5, out=tmp_path / "run",
    )  # fmt: skip
    assert run.facts.chosen_options == ["patience"]
    certify_run(run, bound="holdout", prior_fraction=0.5, noise_is="none", diagnostic=True)
    assert ht.Run.load(run.path / "prior").config.weight_decay == 0.5


@pytest.mark.parametrize("origin", ["estimated", "stated"])
def test_a_prior_is_not_told_an_estimated_matrix_that_may_be_of_the_bounds_examples(tmp_path, origin):
    """As `label` and `noise` write them; one that is stated was known without the examples."""
    told = tmp_path / "told.json"
    told.write_text(json.dumps(ht.NoiseMatrix.symmetric(10, 0.2).known_as(origin).to_dict()))
    run = ht.finetune(
        "digits", image_size=32, limit=150, method="robust", train="head", epochs=1, noise_matrix=str(told),
        out=tmp_path / "run",
    )  # fmt: skip
    if origin == "estimated":
        with pytest.raises(DataError, match=r"told\.json was estimated"):
            certify_run(run, bound="holdout", prior_fraction=0.5, diagnostic=True)
    else:
        assert certify_run(run, bound="holdout", prior_fraction=0.5, diagnostic=True)

"""A run certified from its folder: what each bound counts on, what is refused, and the trained prior."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hesstune as ht
from coverage_worlds import Flat, ruled
from hesstune.analysis.certify import certify_run
from hesstune.analysis.label_provenance import run_noise_knowledge
from hesstune.analysis.measure import InputExamples
from hesstune.analysis.trained_prior import split_prior_and_bound
from hesstune.bounds import CHOICES
from hesstune.bounds.kinds.compression import compression_bound
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import BoundData
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError, LayerError, ModelError, RunError
from hesstune.inputs.batches import make_inputs
from hesstune.noise.confidence import confidence_upper
from hesstune.runs.loading import run_task

pytestmark = pytest.mark.usefixtures("distinct_images")
OPTIONS = {"method": "vanilla", "train": "head", "image_size": 8, "epochs": 2, "lr": 0.02,
           "val_fraction": 0.0, "test_fraction": 0.4}  # fmt: skip


@pytest.fixture
def train(tmp_path):
    """Train a head on true labels of a rule: called with the name of the run and options."""
    x, y, _ = ruled(np.random.default_rng(0), 100)

    def train(name, **options):
        chosen = {**OPTIONS, **options}
        if chosen["method"] == "pick_to_learn":
            chosen = {key: value for key, value in chosen.items() if key not in ("lr", "train")}
        return ht.finetune((x, y), model=Flat(2), out=str(tmp_path / name), **chosen)

    return train


@pytest.fixture
def plain(tiny, tmp_path):
    """Options of a certified run on true labels of images, in a folder."""
    options = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size")}
    return {**options, "method": "certified", "epochs": 2, "val_fraction": 0, "out": str(tmp_path / "a")}


def trained_on(run, name):
    return {r["id"] for r in ht.Run.load(run.path / name).labels() if r["part"] == "train"}


def test_a_run_is_certified_on_its_training_examples_and_leaves_the_certificate(plain):
    run = ht.finetune(plain)
    found = certify_run(run, draws=64)
    task = run_task(run.config, run.config.seed)
    assert found.n == len(task.train)
    assert found.noise == "clean"
    assert "the given labels are the true ones" in found.assumptions
    assert any("delta, the method, every option" in text for text in found.assumptions)
    assert set(found.sigma) == {name for name, _ in run.model().named_parameters()}
    assert found.sigma == pytest.approx(run.result["posterior"])
    # The learnt posterior is a member of the family: the KL is the distance's share alone.
    assert found.sigma == pytest.approx(found.prior_sigma, rel=1e-9)
    expected = sum(found.distance[n] ** 2 / (2 * found.sigma[n] ** 2) for n in found.sigma)
    assert found.kl == pytest.approx(expected, rel=1e-6)
    # The network beside the certificate is the unperturbed one.
    assert found.held_out["n"] == len(task.test)
    assert found.held_out["error"] == pytest.approx(1 - run.result["test_accuracy"])
    assert Certificate.load(run.path / "certificate.json") == found
    assert certify_run(run, draws=64) == found
    feed = make_inputs(task.train, run.loaded(), torch.device("cpu"))
    data = InputExamples(feed, np.array([3, 0, 5]), task.train.labels)
    inputs, labels = data.batch([0, 1, 2])
    for i in range(3):  # examples that are read alone are those read together
        torch.testing.assert_close(data[i][0], inputs[i])
        assert data[i][1] == labels[i]


@pytest.mark.parametrize("bound", CHOICES)
def test_a_certificate_is_what_its_record_gives_at_any_delta(train, bound):
    run = train("a")
    found = certify_run(run, bound=bound, draws=2000)
    assert found.bound == bound
    assert set(found.numbers) <= set(found.kind.record)
    assert found.at(found.delta) == pytest.approx(found.risk, abs=1e-12)
    assert found.at(0.01) > found.risk > found.at(0.3)
    assert Certificate.of_facts(json.loads(json.dumps(found.facts()))).at(0.01) == found.at(0.01)
    if bound == "holdout":
        n = run.facts.examples.test
        assert found.risk == confidence_upper(round((1 - run.result["test_accuracy"]) * n), n, 0.05)


def test_a_run_of_pick_to_learn_is_certified_by_what_it_kept(train):
    run = train("a", method="pick_to_learn")
    kept, n = run.outcome.kept, run.facts.examples.train
    found = certify_run(run, bound="compression")
    assert found.risk == compression_bound(len(kept), n, 0.05)
    assert set(kept) <= set(run.task().train.ids)
    assert found.held_out["error"] == pytest.approx(1 - run.result["test_accuracy"])
    assert not (run.path / "compressed").exists()


def test_the_epochs_and_an_interruption_change_nothing(train):
    options = {"method": "pick_to_learn", "epochs": 10}
    whole = train("whole", **options)

    class Stop(Exception):
        pass

    def stop(done, every, text):
        if done >= 1:
            raise Stop

    with pytest.raises(Stop):
        train("stopped", progress=stop, **options)
    weights = dict(whole.model().named_parameters())
    for other in (train("stopped", resume=True, **options), train("few", **{**options, "epochs": 1})):
        assert other.outcome.kept == whole.outcome.kept
        found = dict(other.model().named_parameters())
        assert all(torch.equal(weight, found[name]) for name, weight in weights.items())


def test_networks_that_were_trained_on_a_part_are_certified_by_the_rest(train):
    run = train("a", epochs=20)
    n = run.facts.examples.train
    found = certify_run(run, bound="compression")
    assert ht.Run.load(run.path / "compressed").config.method == "pick_to_learn"
    assert found.n == n
    part = certify_run(run, bound="compression", prior_fraction=0.6)
    assert part.n == n - round(0.6 * n)
    assert not trained_on(run, "prior") & trained_on(run, "compressed")
    assert part.numbers["kept"] < found.numbers["kept"]
    part = certify_run(run, bound="holdout", prior_fraction=0.6)
    task, first = run.task(), ht.Run.load(run.path / "prior", model=run.given.model, data=run.given.data)
    rest = [at for at, name in enumerate(task.train.ids) if name not in trained_on(run, "prior")]
    found = first.predict((task.train.images(np.array(rest)), task.train.labels[rest]))
    assert part.numbers["errors"] == sum(
        a != task.classes[b] for a, b in zip(found.predicted, task.train.labels[rest], strict=True)
    )
    with pytest.raises(DataError, match="needs test examples"):
        certify_run(train("b", test_fraction=0), bound="holdout")


def test_the_best_bound_pays_for_the_choice(train, tmp_path, capsys):
    run = train("a")
    found = certify_run(run, bound="best", draws=2000)
    assert found.risk == min(found.tried.values())
    assert set(found.tried) == set(CHOICES)
    assert sum(found.shares.values()) == pytest.approx(0.05)
    alone = certify_run(run, bound=found.bound, delta=0.05 / 3, draws=2000)
    assert alone.risk == found.risk
    with pytest.raises(SystemExit) as end:
        cli(["certify", str(run.path), "--bound", "nothing", "--json"])
    assert end.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_noisy_labels_are_carried_over_to_the_true_error(train):
    run = train("a", inject_noise="symmetric:0.2", epochs=20)
    n = run.facts.examples.train
    known = "noisy, with a known noise matrix"
    found = certify_run(run, bound="compression", diagnostic=True)
    noisy = compression_bound(int(found.numbers["kept"]), n, 0.05)
    assert found.risk == pytest.approx(min(1.0, (noisy - 0.2) / 0.6))
    assert found.noise == known
    assert certify_run(run, bound="holdout").noise == "clean"  # noise went into training labels alone
    assert certify_run(run, bound="holdout", prior_fraction=0.5, diagnostic=True).noise == known
    drawn = certify_run(run, draws=2000, diagnostic=True)
    assert (drawn.noise, drawn.loss == "zero_one") == (known, False)
    for stated in ("estimated", "none"):
        with pytest.raises(DataError):
            certify_run(run, bound="compression", noise_is=stated)
    marked = certify_run(run, draws=64, noise_is="instance_dependent", diagnostic=True)
    assert marked.diagnostic
    assert json.loads((run.path / "certificate.json").read_text())["kind"] == "diagnostic"


def test_a_clean_sample_leaves_the_bound_and_gives_a_confidence_set(tiny, tmp_path, monkeypatch):
    options = {k: v for k, v in tiny.items() if k not in ("lr", "batch_size")}
    run = ht.finetune(options, method="certified", train="head", val_fraction=0, out=str(tmp_path / "a"))
    task = run_task(run.config, run.config.seed)
    rows = [f"{i},{task.classes[y]}" for i, y in zip(task.train.ids[:6], task.train.true[:6], strict=True)]
    sample = tmp_path / "clean.csv"
    sample.write_text("\n".join(["id,label", *rows]) + "\n")
    found = certify_run(run, clean_sample=sample)
    assert found.n == len(task.train) - 6
    assert found.noise == "noisy, with a confidence set for the noise matrix"
    assert found.shares["noise"] == pytest.approx(0.01)
    # It does not make votes class-conditional.
    with monkeypatch.context() as patch:
        place = "hesstune.analysis.label_provenance.run_noise_knowledge"
        patch.setattr(place, lambda *_: "instance_dependent")
        with pytest.raises(DataError, match="depend on the input"):
            certify_run(run, clean_sample=sample)
    for line, why in (("nobody,dark", "'nobody'"), ("x,drak", "did you mean 'dark'")):
        sample.write_text(f"id,label\n{line}\n")
        with pytest.raises(DataError, match=why):
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
    task = run_task(run.config, run.config.seed)
    assert found.n == len(task.train) - round(len(task.train) / 2)
    bound, prior, _ = seen
    assert not bound & prior
    assert len(trained_on(run, "prior")) == round(len(task.train) / 2)
    assert trained_on(run, "posterior") == set(task.train.ids)
    assert any("the prior was trained and selected" in text for text in found.assumptions)
    # The posterior's reference is the prior's result, and a second call trains nothing again.
    prior_model = dict(ht.Run.load(run.path / "prior").model().named_parameters())
    reference = ht.Run.load(run.path / "posterior").reference()
    for name, weight in prior_model.items():
        assert torch.equal(weight, reference[name])
    monkeypatch.setattr("hesstune.analysis.trained_prior.fit_prepared", None)
    assert certify_run(run, prior_fraction=0.5, draws=32) == found


def test_what_used_the_examples_is_refused(plain, tmp_path):
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
    stratified.add(result=None)
    with pytest.raises(RunError, match="not finished"):
        certify_run(stratified)
    vanilla = ht.finetune({**plain, "method": "vanilla", "lr": 1e-3, "out": str(tmp_path / "v")})
    model = vanilla.model()
    model[0].weight.requires_grad_(False)
    data = torch.utils.data.TensorDataset(torch.randn(20, 3, 16, 16), torch.arange(20) % 2)
    with pytest.raises(LayerError, match="requires_grad=False moved"):
        ht.certify(model, vanilla.reference(), data)


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


def test_pick_to_learn_refuses_options_without_effect(train, tmp_path):
    for changes in ({"class_weights": "balanced"}, {"sampler": "balanced"}):
        with pytest.raises(ConfigError, match="balanced"):
            train("p", method="pick_to_learn", **changes)
    assert not Path(tmp_path / "p").exists()


@pytest.mark.parametrize(("method", "train"), [("robust", "head"), ("auto", "last:2")])
def test_a_prior_depends_on_nothing_of_the_examples_of_its_bound(tmp_path, method, train):
    """Penalty, radii, head and patience: the run finds them on all examples, the prior on its part."""
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
    x, y, _ = ruled(np.random.default_rng(0), 150)
    how = {"image_size": 8, "epochs": 1, "method": method, "train": train}
    how |= {} if method == "auto" else {"noise_matrix": "symmetric:0.2"}
    found = []
    for name in ("as they are", "others"):
        model = torch.nn.Sequential(*copy.deepcopy(layers))
        run = ht.finetune((x, y), model=model, out=tmp_path / name, **how)
        certify_run(run, bound="holdout", prior_fraction=0.5, diagnostic=True)
        ids = run.task().train.ids
        first, rest = split_prior_and_bound(np.arange(len(ids)), 0.5, 0)
        assert trained_on(run, "prior") <= {ids[at] for at in first}
        found.append((run, ht.Run.load(run.path / "prior", model=run.given.model, data=run.given.data)))
        y = y.copy()
        y[[int(ids[at]) for at in rest]] = np.random.default_rng(1).integers(0, 2, len(rest))
    prior, prior_of_others = (prior for _, prior in found)
    weights = dict(prior_of_others.model().named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in prior.model().named_parameters())
    assert prior.outcome.radii == prior_of_others.outcome.radii
    chosen = [(each.config.weight_decay, each.config.patience, each.outcome.radii) for each, _ in found]
    assert chosen[0] != chosen[1]  # what must not reach the prior


def test_a_prior_keeps_the_options_that_its_user_gave(train):
    run = train("a", weight_decay=0.5)
    assert run.facts.chosen_options == ["patience"]
    certify_run(run, bound="holdout", prior_fraction=0.5, noise_is="none")
    assert ht.Run.load(run.path / "prior").config.weight_decay == 0.5


@pytest.mark.parametrize("origin", ["estimated", "stated"])
def test_a_prior_is_not_given_an_estimated_matrix_that_may_be_of_the_bounds_examples(train, tmp_path, origin):
    """As `label` and `noise` write them; one that is stated was known without the examples."""
    file = tmp_path / "matrix.json"
    file.write_text(json.dumps(ht.NoiseMatrix.symmetric(2, 0.1).known_as(origin).to_dict()))
    run = train("a", method="robust", noise_matrix=str(file))
    asked = {"bound": "holdout", "prior_fraction": 0.5, "diagnostic": True}
    if origin == "estimated":
        with pytest.raises(DataError, match=r"matrix\.json was estimated"):
            certify_run(run, **asked)
    else:
        assert certify_run(run, **asked)


def test_held_out_labels_that_are_noisy_give_no_clopper_pearson_bound(plain):
    run = ht.finetune({**plain, "method": "vanilla", "train": "head"}, noise_matrix="0.2")
    found = certify_run(run, draws=64)
    held = found.held_out
    assert found.held_out_labels == "noisy"
    assert "Clopper-Pearson" not in found.summary()
    stated = certify_run(run, test_labels="true", draws=64).held_out
    assert stated["bound"] == pytest.approx(confidence_upper(int(held["errors"]), int(held["n"]), 0.05))


def test_labels_that_a_person_checked_in_part_have_no_single_matrix(tiny, tmp_path):
    run = ht.finetune(tiny, method="vanilla", epochs=1, out=str(tmp_path / "a"))
    task = run_task(run.config, run.config.seed)
    checked = replace(task, train=replace(task.train, clean=np.zeros(len(task.train), bool)))
    for stated in ("auto", "known"):
        with pytest.raises(DataError, match="checked by a person"):
            run_noise_knowledge(run.config, checked, stated)

"""`certify --bound`: of the network itself, and the smallest of several with the union paid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.bounds.certificate import certify
from hesstune.bounds.compression import compression_bound
from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.bounds.record import Certificate
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, DataError
from hesstune.reference import Reference


@pytest.fixture
def digits(tmp_path):
    """Options of a head on digits, whose labels are true."""
    return {"data": "digits", "limit": 80, "train": "head", "image_size": 32, "val_fraction": 0,
            "method": "vanilla", "epochs": 2, "out": str(tmp_path / "a")}  # fmt: skip


def test_a_run_of_pick_to_learn_is_certified_by_what_it_kept(digits):
    run = ht.finetune({**digits, "method": "pick_to_learn", "train": "all"}, train="head")
    kept = run.outcome.kept
    found = certify_run(run, bound="compression")
    assert found.risk == compression_bound(len(kept), 80, 0.05)
    assert set(kept) <= set(run.task().train.ids)
    assert found.held_out["error"] == pytest.approx(1 - run.result["test_accuracy"])
    assert not (run.path / "compressed").exists()
    assert Certificate.load(run.path / "certificate.json") == found


def test_the_epochs_and_an_interruption_change_nothing(digits, tmp_path):
    options = {**digits, "method": "pick_to_learn", "limit": 30, "epochs": 10}
    whole = ht.finetune(options)

    class Stop(Exception):
        pass

    def stop(done, every, text):
        if done >= 5:
            raise Stop

    out = str(tmp_path / "b")
    with pytest.raises(Stop):
        ht.finetune(options, out=out, progress=stop)
    resumed = ht.finetune(options, out=out, resume=True)
    few = ht.finetune(options, out=str(tmp_path / "c"), epochs=1)
    weights = dict(whole.model().named_parameters())
    for other in (resumed, few):
        assert other.outcome.kept == whole.outcome.kept
        found = dict(other.model().named_parameters())
        assert found.keys() == weights.keys()
        assert all(torch.equal(weight, found[name]) for name, weight in weights.items())


def test_another_method_is_certified_by_a_network_of_its_own(digits):
    run = ht.finetune(digits)
    found = certify_run(run, bound="compression")
    made = ht.Run.load(run.path / "compressed")
    assert made.config.method == "pick_to_learn"
    assert found.n == 80
    # From a start trained on a part, the rest counts, and fewer are kept.
    part = certify_run(run, bound="compression", prior_fraction=0.6)
    again = ht.Run.load(run.path / "compressed")
    trained = {r["id"] for r in ht.Run.load(run.path / "prior").labels() if r["part"] == "train"}
    assert part.n == 32
    assert not trained & {r["id"] for r in again.labels() if r["part"] == "train"}
    assert part.numbers["kept"] < found.numbers["kept"]


def test_a_hold_out_bound_is_of_the_network_that_has_not_seen_the_examples(digits):
    run = ht.finetune(digits)
    found = certify_run(run, bound="holdout")
    n = run.facts.examples.test
    errors = round((1 - run.result["test_accuracy"]) * n)
    assert found.risk == confidence_upper(errors, n, 0.05)
    part = certify_run(run, bound="holdout", prior_fraction=0.5)
    assert part.n == 40
    task, first = run.task(), ht.Run.load(run.path / "prior")
    seen = {r["id"] for r in first.labels() if r["part"] == "train"}
    rest = [at for at, name in enumerate(task.train.ids) if name not in seen]
    found = first.predict((task.train.images(np.array(rest)), task.train.labels[rest]))
    assert part.numbers["errors"] == sum(
        a != task.classes[b] for a, b in zip(found.predicted, task.train.labels[rest], strict=True)
    )
    with pytest.raises(DataError, match="needs test examples"):
        certify_run(ht.finetune(digits, overwrite=True, test_fraction=0), bound="holdout")


def test_the_best_bound_pays_for_the_choice(digits, capsys):
    run = ht.finetune(digits)
    with pytest.raises(SystemExit) as end:
        cli(["certify", str(run.path), "--bound", "best", "--json"])
    assert end.value.code == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = Certificate.load(run.path / "certificate.json")
    assert record["risk"] == found.risk == min(found.tried.values())
    assert set(found.tried) == {"pac_bayes", "holdout", "compression"}
    assert sum(found.shares.values()) == pytest.approx(0.05)
    alone = certify_run(run, bound=found.bound, delta=0.05 / 3)
    assert alone.risk == found.risk
    assert certify_run(run, bound=found.bound).risk < found.risk


def test_noisy_labels_are_carried_over_to_the_true_error(digits):
    run = ht.finetune(digits, inject_noise="symmetric:0.2")
    found = certify_run(run, bound="compression")
    noisy = compression_bound(int(found.numbers["kept"]), 80, 0.05)
    assert found.risk == pytest.approx((noisy - 0.2) / (0.8 - 0.2 / 9))
    assert found.noise == "noisy, with a known noise matrix"
    with pytest.raises(DataError, match="from noisy data alone"):
        certify_run(run, bound="compression", noise_is="estimated")
    test = certify_run(run, bound="holdout")
    assert test.noise == "clean"  # noise went into training labels alone
    part = certify_run(run, bound="holdout", prior_fraction=0.5)
    assert part.noise == "noisy, with a known noise matrix"


def test_pick_to_learn_says_what_it_does_not_do(digits):
    for changes, why in (
        ({"train": "all"}, "--train head"),
        ({"class_weights": "balanced"}, "balanced"),
        ({"sampler": "balanced"}, "no balanced sampler"),
    ):
        with pytest.raises(ConfigError, match=why):
            ht.finetune({**digits, **changes}, method="pick_to_learn")
    assert not Path(digits["out"]).exists()


def test_a_certificate_whose_network_did_not_move_is_the_exact_tail():
    """KL = 0: PAC-Bayes says no more than a hold-out set does, and never prints a looser number."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) + 0.5 * torch.randn(300, generator=torch.Generator().manual_seed(1)) > 0).long()
    data = torch.utils.data.TensorDataset(x, y)
    model = torch.nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-torch.ones(5), torch.ones(5)]))
        model.bias.zero_()
        errors = int((model(x).argmax(1) != y).sum())
    found = certify(model, Reference.of(model), data)
    assert found.kl == 0
    assert found.risk == confidence_upper(errors, 300, 0.05)
    assert found.bound == "holdout"
    # Where a prior was trained, a posterior that hardly moves loses to its centre's own tail.
    ref = Reference.of(model)
    with torch.no_grad():
        model.weight.add_(1e-6)
    other = torch.utils.data.TensorDataset(torch.randn(30, 5), torch.arange(30) % 2)
    close = certify(model, ref, data, prior_data=other)
    assert close.bound == "holdout"
    assert close.risk == confidence_upper(errors, 300, 0.05 * 0.9)
    assert sum(close.shares.values()) <= 0.05


@pytest.mark.parametrize("bound", ["pac_bayes", "holdout", "compression"])
def test_a_certificate_is_what_its_record_gives_at_any_delta(digits, bound):
    found = certify_run(ht.finetune({**digits, "epochs": 1}), bound=bound)
    assert found.at(found.delta) == pytest.approx(found.risk, abs=1e-12)
    assert found.at(0.01) > found.risk > found.at(0.3)
    assert Certificate.of_facts(json.loads(json.dumps(found.facts()))).at(0.01) == found.at(0.01)

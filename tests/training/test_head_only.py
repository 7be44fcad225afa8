"""Whether the head alone is trained depends on the parameters that `train` names, not on its spelling."""

import pytest
import torch
from torch import nn

import hesstune as ht
from hesstune.errors import ConfigError
from hesstune.models.heads import trains_head_only
from hesstune.study.compare import plan_of

HEAD = "8"  # of the network of `tiny`
SPELLINGS = ("last:1", f"{HEAD}.*", f"from:{HEAD}", "8.[wb]*")


@pytest.fixture
def plain(tiny):
    """Options whose defaults depend on what is trained are left out."""
    kept = {name: value for name, value in tiny.items() if name not in ("lr", "batch_size", "method")}
    return {**kept, "epochs": 2, "warmup_epochs": 1}


def trained(options, **more):
    run = ht.finetune(options, **more)
    return run.model().state_dict(), run


def assert_same(one, two):
    (first, run), (second, other) = one, two
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {**run.config.to_dict(), "out": None} == {**other.config.to_dict(), "out": None}
    for mine, theirs in zip(run.metrics, other.metrics, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("method", ["vanilla", "robust", "certified", "auto", "pick_to_learn"])
def test_all_spellings_of_the_head_give_the_same_run(plain, method):
    own = {"head_init": "zero"} if method == "auto" else {}
    head = trained(plain, method=method, train="head", **own)
    assert head[1].config.lr == (10.0 if method == "certified" else 0.01)
    for spelling in SPELLINGS if method in ("vanilla", "certified") else SPELLINGS[:1]:
        other = trained(plain, method=method, train=spelling, **own)
        assert_same(other, head)
        assert any(f"--train {spelling} trains the head alone" in n for n in other[1].facts.notes)


def test_radii_chosen_by_validation_are_the_same(plain):
    found = [
        trained(plain, method="constraint", radius="auto", train=train)[1].outcome
        for train in ("head", "last:1")
    ]
    assert found[0].radii == found[1].radii


class Linear(nn.Module):
    """A network that is its head alone."""

    def __init__(self, k):
        super().__init__()
        self.only = nn.Linear(3, k)

    def forward(self, x):
        return self.only(x.mean((2, 3)))


def test_a_network_that_is_a_head_alone_is_trained_as_one(plain):
    options, net = {**plain, "method": "vanilla"}, Linear(2)
    runs = [trained(options, model=net, train=t) for t in ("head", "all", "last:1", "*")]
    for other in runs[1:]:
        assert_same(other, runs[0])
    assert runs[0][1].config.weight_decay > 0


@pytest.mark.parametrize(
    ("train", "expected"),
    [("head", True), ("all", False), ("last:1", True), ("last:2", False), ("5.*", True), ("5.weight", False),
     ("*.bias", False), ("from:5", True), ("from:2", False)],
)  # fmt: skip
def test_the_property_is_of_the_parameters(train, expected):
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)
    )
    before = {name: p.requires_grad_(i % 2 == 0) for i, (name, p) in enumerate(model.named_parameters())}
    assert trains_head_only(model, train, "5") == expected
    assert [p.requires_grad for p in before.values()] == [i % 2 == 0 for i in range(len(before))]


def test_parameters_behind_the_head_are_none_of_it():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    assert not trains_head_only(model, "from:0", "0")
    assert trains_head_only(model, "0.*", "0")
    assert not trains_head_only(nn.Sequential(model, nn.Linear(2, 2)), "1.*", ("0.0", "1"))


def test_a_run_is_resumed_by_any_spelling_of_the_same_parameters_and_by_no_other(plain, tmp_path):
    out = str(tmp_path / "a")
    options = {**plain, "method": "vanilla", "out": out}
    _, run = trained(options, train="last:1")
    for train in ("last:1", "head", f"{HEAD}.*"):
        again = ht.finetune(options, train=train, resume=True)
        assert again.outcome == run.outcome
    for train in ("last:2", "all", "from:4"):
        with pytest.raises(ConfigError, match=f"not {train}"):
            ht.finetune(options, train=train, resume=True)
    assert ht.Run.load(out).outcome == run.outcome


def test_an_interrupted_run_goes_on(plain, tmp_path):
    options = {**plain, "method": "vanilla", "train": "last:1", "epochs": 3, "checkpoint_minutes": 1e-9}
    whole = trained(options, out=str(tmp_path / "whole"))

    def stop(done, total, text):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, out=str(tmp_path / "cut"), progress=stop)
    assert_same(trained(options, out=str(tmp_path / "cut"), resume=True), whole)


def test_methods_that_train_a_head_alone_take_every_spelling_and_refuse_more(plain):
    with pytest.raises(ConfigError, match="trains a linear head"):
        ht.finetune(plain, method="pick_to_learn", train="last:2")
    with pytest.raises(ConfigError, match="trains a linear head"):
        ht.finetune(plain, method="pick_to_learn", train="all")


def test_a_comparison_plans_what_runs_do(plain):
    shared = {**plain, "methods": ["vanilla", "certified"], "seeds": 1}
    plans = {train: plan_of({**shared, "train": train})[0] for train in ("head", "last:1", "last:2")}
    told = {
        train: [(c.method, c.config.train, c.config.lr, c.config.batch_size, c.fingerprint) for c in p.cells]
        for train, p in plans.items()
    }
    assert told["head"] == told["last:1"]
    assert [row[1:4] for row in told["last:2"]] == [("last:2", 1e-4, 32), ("last:2", 0.5, 64)]
    plan, _ = plan_of({**shared, "methods": ["all"], "train": "last:2"})
    assert "trains a linear head" in plan.left_out["pick_to_learn"]


def test_the_classifier_keeps_validation_examples_only_for_more_than_the_head(tmp_path):
    from hesstune.integrations.sklearn import RobustClassifier

    generator = torch.Generator().manual_seed(0)
    y = [0, 1] * 12
    x = (torch.rand(24, 8, 8, generator=generator) * 99).numpy().astype("uint8") + 100 * torch.tensor(
        y
    ).numpy()[:, None, None].astype("uint8")
    found = [
        RobustClassifier(model=Linear(2), train=train, image_size=8, epochs=1).fit(x, y)._facts["examples"]
        for train in ("head", "last:1", "all")
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["val"] == 0


def test_a_dry_run_says_that_the_network_decides(plain, capsys):
    from hesstune.cli.main import run as cli

    words = [f"--{k.replace('_', '-')}={v}" for k, v in plain.items()]
    with pytest.raises(SystemExit):
        cli(["finetune", *words, "--train", "last:1", "--out", "x", "--dry-run"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("# ")
    assert "--train head" in first
    assert any(line == "train: last:1" for line in rest)

"""Whether the head alone is trained depends on the parameters that `train` names, not on its spelling."""

import numpy as np
import pytest
from torch import nn

import hesstune as ht
from hesstune.errors import ConfigError
from hesstune.models.heads import trains_head_only
from hesstune.study.compare import plan_of

SPELLINGS = ("last:1", "8.*", "from:8", "8.[wb]*")


@pytest.fixture
def plain(tiny):
    """Options whose defaults depend on what is trained are left out."""
    kept = {name: value for name, value in tiny.items() if name not in ("lr", "batch_size", "method")}
    return {**kept, "epochs": 2, "warmup_epochs": 1}


@pytest.fixture
def same_run(same_weights):
    def compare(one, other):
        same_weights(one, other)
        assert {**one.config.to_dict(), "out": None} == {**other.config.to_dict(), "out": None}
        assert one.outcome.radii == other.outcome.radii
        for mine, theirs in zip(one.metrics, other.metrics, strict=True):
            assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}

    return compare


@pytest.mark.parametrize("method", ["vanilla", "robust", "certified", "auto", "pick_to_learn"])
def test_all_spellings_of_the_head_give_the_same_run(plain, same_run, method):
    options = {**plain, "method": method} | ({"head_init": "zero"} if method == "auto" else {})
    head = ht.finetune(options, train="head")
    assert head.config.lr == (10.0 if method == "certified" else 0.01)
    for spelling in SPELLINGS if method == "vanilla" else SPELLINGS[:1]:
        other = ht.finetune(options, train=spelling)
        same_run(other, head)
        assert any(f"--train {spelling} trains the head alone" in note for note in other.facts.notes)


def test_radii_chosen_by_validation_are_the_same(plain, same_run):
    options = {**plain, "method": "constraint", "radius": "auto"}
    same_run(*(ht.finetune(options, train=train) for train in ("head", "last:1")))


class Linear(nn.Module):
    """A network that is its head alone."""

    def __init__(self, k):
        super().__init__()
        self.only = nn.Linear(3, k)

    def forward(self, x):
        return self.only(x.mean((2, 3)))


class Doubled(Linear):
    """A network whose head is not the last operation."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_network_that_is_a_head_alone_is_trained_as_one(plain, same_run):
    net = Linear(2)
    runs = [ht.finetune(plain, net, "vanilla", train=t) for t in ("head", "all", "*")]
    for other in runs[1:]:
        same_run(other, runs[0])
    assert runs[0].config.weight_decay > 0


def test_without_features_the_whole_network_is_called_and_has_no_penalty(plain):
    seen = []
    run = ht.finetune(plain, Doubled(2), "vanilla", train="head", head="only", observe=seen.append)
    assert seen[0].net is seen[0].loaded.model
    assert run.config.weight_decay == 0


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


def test_a_run_is_resumed_by_any_spelling_of_the_same_parameters_and_by_no_other(
    plain, tmp_path, interrupt, same_run
):
    options = {**plain, "method": "vanilla", "out": tmp_path / "a"}
    interrupt(options, train="last:1")
    run = ht.finetune(options, train="last:1", resume=True)
    same_run(run, ht.finetune({**options, "out": None}, train="last:1"))
    for train in ("head", "8.*"):
        assert ht.finetune(options, train=train, resume=True).outcome == run.outcome
    for train in ("last:2", "all"):
        with pytest.raises(ConfigError, match=f"not {train}"):
            ht.finetune(options, train=train, resume=True)
    assert ht.Run.load(tmp_path / "a").outcome == run.outcome


def test_a_comparison_plans_what_runs_do(plain):
    shared = {**plain, "methods": ["vanilla", "certified"], "seeds": 1}
    plans = {train: plan_of({**shared, "train": train})[0] for train in ("head", "last:1", "last:2")}
    found = {
        train: [(c.method, c.config.train, c.config.lr, c.config.batch_size, c.fingerprint) for c in p.cells]
        for train, p in plans.items()
    }
    assert found["head"] == found["last:1"]
    assert [row[1:4] for row in found["last:2"]] == [("last:2", 1e-4, 32), ("last:2", 0.5, 64)]
    plan, _ = plan_of({**shared, "methods": ["all"], "train": "last:2"})
    assert "trains a linear head" in plan.left_out["pick_to_learn"]
    with pytest.raises(ConfigError, match="trains a linear head"):
        ht.finetune(plain, method="pick_to_learn", train="last:2")


def test_the_classifier_keeps_validation_examples_only_for_more_than_the_head():
    from hesstune.integrations.sklearn import RobustClassifier

    y = np.arange(24) % 2
    x = (np.random.default_rng(0).integers(0, 99, (24, 8, 8)) + 100 * y[:, None, None]).astype("uint8")
    for train in ("head", "last:1", "all"):
        made = RobustClassifier(model=Linear(2), train=train, image_size=8, epochs=1).fit(x, y)
        assert made._facts["examples"]["val"] == 0


def test_a_dry_run_says_that_the_network_decides(plain, capsys):
    from hesstune.cli.main import run as cli

    words = [f"--{k.replace('_', '-')}={v}" for k, v in plain.items()]
    with pytest.raises(SystemExit):
        cli(["finetune", *words, "--train", "last:1", "--out", "x", "--dry-run"])
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("# ")
    assert "--train head" in first
    assert "train: last:1" in others

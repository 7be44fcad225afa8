"""The penalty of a head, which is one of the loss with every optimizer; loss scaling and seeds."""

from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import hesstune as ht
from hesstune.methods import method_class, method_names
from hesstune.runs.config import make_config
from hesstune.runs.options import OptimisationOptions
from hesstune.runtime import device as devices
from hesstune.runtime.device import mixed_seed
from hesstune.training import estimates, trainer
from hesstune.training.estimates import penalised_head
from hesstune.training.trainer import make_optimizer

OPTIMIZERS = get_args(OptimisationOptions.model_fields["optimizer"].annotation)


@pytest.fixture
def heads(tiny):
    shared = {name: value for name, value in tiny.items() if name not in ("lr", "method")}
    return {**shared, "train": "head", "warmup_epochs": 1, "epochs": 2, "method": "vanilla"}


def test_the_penalty_is_near_scikit_learns_best_on_the_same_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = np.concatenate([np.eye(3)[y] + 0.6 * rng.normal(size=(400, 3)), rng.normal(size=(400, 60))], axis=1)
    noisy = np.where(rng.random(400) < 0.4, rng.integers(0, 3, 400), y)
    penalty, _ = penalised_head(x, np.eye(3)[noisy])

    def loss(strength):
        model = LogisticRegression(C=strength, max_iter=2000)
        return -cross_val_score(model, x, noisy, cv=5, scoring="neg_log_loss").mean()

    ours = loss(1 / (penalty * 400))
    grid = [loss(c) for c in np.geomspace(1e-4, 1e2, 7)]
    assert ours < min(grid) + 0.01
    assert ours < grid[-1] - 0.1
    assert penalised_head(10 * x, np.eye(3)[noisy])[0] == pytest.approx(100 * penalty, rel=1e-3)


def test_a_plain_head_under_noise_gains_by_it_and_says_so():
    shared = {"data": "digits", "train": "head", "method": "vanilla", "inject_noise": "symmetric:0.4",
              "image_size": 32, "limit": 300}  # fmt: skip
    run, plain = ht.finetune(**shared), ht.finetune(**shared, weight_decay=0)
    assert run.config.weight_decay > plain.config.weight_decay == 0
    assert any("cross-validation on the labels as given" in note for note in run.record["notes"])
    assert run.result["test_accuracy"] > plain.result["test_accuracy"]


def test_each_method_has_its_share_of_the_penalty_which_is_found_once(heads, monkeypatch):
    calls = []
    fit = estimates._fit_penalised_head
    monkeypatch.setattr(estimates, "_fit_penalised_head", lambda *args: calls.append(1) or fit(*args))
    shared = {name: value for name, value in heads.items() if name != "method"}
    ht.compare(shared, methods=["vanilla", "mixup", "gce"], seeds=1)
    assert len(calls) == 1
    plain = ht.finetune(heads, keep_weights=False).config.weight_decay
    assert plain > 0
    for options, share in (
        ({"method": "mixup"}, 1),
        *(({"method": name}, 0.1) for name in ("gce", "elr", "forward", "co_teaching")),
        ({"method": "constraint"}, 0),
        ({"method": "robust_plus", "radius": 1.0}, 0),
        ({"method": "l2_sp"}, 0),
        ({"train": "last:2"}, 0),
    ):
        found = ht.finetune({**heads, **options}, keep_weights=False)
        assert found.config.weight_decay == pytest.approx(share * plain), options
        assert any("0.1 times" in note for note in found.facts.notes) == (share == 0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_penalty_found_by_cross_validation_is_one_of_the_loss(heads, optimizer):
    """Training ends where the gradient of the loss is −λ·W: of |W − A|²/2 in A/(1 + λ)."""
    config = ht.finetune(heads, optimizer=optimizer, epochs=1, keep_weights=False).config
    assert config.weight_decay > 0
    options = make_config({"optimizer": config.optimizer, "lr": 0.1, "weight_decay": 0.5})
    aim = torch.tensor([[3.0, -1.0], [0.5, 20.0]])
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    made = make_optimizer(options, [weight])
    for _ in range(1500):
        made.zero_grad()
        ((weight - aim).square().sum() / 2).backward()
        made.step()
    torch.testing.assert_close(weight.detach(), aim / 1.5, rtol=1e-3, atol=1e-3)


def test_adamw_decays_apart_from_the_loss_only_by_a_weight_decay_that_is_given(heads, tmp_path):
    found = ht.finetune(heads, optimizer="adamw", out=tmp_path / "a")
    adam = ht.finetune(heads, optimizer="adam")
    assert found.outcome.distance == adam.outcome.distance
    assert any("the optimizer is adam, not adamw" in note for note in found.facts.notes)
    assert ht.finetune(heads, optimizer="adamw", out=tmp_path / "a", resume=True).outcome == found.outcome
    given = ht.finetune(heads, optimizer="adamw", weight_decay=found.config.weight_decay)
    assert given.config.optimizer == "adamw"
    assert given.outcome.distance != adam.outcome.distance
    none = [ht.finetune(heads, optimizer=o, weight_decay=0).outcome.distance for o in ("adam", "adamw")]
    assert none[0] == none[1]


def scaled(monkeypatch, scale):
    """Train as fp16 does on a GPU, in float32 on the CPU: the loss is scaled, by powers of 2 exactly."""

    def make(mixed_precision, device, toggles):
        made = devices.make_accelerator("no", device, toggles)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9)
        made.unscale_gradients = lambda: [made.scaler.unscale_(one.optimizer) for one in made._optimizers]
        return made

    monkeypatch.setattr(trainer, "make_accelerator", make)


def scales(name):
    kind = method_class(name)
    return not (kind.solves_head or kind.needs_votes or name == "lora")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("certified", "sam", "nso", "pick_to_learn") else pytest.mark.slow)
        for n in method_names()
        if scales(n)
    ],
)
def test_loss_scaling_changes_nothing(tiny, monkeypatch, same_weights, name):
    train = "head" if method_class(name).head_alone else "all"
    options = {**tiny, "method": name, "epochs": 2, "warmup_epochs": 1, "train": train, "lr": None,
               "grad_clip": 0.5}  # fmt: skip
    if method_class(name).constrained:
        options["radius"] = 0.5
    plain = ht.finetune(options)
    with monkeypatch.context() as patch:
        scaled(patch, 2.0**14)
        other = ht.finetune(options)
    same_weights(plain, other, atol=1e-5)
    assert (other.outcome.posterior or {}) == pytest.approx(plain.outcome.posterior or {}, rel=1e-5)
    assert plain.outcome.distance > 0 or name == "pick_to_learn"


def test_a_step_that_is_too_large_for_the_scale_leaves_the_noise_as_it_was(tiny, monkeypatch):
    """The scaler takes no such step and lowers the scale; the learnt noise must not become NaN by it."""
    scaled(monkeypatch, 2.0**127)
    run = ht.finetune(tiny, method="certified", lr=None, epochs=4)
    assert all(np.isfinite(value) and value > 0 for value in run.outcome.posterior.values())
    assert np.isfinite(run.outcome.distance)


def test_certified_in_bf16_is_near_float32():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 10),
    )  # fmt: skip
    options = {"data": "digits", "model": net, "method": "certified", "limit": 64, "image_size": 16}
    full, half = (ht.finetune(**options, epochs=2, mixed_precision=p).outcome for p in ("no", "bf16"))
    assert half.posterior == pytest.approx(full.posterior, rel=0.05)
    assert half.distance == pytest.approx(full.distance, rel=0.1)


def test_seeds_are_those_of_numpy_and_differ():
    assert mixed_seed(3, 4) == int(np.random.SeedSequence([3, 4]).generate_state(1, np.uint64)[0]) // 2
    keys = [(a, b) for a in range(30) for b in range(30)]
    assert len({mixed_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= mixed_seed(*key) < 2**63 for key in [*keys, (2**63 - 1, 2**40)])

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hesstune import NoiseMatrix, Reference, methods
from hesstune.errors import ConfigError, DataError
from hesstune.methods import MethodSetup, method_class, method_name, method_names
from hesstune.methods._losses import balanced_rates, clean_shares, consistent


def setup(**changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    values = {
        "model": model,
        "reference": Reference.of(model),
        "noise_matrix": NoiseMatrix.symmetric(3, 0.3),
        "counts": np.array([10, 20, 30]),
        "radius": 0.1,
        "norm": "frobenius",
        "warmup_epochs": 2,
    }
    return MethodSetup(**{**values, **changes})


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_registry_holds_every_file_and_every_class_of_shared_files():
    folder = Path(methods.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert set(methods.SHARED) <= files
    for file, names in methods.SHARED.items():
        assert list(importlib.import_module(f"hesstune.methods.{file}").METHODS) == list(names)
    kinds = {name: method_class(name) for name in method_names()}
    assert len(set(kinds.values())) == len(kinds) >= 30
    assert {kind.tier for kind in kinds.values()} == set(methods.TIERS)
    assert all(method_name(kind) == name for name, kind in kinds.items())
    with pytest.raises(ConfigError, match="robust"):
        method_class("robsut")


def test_losses_of_each_method_by_epoch():
    plain = nn.functional.cross_entropy(LOGITS, TARGETS)
    given = setup()
    corrected = consistent(given)(LOGITS, TARGETS)
    assert not torch.isclose(plain, corrected)
    expected = {"vanilla": (plain, plain), "constraint": (plain, plain), "consistent": (corrected, corrected)}
    expected["robust"] = (plain, corrected)
    for name, (warming, after) in expected.items():
        method = method_class(name)(given)
        torch.testing.assert_close(method.loss(LOGITS, TARGETS, 1), warming)
        torch.testing.assert_close(method.loss(LOGITS, TARGETS, 2), after)


@pytest.mark.parametrize("name", ["vanilla", "consistent", "constraint", "robust"])
def test_only_constrained_methods_project(name):
    given = setup()
    method = method_class(name)(given)
    with torch.no_grad():
        given.model[0].weight.add_(1.0)
    method.after_step()
    distance = given.reference.distances(given.model)["0.weight"]
    assert distance == pytest.approx(0.1 if method.constrained else 20**0.5, rel=1e-4)


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_balanced_consistent_loss_is_unbiased_for_the_balanced_clean_risk(balance):
    """Enumerate true classes and noisy labels of a population, with its exact frequencies."""
    F = NoiseMatrix([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.15, 0.6]])
    prior = np.array([0.6, 0.3, 0.1])
    noisy = prior @ F.array
    given = setup(noise_matrix=F, counts=np.round(noisy * 1_000_000).astype(int), balance=balance)
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = consistent(given)
    loss.reduction = "none"
    rates = balanced_rates(given.counts) if balance == "sampler" else np.ones(3)
    risk = 0.0
    for true in range(3):
        for label in range(3):
            drawn = prior[true] * F.array[true, label] * rates[label]
            risk += drawn * float(loss(logits[true : true + 1], torch.tensor([label])))
    clean = nn.functional.cross_entropy(logits, torch.arange(3), reduction="none")
    assert risk == pytest.approx(float(clean.mean()), rel=1e-4)


def test_balanced_sampler_draws_every_label_alike():
    counts = np.array([5, 10, 85])
    np.testing.assert_allclose(balanced_rates(counts) * counts, 100 / 3)
    with pytest.raises(DataError, match="class 1 has no training example"):
        balanced_rates(np.array([3, 0]))


@pytest.mark.parametrize("n", [200, 2000, 20000])
def test_shares_of_true_classes_are_not_told_from_nothing_below_their_error(n):
    """Over draws of the labels a class of share 0.01 gets a weight of the right size, never 1e5."""
    prior = np.array([0.5, 0.3, 0.19, 0.01])
    F = NoiseMatrix.symmetric(4, 0.4)
    rng = np.random.default_rng(0)
    errors, largest = [], 0.0
    for _ in range(200):
        counts = rng.multinomial(n, prior @ F.array)
        shares, raised = clean_shares(F, counts)
        assert shares.sum() == pytest.approx(1)
        largest = max(largest, 1 / (4 * shares[3]))
        errors.append(((counts / n) @ F.inverse)[3] - prior[3])
        assert n == 200 or set(raised) <= {3}
    # The least share is the estimate's own standard error, as its spread over the draws tells.
    assert largest < 2 / (4 * np.std(errors))
    if n == 20000:
        assert largest < 4 / (4 * prior[3])


def test_shares_well_above_their_error_are_the_estimates():
    F = NoiseMatrix.pair(3, 0.2)
    counts = np.array([500, 300, 400])
    shares, raised = clean_shares(F, counts)
    np.testing.assert_allclose(shares, F.clean_prior(counts / counts.sum()), rtol=1e-12)
    assert not len(raised)

"""certify(): what it returns, what it leaves alone, and what it refuses."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import hesstune
from hesstune.bounds.certificate import certify
from hesstune.bounds.conditions import LEAKS
from hesstune.bounds.noisy import NoiseConfidenceSet
from hesstune.bounds.pac_bayes import confidence_upper, gaussian_kl, kl_inverse, monte_carlo_upper
from hesstune.bounds.record import Certificate
from hesstune.errors import ConfigError, DataError, HesstuneError, LayerError, ModelError, RunError
from hesstune.reference import Reference

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
QUICK = {"draws": 64, "block_size": 32, "prior_scales": [0.25, 0.5, 1.0, 2.0]}


def points(n: int, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def trained(deep: bool = False) -> tuple[nn.Module, Reference]:
    """A rule that knows the classes of `points`, moved there from a blank reference."""
    torch.manual_seed(0)
    model = (
        nn.Linear(5, 2) if not deep else nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    )
    head = model[2] if deep else model
    for p in head.parameters():
        nn.init.zeros_(p)
    if deep:
        nn.init.eye_(model[0].weight)
        nn.init.zeros_(model[0].bias)
    ref = Reference.of(model)
    with torch.no_grad():
        head.weight[1].fill_(3.0)
        if deep:
            model[0].weight.add_(0.02)
    return model, ref


@pytest.mark.parametrize("deep", [False, True])
def test_numbers_are_those_of_their_formulas(deep):
    model, ref = trained(deep)
    c = certify(model, ref, points(2000), delta=0.1, **QUICK | {"draws": 512})
    moved = {k: float((p.detach() - ref[k]).double().square().sum()) for k, p in model.named_parameters()}
    assert set(c.sigma) == set(moved)
    sizes = {k: p.numel() for k, p in model.named_parameters()}
    kl = sum(gaussian_kl(moved[k], c.prior_sigma[k], c.sigma[k], sizes[k]) for k in moved)
    torch.testing.assert_close(c.kl, kl, rtol=1e-6, atol=1e-6)
    assert sum(c.shares.values()) == pytest.approx(0.1)
    assert (c.n, c.family, c.classes) == (2000, 4, 2)
    side = (c.kl + np.log(2 * np.sqrt(2000) * 4 / c.shares["pac_bayes"])) / 2000
    torch.testing.assert_close(c.risk, float(kl_inverse(c.empirical_bound, side)), rtol=1e-6, atol=1e-9)
    assert c.empirical < c.empirical_bound < c.risk < 0.5
    assert not c.vacuous
    assert not c.diagnostic


def test_head_alone_matches_draws_of_the_weights_themselves():
    model, ref = trained(deep=True)
    for p in model[0].parameters():
        p.requires_grad_(False)
    for p in model[1].parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        model[0].weight.copy_(ref["0.weight"])
    sigma = {"2.weight": 1.5, "2.bias": 0.5}
    data = points(200)
    c = certify(model, ref, data, posterior=sigma, draws=200 * 200)
    assert c.draw_size == 1
    x, y = data.tensors
    g = torch.Generator().manual_seed(5)
    errors = []
    with torch.no_grad():
        features = model[1].eval()(model[0](x))
        for _ in range(2000):
            weight = model[2].weight + 1.5 * torch.randn(2, 5, generator=g)
            bias = model[2].bias + 0.5 * torch.randn(2, generator=g)
            errors.append((((features @ weight.T + bias).argmax(1)) != y).double().mean())
    errors = torch.stack(errors)
    assert abs(c.empirical - float(errors.mean())) < 5 * float(errors.std()) / 2000**0.5 + 5e-3


def test_elementwise_posterior_deviations_are_used():
    model, ref = trained()
    sigma = {"weight": torch.full((2, 5), 1.0), "bias": torch.tensor([0.5, 0.5])}
    same = certify(model, ref, points(100), posterior={"weight": 1.0, "bias": 0.5}, **QUICK)
    each = certify(model, ref, points(100), posterior=sigma, **QUICK)
    torch.testing.assert_close((each.risk, each.kl), (same.risk, same.kl), **CLOSE)
    assert each.sigma == {"weight": 1.0, "bias": 0.5}


def test_blocks_and_all_examples_agree_up_to_their_confidence():
    model, ref = trained(deep=True)
    sigma = dict.fromkeys(dict(model.named_parameters()), 0.2)
    data = points(100)
    blocks = certify(model, ref, data, posterior=sigma, draws=400, block_size=33, prior_scales=[0.5])
    every = certify(model, ref, data, posterior=sigma, draws=400, block_size=100, prior_scales=[0.5])
    assert (blocks.draws, blocks.draw_size) == (400, 25)
    assert (every.draws, every.draw_size) == (400, 100)
    assert abs(blocks.empirical - every.empirical) < 0.05
    torch.testing.assert_close(
        every.empirical_bound, monte_carlo_upper(every.empirical, 400, every.shares["monte_carlo"]), **CLOSE
    )


def test_model_and_global_random_state_are_left_bit_for_bit():
    model, ref = trained(deep=True)
    model.train()
    model[2].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    certify(model, ref, points(64), **QUICK)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert not model[2]._forward_hooks


def test_weights_are_restored_where_a_draw_fails():
    model, ref = trained(deep=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sigma = dict.fromkeys(dict(model.named_parameters()), 1e30)
    with pytest.raises(ModelError, match="not finite"):
        certify(model, ref, points(64), posterior=sigma, **QUICK)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_fixed_parameters_get_no_noise_and_no_kl():
    model, ref = trained(deep=True)
    with torch.no_grad():
        model[0].weight.copy_(ref["0.weight"])
    model[0].weight.requires_grad_(False)
    c = certify(model, ref, points(64), **QUICK)
    assert "0.weight" not in c.sigma
    assert set(c.kl_terms) == set(c.sigma) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_same_seed_same_certificate_and_a_string_that_names_the_predictor():
    model, ref = trained(deep=True)
    first, second = (certify(model, ref, points(64), seed=4, **QUICK) for _ in range(2))
    assert first == second
    text = first.summary()
    assert "randomised predictor" in text
    assert "nothing is claimed of the unperturbed network" in text
    for assumption in first.assumptions:
        assert assumption in text


def test_ratios_form_a_family_that_is_paid_for():
    model, ref = trained(deep=True)
    sets = [{"2.*": 1.0, "*": r} for r in (0.01, 0.1)]
    c = certify(model, ref, points(64), ratios=sets, draws=64, prior_scales=[0.5, 1.0])
    assert c.family == 4
    assert c.prior_sigma["0.weight"] / c.prior_sigma["2.weight"] < 0.2
    with pytest.raises(LayerError, match=r"no ratio matches '0\.weight'"):
        certify(model, ref, points(64), ratios={"2.*": 1.0}, **QUICK)
    with pytest.raises(LayerError, match="match no trained parameter"):
        certify(model, ref, points(64), ratios={"5.*": 1.0, "*": 1.0}, **QUICK)


def test_noisy_labels_bound_the_clean_risk():
    model, ref = trained()
    x, y = points(3000).tensors
    matrix = np.array([[0.9, 0.1], [0.2, 0.8]])
    g = torch.Generator().manual_seed(1)
    flip = torch.rand(len(y), generator=g) < torch.where(y == 0, 0.1, 0.2)
    noisy = TensorDataset(x, torch.where(flip, 1 - y, y))
    c = certify(model, ref, noisy, noise_matrix=matrix, prior_scales=[0.5, 1.0])
    clean = certify(model, ref, TensorDataset(x, y), prior_scales=[0.5, 1.0])
    # The posteriors differ, so compare with the clean error that this posterior cannot be below.
    assert clean.empirical - 0.01 < c.risk < 0.5
    assert abs(c.empirical - 0.2) < 0.08  # errors on noisy labels are reported as they are
    assert any("true class alone" in text for text in c.assumptions)
    how = {"noise_matrix": matrix, "prior_scales": [0.5, 1.0]}
    wrong = certify(model, ref, TensorDataset(x, y), diagnostic=True, **how)
    assert wrong.risk < c.risk  # F claims more noise than there is, so the bound is over-corrected


def test_confidence_set_of_the_noise_pays_from_delta():
    model, ref = trained()
    counts = np.array([[900, 100], [200, 800]])
    c = certify(model, ref, points(500), noise_matrix=NoiseConfidenceSet(counts, 0.02), prior_scales=[1.0])
    assert c.shares["noise"] == 0.02
    assert sum(c.shares.values()) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match=r"noise set's own 0\.05"):
        certify(model, ref, points(500), noise_matrix=NoiseConfidenceSet(counts, 0.05), prior_scales=[1.0])


def test_held_out_bound_is_clopper_pearson_of_the_unperturbed_network():
    model, ref = trained()
    held = points(80, seed=9)
    with torch.no_grad():
        errors = int((model(held.tensors[0]).argmax(1) != held.tensors[1]).sum())
    c = certify(model, ref, points(64), held_out=held, **QUICK)
    assert c.held_out["errors"] == errors
    torch.testing.assert_close(c.held_out["bound"], confidence_upper(errors, 80, 0.05), **CLOSE)
    assert "Clopper-Pearson" in c.summary()


def test_saved_and_loaded_is_the_same(tmp_path):
    model, ref = trained()
    c = certify(model, ref, points(64), **QUICK)
    c.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == c
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["kind"] == "certificate"
    assert record["vacuous"] is c.vacuous
    (tmp_path / "bad.json").write_text("[1]")
    for bad in ("bad.json", "missing.json"):
        with pytest.raises(RunError, match="not a readable certificate"):
            Certificate.load(tmp_path / bad)


class Jittered(Dataset):
    """Augmented at random."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(self.rng.normal(size=5), dtype=torch.float32), index % 2


def repeated() -> TensorDataset:
    x, y = points(64).tensors
    return TensorDataset(torch.cat([x, x[:3]]), torch.cat([y, y[:3]]))


def moved_statistics(model: nn.Module) -> None:
    model[1].running_mean.add_(1.0)


def moved_frozen(model: nn.Module) -> None:
    model[0].weight.requires_grad_(False)


def batch_statistics(model: nn.Module) -> None:
    model[1].running_mean = model[1].running_var = None


FAILING = {
    "moved statistics": (moved_statistics, {}, ModelError, "keep batch norm in eval mode"),
    "moved frozen weight": (moved_frozen, {}, LayerError, "requires_grad=True on what was trained"),
    "random augmentation": (None, {"dataset": Jittered()}, DataError, "augmented at random"),
    "repeats": (None, {"dataset": repeated()}, DataError, "3 inputs of dataset are repeated"),
    "prior saw the examples": (None, {"prior_data": points(64)}, DataError, "64 of the .* prior's examples"),
    "estimated noise": (
        None,
        {"noise_matrix": np.eye(2), "noise_is": "estimated"},
        DataError,
        "clean sample",
    ),
    "weak labels": (
        None,
        {"noise_matrix": np.eye(2), "noise_is": "instance_dependent"},
        DataError,
        "certify on clean labels",
    ),
    **{
        f"leak of {leak}": (None, {"leaks": [leak]}, DataError, re.escape(fix)) for leak, fix in LEAKS.items()
    },
}


@pytest.mark.parametrize("name", FAILING)
def test_failed_conditions_are_refused_or_marked_as_a_diagnostic(name):
    change, options, error, match = FAILING[name]
    model, ref = trained(deep=True)
    if change is not None:
        change(model)
    arguments = {"dataset": points(64), **QUICK, **options}
    with pytest.raises(error, match=match):
        certify(model, ref, **arguments)
    c = certify(model, ref, diagnostic=True, **arguments)
    assert c.diagnostic
    assert re.search(match, c.failures[0])
    assert c.summary().startswith("DIAGNOSTIC, NO CERTIFICATE")
    assert "Certified" not in c.summary()
    assert c.to_dict()["kind"] == "diagnostic"


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ModelError, match="'1' has no running statistics"):
        certify(model, Reference.of(model), points(64), **QUICK)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dataset": points(7)}, DataError, "at least 8 examples; got 7"),
        ({"dataset": iter(points(9))}, DataError, "map-style"),
        ({"dataset": TensorDataset(torch.randn(9, 5))}, DataError, r"\(input, target\)"),
        ({"dataset": TensorDataset(torch.randn(9, 5), torch.arange(9))}, DataError, r"must be in \[0, 2\)"),
        ({"delta": 0.0}, ConfigError, "delta must lie"),
        ({"delta": 1.0}, ConfigError, "delta must lie"),
        ({"noise_matrix": np.eye(3)}, HesstuneError, "for 3 classes; the model has 2"),
        ({"draws": 0}, ConfigError, "draws must be at least 1"),
        ({"leaks": ["batchnorm"]}, ConfigError, "did you mean 'batch_norm'"),
        ({"posterior": {"weight": 1.0}}, LayerError, "missing: bias"),
        ({"posterior": {"weight": 1.0, "bias": 0.0}}, ConfigError, "'bias' must be finite and above 0"),
        ({"posterior": {"weight": torch.ones(3), "bias": 1.0}}, LayerError, r"needed \(2, 5\)"),
        ({"prior_scales": []}, ConfigError, "at least one scale"),
        ({"prior_scales": [0.0]}, ConfigError, "above 0"),
    ],
)
def test_wrong_arguments_are_told(options, error, match):
    model, ref = trained()
    with pytest.raises(error, match=match):
        certify(model, ref, **{"dataset": points(64), **QUICK, **options})


def test_nothing_trained_is_refused():
    model, ref = trained()
    model.requires_grad_(False)
    with pytest.raises(LayerError, match="requires_grad=False"):
        certify(model, ref, points(64), **QUICK)


def test_allowed_repeats_are_an_assumption():
    model, ref = trained()
    c = certify(model, ref, repeated(), repeats="allow", **QUICK)
    assert any("repeated inputs" in text for text in c.assumptions)


def test_mapping_inputs_and_half_precision_weights():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained(deep=True)[0].to(torch.bfloat16)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.inner(values.to(torch.bfloat16)).float()

    model = Mapped()
    x, y = points(64).tensors
    data = [({"values": a}, int(b)) for a, b in zip(x, y, strict=True)]
    c = certify(model, Reference.of(model), data, posterior=None, **QUICK)
    assert c.n == 64


def test_a_useless_model_is_vacuous():
    model, ref = trained()
    x, y = points(64).tensors
    c = certify(model, ref, TensorDataset(x, 1 - y), **QUICK)
    assert c.vacuous
    assert "vacuous" in c.summary()


def test_public_name():
    assert hesstune.certify is certify

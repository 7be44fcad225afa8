"""certify(): what it returns, what it leaves alone, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from hesstune.bounds import BOUNDS, CHOICES, certify, first_lines
from hesstune.bounds.kinds.compression import Compression
from hesstune.bounds.kinds.holdout import Holdout
from hesstune.bounds.kl import kl_inverse, monte_carlo_upper
from hesstune.bounds.record import Certificate, Network, bound_class
from hesstune.bounds.sample import LEAKS, BoundOptions, Sample
from hesstune.errors import (
    ConfigError,
    DataError,
    HesstuneError,
    LayerError,
    ModelError,
    RefutedNoiseError,
    RunError,
)
from hesstune.noise.confidence import NoiseConfidenceSet, confidence_upper
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
QUICK = {"draws": 64, "block_size": 32, "prior_scales": [0.25, 0.5, 1.0, 2.0]}
SYMMETRIC = [[0.8, 0.2], [0.2, 0.8]]


def points(n, seed=0, errors=0):
    """Examples of two classes, by the sign of the sum; so many have the other label."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    y = (x.sum(dim=1) > 0).long()
    y[:errors] = 1 - y[:errors]
    return TensorDataset(x, y)


def trained(deep=False):
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


def evaluated(bound, model, data, kept=(), **options):
    """The certificate of a network without weight noise."""
    sample = Sample.read(model, data, BoundOptions(**options))
    return bound.evaluate(Network(model=model, kept=kept), None, sample)


@pytest.mark.parametrize("deep", [False, True])
def test_numbers_are_those_of_their_formulas(deep):
    model, ref = trained(deep)
    c = certify(model, ref, points(2000), delta=0.1, **QUICK | {"draws": 512})
    moved = {k: float((p.detach() - ref[k]).double().square().sum()) for k, p in model.named_parameters()}
    assert set(c.sigma) == set(moved)
    kl = 0.0
    for k, p in model.named_parameters():
        s, ratio = c.prior_sigma[k], (c.sigma[k] / c.prior_sigma[k]) ** 2
        kl += moved[k] / (2 * s**2) + p.numel() / 2 * (ratio - 1 - np.log(ratio))
    torch.testing.assert_close(c.kl, kl, rtol=1e-6, atol=1e-6)
    assert sum(c.shares.values()) == pytest.approx(0.1)
    assert (c.n, c.family, c.classes) == (2000, 4, 2)
    side = (c.kl + np.log(2 * np.sqrt(2000) * 4 / c.shares["pac_bayes"])) / 2000
    torch.testing.assert_close(c.risk, float(kl_inverse(c.empirical_bound, side)), rtol=1e-6, atol=1e-9)
    assert c.empirical < c.empirical_bound < c.risk < 0.5
    assert not c.vacuous
    assert not c.diagnostic
    # Deviations of each entry are those of its parameter if they are equal.
    each = {name: torch.full(p.shape, 0.5) for name, p in model.named_parameters()}
    one, all_equal = (
        certify(model, ref, points(100), posterior=sigma, **QUICK)
        for sigma in (each, dict.fromkeys(each, 0.5))
    )
    torch.testing.assert_close((one.risk, one.kl), (all_equal.risk, all_equal.kl), **CLOSE)
    assert one.sigma == pytest.approx(dict.fromkeys(each, 0.5))


def test_head_alone_matches_draws_of_the_weights_themselves():
    model, ref = trained(deep=True)
    model[:2].requires_grad_(False)
    with torch.no_grad():
        model[0].weight.copy_(ref["0.weight"])
    sigma = {"2.weight": 1.5, "2.bias": 0.5}
    data = points(200)
    c = certify(model, ref, data, posterior=sigma, draws=100 * 200)
    assert c.draw_size == 1
    assert set(c.sigma) == set(c.kl_terms) == set(sigma)  # fixed parameters get no noise and no KL
    x, y = data.tensors
    g = torch.Generator().manual_seed(5)
    errors = []
    with torch.no_grad():
        features = model[1].eval()(model[0](x))
        for _ in range(1000):
            weight = model[2].weight + 1.5 * torch.randn(2, 5, generator=g)
            bias = model[2].bias + 0.5 * torch.randn(2, generator=g)
            errors.append((((features @ weight.T + bias).argmax(1)) != y).double().mean())
    errors = torch.stack(errors)
    assert abs(c.empirical - float(errors.mean())) < 5 * float(errors.std()) / 1000**0.5 + 5e-3


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
    with pytest.raises(ModelError, match="not finite"):  # a draw that fails
        certify(
            model, ref, points(64), posterior=dict.fromkeys(dict(model.named_parameters()), 1e30), **QUICK
        )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_ratios_form_a_family_that_is_paid_for():
    model, ref = trained(deep=True)
    sets = [{"2.*": 1.0, "*": r} for r in (0.01, 0.1)]
    c = certify(model, ref, points(64), ratios=sets, draws=64, prior_scales=[0.5, 1.0])
    assert c.family == 4
    assert c.prior_sigma["0.weight"] / c.prior_sigma["2.weight"] < 0.2
    for ratios in ({"2.*": 1.0}, {"5.*": 1.0, "*": 1.0}):
        with pytest.raises(LayerError):
            certify(model, ref, points(64), ratios=ratios, **QUICK)


def test_noisy_labels_bound_the_clean_risk():
    model, ref = trained()
    x, y = points(1500).tensors
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
    # A confidence set pays from delta.
    counts = np.array([[900, 100], [200, 800]])
    surer = certify(model, ref, noisy, noise_matrix=NoiseConfidenceSet(counts, 0.02), prior_scales=[1.0])
    assert surer.shares["noise"] == 0.02
    assert sum(surer.shares.values()) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match=r"noise set's own 0\.05"):
        certify(model, ref, noisy, noise_matrix=NoiseConfidenceSet(counts, 0.05))


def test_saved_and_loaded_is_the_same(tmp_path):
    model, ref = trained(deep=True)
    held = points(80, seed=9)
    c, again = (certify(model, ref, points(64), held_out=held, seed=4, **QUICK) for _ in range(2))
    assert c == again
    with torch.no_grad():
        errors = int((model.eval()(held.tensors[0]).argmax(1) != held.tensors[1]).sum())
    assert c.held_out["errors"] == errors
    assert c.held_out["bound"] == confidence_upper(errors, 80, 0.05)  # of the unperturbed network
    for text in ("randomised predictor", "nothing is claimed of the unperturbed network", *c.assumptions):
        assert text in c.summary()
    c.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == c
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["kind"] == "certificate"
    assert record["vacuous"] is c.vacuous
    damaged = [None, [1], {k: v for k, v in record.items() if k != "kl"}]
    damaged += [{**record, **one} for one in ({"risk": "0.1"}, {"n": True}, {"classes": 1}, {"bound": "x"})]
    damaged += [{**record, "held_out": {"errors": 1}}, {**record, "kl": float("inf")}]
    for bad in damaged:
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        with pytest.raises(RunError, match=r"bad\.json"):
            Certificate.load(tmp_path / "bad.json")
    with pytest.raises(RunError, match=r"missing\.json"):
        Certificate.load(tmp_path / "missing.json")


class Jittered(Dataset):
    """Augmented at random."""

    rng = np.random.default_rng(0)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.tensor(self.rng.normal(size=5), dtype=torch.float32), index % 2


def repeated():
    x, y = points(64).tensors
    return TensorDataset(torch.cat([x, x[:3]]), torch.cat([y, y[:3]]))


NOISY = {"noise_matrix": np.eye(2)}
# {condition: (what changes the model, options, error, its text)}.
FAILING = {
    "moved statistics": (lambda m: m[1].running_mean.add_(1.0), {}, ModelError, "keep batch norm in eval"),
    "moved frozen weight": (lambda m: m[0].requires_grad_(False), {}, LayerError, "requires_grad=True on"),
    "random augmentation": (None, {"dataset": Jittered()}, DataError, "augmented at random"),
    "repeats": (None, {"dataset": repeated()}, DataError, "3 inputs of dataset are repeated"),
    "prior saw the examples": (None, {"prior_data": points(64)}, DataError, "64 of the certificate"),
    "estimated noise": (None, {**NOISY, "noise_is": "estimated"}, DataError, "clean sample"),
    "weak labels": (None, {**NOISY, "noise_is": "instance_dependent"}, DataError, "on clean labels"),
    "leak": (None, {"leaks": ["batch_norm"]}, DataError, re.escape(LEAKS["batch_norm"])),
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
    assert c.to_dict()["kind"] == "diagnostic"


WRONG = [
    ({"dataset": points(7)}, ConfigError, "at least 8 examples; got 7"),
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
]


def test_wrong_arguments_are_refused():
    model, ref = trained()
    for options, error, match in WRONG:
        with pytest.raises(error, match=match):
            certify(model, ref, **{"dataset": points(64), **QUICK, **options})


def test_networks_that_no_bound_is_for():
    model = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ModelError, match="'1' has no running statistics"):
        certify(model, Reference.of(model), points(64), **QUICK)
    model, ref = trained()
    model.requires_grad_(False)
    with pytest.raises(LayerError, match="requires_grad=False"):
        certify(model, ref, points(64), **QUICK)


def test_mapping_inputs_and_half_precision_weights():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = trained(deep=True)[0].to(torch.bfloat16)

        def forward(self, values):
            return self.inner(values.to(torch.bfloat16)).float()

    model = Mapped()
    x, y = points(64).tensors
    data = [({"values": a}, int(b)) for a, b in zip(x, y, strict=True)]
    c = certify(model, Reference.of(model), data, posterior=None, **QUICK)
    assert c.n == 64


def test_allowed_repeats_are_an_assumption_and_a_useless_model_is_vacuous():
    model, ref = trained()
    x, y = repeated().tensors
    c = certify(model, ref, TensorDataset(x, 1 - y), repeats="allow", **QUICK)
    assert any("repeated inputs" in text for text in c.assumptions)
    assert c.vacuous
    assert "vacuous" in c.summary()


def test_a_certificate_of_a_network_that_did_not_move_is_the_exact_tail():
    """KL = 0: PAC-Bayes says no more than a hold-out set does, and never prints a looser number."""
    data = points(300, errors=40)
    model, start = trained()
    found = certify(model, Reference.of(model), data)
    errors = int(found.numbers["errors"])
    assert (found.kl, found.bound, found.risk) == (0, "holdout", confidence_upper(errors, 300, 0.05))
    # If a prior was trained, a posterior that hardly moves loses to its centre's own tail.
    ref = Reference.of(model)
    with torch.no_grad():
        model.weight.add_(1e-6)
    close = certify(model, ref, data, prior_data=points(30, seed=1))
    assert (close.bound, close.risk) == ("holdout", confidence_upper(errors, 300, 0.05 * 0.9))
    assert sum(close.shares.values()) <= 0.05
    assert certify(model, start, data).bound == "pac_bayes"


def test_too_few_errors_on_unseen_examples_refute_the_matrix():
    model, known = trained()[0], {"noise_matrix": SYMMETRIC}
    with torch.no_grad():
        model.bias.zero_()
    with pytest.raises(RefutedNoiseError) as refused:
        evaluated(Holdout, model, points(300, errors=9), **known)
    for part in (f"{stats.binom.cdf(9, 300, 0.2):.2g}", "9", "300", "--checked-labels", "hesstune check"):
        assert part in str(refused.value)
    marked = evaluated(Holdout, model, points(300, errors=9), **known, diagnostic=True)
    assert marked.diagnostic
    assert marked.risk < 0
    assert not evaluated(Holdout, model, points(300, errors=60), **known).diagnostic
    # A compression bound below 0, too.
    data = points(400)
    with pytest.raises(RefutedNoiseError, match="below 0"):
        evaluated(Compression, model, data, [0, 1], **known)
    assert evaluated(Compression, model, data, [0, 1], **known, diagnostic=True).risk < 0
    assert evaluated(Compression, model, data, range(120), **known).risk >= 0


def test_a_randomised_predictor_or_a_held_out_part_below_the_floor_refutes_the_matrix():
    model, ref = trained()
    with torch.no_grad():
        model.weight[0].fill_(-3.0)
    with pytest.raises(RefutedNoiseError):
        certify(model, ref, points(400), noise_matrix=SYMMETRIC, draws=4000)
    marked = certify(model, ref, points(400), noise_matrix=SYMMETRIC, draws=4000, diagnostic=True)
    assert len(marked.failures) == 2  # the error on noisy labels, and the bound below 0
    x, y = points(200, seed=5).tensors
    data = TensorDataset(x, torch.from_numpy(NoiseMatrix(SYMMETRIC).corrupt(y.numpy(), seed=0)))
    how = {"noise_matrix": SYMMETRIC, "held_out": points(300, errors=5)}
    for labels in ("true", "unknown"):
        assert not certify(model, Reference.of(model), data, held_out_labels=labels, **how).diagnostic
    with pytest.raises(RefutedNoiseError):
        certify(model, Reference.of(model), data, held_out_labels="noisy", **how)


def test_a_recorded_certificate_is_not_cut_to_0_at_a_larger_delta():
    numbers = {"floor": 0.2, "gamma": 0.6}
    made = (
        Certificate.of_network("compression", {**numbers, "kept": float(kept)}, n=400, delta=1e-6, classes=2)
        for kept in range(24, 120)
    )
    found = next(one for one in made if one.risk >= 0)
    assert found.at(1e-7) >= found.risk
    with pytest.raises(RefutedNoiseError):
        found.at(0.5)


def test_a_held_out_bound_under_asymmetric_noise_is_above_the_true_error():
    """A rule that says 0 errs on half; four in five of class 1 are called 0, so it seems to err less."""
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    true = (torch.arange(600) % 2).long()
    matrix = np.array([[1.0, 0.0], [0.8, 0.2]])
    noisy = torch.from_numpy(NoiseMatrix(matrix).corrupt(true.numpy(), seed=1))
    model, ref = trained()
    with torch.no_grad():
        model.weight.zero_()
        model.bias[0] = 1.0
    train, held = (TensorDataset(x[part], noisy[part]) for part in (slice(0, 200), slice(200, 600)))
    how = {"noise_matrix": matrix, "draws": 64, "held_out": held}
    assert certify(model, ref, train, **how).held_out["bound"] < 0.2  # if labels are said to be true
    assert certify(model, ref, train, held_out_labels="noisy", **how).held_out["bound"] > 0.5
    how["noise_matrix"] = NoiseConfidenceSet([[500, 0], [400, 100]], 0.01)  # which has its part of delta
    found = certify(model, ref, train, held_out_labels="noisy", **how)
    assert found.held_out["bound"] > 0.5
    assert found.held_out["delta"] == 0.05


@pytest.mark.parametrize("origin", ["estimated", "instance_dependent", "stated"])
def test_the_recorded_origin_of_a_matrix_counts(origin):
    model, ref = trained()
    noise, data = NoiseMatrix.symmetric(2, 0.1).known_as(origin), points(64, errors=6)
    if origin == "stated":
        assert not certify(model, ref, data, noise_matrix=noise, **QUICK).diagnostic
    else:
        with pytest.raises(DataError):
            certify(model, ref, data, noise_matrix=noise, **QUICK)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_is_registered_by_its_file_and_documented(name):
    kind, line = bound_class(name), first_lines()[name]
    assert kind.__module__ == f"hesstune.bounds.kinds.{name}"
    page = (Path(__file__).parents[2] / "docs" / "certificates.md").read_text(encoding="utf-8")
    fields = ", ".join(f"`{key}`: {text}" for key, text in kind.record.items())
    assert f"| `{name}` | {line} | {fields} |" in page
    assert set(CHOICES) == set(BOUNDS) - {"checked"}
    with pytest.raises(ConfigError, match="did you mean"):
        bound_class(f"{name}s")

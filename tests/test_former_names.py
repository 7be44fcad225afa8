"""Public names that changed: the former ones still work, or say in one line what they are now."""

import importlib
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hesstune import ConsistentLoss, NoiseMatrix
from hesstune.analysis.label_issues import label_posterior
from hesstune.analysis.noise import perturbed
from hesstune.bounds.hessian import inverse_norm, noisy_hessian_distance_measure
from hesstune.bounds.noisy import KnownNoise, clean_losses, inverse_loss, margin_bound
from hesstune.bounds.partition import Share
from hesstune.curvature.stability import noise_stability_table
from hesstune.data.examples import Examples, Listing, Texts
from hesstune.errors import ConfigError, FormerNameError
from hesstune.losses.robust import ForwardLoss
from hesstune.methods import Method, MethodSetup
from hesstune.noise.estimate.fit import log_likelihoods, well_conditioned
from hesstune.training.evaluate import cross_entropy_under

F = NoiseMatrix.symmetric(2, 0.2)
PROBS, LABELS = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 1])
LOGITS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda **f: ConsistentLoss(**f)(LOGITS, torch.tensor(LABELS)),
        lambda **f: ForwardLoss(**f)(LOGITS, torch.tensor(LABELS)),
        inverse_norm,
        lambda **f: noisy_hessian_distance_measure([1.0, 2.0], 10, 1.0, **f),
        lambda **f: margin_bound(0.3, **f),
        lambda **f: label_posterior(PROBS, LABELS, **f).tolist(),
        lambda **f: perturbed(off=0.1, direction="too much", **f).array.tolist(),
        lambda **f: log_likelihoods(probs=PROBS, labels=LABELS, **f).tolist(),
        lambda **f: well_conditioned(**f)[1],
        lambda **f: cross_entropy_under(LOGITS, LABELS, **f),
    ],
)
def test_f_is_noise_matrix_and_its_former_name_is_taken(call):
    assert call(noise=F) == call(noise_matrix=F)
    with pytest.raises(ConfigError, match="noise is the former name of noise_matrix"):
        call(noise=F, noise_matrix=F)


@pytest.mark.parametrize("call", [inverse_loss, clean_losses])
def test_losses_for_clean_risk_take_the_former_name(call):
    assert str(call(noise=KnownNoise(F))) == str(call(noise_matrix=KnownNoise(F)))


def test_the_error_of_the_consistent_loss_names_its_argument():
    with pytest.raises(ConfigError, match="noise_matrix must be a NoiseMatrix"):
        ConsistentLoss(np.eye(2))


FORMER = [
    ("hesstune.cli.report", "write_report", "hesstune.report.write.write_report"),
    ("hesstune.cli.report", "write_study", "hesstune.report.write.write_study"),
    ("hesstune.study.plan", "Plan", "StudyPlan"),
    ("hesstune.study.plan", "make_plan", "make_study_plan"),
    ("hesstune.study", "make_plan", "make_study_plan"),
    ("hesstune.study.search", "validation_loss", "run_validation_loss"),
    ("hesstune.curvature.planning", "make_plan", "hesstune.curvature.planning.plan.make_measure_plan"),
    ("hesstune.curvature.planning", "Method", "hesstune.curvature.planning.plan.MeasureMethod"),
    ("hesstune.curvature.planning", "MeasurePlan", "hesstune.curvature.planning.plan.MeasurePlan"),
    ("hesstune.curvature.smooth", "Screen", "hesstune.curvature.maxima.GaussNewtonScreen"),
    ("hesstune.curvature.smooth", "smooth_traces", "hesstune.curvature.engine.CurvatureEngine.trace"),
    ("hesstune.curvature.exact", "exact_forms", "hesstune.curvature.exact.backward_mode.exact_forms"),
    ("hesstune.curvature.exact", "sources", "hesstune.curvature.exact.passes.sources"),
    ("hesstune.analysis.gather_measure", "merged", "gathered_measure"),
    ("hesstune.models.vision", "Normalisation", "MeanAndStd"),
    ("hesstune.training.finetune", "train_prepared", "hesstune.training.fit.fit_prepared"),
    ("hesstune.data.arrays", "write_arrays", "numpy.savez"),
    ("hesstune.weak.votes", "class_of", "hesstune.weak.vote_values.class_of"),
    ("hesstune.weak.votes", "EMPTY", "hesstune.weak.vote_values.abstains"),
    ("hesstune.integrations.peft", "measure", "measure_adapters"),
]


@pytest.mark.parametrize(("module", "name", "now"), FORMER)
def test_a_name_that_left_its_module_says_what_it_is_now(module, name, now):
    if module.endswith("peft"):
        pytest.importorskip("peft")
    loaded = importlib.import_module(module)
    for act in (lambda: getattr(loaded, name), lambda: exec(f"from {module} import {name}")):
        with pytest.raises(ImportError) as raised:
            act()
        assert str(raised.value).startswith(f"{module}.{name} is now {now}")
    if now.startswith("hesstune."):
        assert pkgutil.resolve_name(now) is not None
    elif now != "numpy.savez":
        assert hasattr(loaded, now)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = loaded.nothing


@pytest.mark.parametrize(
    ("former", "value", "now"),
    [("believes", classmethod(lambda cls: True), "uses_noise"), ("thaws", True, "toggles_requires_grad")],
)
def test_a_method_that_sets_a_former_name_is_refused(former, value, now):
    with pytest.raises(FormerNameError, match=rf"^Method\.{former} is now {now}$"):
        type("Own", (Method,), {former: value})
    type("Own", (Method,), {now: value})


def test_a_setup_takes_the_former_name_and_says_the_new_one():
    others = {
        "model": None,
        "reference": None,
        "counts": None,
        "radius": None,
        "norm": "",
        "warmup_epochs": 0,
    }
    setup = MethodSetup(noise=F, **others)
    assert setup.noise_matrix is F
    with pytest.raises(FormerNameError, match=r"^MethodSetup\.noise is now noise_matrix$"):
        _ = setup.noise
    with pytest.raises(ConfigError, match="give one of the two"):
        MethodSetup(noise=F, noise_matrix=F, **others)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = setup.nothing


def test_a_share_takes_the_former_names():
    share = Share(summed=SimpleNamespace, gathered=list)
    assert (share.all_reduce_sum, share.all_gather) == (SimpleNamespace, list)
    with pytest.raises(FormerNameError, match="all_gather"):
        _ = share.gathered


def test_a_stability_table_takes_the_former_names():
    model = torch.nn.Linear(2, 2).double()
    batches = [(LOGITS.double(), torch.tensor(LABELS))]
    told = {"sigmas": [0.1], "samples": 2, "probes": 0, "loss": "consistent"}
    former = noise_stability_table(model, batches, noise=F, summed=lambda values: 2 * values, **told)
    now = noise_stability_table(
        model, batches, noise_matrix=F, all_reduce_sum=lambda values: 2 * values, **told
    )
    assert former[0].value == now[0].value


def test_rows_are_taken_by_their_former_name_too():
    part = Examples(Texts([("a", None), ("b", None)]), np.arange(2), ["0", "1"], LABELS)
    assert part.take(indices=[1]).ids == part.take(rows=[1]).ids == ["1"]
    whole = Listing(ids=["0", "1"], labels=LABELS, classes=["x", "y"], texts=[("a", None), ("b", None)])
    assert whole.take(indices=[1]).ids == ["1"]


def test_an_estimates_weight_is_said_to_be_chosen_by_likelihood():
    with pytest.raises(ConfigError, match=r"weight, .* is chosen by the noisy likelihood now; leave it out"):
        NoiseMatrix.estimate(PROBS, LABELS, "dual_t", weight=0.1)

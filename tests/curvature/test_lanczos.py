"""The smooth path against the dense twin, and the loss's derivatives in many digits."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from networks import Case, build, moved
from torch import nn

from dense_hessians import block_hessian, paper_code_quantity, positive_form, positive_trace
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.lanczos import LanczosForms
from hesstune.curvature.objective import Objective, mixture_losses
from hesstune.curvature.quadrature import Stopping
from hesstune.errors import ConfigError

ENOUGH = Stopping(tol=0, most=80)
CONVERGED = {"rtol": 1e-6, "atol": 1e-12}


def lanczos(case: Case, *, loss: Any = "cross_entropy", stopping: Stopping | None = None) -> LanczosForms:
    engine = CurvatureEngine.of(case.model, case.ref, loss=loss)
    return engine.lanczos((case.inputs, case.targets), stopping=stopping)


def stable(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # log-softmax's second derivative is noise on fitted examples; this one is tested in many digits below.
    return mixture_losses(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))


def twin(case: Case, name: str, loss: Any = stable) -> torch.Tensor:
    hessian = block_hessian(case.model, case.inputs, case.targets, name, loss)
    return positive_form(hessian, case.ref.difference(case.model, name))


@pytest.mark.parametrize("scale", [1.0, 0.05])
@pytest.mark.parametrize("name", ["mlp_gelu", "conv1d_silu", "torch_encoder", "gpt2"])
def test_brackets_contain_the_truth_near_and_far_and_after_two_products(name: str, scale: float):
    case = build(name, scale=scale, seed=11)
    forms, few = lanczos(case), lanczos(case, stopping=Stopping(tol=0, most=2))
    for column, layer in enumerate(forms.names):
        truth = twin(case, layer)
        slack = 1e-9 * truth.abs() + 1e-12  # the rounding of the twin's eigenvalues
        for found in (forms, few):
            assert bool((found.lower[:, column] <= truth + slack).all()), layer
            assert bool((truth <= found.upper[:, column] + slack).all()), layer
        torch.testing.assert_close(forms.quadratic[:, column], truth, rtol=0.03, atol=1e-9, msg=layer)


def test_the_positive_part_is_kept_if_the_form_itself_is_negative():
    negative = 0
    for seed in range(4):
        case = build("mlp_gelu", scale=1.0, seed=seed)
        flat = case.ref.difference(case.model, "0.weight").flatten()
        hessian = block_hessian(case.model, case.inputs, case.targets, "0.weight")
        negative += int(((hessian @ flat) @ flat < 0).sum())
        found = lanczos(case, stopping=ENOUGH).quadratic[:, 0]
        torch.testing.assert_close(found, positive_form(hessian, flat), **CONVERGED)
    assert negative >= 2  # the cases are what they claim to be


def test_float32_follows_float64():
    case = build("bert")
    exact = lanczos(case, stopping=ENOUGH)
    case.model.float()
    torch.testing.assert_close(
        lanczos(case, stopping=ENOUGH).quadratic, exact.quadratic, rtol=2e-3, atol=1e-6
    )


class SmoothCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.silu(self.grouped(F.gelu(self.norm(self.stem(x))))).mean((2, 3)))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_two_classes_with_one_example_and_either_memory_layout(rows, layout):
    torch.manual_seed(4)
    model, inputs = SmoothCnn().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)[rows]
    ref, targets = moved(model, 0.2), torch.tensor([0, 1, 1])[rows]
    case = Case(model.to(memory_format=layout), ref, inputs.contiguous(memory_format=layout), targets)
    forms = lanczos(case, stopping=ENOUGH)
    for column, layer in enumerate(forms.names):
        torch.testing.assert_close(forms.quadratic[:, column], twin(case, layer), **CONVERGED, msg=layer)


LOSSES = {
    "callable": lambda f, y: (torch.tanh(f) - F.one_hot(y, f.shape[1])).square().sum(1),
    "consistent": Objective("consistent", noise_matrix=[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]),
    "smoothing": Objective(label_smoothing=0.2),
    "class weights": Objective(class_weights=torch.tensor([0.5, 2.0, 1.0])),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_other_losses_than_cross_entropy(loss: str):
    case = build("conv1d_silu")
    forms = lanczos(case, loss=LOSSES[loss], stopping=ENOUGH)
    for column, layer in enumerate(forms.names):
        truth = twin(case, layer, LOSSES[loss])
        torch.testing.assert_close(forms.quadratic[:, column], truth, **CONVERGED, msg=layer)


@pytest.mark.parametrize("margin", [-200.0, -1.0, 0.0, 18.0, 40.0, 300.0])
def test_the_derivatives_of_the_loss_keep_their_digits_on_saturated_logits(margin: float):
    """Against Λ and p − c in 60 digits; log-softmax's own second derivative is noise there."""
    values = [margin, 0.0, -2.0]
    f = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    slope = torch.autograd.grad(mixture_losses(f, c).sum(), f, create_graph=True)[0]
    rows = [torch.autograd.grad(slope[0, k], f, retain_graph=True)[0][0] for k in range(3)]
    with mpmath.workdps(400):
        e = [mpmath.exp(x) for x in values]
        p = [x / sum(e) for x in e]
        first = [float(p[k] - (k == 0)) for k in range(3)]
        expected = [[float(p[k] * ((k == j) - p[j])) for j in range(3)] for k in range(3)]
    torch.testing.assert_close(slope[0], torch.tensor(first, dtype=torch.float64), rtol=1e-11, atol=1e-290)
    # Entries p_j p_k beside p_k: relative to the largest, as it is for any quadratic form.
    matrix = torch.tensor(expected, dtype=torch.float64)
    atol = 1e-14 * float(matrix.abs().max())
    torch.testing.assert_close(torch.stack(rows), matrix, rtol=1e-11, atol=atol)
    torch.testing.assert_close(mixture_losses(f, c)[0], F.cross_entropy(f, torch.tensor([0])))


def test_fitted_examples_keep_their_digits():
    """40 more of margin multiply the curvature by e^-40, also if p rounds to 1."""
    case = build("mlp_gelu")
    case.targets, found = torch.full((5,), 1), []
    for margin in (20.0, 60.0):
        with torch.no_grad():
            case.model[4].bias.zero_()[1] = margin
        found.append(lanczos(case, stopping=ENOUGH).quadratic)
    ratio = found[1] / found[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.248354255291589e-18), rtol=1e-5, atol=0)


def test_traces_agree_within_their_errors_and_do_not_depend_on_the_batch():
    case = build("mlp_gelu")
    engine = CurvatureEngine.of(case.model, case.ref, method="lanczos")
    traces = engine.trace((case.inputs, case.targets), probes=24)
    for column, layer in enumerate(traces.names):
        expected = positive_trace(block_hessian(case.model, case.inputs, case.targets, layer))
        assert ((traces.value[:, column] - expected).abs() < 5 * traces.stderr[:, column]).all(), layer
    again = engine.trace((case.inputs[3:], case.targets[3:]), probes=24)
    torch.testing.assert_close(again.value, traces.value[3:], rtol=0.05, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"tol": -1.0}])
def test_wrong_stopping_rules_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigError, match="at least"):
        Stopping(**wrong)


# -- the dense twin itself ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_gelu", "attention", "torch_encoder"])
def test_the_dense_twin_matches_finite_differences_of_the_loss(name):
    case = build(name)
    layer = case.ref.layers()[0]
    v = case.ref.difference(case.model, layer)
    found = block_hessian(case.model, case.inputs, case.targets, layer) @ v.flatten() @ v.flatten()
    case.model.eval()
    weight, step = dict(case.model.named_parameters())[layer], 1e-4

    def losses(t):
        with torch.no_grad():
            weight.add_(v, alpha=t)
            inputs = case.inputs
            out = case.model(**inputs) if isinstance(inputs, dict) else case.model(inputs)
            weight.sub_(v, alpha=t)
            return F.cross_entropy(out, case.targets, reduction="none")

    expected = (losses(step) - 2 * losses(0.0) + losses(-step)) / step**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_positive_parts_and_the_paper_codes_quantity_which_mixes_layers_and_examples():
    hessian = torch.diag(torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64))
    assert float(positive_form(hessian, torch.tensor([1.0, 5.0, 2.0]))) == pytest.approx(4.0)
    assert float(positive_trace(hessian)) == pytest.approx(2.5)
    case = build("mlp_gelu")
    differences = {n: case.ref.difference(case.model, n) for n in case.ref.layers()}
    theirs = paper_code_quantity(case.model, case.inputs, case.targets, differences)
    means = {}
    for name, v in differences.items():
        block = block_hessian(case.model, case.inputs, case.targets, name)
        means[name] = (block @ v.flatten() @ v.flatten()).mean()
    name = next(iter(differences))
    alone = paper_code_quantity(case.model, case.inputs, case.targets, {name: differences[name]})
    torch.testing.assert_close(alone[name], means[name])  # with one layer: the mean of vᵀHv
    leak = torch.stack([theirs[n] - means[n] for n in means])
    assert float(leak.abs().max()) > 0.1 * float(torch.stack([*means.values()]).max())

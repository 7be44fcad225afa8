from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from networks import SMOOTH, Case, build, moved
from torch import nn

from dense_hessians import block_hessian, positive_form, positive_trace
from hesstune.curvature.batches import rows_of
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.lanczos import LanczosForms
from hesstune.curvature.objective import Objective, mixture_losses
from hesstune.curvature.quadrature import Stopping
from hesstune.errors import ConfigError

ENOUGH = Stopping(tol=0, most=80)
CONVERGED = {"rtol": 1e-6, "atol": 1e-12}
DEFAULT_ERROR = 0.03
SAME = {"rtol": 1e-9, "atol": 1e-13}


def deltas_of(case: Case) -> dict[str, torch.Tensor]:
    return {name: case.ref.difference(case.model, name) for name in case.ref.layers()}


def lanczos(case: Case, *, loss: Any = "cross_entropy", stopping: Stopping | None = None) -> LanczosForms:
    engine = CurvatureEngine(case.model, deltas_of(case), loss)
    return engine.lanczos((case.inputs, case.targets), stopping=stopping)


def stable(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # log-softmax's second derivative is noise on fitted examples; this one is tested in many digits below.
    return mixture_losses(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))


def twin(case: Case, name: str, loss: Any = stable) -> torch.Tensor:
    hessian = block_hessian(case.model, case.inputs, case.targets, name, loss)
    return positive_form(hessian, case.ref.difference(case.model, name))


def brackets(found: Any, column: int, truth: torch.Tensor) -> bool:
    """Whether the truth is inside, up to the rounding of the twin's eigenvalues."""
    slack = 1e-9 * truth.abs() + 1e-12
    return bool(((found.lower[:, column] <= truth + slack) & (truth <= found.upper[:, column] + slack)).all())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_default_is_within_three_percent_and_the_bracket_contains_the_truth(name: str, seed: int):
    case = build(name, scale=(0.3, 1.0, 0.05)[seed], seed=10 + seed)
    deltas = deltas_of(case)
    forms = lanczos(case)
    few = lanczos(case, stopping=Stopping(tol=0, most=2))
    for column, layer in enumerate(deltas):
        truth = twin(case, layer)
        for found in (forms, few):
            assert brackets(found, column, truth), layer
        torch.testing.assert_close(
            forms.quadratic[:, column], truth, rtol=DEFAULT_ERROR, atol=1e-9, msg=layer
        )
    assert (forms.error <= DEFAULT_ERROR).logical_or(forms.upper < 1e-9).all()


def test_the_positive_part_is_kept_where_the_form_itself_is_negative():
    negative = 0
    for seed in range(6):
        case = build("mlp_gelu", scale=1.0, seed=seed)
        delta = case.ref.difference(case.model, "0.weight")
        hessian = block_hessian(case.model, case.inputs, case.targets, "0.weight")
        flat = delta.flatten()
        negative += int(((hessian @ flat) @ flat < 0).sum())
        engine = CurvatureEngine(case.model, {"0.weight": delta})
        found = engine.lanczos((case.inputs, case.targets), stopping=ENOUGH).quadratic[:, 0]
        torch.testing.assert_close(found, positive_form(hessian, flat), **CONVERGED)
    assert negative >= 3  # the cases are what they claim to be


def test_float32_follows_float64():
    case = build("bert")
    exact = lanczos(case, stopping=ENOUGH)
    deltas = {name: delta.float() for name, delta in deltas_of(case).items()}
    engine = CurvatureEngine(case.model.float(), deltas)
    found = engine.lanczos((case.inputs, case.targets), stopping=ENOUGH)
    torch.testing.assert_close(found.quadratic, exact.quadratic, rtol=2e-3, atol=1e-6)


def test_padding_behind_the_mask_changes_nothing():
    case = build("bert")
    row, width = 1, int(case.inputs["attention_mask"][1].sum())
    padded = rows_of(case.inputs, torch.tensor([row]))
    other = padded["input_ids"].clone()
    other[:, width:] = 9
    trimmed = {key: value[:, :width] for key, value in padded.items()}
    target = case.targets[row : row + 1]
    expected = lanczos(Case(case.model, case.ref, trimmed, target))
    for inputs in (padded, padded | {"input_ids": other}):
        found = lanczos(Case(case.model, case.ref, inputs, target))
        torch.testing.assert_close(found.quadratic, expected.quadratic, **SAME)
        # The bracket knows as well which tokens cannot matter.
        torch.testing.assert_close(found.upper, expected.upper, rtol=1e-6, atol=1e-12)


class SmoothCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.silu(self.grouped(F.gelu(self.norm(self.stem(x))))).mean((2, 3)))


def smooth_cnn() -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = SmoothCnn().double()
        inputs = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    return Case(model, moved(model, 0.2), inputs, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_two_classes_with_one_example_and_either_memory_layout(rows, layout):
    case = smooth_cnn()
    case.model.to(memory_format=layout)
    case.inputs = case.inputs[rows].contiguous(memory_format=layout)
    case.targets = case.targets[rows]
    forms = lanczos(case, stopping=ENOUGH)
    for column, layer in enumerate(case.ref.layers()):
        torch.testing.assert_close(forms.quadratic[:, column], twin(case, layer), **CONVERGED, msg=layer)


def squared(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (torch.tanh(logits) - F.one_hot(targets, logits.shape[1])).square().sum(1)


LOSSES = {
    "any callable": squared,
    "consistent": Objective("consistent", noise_matrix=[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]),
    "smoothing": Objective(label_smoothing=0.2),
    "class weights": Objective(class_weights=torch.tensor([0.5, 2.0, 1.0])),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_other_losses_than_cross_entropy(loss: Any):
    case = build("torch_encoder")
    forms = lanczos(case, loss=loss, stopping=ENOUGH)
    for column, layer in enumerate(case.ref.layers()):
        torch.testing.assert_close(
            forms.quadratic[:, column], twin(case, layer, loss), **CONVERGED, msg=layer
        )


@pytest.mark.parametrize("margin", [-200.0, -30.0, -1.0, 0.0, 1.0, 18.0, 25.0, 40.0, 300.0])
def test_the_losss_derivatives_keep_their_digits_on_saturated_logits(margin: float):
    """Against Λ and p − c in 60 digits, where log-softmax's own second derivative is noise."""
    values = [margin, 0.0, -2.0]
    f = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    slope = torch.autograd.grad(mixture_losses(f, c).sum(), f, create_graph=True)[0]
    rows = [torch.autograd.grad(slope[0, k], f, retain_graph=True)[0][0] for k in range(3)]
    with mpmath.workdps(400):
        e = [mpmath.exp(x) for x in values]
        p = [x / sum(e) for x in e]
        gradient = [p[k] - (k == 0) for k in range(3)]
        curvature = [[p[k] * ((k == j) - p[j]) for j in range(3)] for k in range(3)]
        expected = [[float(x) for x in row] for row in curvature]
        first = [float(x) for x in gradient]
    torch.testing.assert_close(slope[0], torch.tensor(first, dtype=torch.float64), rtol=1e-11, atol=1e-290)
    # Entries p_j p_k beside p_k: relative to the largest, as it is for any quadratic form.
    matrix = torch.tensor(expected, dtype=torch.float64)
    atol = 1e-14 * float(matrix.abs().max())
    torch.testing.assert_close(torch.stack(rows), matrix, rtol=1e-11, atol=atol)
    torch.testing.assert_close(mixture_losses(f, c)[0], F.cross_entropy(f, torch.tensor([0])), **SAME)


def test_fitted_examples_keep_their_digits():
    """40 more of margin multiply the curvature by e^-40, also where p rounds to 1."""
    case = build("mlp_gelu")
    with torch.no_grad():
        bias = case.model[4].bias
        bias.zero_()
        targets = torch.full((5,), 1)
        bias[1] = 20.0
        engine = CurvatureEngine(case.model, deltas_of(case))
        near = engine.lanczos((case.inputs, targets), stopping=ENOUGH)
        bias[1] = 60.0
        far = engine.lanczos((case.inputs, targets), stopping=ENOUGH)
    ratio = far.quadratic / near.quadratic
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.248354255291589e-18), rtol=1e-5, atol=0)


def test_traces_agree_within_their_errors_and_do_not_depend_on_the_batch():
    case = build("mlp_gelu")
    engine = CurvatureEngine(case.model, deltas_of(case), method="lanczos")
    traces = engine.trace((case.inputs, case.targets), probes=60)
    for column, layer in enumerate(traces.names):
        expected = positive_trace(block_hessian(case.model, case.inputs, case.targets, layer))
        assert ((traces.value[:, column] - expected).abs() < 5 * traces.stderr[:, column]).all(), layer
    again = engine.trace((case.inputs[3:], case.targets[3:]), probes=60)
    torch.testing.assert_close(again.value, traces.value[3:], rtol=0.05, atol=1e-12)


def test_the_model_and_the_random_state_are_as_before():
    case = build("bert")
    first = next(iter(case.model.parameters()))
    first.requires_grad_(False)
    case.model.classifier.weight.grad = torch.ones_like(case.model.classifier.weight)
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    state = torch.get_rng_state()
    engine, batch = CurvatureEngine(case.model, deltas_of(case)), (case.inputs, case.targets)
    for method in (engine.exact, engine.lanczos, engine.gauss_newton, engine.trace, engine.spectrum):
        method(batch)
    assert torch.equal(state, torch.get_rng_state())
    assert case.model.training
    assert not first.requires_grad
    assert all(p.grad is None or n == "classifier.weight" for n, p in case.model.named_parameters())
    assert torch.equal(case.model.classifier.weight.grad, torch.ones_like(case.model.classifier.weight))
    assert all(torch.equal(before[k], v) for k, v in case.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"most": 0}, "most at least 1; got .*most=0"), ({"tol": -1.0}, "tol must be at least 0")],
)
def test_wrong_stopping_rules_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Stopping(**wrong)

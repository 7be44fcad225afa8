"""The dense twin against closed forms and finite differences, and the paper code's quantity beside it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import build

from dense_hessians import (
    block_hessian,
    block_jacobian,
    paper_code_quantity,
    positive_form,
    positive_trace,
)


def test_softmax_regression_has_the_textbook_hessian():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 4, bias=False).double()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    p = model(x).softmax(1).detach()
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.stack([torch.kron(c, torch.outer(a, a)) for c, a in zip(covariance, x, strict=True)])
    found = block_hessian(model, x, torch.tensor([0, 1, 2, 3, 0]), "weight")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["mlp_gelu", "attention", "torch_encoder"])
def test_smooth_networks_match_finite_differences_of_the_loss(name):
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


def test_gauss_newton_form_is_the_whole_hessian_of_a_relu_network():
    case = build("cnn")
    logits = case.model.eval()(case.inputs).detach()
    p = logits.softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    for name in case.ref.layers():
        jacobian = block_jacobian(case.model, case.inputs, name)
        expected = jacobian.transpose(1, 2) @ covariance @ jacobian
        found = block_hessian(case.model, case.inputs, case.targets, name)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_positive_part_drops_negative_curvature():
    hessian = torch.diag(torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64))
    v = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    assert float(positive_form(hessian, v)) == pytest.approx(2.0 + 0.5 * 4)
    assert float(positive_trace(hessian)) == pytest.approx(2.5)


def test_the_paper_codes_quantity_mixes_layers_and_examples():
    case = build("mlp_gelu")
    differences = {n: case.ref.difference(case.model, n) for n in case.ref.layers()}
    theirs = paper_code_quantity(case.model, case.inputs, case.targets, differences)
    blocks, names = {}, list(differences)
    for name in names:
        v = differences[name].flatten()
        blocks[name] = block_hessian(case.model, case.inputs, case.targets, name) @ v @ v
    alone = paper_code_quantity(case.model, case.inputs, case.targets, {names[0]: differences[names[0]]})
    # With one layer it is the batch mean of vᵀHv; with all of them other layers' blocks leak in.
    torch.testing.assert_close(alone[names[0]], blocks[names[0]].mean())
    leak = torch.stack([theirs[n] - blocks[n].mean() for n in names])
    assert float(leak.abs().max()) > 0.1 * float(torch.stack([b.mean() for b in blocks.values()]).max())

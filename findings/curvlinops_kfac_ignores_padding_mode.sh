#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1: KFAC of a convolution takes zero padding, whatever its `padding_mode` is.
#
# Behaviour: the weight block of `KFACLinearOperator(..., fisher_type="type-2")` for a convolution whose output
# has one position is exact for one example: it equals the Gauss-Newton matrix, and with a linear network the
# Hessian. So it does with padding_mode="zeros". With "circular" or "replicate" it is the matrix of zero padding:
# the largest error is as large as the largest entry. Nothing warns or raises.
#
# Condition: Conv2d(2, 3, 4, padding=1), images of 2 x 2, one example, float64. Expected: equal in every mode.
#
# Output seen:
#   curvlinops-for-pytorch 3.0.1, torch 2.13.0+cpu
#   zeros: equals the Hessian
#   circular: differs from the Hessian, equals that of zero padding at the same slopes: True
#   replicate: differs from the Hessian, equals that of zero padding at the same slopes: True
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "curvlinops-for-pytorch==${CURVLINOPS_VERSION:-3.0.1}"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from curvlinops import KFACLinearOperator
from torch import nn
from torch.func import functional_call, hessian

print(f"curvlinops-for-pytorch {version('curvlinops-for-pytorch')}, torch {torch.__version__}")
torch.set_default_dtype(torch.float64)
found = {}
for mode in ("zeros", "circular", "replicate"):
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 4, padding=1, padding_mode=mode)
    model, loss = nn.Sequential(convolution, nn.Flatten()), nn.CrossEntropyLoss()
    image, label = torch.randn(1, 2, 2, 2), torch.tensor([1])
    weight = convolution.weight.detach()
    fixed = {name: value.detach() for name, value in model.named_parameters()}

    def of(flat):
        return loss(functional_call(model, {**fixed, "0.weight": flat.view_as(weight)}, (image,)), label)

    expected = hessian(of)(weight.flatten())
    operator = KFACLinearOperator(
        model, loss, list(model.parameters()), [(image, label)],
        check_deterministic=False, fisher_type="type-2",
    )
    block = (operator @ torch.eye(operator.shape[1]))[: weight.numel(), : weight.numel()]
    # Gauss-Newton for inputs padded with zeros, at this network's own output probabilities.
    p = torch.softmax(model(image), 1)[0].detach()
    inputs = nn.functional.pad(image, (1, 1, 1, 1)).flatten()
    zero_padded = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(inputs, inputs))
    found[mode] = (torch.allclose(block, expected), torch.allclose(block, zero_padded))
    if found[mode][0]:
        print(f"{mode}: equals the Hessian")
    else:
        print(f"{mode}: differs from the Hessian, equals that of zero padding at the same slopes: {found[mode][1]}")
sys.exit(list(found.values()) != [(True, True), (False, True), (False, True)])
PYTHON

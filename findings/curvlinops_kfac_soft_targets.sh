#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1: KFAC of cross-entropy with class probabilities as targets is K times too large.
#
# Behaviour: for a linear layer and one example, `KFACLinearOperator(..., fisher_type="type-2")` is exact: with class
# numbers as targets its weight block equals the Hessian. With the same targets as one-hot rows, or with soft
# rows, which leave the Hessian as it is, the block is K times the Hessian, K the number of classes. No error
# or warning says so; `GGNLinearOperator` is right on the same input.
#
# Condition: nn.CrossEntropyLoss, 3 and 5 classes, one example, float64. Expected: equal to the Hessian in all cases.
#
# Output seen:
#   curvlinops-for-pytorch 3.0.1, torch 2.13.0+cpu
#   3 classes, numbers: KFAC is 1.00 times the Hessian, GGN 1.00 times
#   3 classes, one-hot rows: KFAC is 3.00 times the Hessian, GGN 1.00 times
#   3 classes, soft rows: KFAC is 3.00 times the Hessian, GGN 1.00 times
#   5 classes, numbers: KFAC is 1.00 times the Hessian, GGN 1.00 times
#   5 classes, one-hot rows: KFAC is 5.00 times the Hessian, GGN 1.00 times
#   5 classes, soft rows: KFAC is 5.00 times the Hessian, GGN 1.00 times
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
from curvlinops import GGNLinearOperator, KFACLinearOperator
from torch import nn

print(f"curvlinops-for-pytorch {version('curvlinops-for-pytorch')}, torch {torch.__version__}")
torch.set_default_dtype(torch.float64)
kept = True
for k in (3, 5):
    torch.manual_seed(0)
    model, x, loss = nn.Linear(4, k, bias=False), torch.randn(1, 4), nn.CrossEntropyLoss()
    size = 4 * k
    soft = torch.full((1, k), 0.2 / k)
    soft[0, 1] += 0.8
    for name, y in (("numbers", torch.tensor([1])), ("one-hot rows", torch.eye(k)[[1]]), ("soft rows", soft)):
        hessian = torch.func.hessian(lambda w: loss(x @ w.view(k, 4).T, y))(model.weight.detach().flatten())
        ratios = []
        for kind, options in ((KFACLinearOperator, {"fisher_type": "type-2"}), (GGNLinearOperator, {})):
            matrix = kind(model, loss, list(model.parameters()), [(x, y)], **options) @ torch.eye(size)
            ratio = float((matrix * hessian).sum() / (hessian * hessian).sum())
            kept &= torch.allclose(matrix, ratio * hessian)
            ratios.append(ratio)
        print(f"{k} classes, {name}: KFAC is {ratios[0]:.2f} times the Hessian, GGN {ratios[1]:.2f} times")
        kept &= abs(ratios[0] - (1 if name == "numbers" else k)) < 1e-6 and abs(ratios[1] - 1) < 1e-6
sys.exit(not kept)
PYTHON

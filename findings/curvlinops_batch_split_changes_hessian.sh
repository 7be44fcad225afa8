#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1: the Hessian of a weighted mean loss depends on how the data is cut into batches.
#
# Behaviour: `HessianLinearOperator` and `GGNLinearOperator` weigh each batch by its number of examples. The mean
# of nn.CrossEntropyLoss with class weights, or with ignored targets, divides by the sum of weights, or by the number
# of targets that count. With several batches the operator is then not that of the loss of all examples, and it
# changes with the cut. No error or warning says so; `check_deterministic` passes. A plain mean and
# reduction="sum" agree.
#
# Condition: a linear layer in float64, 12 examples as one batch and as two equal ones, the dense Hessian of the loss of all
# 12 by torch.func as the reference. Expected: both operators are that Hessian, or the loss is refused.
#
# Output seen:
#   curvlinops-for-pytorch 3.0.1, torch 2.13.0+cpu
#   plain mean: one batch agrees, two batches agree
#   class weights: one batch agrees, two batches differ
#   ignored targets: one batch agrees, two batches differ
#   class weights, sum: one batch agrees, two batches agree
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
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import nn

print(f"curvlinops-for-pytorch {version('curvlinops-for-pytorch')}, torch {torch.__version__}")
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model, x, y = nn.Linear(3, 3), torch.randn(12, 3), torch.arange(12) // 4
ignored = torch.where(torch.arange(12) < 4, -100, y)
weights = torch.tensor([1.0, 5.0, 20.0])
losses = {
    "plain mean": (nn.CrossEntropyLoss(), y),
    "class weights": (nn.CrossEntropyLoss(weight=weights), y),
    "ignored targets": (nn.CrossEntropyLoss(), ignored),
    "class weights, sum": (nn.CrossEntropyLoss(weight=weights, reduction="sum"), y),
}
parameters = {name: p.detach() for name, p in model.named_parameters()}
sizes = [p.numel() for p in parameters.values()]


def dense(loss, targets):
    def value(flat):
        given = {n: part.view_as(p) for (n, p), part in zip(parameters.items(), flat.split(sizes))}
        return loss(torch.func.functional_call(model, given, x), targets)

    return torch.func.hessian(value)(torch.cat([p.flatten() for p in parameters.values()]))


found = []
for name, (loss, targets) in losses.items():
    expected = dense(loss, targets)
    for batches in ([(x, targets)], list(zip(x.split(6), targets.split(6)))):
        agree = True
        for kind in (HessianLinearOperator, GGNLinearOperator):
            operator = kind(model, loss, list(model.parameters()), batches)
            agree &= torch.allclose(operator @ torch.eye(sum(sizes)), expected)
        found.append(agree)
    words = [("agrees" if one else "differs") for one in found[-2:]]
    print(f"{name}: one batch {words[0]}, two batches {words[1].rstrip('s')}")
sys.exit(found != [True, True, True, False, True, False, True, True])
PYTHON

#!/usr/bin/env bash
# hessian-eigenthings 1.0.0a5: power iteration with momentum returns the eigenvalue minus the momentum.
#
# Behaviour: `deflated_power_iteration(operator, k=1, momentum=m)` of diag(5, 2, 1, 0.5) returns 5 - m, with
# `converged` true. Without momentum it returns 5. Momentum is to speed the iteration up; the eigenvalue of the
# matrix, as by the Rayleigh quotient of the vector that was found, is 5 for every momentum.
#
# Condition: a symmetric operator in float64, momentum 0, 0.1, 0.5 and 1, at most 500 iterations.
#
# Output seen:
#   hessian-eigenthings 1.0.0a5
#   momentum 0: 5.0000, converged True
#   momentum 0.1: 4.9000, converged True
#   momentum 0.5: 4.5000, converged True
#   momentum 1: 4.0000, converged True
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "hessian-eigenthings==${EIGENTHINGS_VERSION:-1.0.0a5}"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from hessian_eigenthings import LambdaOperator, deflated_power_iteration

print(f"hessian-eigenthings {version('hessian-eigenthings')}")
matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.5], dtype=torch.float64))
operator = LambdaOperator(lambda v: matrix @ v, size=4, device=torch.device("cpu"), dtype=torch.float64)
same = True
for momentum in (0.0, 0.1, 0.5, 1.0):
    found = deflated_power_iteration(operator, k=1, max_iter=500, momentum=momentum, seed=0)
    value, converged = float(found.eigenvalues[0]), bool(found.converged[0])
    print(f"momentum {momentum:g}: {value:.4f}, converged {converged}")
    same = same and converged and abs(value - (5.0 - momentum)) < 1e-3
sys.exit(not same)
PYTHON

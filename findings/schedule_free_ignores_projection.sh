#!/usr/bin/env bash
# A constraint on the weights after each step does not hold for the weights that schedulefree evaluates.
#
# Packages: schedulefree 1.4.1, torch 2.13.0, on a CPU.
#
# In training mode the parameters hold y = β·x + (1 − β)·z; optimizer.eval() sets them to the average
# x = (y − (1 − β)·z) / β. z is in the optimizer's state only, so clamping, projecting or normalising the
# parameters after optimizer.step() leaves it where it is. Seen: weights that are projected to a distance of
# 0.1 from their start after each of 200 steps are at 0.1 in training mode, and several times as far in
# evaluation mode. Nothing warns.
#
# Exits with 0 if this is still so, and with 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy schedulefree==1.4.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import schedulefree
import torch

torch.manual_seed(0)
model = torch.nn.Linear(8, 3)
start = model.weight.detach().clone()
optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.05)
x, y = torch.randn(64, 8), torch.randint(3, (64,))


def distance():
    return float((model.weight.detach() - start).norm())


optimizer.train()
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        model.weight.copy_(start + (model.weight - start) * min(1.0, 0.1 / distance()))
training = distance()
optimizer.eval()
evaluated = distance()
print(f"radius 0.1; distance in training mode {training:.3f}, in evaluation mode {evaluated:.3f}")
sys.exit(0 if training < 0.1001 and evaluated > 0.2 else 1)
PYTHON

#!/usr/bin/env bash
# torch 2.13.0, CPU: an operation in place on a view raises, unless an attribute of the view was read before.
#
# Behaviour: v is a view of a tensor that requires no gradient. A tensor that requires a gradient is written
# into a slice of v, which is allowed and makes v require a gradient. The next operation in place on v raises
# "a leaf Variable that requires grad is being used in an in-place operation.". v is not a leaf: if
# `v.is_leaf` (False) or `v.grad_fn` is read between the two lines, the same operation works and the gradient
# is correct. Without the view it works, too.
#
# The output of `torch.nn.Linear` for inputs of shape (B, T, D) is such a view, so a model that writes into a
# slice of it (as global queries of attention are written) raises if the weights of that layer are frozen.
#
# Output seen:
#   torch 2.13.0+cpu
#   in place at once:       RuntimeError: a leaf Variable that requires grad is being used in an in-place operation.
#   after reading is_leaf:  gradient [0.5, 0.5, 0.5]
#   not a view:             gradient [0.5, 0.5, 0.5]
#   frozen Linear layer:    RuntimeError: a leaf Variable that requires grad is being used in an in-place operation.
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==${TORCH_VERSION:-2.13.0}" numpy
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

print("torch", torch.__version__)


def halved(tensor, read):
    row = torch.ones(tensor[0].shape, requires_grad=True)
    tensor[0] = row
    if read:
        assert not tensor.is_leaf
    try:
        tensor /= 2
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return f"gradient {torch.autograd.grad(tensor.sum(), row)[0].flatten().tolist()}"


layer = torch.nn.Linear(3, 3).requires_grad_(False)
found = [
    halved(torch.zeros(6).view(2, 3), read=False),
    halved(torch.zeros(6).view(2, 3), read=True),
    halved(torch.zeros(2, 3), read=False),
    halved(layer(torch.zeros(2, 4, 3)), read=False),
]
for name, text in zip(["in place at once", "after reading is_leaf", "not a view", "frozen Linear layer"], found):
    print(f"{name}: {text}")
sys.exit(["RuntimeError" in text for text in found] != [True, False, False, True])
PYTHON

#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1: per-example gradients of convolutions ignore `padding_mode` and padding="same".
#
# Behaviour: `BatchGrad` of a Conv2d with padding_mode="circular" or "reflect", or with padding="same", has
# other values than the gradients of single examples by PyTorch, although the sum over the examples,
# `weight.grad`, is right. No error or warning says so. With padding_mode="zeros" and a number as padding both agree.
#
# Condition: a Conv2d of kernel 3 with one of these options, in float64. Expected: `grad_batch` sums to `grad`.
#
# Output seen:
#   backpack-for-pytorch 1.7.1, torch 2.13.0+cpu
#   padding=1, zeros: agrees
#   padding=1, circular: differs
#   padding=1, reflect: differs
#   padding=same, zeros: differs
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "backpack-for-pytorch==${BACKPACK_VERSION:-1.7.1}"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn

print(f"backpack-for-pytorch {version('backpack-for-pytorch')}, torch {torch.__version__}")
torch.set_default_dtype(torch.float64)
found = {}
for padding, mode in ((1, "zeros"), (1, "circular"), (1, "reflect"), ("same", "zeros")):
    torch.manual_seed(0)
    images, labels = torch.randn(4, 2, 6, 6), torch.arange(4) % 3
    convolution = nn.Conv2d(2, 3, 3, padding=padding, padding_mode=mode)
    model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(108, 3))
    loss = nn.CrossEntropyLoss(reduction="sum")
    expected = []
    for image, label in zip(images, labels):
        value = loss(model(image[None]), label[None])
        expected.append(torch.autograd.grad(value, convolution.weight)[0])
    extended, loss = extend(model), extend(loss)
    with backpack(BatchGrad()):
        loss(extended(images), labels).backward()
    torch.testing.assert_close(convolution.weight.grad, sum(expected))
    agrees = torch.allclose(convolution.weight.grad_batch, torch.stack(expected))
    found[padding, mode] = agrees
    print(f"padding={padding}, {mode}: {'agrees' if agrees else 'differs'}")
sys.exit(list(found.values()) != [True, False, False, False])
PYTHON

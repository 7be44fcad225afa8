#!/usr/bin/env bash
# torch 2.13.0 and 2.14.0, CPU: the gradient of batch norm is wrong for a batch of one example with certain strides.
#
# Behaviour: `F.batch_norm(x, ...)` of a contiguous x of shape (1, C, H, W), followed by
# `flatten(2).transpose(1, 2)` (the usual way from an image to tokens) and an elementwise product, gives a
# gradient that differs from finite differences by O(1), in eval mode and in training mode, in float32 and
# float64, without a warning. The output is correct. For two or more examples the gradient is correct.
#
# Condition: exactly one of the input and the gradient of the output is in channels-last order with a stride
# of dimension 0 that is not C*H*W. torch ignores the stride of a dimension of size 1 when it classifies the
# memory format (`is_contiguous(memory_format=torch.channels_last)` is True), so such strides are valid; here
# autograd itself makes them: (C, 1, W*C, C). With the stride (H*W*C, 1, W*C, C) the result is correct.
# `native_batch_norm_backward` alone shows it. The same holds for (1, C, D, H, W) and for instance norm.
# `grad.contiguous()` before the norm's backward pass avoids it.
#
# Output seen:
#   torch 2.13.0+cpu
#   eval mode, 1 example(s): largest difference from finite differences 4.57e+00
#   eval mode, 2 example(s): largest difference from finite differences 5.25e-08
#   training mode, 1 example(s): largest difference from finite differences 8.57e-01
#   training mode, 2 example(s): largest difference from finite differences 3.00e-08
#   native_batch_norm_backward, strides (24, 1, 12, 3): difference from contiguous 0.00e+00
#   native_batch_norm_backward, strides (3, 1, 12, 3): difference from contiguous 2.59e+00
#
# torch 2.14.0 (TORCH_VERSION=2.14.0) prints the same figures.
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
import torch.nn.functional as F

torch.manual_seed(0)
C, H, W = 3, 2, 4
mean, var = torch.randn(C).double(), torch.rand(C).double() + 0.5
weight, bias = torch.randn(C).double(), torch.randn(C).double()
print("torch", torch.__version__)


def error(training, examples):
    factors = torch.randn(examples, H * W, C).double()

    def value(x):
        moments = (None, None) if training else (mean, var)
        z = F.batch_norm(x, *moments, weight, bias, training)
        return (z.flatten(2).transpose(1, 2) * factors).sum()

    x = torch.randn(examples, C, H, W).double().requires_grad_()
    gradient = torch.autograd.grad(value(x), x)[0].flatten()
    found = []
    for place in range(x.numel()):
        step = torch.zeros(x.numel()).double()
        step[place] = 1e-6
        step = step.view(x.shape)
        found.append(float(value(x.detach() + step) - value(x.detach() - step)) / 2e-6)
    return float((gradient - torch.tensor(found).double()).abs().max())


wrong = []
for training in (False, True):
    for examples in (1, 2):
        found = error(training, examples)
        wrong.append(found > 1e-3)
        mode = "training mode" if training else "eval mode"
        print(f"{mode}, {examples} example(s): largest difference from finite differences {found:.2e}")


def backward(gradient):
    arguments = (gradient, x, weight, mean, var, None, None, False, 1e-5, [True, False, False])
    return torch.ops.aten.native_batch_norm_backward(*arguments)[0]


x, gradient = torch.randn(1, C, H, W).double(), torch.randn(1, C, H, W).double()
for strides in ((H * W * C, 1, W * C, C), (C, 1, W * C, C)):
    same = torch.zeros(C * H * W).double().as_strided(gradient.shape, strides).copy_(gradient)
    assert torch.equal(same, gradient)
    found = float((backward(same) - backward(gradient)).abs().max())
    wrong.append(found > 1e-3)
    print(f"native_batch_norm_backward, strides {strides}: difference from contiguous {found:.2e}")
sys.exit(wrong != [True, False, True, False, False, True])
PYTHON

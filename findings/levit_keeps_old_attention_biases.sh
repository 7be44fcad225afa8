#!/usr/bin/env bash
# LeViT in eval mode computes with attention biases that are no longer its weights.
#
# Packages: transformers 5.23.0, torch 2.13.0, on a CPU. timm 1.0.31 has the same code (levit.py,
# efficientformer.py, efficientformer_v2.py, efficientvit_msra.py, tiny_vit.py).
#
# In eval mode LevitAttention keeps the gathered biases, attention_biases[:, attention_bias_idxs], and clears
# them only when train(True) is called. Seen, for a LevitForImageClassification made from a configuration:
#   1. load_state_dict in eval mode: the logits are computed with the old biases. They differ from those of a
#      new model with the same state dict by 0.9 standard deviations. Calling eval() again changes nothing;
#      train() then eval() makes them equal.
#   2. An in-place change of attention_biases alone, under no_grad, changes no logit at all.
#   3. Fine-tuning in eval mode, as with frozen batch-norm statistics: the second backward() raises
#      "Trying to backward through the graph a second time", since the kept tensor has the first one's graph.
#   4. LevitAttention.train() returns None, where torch.nn.Module.train() returns the module.
#
# Exits with 0 if all of this is still so, and with 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from transformers import LevitConfig, LevitForImageClassification


def levit(seed):
    torch.manual_seed(seed)
    config = LevitConfig(
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        num_labels=3,
    )
    model = LevitForImageClassification(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "attention_biases" in name:
                p.normal_()
            elif p.ndim > 1:
                p.mul_(5)  # from 0.02 to a size at which the input counts
    return model


def apart(logits, expected):
    """The largest difference, relative to the spread of what is expected."""
    return ((logits - expected).abs().max() / expected.std()).item()


x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
seen = []
with torch.no_grad():
    used, new = levit(0), levit(1)
    used(x)
    used.load_state_dict(new.state_dict())
    error = apart(used(x).logits, new(x).logits)
    seen.append(error > 1e-3)
    print(f"after load_state_dict in eval mode the logits differ by {error:.3g}")
    again = apart(used.eval()(x).logits, new(x).logits)
    seen.append(again == error)
    print(f"after another eval() by {again:.3g}")
    used.train()
    used.eval()
    cleared = apart(used(x).logits, new(x).logits)
    seen.append(cleared == 0)
    print(f"after train() and eval() by {cleared:.3g}")

    before = new(x).logits
    for name, p in new.named_parameters():
        if "attention_biases" in name:
            p.add_(torch.randn_like(p))
    moved = apart(new(x).logits, before)
    fresh = copy.deepcopy(new)
    fresh.train()
    fresh.eval()
    seen.append(moved == 0 and apart(fresh(x).logits, before) > 1e-3)
    print(f"after a change of the biases alone they move by {moved:.3g}")

model = levit(0)
model(x).logits.sum().backward()
try:
    model(x).logits.sum().backward()
    message = "no error"
except RuntimeError as error:
    message = str(error).splitlines()[0]
seen.append("a second time" in message)
print(f"the second backward() in eval mode: {message}")

attention = next(m for m in model.modules() if type(m).__name__ == "LevitAttention")
returned = attention.train()
seen.append(returned is None)
print(f"LevitAttention.train() returns {returned}")
sys.exit(0 if all(seen) else 1)
PYTHON

"""Write docs/own-loop.md from the examples, which the tests run.

python benchmarks/write_own_loop.py
"""

from __future__ import annotations

from records import DOCS, ROOT

PAGE = DOCS / "own-loop.md"

HEAD = """# In your own training loop

Add three things to your loop: the **reference** (a copy of the weights before training), the **consistent
loss** in place of cross-entropy, and the **distance constraint**, which limits after each step how far a
layer has moved from the reference. The consistent loss is unbounded below, so train it with the constraint.
Lines that are added are marked `# +`. Each example is a file in `examples/`, runs in seconds, and prints the
test accuracy of plain cross-entropy and of the added lines on the same noisy labels. Its first argument is
the seed.

The consistent loss needs the noise matrix, F[i, j] = P(given label = j | true label = i): give
`ht.NoiseMatrix.symmetric(k, rate)` if labels are wrong at random, `ht.NoiseMatrix.from_array(F)` if you know
more. It helps most if wrong labels favour one class, as in these examples. If labels are wrong at random and
you stop in time, plain cross-entropy is about as accurate. A radius is one number, or `{pattern: radius}` on
the layers' names; the first match counts.
"""

SECTIONS = {
    "Plain PyTorch": ("plain_pytorch", ""),
    "transformers' Trainer": (
        "trainer",
        """The callback copies the weights as training starts and writes them to
`output_dir/reference.safetensors`. A training that resumes reads them from there: the weights of a
checkpoint would let the layers move further at every restart.

There are two other ways to keep the weights near the pretrained ones:

- `PretrainedDecayCallback(decay)` does w ← w − lr·decay·(w − w⁽ˢ⁾) before every step. It is AdamW's
  `weight_decay` with the pretrained weights in place of zero.
- `PenaltyMixin`, for any Trainer, adds the penalty α/2·‖w − w⁽ˢ⁾‖² to the loss; Adam rescales its gradient.
  Evaluation reports the loss without the penalty. `kept_reference` writes the pretrained weights in the
  first run and reads them in later ones.
""",
    ),
    "LoRA and other users of peft": (
        "lora",
        """With adapters, a layer's change is the product s·B·A. Its norm is computed from two r×r matrices,
without forming the product. The projection scales B, and the measure is taken on a merged copy. The
names of layers, in radii and in results, are those of the model without adapters.
`RobustTrainerCallback` and Lightning's `RobustCallback` accept a peft model as well. DoRA and other
adapters that are not a plain product are refused by name.

An embedding with an adapter is a product, too. It has a distance, and one radius for all layers
holds it. It is not measured, since embeddings are not layers; `not_layers` of the measurement names
it.
""",
    ),
    "Lightning": ("lightning_module", ""),
    "accelerate": ("accelerate_loop", ""),
    "scikit-learn": (
        "sklearn_classifier",
        """`RobustClassifier` takes images as arrays, (N, H, W) or (N, H, W, 3), or texts as a list of
strings, and trains as `hesstune finetune` does; its parameters are that command's options.
`fit`, `predict`, `predict_proba`, `score`, `clone`, pipelines and grid search work.
scikit-learn's `check_estimator` passes; those of its checks that feed a table of features are
skipped by scikit-learn itself, because images and texts are no table.
""",
    ),
}

TAIL = """## Weights that are not layers

Layers are linear layers, convolutions and the input projections of attention. Other weight
matrices, such as embeddings, recurrent weights, position tables and experts of three dimensions,
are left out and named if they have changed: `Measure.not_layers` and `Measure.notes` list them,
`Reference.distances` warns of them (`warn=False` does not), and `DistanceConstraint` warns of them
before training. `DistanceConstraint(include=[pattern])` holds them, too.

## Compiled networks and evaluation mode

A network and its `torch.compile`d form have the same names here, so a reference of one fits the
other. `measure`, `noise_stability` and `certify` run the original modules:
compiled code has no second derivatives. `finetune` trains the original network and says so in the
run's notes.

Some networks keep tensors computed from weights while they are in evaluation mode, such as the
attention biases of LeViT. hesstune clears them before every forward pass of its own and after it
has changed weights. In a loop of your own, call `model.train()` and then `model.eval()` after each
change of weights in evaluation mode.
"""


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for title, (name, text) in SECTIONS.items():
        code = (ROOT / "examples" / f"{name}.py").read_text()
        told = f"{text}\n" if text else ""
        parts.append(f"## {title}\n\n{told}`examples/{name}.py`:\n\n```python\n{code}```\n")
    return "\n".join([*parts, TAIL])


if __name__ == "__main__":
    PAGE.write_text(page())

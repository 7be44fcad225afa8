"""Write docs/own-loop.md from the examples, which the tests run.

python benchmarks/write_own_loop.py
"""

from __future__ import annotations

from records import DOCS, ROOT

PAGE = DOCS / "own-loop.md"

HEAD = """# In your own training loop

Fine-tuning does not have to go through `hesstune finetune`. Three things are added to a loop of your own:
the **reference** (a copy of the weights before training), the **consistent loss** instead of
cross-entropy, and the **constraint**, which puts every layer back into its ball after each step. The
two halves need each other: the consistent loss is unbounded below, and the constraint alone cannot tell
right labels from wrong ones. Lines that are added are marked `# +`; each example is a file in `examples/`
and runs as it stands.

What is believed about the labels is a noise matrix, F[i, j] = P(given label = j | true label = i):
`ht.NoiseMatrix.symmetric(k, rate)` where labels are wrong at random, `ht.NoiseMatrix.from_array(F)` where
more is known. A radius is one number, or `{pattern: radius}` on the layers' names, the first match winning.
"""

SECTIONS = {
    "Plain PyTorch": ("plain_pytorch", ""),
    "transformers' Trainer": (
        "trainer",
        """The callback takes the reference as training starts and keeps it in
`output_dir/reference.safetensors`. A training that resumes reads it from there: what the model
holds at that time is a checkpoint, and decaying or projecting towards a checkpoint would let
the weights drift further at every restart.

The rest is weight decay towards the pretrained weights. `PretrainedDecayCallback(decay)` does
w ← w − lr·decay·(w − w⁽ˢ⁾) before every step: AdamW's `weight_decay`, with the pretrained
weights in the place of zero (with a reference of zeros it is AdamW's own, weight for weight). The
penalty α/2·‖w − w⁽ˢ⁾‖² in the loss, by a mixin for any Trainer, goes through Adam's moments, which
rescale it; in evaluation the loss is reported without it. `kept_reference` writes the pretrained
weights in the first run and reads them in later ones.
""",
    ),
    "LoRA and other users of peft": (
        "lora",
        """With adapters, a layer's change is the product s·B·A. Its norm comes from two r×r matrices,
without forming the product; projection scales B; the measure is taken of a merged copy. The
names of layers, in radii and in results, are those of the model without adapters.
`RobustTrainerCallback` and Lightning's `RobustCallback` do the same when they meet a peft
model. DoRA and other adapters that are no plain product are refused by name.

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
other. `measure`, `noise_stability`, `sam_sharpness` and `certify` run the original modules:
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

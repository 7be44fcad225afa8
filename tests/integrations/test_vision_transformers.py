"""ViT and ConvNeXt from a local folder: fine-tuned inside their balls, measured, exported, predicted."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from hesstune.analysis.export import export_run  # noqa: E402
from hesstune.analysis.measure import measure_run  # noqa: E402

CONFIGS = {
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    ),
    "convnext": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(
            patch_size=4, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32
        )
    ),
}


@pytest.fixture(params=CONFIGS)
def pretrained(request, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / request.param
    CONFIGS[request.param]().save_pretrained(folder)
    return folder


def test_from_a_saved_folder_to_a_saved_folder(pretrained, tmp_path, image_folder):
    data = f"folder:{image_folder}"
    run = ht.finetune(
        model=f"hf:{pretrained}",
        data=data,
        inject_noise="symmetric:0.2",
        method="robust",
        image_size=32,
        epochs=3,
        lr=1e-2,
        radius={"classifier.weight": 0.5, "*": 0.1},
        out=tmp_path / "run",
    )
    model, reference = run.model(), run.reference()
    found = reference.distances(model, warn=False)
    assert set(found) == set(reference.layers())
    assert max(found.values()) > 0.09
    assert all(d <= (0.5 if k == "classifier.weight" else 0.1) * (1 + 1e-5) for k, d in found.items())

    measured = measure_run(run, examples="all")
    kinds = dict(zip(measured.names, measured.exact, strict=True))
    assert bool((measured.maximum >= 0).all())
    assert kinds.pop("classifier.weight")
    assert not any(kinds.values())  # softmax attention and GELU are smooth

    export_run(run, tmp_path / "exported")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "exported").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, model.eval()(x).logits)
    assert len(ht.predict(run, data).predicted) > 0

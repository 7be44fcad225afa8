"""ViT, ConvNeXt and LeViT of transformers: fine-tuned, measured, exported, with their present weights."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from hesstune.analysis.export import export_run  # noqa: E402
from hesstune.analysis.measure import measure_run  # noqa: E402
from hesstune.forward import evaluating, logits_of  # noqa: E402


def vit():
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def convnext():
    config = transformers.ConvNextConfig(
        patch_size=4, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32
    )
    return transformers.ConvNextForImageClassification(config)


@pytest.mark.parametrize("make", [vit, convnext])
def test_from_a_saved_folder_to_a_saved_folder(make, tmp_path, image_folder):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "start")
    data, radius = f"folder:{image_folder}", {"classifier.weight": 0.5, "*": 0.1}
    options = {"inject_noise": "symmetric:0.2", "method": "robust", "image_size": 32, "epochs": 2, "lr": 1e-2}
    run = ht.finetune(
        options, model=f"hf:{tmp_path / 'start'}", data=data, radius=radius, out=tmp_path / "run"
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


# LeViT keeps its attention biases in eval mode; results are those of the present ones.

SIZE, K = 64, 3
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def levit():
    """A tiny LeViT with weights that moved from their reference after its biases were kept."""
    torch.manual_seed(0)
    config = transformers.LevitConfig(
        image_size=SIZE, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
        key_dim=[4, 4, 4], num_labels=K,
    )  # fmt: skip
    model = transformers.LevitForImageClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
        ref = ht.Reference.of(model)
        model(images())
        for name, p in model.named_parameters():
            p.add_((1.0 if "attention_biases" in name else 0.02) * torch.randn_like(p))
    return model, ref


def images(n=6):
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def logits(model, ref):
    with evaluating(model), torch.no_grad():
        return logits_of(model, images())


def measured(model, ref):
    layers = ["*stages.0*queries*", "*classifier*"]
    return ht.measure(model, ref, [(images(), TARGETS)], layers=layers).quadratic


def stability(model, ref):
    options = {"samples": 2, "probes": 2, "layers": "*classifier*"}
    found = ht.noise_stability(model, [(images(2), TARGETS[:2])], 0.05, **options)
    return torch.tensor([found.value, found.taylor])


def draws(model, ref):
    """The trained weights are attention biases alone: with stale ones, every draw would be the first."""
    for name, p in model.named_parameters():
        p.requires_grad_("attention_biases" in name)
    data = TensorDataset(images(16), torch.arange(16) % K)
    options = {"draws": 16, "block_size": 4, "prior_scales": [4.0, 8.0], "diagnostic": True}
    found = ht.certify(model, ref, data, **options)
    return torch.tensor([found.risk, found.empirical])


@pytest.mark.parametrize("user", [logits, measured, stability, draws], ids=lambda user: user.__name__)
def test_levit_is_used_with_its_present_biases(user, monkeypatch):
    model, ref = levit()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = user(model, ref)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        after = model(images()).logits
    module = transformers.models.levit.modeling_levit
    for kind in (module.LevitAttention, module.LevitAttentionSubsample):  # a twin that keeps nothing
        present = lambda self, device: self.attention_biases[:, self.attention_bias_idxs]  # noqa: E731
        monkeypatch.setattr(kind, "get_attention_biases", present)
    twin, ref = levit()
    torch.testing.assert_close(found, user(twin, ref))
    torch.testing.assert_close(after, twin(images()).logits)

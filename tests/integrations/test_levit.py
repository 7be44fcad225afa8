"""LeViT keeps its attention biases in eval mode; results are those of the present ones."""

import pytest
import torch
from torch.utils.data import TensorDataset

transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from hesstune.forward import evaluating, logits_of  # noqa: E402

SIZE, K = 64, 3


def levit():
    """A tiny LeViT whose weights have moved from their reference after its biases were kept."""
    torch.manual_seed(0)
    config = transformers.LevitConfig(
        image_size=SIZE,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        num_labels=K,
    )
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


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def logits(model, ref):
    with evaluating(model), torch.no_grad():
        return logits_of(model, images())


def measured(model, ref):
    return ht.measure(model, ref, [(images(), TARGETS)], layers=["*queries*", "*classifier*"]).quadratic


def stability(model, ref):
    found = ht.noise_stability(
        model, [(images(2), TARGETS[:2])], 0.05, samples=2, probes=2, layers="*classifier*"
    )
    return torch.tensor([found.value, found.taylor])


def draws(model, ref):
    """The trained weights are attention biases alone: with stale ones, every draw would be the first."""
    for name, p in model.named_parameters():
        p.requires_grad_("attention_biases" in name)
    data = TensorDataset(images(16), torch.arange(16) % K)
    options = {"draws": 16, "block_size": 4, "prior_scales": [4.0, 8.0], "diagnostic": True}
    found = ht.certify(model, ref, data, **options)
    return torch.tensor([found.risk, found.empirical])


@pytest.fixture
def without_cache(monkeypatch):
    """What LeViT computes without keeping anything."""

    def install():
        module = transformers.models.levit.modeling_levit
        for kind in (module.LevitAttention, module.LevitAttentionSubsample):
            monkeypatch.setattr(
                kind,
                "get_attention_biases",
                lambda self, device: self.attention_biases[:, self.attention_bias_idxs],
            )

    return install


@pytest.mark.parametrize("user", [logits, measured, stability, draws], ids=lambda user: user.__name__)
def test_it_is_used_with_its_present_biases(user, without_cache):
    model, ref = levit()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = user(model, ref)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        after = model(images()).logits
    without_cache()
    twin, ref = levit()
    torch.testing.assert_close(found, user(twin, ref))
    torch.testing.assert_close(after, twin(images()).logits)

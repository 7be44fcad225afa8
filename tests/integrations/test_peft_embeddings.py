"""LoRA on embeddings is a product B·A: it has a distance and is constrained like a layer."""

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")

import hesstune as ht  # noqa: E402
from hesstune.errors import HesstuneWarning, LayerError  # noqa: E402
from hesstune.forward import logits_of  # noqa: E402
from hesstune.integrations._shared import constraint_of, distances_of, reference_of  # noqa: E402
from hesstune.integrations.peft import (  # noqa: E402
    AdapterConstraint,
    base_reference,
    distances,
    measure_adapters,
    merged,
)

WORDS, PLACES, LINEAR = "words.weight", "places.weight", "body.weight"
IDS = torch.randint(0, 20, (5, 4), generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 0, 1])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6, padding_idx=0), nn.Embedding(4, 6)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids):
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.places(places)
        return self.head(torch.tanh(self.body(x)).mean(1))


def adapted(targets=("words", "body"), compiled=False, **changes):
    """A network with adapters that training has moved."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 6, "target_modules": list(targets), "modules_to_save": ["head"]}
    model = peft.get_peft_model(Network(), peft.LoraConfig(**{**options, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    model = model.eval()
    return torch.compile(model, backend="eager") if compiled else model


def by_peft(model):
    """The change of every weight, from peft's own merging."""
    whole = merged(model)
    reference = base_reference(model)
    return {name: p.detach() - reference[name] for name, p in whole.named_parameters()}


CASES = [{}, {"targets": ("words", "places")}, {"use_rslora": True}, {"compiled": True}]


@pytest.mark.parametrize("changes", CASES, ids=["words", "both", "rslora", "compiled"])
def test_distances_are_those_of_merged_weights(changes):
    model = adapted(**changes)
    found, changed = distances(model), by_peft(model)
    assert set(found) >= {WORDS, LINEAR, "head.weight"}
    assert (PLACES in found) == ("places" in changes.get("targets", ()))
    for name, value in found.items():
        assert value == pytest.approx(float(changed[name].norm()), rel=1e-5)
    assert found[WORDS] > 0.1


def test_two_adapters_of_one_embedding_add_up():
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=3, lora_alpha=2, target_modules=["words"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_embedding" in name and "second" in name:
                p.add_(0.2 * torch.randn_like(p))
    model.base_model.set_adapter(["default", "second"])
    assert distances(model)[WORDS] == pytest.approx(float(by_peft(model)[WORDS].norm()), rel=1e-5)


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("radius", [0.05, {WORDS: 0.05, LINEAR: 0.02}, {"*": 0.05}])
@pytest.mark.parametrize("compiled", [False, True])
def test_projection_of_the_factors_is_that_of_the_weights(norm, radius, compiled):
    model = adapted(compiled=compiled)
    before = by_peft(model)
    constraint = AdapterConstraint(model, radius, norm)
    found, after = constraint.project_(), by_peft(model)
    assert {WORDS, LINEAR} <= set(constraint.radii)
    for name, held in constraint.radii.items():
        rows = before[name].abs().sum(1)
        size = float(before[name].norm() if norm == "frobenius" else rows.max())
        assert found[name] == pytest.approx(size, rel=1e-5)
        scale = min(1.0, held / size) if norm == "frobenius" else (held / rows).clamp(max=1.0)[:, None]
        torch.testing.assert_close(after[name], before[name] * scale, rtol=1e-4, atol=1e-7)


def test_an_embedding_alone_is_held_and_its_network_measured():
    model = adapted(("words",))
    AdapterConstraint(model, 0.1).project_()
    assert distances(model)[WORDS] == pytest.approx(0.1, rel=1e-4)
    found = measure_adapters(model, [(IDS, TARGETS)])
    assert found.names == [LINEAR, "head.weight"]
    assert found.not_layers == [WORDS]
    assert found.distances[0] == 0
    expected = ht.measure(merged(model), base_reference(model), [(IDS, TARGETS)])
    assert torch.equal(found.quadratic, expected.quadratic)


def test_callbacks_constrain_embeddings():
    model = adapted()
    reference = reference_of(model)
    constraint_of(model, reference, 0.1, "frobenius").project_()
    assert max(distances_of(model, reference).values()) <= 0.1


def test_other_changes_of_an_embedding_are_named():
    with pytest.raises(LayerError, match="words"):
        distances(adapted(use_dora=True))
    model = adapted(modules_to_save=["head", "places"])
    with pytest.warns(HesstuneWarning, match=PLACES):
        found = distances(model)
    assert PLACES not in found
    with pytest.warns(HesstuneWarning, match=PLACES):
        AdapterConstraint(model, 0.1)


def test_kept_norms_of_dora_are_cleared():
    """peft keeps the norms of DoRA's weights in eval mode where its caching is switched on."""
    from peft.helpers import DoraCaching

    model = adapted(("body",), use_dora=True)
    with DoraCaching(), torch.no_grad():
        logits_of(model, IDS)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(1.0)
        after = logits_of(model, IDS)
    torch.testing.assert_close(after, model(IDS).detach())

"""LoRA's updates worked by hand, radii scaled by depth, and the methods' own options."""

import pytest
import torch
from by_hand import K, X, built
from torch import nn

from hesstune import Reference
from hesstune.errors import ConfigError
from hesstune.methods import method_class


def test_lora_updates_have_low_rank_and_are_merged():
    pytest.importorskip("peft")
    method = built("lora", options={"rank": 2.0})
    model = method.setup.model
    before = model(X).detach()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or n.startswith("2.") for n in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    expected, distances = model(X).detach(), method.distances()
    assert not torch.allclose(before, expected)
    method.finish()
    method.setup.reference.check(model)
    torch.testing.assert_close(model(X).detach(), expected, rtol=1e-4, atol=1e-5)
    assert method.setup.reference.distances(model) == pytest.approx(distances, rel=1e-4)
    update = model[0].weight.detach() - method.setup.reference["0.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 2


def test_lora_takes_a_layer_by_its_whole_name():
    """`0` is a layer and the ending of another module's name, which is none."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))
    model = nn.Sequential(nn.Linear(4, 5), inner, nn.Linear(5, K))
    method = built("lora", model=model, reference=Reference.of(model))
    assert sorted(method.layers) == ["0", "1.1"]
    assert isinstance(inner[0], nn.ReLU)


def test_lora_adapts_convolutions_of_other_classes_and_puts_them_back():
    """EfficientNet's 1×1 convolutions are a subclass whose constructor peft cannot call."""
    pytest.importorskip("peft")

    class Own(nn.Conv2d):
        def __init__(self, needed):
            super().__init__(3, needed, 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Own(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    method = built("lora", model=model, reference=Reference.of(model), head="4", options={"rank": 2.0})
    assert method.layers == ["1"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    images = torch.randn(2, 3, 6, 6)
    expected = model(images).detach()
    method.finish()
    assert type(model[1]) is Own
    torch.testing.assert_close(model(images).detach(), expected, rtol=1e-4, atol=1e-5)
    assert method.setup.reference.distances(model)["1.weight"] > 0


def test_lora_says_where_it_has_nothing_to_adapt():
    pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    model[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="none of them trains here"):
        built("lora", model=model, reference=Reference.of(model))


def test_depth_scaled_radii_reach_the_constraint():
    method = built("constraint", radius={"2.weight": 2.0, "*": 0.1}, radius_scale=3.0)
    assert method.constraint.radii == {"0.weight": 0.1, "2.weight": 2.0}
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, K))
    method = built("constraint", model=model, reference=Reference.of(model), head="4", radius_scale=3.0)
    assert list(method.constraint.radii.values()) == pytest.approx([0.1, 0.1, 0.3, 0.9, 0.1])


def test_own_options_are_checked():
    with pytest.raises(ConfigError, match=r"'q' must lie in \[1e-06, 1\]; got 2"):
        built("gce", options={"q": 2.0})
    with pytest.raises(ConfigError, match="unknown method option 'lamda'; did you mean 'lambda'"):
        built("elr", options={"lamda": 1.0})
    with pytest.raises(ConfigError, match="this method has none"):
        built("vanilla", options={"q": 1.0})


def test_every_option_says_where_its_default_comes_from():
    from hesstune.methods import method_names

    for name in method_names():
        assert method_class(name).__doc__
        for key, option in method_class(name).own_options.items():
            assert option.source, f"{name}.{key}"
            assert option.low <= option.default <= option.high
            if option.search:
                assert option.low <= option.search[0] < option.search[1] <= option.high

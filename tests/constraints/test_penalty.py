import pytest
import torch
from torch import nn

from hesstune import Reference
from hesstune.constraints.distance import StartingPointPenalty, depth_scaled
from hesstune.errors import ConfigError


def moved_network():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    ref = Reference.of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return model, ref


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_value_and_gradient_of_the_formula(kind):
    model, ref = moved_network()
    model[0].bias.requires_grad_(False)
    penalty = StartingPointPenalty(model, ref, kind, alpha=0.3, beta=0.7, head=lambda n: n.startswith("3."))
    expected = 0.0
    for name, p in model.named_parameters():
        if name != "0.bias":
            d = p.detach() - ref[name]
            strength = 0.7 if name.startswith("3.") else 0.3
            expected += strength * float(d.square().sum() / 2 if kind == "l2" else d.abs().sum())
    value = penalty()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    value.backward()
    d = model[0].weight.detach() - ref["0.weight"]
    torch.testing.assert_close(model[0].weight.grad, 0.3 * (d if kind == "l2" else d.sign()))
    assert model[0].bias.grad is None


def test_wrong_arguments_are_told():
    model, ref = moved_network()
    with pytest.raises(ConfigError, match="at least 0; got -1"):
        StartingPointPenalty(model, ref, "l2", alpha=-1)
    with pytest.raises(ConfigError, match="unknown kind of penalty 'l3'"):
        StartingPointPenalty(model, ref, "l3", alpha=1)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to penalise"):
        StartingPointPenalty(model, ref, "l2", alpha=1)


def test_radii_grow_on_the_third_and_fourth_stage():
    resnet = ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight",
              "layer3.1.conv1.weight", "layer4.0.conv1.weight", "fc.weight"]  # fmt: skip
    found = depth_scaled(dict.fromkeys(resnet, 0.5) | {"fc.weight": 3.0}, resnet, 2.0, ["fc.weight"])
    assert list(found.values()) == [0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 3.0]
    hf = [f"resnet.encoder.stages.{i}.layers.0.convolution.weight" for i in range(4)]
    assert list(depth_scaled(dict.fromkeys(hf, 1.0), hf, 3.0, ["classifier.1.weight"]).values()) == [
        1,
        1,
        3,
        9,
    ]
    plain = [f"{i}.weight" for i in range(9)]
    found = depth_scaled(dict.fromkeys(plain, 1.0), plain, 2.0, ["8.weight"])
    assert list(found.values()) == [1, 1, 1, 1, 2, 2, 4, 4, 1]

"""Which layers and blocks carry a measure: of networks named as libraries name them."""

import math

import pytest

from hesstune.report.layers import block_names, blocks_of, carriers, is_large, layer_shares
from hesstune.runs.records import LayerMeasure, MeasureRecord

EFFICIENTNET = {
    "_conv_stem.weight": "_conv_stem", "_blocks.3._expand_conv.weight": "_blocks.3",
    "_blocks.3._project_conv.weight": "_blocks.3", "_blocks.30._expand_conv.weight": "_blocks.30",
    "_blocks.30._project_conv.weight": "_blocks.30", "_fc.weight": "_fc",
}  # fmt: skip
RESNET = {
    "conv1.weight": "conv1", "layer1.0.conv1.weight": "layer1.0", "layer1.0.conv2.weight": "layer1.0",
    "layer1.0.downsample.0.weight": "layer1.0", "layer1.1.conv1.weight": "layer1.1",
    "layer1.1.conv2.weight": "layer1.1", "fc.weight": "fc",
}  # fmt: skip
BERT = {
    **{f"encoder.layer.{i}.{part}.weight": f"encoder.layer.{i}" for i in (0, 5, 11)
       for part in ("attention.self.query", "attention.self.key", "output.dense")},
    "pooler.dense.weight": "pooler",
}  # fmt: skip
# A block's own part with several layers (squeeze and excitation), inside a stage.
SQUEEZE = {
    f"features.3.0.block.{at}.weight": "features.3.0" for at in ("0.0", "1.0", "2.fc1", "2.fc2", "3.0")
}
SQUEEZE |= {name.replace("3.0.", "3.1.", 1): "features.3.1" for name in SQUEEZE}
# Beside a stage's blocks, a layer of its own.
SWIN = {
    f"layers.0.blocks.{i}.{part}.weight": f"layers.0.blocks.{i}" for i in (0, 1) for part in ("qkv", "proj")
}
SWIN |= {"layers.0.downsample.reduction.weight": "layers.0"}
VGG = {"features.0.weight": "features", "features.2.weight": "features", "classifier.1.weight": "classifier"}


@pytest.mark.parametrize("network", [EFFICIENTNET, RESNET, BERT, SQUEEZE, SWIN, VGG])
def test_blocks_are_those_of_the_networks_makers(network):
    assert block_names(list(network)) == network


def layer(name, mean, maximum=None, distance=0.5):
    return LayerMeasure(name=name, mean=mean, maximum=mean if maximum is None else maximum, distance=distance)


def record(layers, part="val"):
    return MeasureRecord(measure={"n": 10, "C": 1.0, "value": 1.0}, layers=layers, part=part, statement="")


def large():
    names = [f"blocks.{i}.{part}.weight" for i in range(12) for part in ("qkv", "proj")] + ["head.weight"]
    return layer_shares(record([layer(name, 16.0 if name == "head.weight" else 0.01) for name in names]))


def test_shares_are_of_what_the_measure_is_the_sum_of():
    layers = [layer("a", 1.0, 100.0), layer("b", 9.0, 1.0)]
    assert [(one.name, share) for one, share in layer_shares(record(layers))] == [("b", 0.75), ("a", 0.25)]
    (first, share), _ = layer_shares(record(layers, "train"))  # the paper's: the maximum's
    assert (first.name, share) == ("a", pytest.approx(10 / 11))
    assert layer_shares(record([*layers, layer("c", None, 0.0)]))[0][0].name == "a"


def test_blocks_add_up_their_layers():
    rows = large()
    blocks = blocks_of(rows)
    assert is_large(rows)
    assert not is_large(rows[:24])
    assert (len(blocks), blocks[0].name) == (13, "head")
    assert sum(block.share for block in blocks) == pytest.approx(1)
    assert blocks[1].share == pytest.approx(2 * rows[-1][1])
    assert blocks[1].distance == pytest.approx(0.5 * math.sqrt(2))
    assert sorted(name for block in blocks for name in block.layers) == sorted(one.name for one, _ in rows)
    assert not is_large([(layer(f"layer{i}.weight", 1.0), 1 / 30) for i in range(30)])


def test_carriers_name_layers_or_blocks_and_a_radius_that_matches_them_alone():
    text = carriers(large())
    assert text.startswith("62% of the measure comes from 1 of 13 blocks: head (62.5%)")
    assert '--method robust --radius "head.*=R,*=S" with R below 0.5' in text
    rows = layer_shares(record([layer("a.weight", 1.0, distance=0.2), layer("b.weight", 1.0)]))
    assert "1 of 2 layers: a.weight (50.0%)" in carriers(rows)
    pair = (
        LayerMeasure(name=n, maximum=1.0, mean=m, mean_stderr=0.2 * m) for n, m in (("a", 9.0), ("b", 1.0))
    )
    # √ halves the relative error: 0.75 · 0.25 · (0.1 + 0.1).
    assert carriers(layer_shares(record([*pair]))).startswith(
        "75% ± 4% of the measure comes from 1 of 2 layers"
    )
    assert '--method constraint --radius "a.weight=R,*=S" with R below 0.2' in carriers(rows, "constraint")
    names = [f"layers.{s}.blocks.{i}.{part}.weight" for s in (0, 1) for i in range(6) for part in ("a", "b")]
    names += ["layers.0.reduction.weight"]  # a block whose name begins others
    rows = layer_shares(record([layer(n, 100.0 if "reduction" in n else 0.01) for n in names]))
    assert is_large(rows)
    assert '--radius "layers.0.reduction.weight=R' in carriers(rows)
    assert carriers(layer_shares(record([layer("a.weight", 0.0)]))) == ""
    assert carriers([(layer("a.weight", None), None)]) == ""


def test_a_layer_some_of_whose_classes_were_left_out_is_not_called_exact():
    cases = ((True, "exact"), (False, "exact"), (False, "lanczos"), (True, "unused"))
    shown = [LayerMeasure(name="a", maximum=1.0, exact=exact, method=method).how for exact, method in cases]
    assert shown == ["exact", "probed", "lanczos", "exact"]

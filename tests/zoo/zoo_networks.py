"""Tiny networks of transformers, timm and torchvision: how each is built, and what is expected of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from hesstune.errors import HesstuneError, MeasureError, ModelError

CLASSES, IMAGE_SIZE, VOCABULARY = 3, 32, 40
OPTIONS = yaml.safe_load(Path(__file__).with_name("networks.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Refused:
    """What refuses a network, with which error, and why."""

    by: Literal["train", "measure"]
    error: type[HesstuneError]
    why: str


@dataclass(frozen=True)
class Network:
    """One tiny network.

    Attributes:
        library: The package that it comes from.
        name: Its class or name there, with a variant in brackets.
        build: Makes it with random weights and `CLASSES` outputs.
        reads: `texts` or `images`.
        refused: What is expected instead of a result; None where everything works.
        is_double: Whether its twin runs in float64; else in float32, and is compared with more slack.
        image_size: Height and width of its images.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    reads: Literal["texts", "images"]
    refused: Refused | None = None
    is_double: bool = True
    image_size: int = IMAGE_SIZE


REFUSED = {
    "PPLCNetForImageClassification": Refused(
        "train", ModelError, "returns its logits as `last_hidden_state`"
    ),
    "ReformerForSequenceClassification": Refused(
        "measure", MeasureError, "its reversible layers hide their weights from the gradient of the logits"
    ),
    "YosoForSequenceClassification": Refused(
        "measure",
        MeasureError,
        "the gradient of its queries and keys is an approximation; `layers=` measures the other layers",
    ),
}
# In float64 its two masks add up to −∞.
SINGLE = {"CanineForSequenceClassification"}
TORCHVISION: dict[str, Callable[[Any], nn.Module]] = {
    "VisionTransformer": (lambda m: m.VisionTransformer(IMAGE_SIZE, 8, 2, 2, 8, 12, num_classes=CLASSES)),
    "SwinTransformer": (
        lambda m: m.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], 1.5, num_classes=CLASSES)
    ),
    "MobileNetV2": (lambda m: m.MobileNetV2(CLASSES, 0.1, [[1, 8, 1, 1], [2, 8, 2, 2]])),
    "ShuffleNetV2": (lambda m: m.ShuffleNetV2([1, 1, 1], [4, 8, 8, 16, 16], CLASSES)),
    "DenseNet": (lambda m: m.DenseNet(4, (2, 2), 8, 2, num_classes=CLASSES)),
    "ConvNeXt": (
        lambda m: m.ConvNeXt(
            [m.convnext.CNBlockConfig(4, 8, 1), m.convnext.CNBlockConfig(8, None, 1)], num_classes=CLASSES
        )
    ),
    "RegNet": (
        lambda m: m.RegNet(m.regnet.BlockParams([1, 1], [8, 8], [4, 4], [1.0, 1.0], [2, 2], 0.25), CLASSES, 4)
    ),
    "EfficientNet": (
        lambda m: m.EfficientNet(
            [
                m.efficientnet.MBConvConfig(2, 3, 1, 8, 8, 1, 1.0, 1.0),
                m.efficientnet.MBConvConfig(2, 3, 2, 8, 8, 1, 1.0, 1.0),
            ],
            0.0,
            num_classes=CLASSES,
            last_channel=16,
        )
    ),
    "MobileNetV3": (
        lambda m: m.MobileNetV3(
            [m.mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)], 16, CLASSES
        )
    ),
    "MaxVit": (lambda m: m.MaxVit((32, 32), 4, 2, [8, 8], [1, 1], 4, 0.0, num_classes=CLASSES)),
}


def _options(kind: str) -> dict[str, dict[str, Any]]:
    """Return the options of every network of a kind, with those of its bases."""
    found = {}
    for name, own in OPTIONS[kind].items():
        merged: dict[str, Any] = {}
        for base in own.pop("base", ()):
            merged.update(OPTIONS["bases"][base])
        found[name] = merged | own
    return found


def _transformer(class_name: str, options: dict[str, Any]) -> nn.Module:
    made = getattr(importlib.import_module("transformers"), class_name)
    model: nn.Module = made(made.config_class(num_labels=CLASSES, **options))
    return model


def _transformers(kind: Literal["texts", "images"], task: str) -> list[Network]:
    networks = []
    for key, options in _options(kind).items():
        base, _, variant = key.partition(" ")
        name = f"{base}For{task}Classification" + ("WithTeacher" if variant == "teacher" else "")
        shown = f"{name} ({variant})" if variant and variant != "teacher" else name
        build = partial(_transformer, name, options)
        networks.append(Network("transformers", shown, build, kind, REFUSED.get(name), name not in SINGLE))
    return networks


def _tuples(value: Any) -> Any:
    """Return YAML's lists as the tuples that timm expects."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name, num_classes=CLASSES, **options)
    return model


def _timm_class(options: dict[str, Any]) -> nn.Module:
    given = dict(options)
    module = importlib.import_module(f"timm.models.{given.pop('module')}")
    made = getattr(module, given.pop("class"))
    if "cfg" in given:
        given["cfg"] = module.MultiScaleVitCfg(**given["cfg"])
    for key in ("token_mixers", "norm_layers"):
        if key in given:
            given[key] = [getattr(module, name) for name in given[key]]
    model: nn.Module = made(num_classes=CLASSES, **given)
    return model


def _timm_networks() -> list[Network]:
    makers = {name: partial(_timm, name, o) for name, o in _tuples(_options("timm")).items()}
    makers |= {name: partial(_timm_class, o) for name, o in _tuples(_options("timm_classes")).items()}
    networks = []
    for name, build in makers.items():
        size = build.args[-1].get("img_size", IMAGE_SIZE)
        size = size if isinstance(size, int) else size[0]
        networks.append(Network("timm", name, build, "images", image_size=size))
    return networks


NETWORKS = [
    *_transformers("texts", "Sequence"),
    *_transformers("images", "Image"),
    *_timm_networks(),
    *(
        Network(
            "torchvision",
            name,
            lambda make=make: make(importlib.import_module("torchvision.models")),
            "images",
        )
        for name, make in TORCHVISION.items()
    ),
]

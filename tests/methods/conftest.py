"""A small network of the user's own, importable by `py:tinynets:small`."""

from __future__ import annotations

import sys

import pytest

SOURCE = """
from torch import nn

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""


@pytest.fixture
def tiny(tmp_path_factory, image_folder, monkeypatch):
    """Options for a fine-tune that takes a moment."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "tinynets.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return {
        "model": "py:tinynets:small",
        "data": f"folder:{image_folder}",
        "noise": "symmetric:0.2",
        "image_size": 16,
        "epochs": 4,
        "batch_size": 4,
        "lr": 1e-2,
        "head_init": "keep",
    }

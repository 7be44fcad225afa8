"""Shared fixtures: tiny image folders, and the data kept beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from sentences import save_tiny_bert

# Shared machines stall; how long an example takes is no property of the code.
settings.register_profile("hesstune", deadline=None, derandomize=True)
settings.load_profile("hesstune")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _same_start():
    """One thread, and the same random state, whatever tests ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of 12 images, told apart by their brightness."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(level, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def pacs_photo():
    """The photo domain of PACS, where it is at hand."""
    path = SHARED / "pacs128" / "photo"
    if not path.is_dir():
        pytest.skip(f"PACS is not at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder made by save_pretrained: a BERT of one layer and its tokenizer."""
    pytest.importorskip("transformers")
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))

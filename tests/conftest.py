"""Shared fixtures: tiny image folders, and the data kept beside the checkout."""

from __future__ import annotations

import csv
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import hesstune as ht
from sentences import save_tiny_bert

# Shared machines stall; how long an example takes is no property of the code.
settings.register_profile("hesstune", deadline=None, derandomize=True)
settings.load_profile("hesstune")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _temporary_folder(tmp_path_factory):
    """Runs without a folder of their own go where pytest removes them, those of other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("temporary"))
        patch.setenv("TMPDIR", folder)
        patch.setenv("HESSTUNE_CACHE", "")  # no test reads what another one kept
        patch.setattr("tempfile.tempdir", folder)
        # Ray 2.60: a local cluster writes a token into the home folder, and later clusters ask for it.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(autouse=True)
def _forget_modules_of_tests(tmp_path_factory):
    """Folders that a test put on the import path leave it, and modules from them are forgotten."""
    before, written = list(sys.path), str(tmp_path_factory.getbasetemp())
    yield
    added = [folder for folder in sys.path if folder not in before and str(folder).startswith(written)]
    sys.path[:] = [folder for folder in sys.path if folder not in added]
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(tuple(added)):
            del sys.modules[name]


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


@pytest.fixture
def distinct_images(monkeypatch):
    """Count no image as a copy of another one: the search takes seconds."""
    monkeypatch.setattr("hesstune.data.near_duplicates._KEPT", OrderedDict())

    def apart(parts, quick=False):
        return np.arange(sum(map(len, parts)))

    monkeypatch.setattr("hesstune.data.near_duplicates._group_images", apart)


@pytest.fixture
def voted(image_folder, tmp_path):
    """A CSV file of images with three annotators and no label; two rows nobody voted on."""
    rng = np.random.default_rng(0)
    rows = []
    for name, other in (("dark", "light"), ("light", "dark")):
        for i in range(12):
            votes = [name if rng.random() < a else other for a in (0.95, 0.8, 0.7)]
            votes = ["", "abstain", ""] if i == 11 else votes
            rows.append([str(image_folder / name / f"{i:02d}.png"), *votes])
    path = tmp_path / "votes.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "vote_a", "vote_b", "vote_c"], *rows])
    return path


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


TINY_NETS = """
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
    (folder / "tinynets.py").write_text(TINY_NETS)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return {
        "model": "py:tinynets:small",
        "method": "robust",
        "data": f"folder:{image_folder}",
        "inject_noise": "symmetric:0.2",
        "image_size": 16,
        "epochs": 4,
        "batch_size": 4,
        "lr": 1e-2,
        "head_init": "keep",
    }


def _tensors(run):
    return run.loaded().model.state_dict()


@pytest.fixture
def interrupt():
    """Train until a share of the steps is done, and stop as Ctrl-C does."""

    def start(*data, share=0.5, **options):
        def stop(done, total, text):
            if done > share * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ht.finetune(*data, progress=stop, **options)

    return start


@pytest.fixture
def same_weights():
    """Assert that two runs have the same weights and buffers, bit for bit or nearly."""

    def compare(one, two, atol=0.0):
        one, two = _tensors(one), _tensors(two)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol, msg=name)

    return compare

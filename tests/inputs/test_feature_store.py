"""Shared features equal those of a run by itself, are computed once, and follow what they come from."""

import pytest
import torch
from PIL import Image

import hesstune as ht
from hesstune.inputs.feature_store import FeatureStore, sharing


@pytest.fixture
def few(tiny):
    return {**tiny, "train": "head", "epochs": 1}


def seen(options, store=None):
    found = []
    if store is None:
        ht.finetune(options, observe=lambda trained: found.append(trained.feeds))
    else:
        with sharing(store):
            ht.finetune(options, observe=lambda trained: found.append(trained.feeds))
    return {name: feed.features for name, feed in found[0].items()}


def test_the_same_features_computed_once(few, tmp_path):
    store = FeatureStore(tmp_path / "store")
    for split in ("uniform", "stratified"):  # other parts of the same images
        alone, shared = seen({**few, "split": split}), seen({**few, "split": split}, store)
        for name, features in alone.items():
            torch.testing.assert_close(shared[name], features)
    assert store.computed == 24
    other = FeatureStore(tmp_path / "store")  # another process finds them on disk
    seen({**few, "val_fraction": 0.4}, other)
    assert other.computed == 0


def test_rows_are_computed_when_a_run_needs_them(few, tmp_path):
    store = FeatureStore(tmp_path / "store")
    seen({**few, "limit": 4}, store)
    assert store.computed == 4 + 5 + 5


def test_another_image_or_backbone_has_features_of_its_own(few, tmp_path, image_folder):
    store = FeatureStore(tmp_path / "store")
    first = seen(few, store)
    Image.new("RGB", (20, 24), (255, 0, 0)).save(next(image_folder.rglob("*.png")))
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), seen(few, store).values(), strict=True))
    computed = store.computed
    seen({**few, "mean": "0.1,0.2,0.3"}, store)
    assert store.computed == computed + 24

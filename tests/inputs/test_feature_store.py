"""Shared features equal those of a run by itself, are computed once, and follow what they come from."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import hesstune as ht
from hesstune.data.load import load_task
from hesstune.inputs import features as feature_store
from hesstune.inputs.features import FeatureStore, cached_features, frozen_features, sharing
from hesstune.labeling.label_data import label_data
from hesstune.models.load import load_model

CPU = torch.device("cpu")


@pytest.fixture
def few(tiny):
    return {**tiny, "train": "head", "epochs": 1}


@pytest.fixture
def counted(monkeypatch):
    """The number of rows that went through a backbone, in each call."""
    calls = []

    def count(model, head, feed, rows=None):
        calls.append(len(feed) if rows is None else len(rows))
        return cached_features(model, head, feed, rows)

    monkeypatch.setattr(feature_store, "cached_features", count)
    return calls


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


def test_a_head_and_the_estimate_of_its_noise_see_each_image_once(few, counted):
    run = ht.finetune(few, method="robust", noise_matrix="estimate:confident")
    assert sum(run.record["examples"].values()) == sum(counted) == 24


def test_the_estimate_changes_no_digit_of_the_heads_features(few):
    plain = seen(few)
    for name, features in seen({**few, "method": "robust", "noise_matrix": "estimate:confident"}).items():
        assert torch.equal(features, plain[name])


def test_trials_of_radii_see_each_image_once(few, counted):
    ht.finetune(few, method="robust_plus", noise_matrix="estimate:confident", radius="auto")
    assert sum(counted) == 24


def test_a_comparison_sees_each_image_once(few, counted, tmp_path):
    # Pretrained: a network that starts at random is another one for every seed.
    pretrained = {"model": "efficientnet_lite0", "image_size": 32, "noise_matrix": "estimate:confident"}
    options = {name: value for name, value in few.items() if name != "method"} | pretrained
    found = ht.compare(options, methods=["robust", "forward"], seeds=2, out=tmp_path / "out", jobs=1)
    assert [cell["status"] for cell in found.results["cells"]] == ["done"] * 4
    assert sum(counted) == 24


def test_labelers_and_their_target_see_each_image_once(image_folder, counted, tiny):
    """The target is one of the labelers' own domains: its images are not seen again."""
    domain = f"folder:{image_folder}"
    label_data(domain, labelers=[f"a={domain}", f"b={domain}"], model=tiny["model"], image_size=16)
    assert sum(counted) == 24


def test_images_that_stay_in_files_are_known_by_their_contents(few, counted, image_folder):
    spec, store = f"folder:{image_folder}", FeatureStore()
    loaded = load_model(few["model"], 2)
    with sharing(store):
        first, again = (
            frozen_features(loaded, load_task(spec, size=16, cache_mib=0).train, CPU) for _ in range(2)
        )
        assert np.array_equal(first, again)
        assert store.computed == len(first)
        frozen_features(loaded, load_task(spec, size=20, cache_mib=0).train, CPU)
        assert store.computed == 2 * len(first)
        Image.new("RGB", (20, 24), (255, 0, 0)).save(next(image_folder.rglob("*.png")))
        frozen_features(loaded, load_task(spec, size=16, cache_mib=0).train, CPU)
        assert store.computed == 3 * len(first)


def test_a_source_without_a_digest_is_known_as_an_object(few, image_folder, tmp_path):
    task = load_task(f"folder:{image_folder}", size=16)

    class Source:
        def batch(self, indices):
            return task.train.source.batch(indices)

    loaded, store = load_model(few["model"], 2), FeatureStore(tmp_path / "store")
    with sharing(store):
        for source in (one := Source(), one, Source()):
            part = task.train.take(np.arange(3))
            object.__setattr__(part, "source", source)
            frozen_features(loaded, part, CPU)
    assert store.computed == 6
    assert not list(tmp_path.rglob("*.safetensors"))  # its name says nothing to another process


def test_memory_is_bounded_and_a_folder_keeps_what_gave_way(few, image_folder, tmp_path):
    loaded, store = load_model(few["model"], 2), FeatureStore(tmp_path / "store", most_mib=0)
    task = load_task(f"folder:{image_folder}", size=16)
    with sharing(store):
        one, two = (frozen_features(loaded, task.train, CPU) for _ in range(2))
    assert store.computed == len(task.train)
    assert np.array_equal(one, two)
    forgetful = FeatureStore(most_mib=0)
    with sharing(forgetful):
        for _ in range(2):
            frozen_features(loaded, task.train, CPU)
    assert forgetful.computed == 2 * len(task.train)


def test_damaged_files_are_computed_anew_and_a_folder_that_cannot_be_is_named(few, tmp_path):
    first = seen(few, FeatureStore(tmp_path / "store"))
    for file in (tmp_path / "store").glob("*.safetensors"):
        file.write_bytes(b"nothing")
    assert torch.equal(seen(few, store := FeatureStore(tmp_path / "store"))["train"], first["train"])
    assert store.computed == 24
    (tmp_path / "file").write_text("")
    with pytest.raises(ht.errors.RunError, match="cannot keep features in"):
        seen(few, FeatureStore(tmp_path / "file"))


def test_texts_are_computed_in_the_batches_of_a_run_by_itself(tiny_bert, tmp_path):
    """Batches of similar lengths, whoever asks: the same digits; another longest input is another row."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        rows = [(" ".join(["good" if i % 2 else "bad"] * (1 + i % 5)), i % 2) for i in range(40)]
        csv.writer(file).writerows([("text", "label"), *rows])
    options = {
        "data": f"csv:{path}", "model": f"hf:{tiny_bert}", "train": "head", "epochs": 1, "method": "vanilla",
    }  # fmt: skip
    store = FeatureStore(tmp_path / "store")
    shared = seen(options, store)
    for name, features in seen(options).items():
        assert torch.equal(shared[name], features)
    assert store.computed == 40
    seen({**options, "max_length": 4}, store)
    assert store.computed == 80

"""Shared features equal those of a run by itself, are computed once, and follow what they come from."""

import csv
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import hesstune as ht
from commands import inside
from hesstune.data.load import load_task
from hesstune.inputs import features as feature_store
from hesstune.inputs.features import (
    CHECKED_ROWS,
    FeatureStore,
    cached_features,
    frozen_features,
    sharing,
    user_cache,
)
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
    """Return the features that a run trains on, by part."""
    found = []
    if store is None:
        ht.finetune(options, observe=lambda trained: found.append(trained.feeds))
    else:
        with sharing(store):
            ht.finetune(options, observe=lambda trained: found.append(trained.feeds))
    return {name: feed.features for name, feed in found[0].items()}


def test_the_same_features_computed_once(few, tmp_path, image_folder):
    store = FeatureStore(tmp_path / "store")
    seen({**few, "limit": 4}, store)
    assert store.computed == 4 + 5 + 5  # rows are computed when a run needs them
    for split in ("uniform", "stratified"):  # other parts of the same images
        alone, shared = seen({**few, "split": split}), seen({**few, "split": split}, store)
        for name, features in alone.items():
            torch.testing.assert_close(shared[name], features)
    assert store.computed == 24
    other = FeatureStore(tmp_path / "store")  # another process finds them on disk
    first = seen({**few, "val_fraction": 0.4}, other)
    assert other.computed == 0
    seen({**few, "mean": "0.1,0.2,0.3"}, store)
    assert store.computed == 48
    Image.new("RGB", (20, 24), (255, 0, 0)).save(next(image_folder.rglob("*.png")))
    changed = seen({**few, "val_fraction": 0.4}, store)
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), changed.values(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"method": "robust"}, {"method": "robust_plus", "radius": "auto"}],
    ids=["estimate", "radii"],
)
def test_estimates_and_trials_see_each_image_once(few, counted, options):
    plain = seen(few)
    counted.clear()
    found = seen({**few, "noise_matrix": "estimate:confident", **options})
    assert sum(counted) == 24
    assert all(torch.equal(features, plain[name]) for name, features in found.items())


def test_a_comparison_sees_each_image_once(few, counted, tmp_path):
    # Pretrained: a network that starts at random is another one for every seed.
    pretrained = {"model": "efficientnet_lite0", "image_size": 32, "noise_matrix": "estimate:confident"}
    options = {name: value for name, value in few.items() if name != "method"} | pretrained
    found = ht.compare(options, methods=["robust"], seeds=2, out=tmp_path / "out", jobs=1)
    assert [cell["status"] for cell in found.results["cells"]] == ["done"] * 2
    assert sum(counted) == 24


def test_annotators_and_their_target_see_each_image_once(image_folder, counted, tiny):
    """The target is the domain of both trained annotators."""
    domain = f"folder:{image_folder}"
    label_data(domain, labelers=[f"a={domain}", f"b={domain}"], model=tiny["model"], image_size=16)
    assert sum(counted) == 24


def test_images_that_stay_in_files_are_known_by_their_contents(few, image_folder):
    spec, store, loaded = f"folder:{image_folder}", FeatureStore(), load_model(few["model"], 2)

    def features(size):
        with sharing(store):
            return frozen_features(loaded, load_task(spec, size=size, cache_mib=0).train, CPU)

    first = features(16)
    assert np.array_equal(first, features(16))
    assert store.computed == len(first)
    features(20)
    assert store.computed == 2 * len(first)
    Image.new("RGB", (20, 24), (255, 0, 0)).save(next(image_folder.rglob("*.png")))
    features(16)
    assert store.computed == 3 * len(first)


def test_features_of_a_source_without_a_digest_are_not_stored(few, image_folder, tmp_path):
    task = load_task(f"folder:{image_folder}", size=16)

    class Source:
        def batch(self, indices):
            return task.train.source.batch(indices)

    loaded, store = load_model(few["model"], 2), FeatureStore(tmp_path / "store")
    with sharing(store):
        part = replace(task.train.take(np.arange(3)), source=Source())
        one, two = (frozen_features(loaded, part, CPU) for _ in range(2))
    assert np.array_equal(one, two)
    assert store.computed == 6
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_memory_is_bounded_and_a_folder_keeps_dropped_rows(few, image_folder, tmp_path, on_disk):
    loaded, task = load_model(few["model"], 2), load_task(f"folder:{image_folder}", size=16)
    store = FeatureStore(tmp_path / "store" if on_disk else None, most_mib=0)
    with sharing(store):
        one, two = (frozen_features(loaded, task.train, CPU) for _ in range(2))
    assert store.computed == len(task.train) * (1 if on_disk else 2)
    assert np.array_equal(one, two)


def test_damaged_files_are_computed_again_and_a_folder_that_cannot_be_made_is_named(few, tmp_path):
    first = seen(few, FeatureStore(tmp_path / "store"))
    for file in (tmp_path / "store").glob("*.safetensors"):
        file.write_bytes(b"nothing")
    assert torch.equal(seen(few, store := FeatureStore(tmp_path / "store"))["train"], first["train"])
    assert store.computed == 24
    (tmp_path / "file").write_text("")
    with pytest.raises(ht.errors.RunError, match="cannot keep features in"):
        seen(few, FeatureStore(tmp_path / "file"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of features that later commands read."""
    monkeypatch.setenv("HESSTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def test_a_second_command_reads_the_features_of_the_first(few, cache, counted, image_folder, monkeypatch):
    command = ["finetune", "--data", few["data"], "--model", few["model"], "--image-size", 16]
    command += ["--train", "head", "--method", "auto", "--overwrite", "--out"]
    first = inside(*command, cache.parent / "one")
    again = inside(*command, cache.parent / "two")
    assert sum(counted) == 24 + CHECKED_ROWS
    assert str(cache) not in first.stdout
    assert str(cache) in again.stdout
    one, two = (ht.Run.load(cache.parent / name).loaded().model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    Image.new("RGB", (20, 24), (255, 0, 0)).save(next(image_folder.rglob("*.png")))
    inside(*command, cache.parent / "two")
    assert sum(counted) == 48 + CHECKED_ROWS
    monkeypatch.setenv("HESSTUNE_CACHE", "")
    assert str(cache) not in inside(*command, cache.parent / "two").stdout
    assert sum(counted) == 72 + CHECKED_ROWS


def test_a_cache_deletes_what_was_not_used_for_longest(few, image_folder, tmp_path):
    loaded, spec, folder = load_model(few["model"], 2), f"folder:{image_folder}", tmp_path / "cache"

    def files(size, most_mib=1):
        with sharing(FeatureStore(folder, most_mib, cache=True)) as store:
            frozen_features(loaded, load_task(spec, size=size).train, CPU)
        return store.computed, set(folder.glob("*.safetensors"))

    _, first = files(16)
    _, both = files(17)
    for old in both:
        os.utime(old, (1, 1))
    assert files(16) == (0, both)  # the first is now the one used last
    room = max(file.stat().st_size for file in both) * 2.5 / 2**20
    _, kept = files(18, room)
    assert first < kept
    assert len(kept) == 2
    assert files(19, 0)[1] == kept  # larger than the whole cache: not written


def changed_weight(model):
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)


def changed_forward(model):
    """Edit the code of the network as a user may: no weight and no name of a class changes."""
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    first.forward = lambda x: 1.5 * torch.nn.Conv2d.forward(first, x)


def changed_argument(model):
    next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)).padding_mode = "circular"


@pytest.mark.parametrize("change", [changed_weight, changed_forward, changed_argument])
def test_a_changed_network_reads_no_stale_features_of_a_cache(few, image_folder, tmp_path, change):
    task = load_task(f"folder:{image_folder}", size=16)

    def features(folder, change=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # this network starts at random
            loaded = load_model(few["model"], 2)
        if change is not None:
            change(loaded.model)
        with sharing(FeatureStore(folder, cache=True)) as store:
            return frozen_features(loaded, task.train, CPU), store

    folder = tmp_path / "cache"
    first, _ = features(folder)
    again, store = features(folder)
    assert np.array_equal(first, again)
    assert store.computed == 0
    found, store = features(folder, change)
    assert store.computed == len(task.train)
    assert np.array_equal(found, features(None, change)[0])


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def nowhere():
        raise RuntimeError

    monkeypatch.delenv("HESSTUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    assert user_cache() is None


def test_a_cache_that_cannot_be_written_is_left_out(few, image_folder, tmp_path):
    (tmp_path / "file").write_text("")
    loaded, task = load_model(few["model"], 2), load_task(f"folder:{image_folder}", size=16)
    with sharing(FeatureStore(tmp_path / "file", cache=True)) as store:
        one, two = (frozen_features(loaded, task.train, CPU) for _ in range(2))
    assert np.array_equal(one, two)
    assert store.computed == len(task.train)
    assert not store.said()


def test_texts_are_computed_in_the_batches_of_a_run_by_itself(tiny_bert, tmp_path):
    """Batches of similar lengths: the same digits; another longest input is another row."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        rows = [(" ".join(["good" if i % 2 else "bad"] * (1 + i % 5)), i % 2) for i in range(40)]
        csv.writer(file).writerows([("text", "label"), *rows])
    options = {"data": f"csv:{path}", "model": f"hf:{tiny_bert}", "train": "head", "epochs": 1}
    options["method"] = "vanilla"
    store = FeatureStore(tmp_path / "store")
    shared = seen(options, store)
    assert all(torch.equal(shared[name], features) for name, features in seen(options).items())
    assert store.computed == 40
    seen({**options, "max_length": 4}, store)
    assert store.computed == 80


def test_the_network_is_moved_to_the_device_of_its_inputs(few, image_folder, monkeypatch):
    loaded, task = load_model(few["model"], 2), load_task(f"folder:{image_folder}", size=16)
    monkeypatch.setattr(FeatureStore, "rows", lambda *args: {"": torch.zeros(1, 1)})
    frozen_features(loaded, task.train, torch.device("meta"))
    assert {p.device.type for p in loaded.model.parameters()} == {"meta"}

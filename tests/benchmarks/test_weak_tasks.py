"""The programmatic-labels protocol on made copies of the layouts users have on disk."""

import csv

import numpy as np
import pytest
from PIL import Image

from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.inputs import feature_store
from weak_tasks import DOMAINNET, PACS, domainnet, pacs, weak_task

COLOURS = {"cup": (200, 40, 40), "dog": (40, 200, 40), "hat": (40, 40, 200), "sun": (200, 200, 40)}


def made(root, domains, classes, count=15):
    """Classes are colours; each domain has a tint and a contrast of its own."""
    rng = np.random.default_rng(0)
    for at, domain in enumerate(domains):
        tint = rng.normal(0, 40, 3)
        for name in classes:
            (root / domain / name).mkdir(parents=True)
            for i in range(count):
                colour = (np.array(COLOURS[name]) - 128) * (1 - 0.15 * at) + 128 + tint + rng.normal(0, 30, 3)
                pixels = np.clip(colour + rng.normal(0, 20, (18, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{domain}_{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root = made(tmp_path_factory.mktemp("domainnet"), DOMAINNET, COLOURS)
    # What lies beside the folders in the published archive.
    (root / "clipart_train.txt").write_text("clipart/cup/clipart_000.png 0\n")
    (root / "sketch" / "only_here").mkdir()
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_domainnet_with_sampled_classes(layout, cache):
    task = domainnet(layout, "real", classes=3, image_size=32, cache=cache)
    assert len(task.classes) == 3
    assert set(task.classes) <= set(COLOURS)
    assert task.labelers == tuple(d for d in DOMAINNET if d != "real")
    assert [len(task.part(p)) for p in ("train", "val", "test")] == [27, 9, 9]
    assert len({i for p in ("train", "val", "test") for i in task.part(p).ids}) == 45
    part = task.train
    assert part.votes.table.shape == (27, 5)
    assert part.votes.names == list(task.labelers)
    # The weak label is the argmax of the summed probabilities, by hand.
    assert (part.weak == part.votes.soft.sum(axis=1).argmax(axis=1)).all()
    for i in range(27):
        assert part.ids[i].split("/")[:2] == ["real", task.classes[part.true[i]]]
        assert part.paths[i] == layout / part.ids[i]
    other = domainnet(layout, "real", classes=3, class_seed=1, image_size=32, cache=cache)
    assert other.classes != task.classes
    named = domainnet(layout, "real", classes=task.classes, image_size=32, cache=cache)
    assert (named.train.weak == part.weak).all()
    moved = domainnet(layout, "real", classes=task.classes, image_size=32, seed=1, cache=cache)
    assert moved.train.ids != part.ids


def test_labelers_never_see_the_targets_labels(tmp_path):
    root = made(tmp_path / "root", PACS, ["cup", "dog"], count=10)

    def votes(swapped):
        task = pacs(root, "photo", image_size=32, cache=tmp_path / "cache")
        other = {"cup": "dog", "dog": "cup"} if swapped else {"cup": "cup", "dog": "dog"}
        found = {}
        for part in (task.train, task.val, task.test):
            for example, soft in zip(part.ids, part.votes.soft, strict=True):
                _, name, file = example.split("/")
                found[other[name], file] = soft
        return found

    before = votes(False)
    photo = root / "photo"
    (photo / "cup").rename(photo / "kept")
    (photo / "dog").rename(photo / "cup")
    (photo / "kept").rename(photo / "dog")
    after = votes(True)
    assert before.keys() == after.keys()
    for key, soft in before.items():
        np.testing.assert_allclose(after[key], soft, rtol=1e-4)


def test_what_is_reported_counts_the_labels(layout, cache):
    task = domainnet(layout, "quickdraw", classes=list(COLOURS), image_size=32, cache=cache)
    record, part = task.to_dict(), task.train
    wrong = part.weak != part.true
    assert record["realised_rate"] == pytest.approx(wrong.mean())
    for row, name in zip(record["classes"], COLOURS, strict=True):
        own = part.true == task.classes.index(name)
        assert row["examples"] == own.sum()
        assert row["noise"] == pytest.approx(wrong[own].mean())
    for i, j in np.ndindex(4, 4):
        share = ((part.true == i) & (part.weak == j)).sum() / (part.true == i).sum()
        assert task.noise.array[i, j] == pytest.approx(share)
    assert record["matrix"] == task.noise.array.tolist()


def test_features_are_computed_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    root = made(tmp_path / "pacs", PACS, ["cup", "dog"], count=10)
    calls = []
    kept = feature_store.cached_features
    monkeypatch.setattr(feature_store, "cached_features", lambda *a: calls.append(1) or kept(*a))
    first = pacs(root, "photo", image_size=32, cache=tmp_path / "cache")
    assert len(calls) == 4
    again = pacs(root, "sketch", image_size=32, cache=tmp_path / "cache")
    assert len(calls) == 4
    assert again.labelers == PACS[:3]
    file = sorted((root / "photo" / "cup").iterdir())[0]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file)
    changed = pacs(root, "photo", image_size=32, cache=tmp_path / "cache")
    assert len(calls) == 5
    assert not np.array_equal(
        np.concatenate([changed.part(p).features for p in ("train", "val", "test")]),
        np.concatenate([first.part(p).features for p in ("train", "val", "test")]),
    )
    for damaged in (tmp_path / "cache" / "features").glob("*.safetensors"):
        damaged.write_bytes(b"no array")
    assert np.array_equal(
        pacs(root, "photo", image_size=32, cache=tmp_path / "cache").train.features, changed.train.features
    )


def test_images_and_csv_carry_weak_labels_and_true_ones_for_the_test(layout, cache, tmp_path):
    task = domainnet(layout, "clipart", classes=["cup", "dog", "hat"], image_size=32, cache=cache)
    images = task.images()
    assert (images.train.labels == task.train.weak).all()
    assert (images.train.true == task.train.true).all()
    assert (images.test.labels == task.test.true).all()
    assert images.train.images(np.arange(2)).shape == (2, 3, 32, 32)
    task.save_csv(tmp_path / "clipart.csv")
    found = load_task(f"csv:{tmp_path / 'clipart.csv'}", size=32)
    assert found.classes == task.classes
    assert found.val.ids == task.val.ids
    assert (found.val.labels == task.val.weak).all()
    assert (found.test.labels == task.test.true).all()
    with (tmp_path / "clipart.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["vote_sketch"] == task.classes[task.train.votes.table[0, -1]]
    with pytest.raises(ConfigError, match="exists"):
        task.save_csv(tmp_path / "clipart.csv")


def test_what_is_missing_is_named(layout, cache, tmp_path):
    options = {"image_size": 32, "cache": cache}
    with pytest.raises(ConfigError, match="unknown domain 'skech'; did you mean 'sketch'"):
        domainnet(layout, "skech", **options)
    with pytest.raises(DataError, match=r"class in .*'cub'; did you mean 'cup'"):
        domainnet(layout, "real", classes=["cub", "dog"], **options)
    with pytest.raises(ConfigError, match=r"5 classes cannot be sampled: .* has 4"):
        domainnet(layout, "real", **options)
    with pytest.raises(DataError, match="art_painting does not exist"):
        pacs(layout, "sketch", **options)
    with pytest.raises(DataError, match="class 'only_here' has no image"):
        weak_task(layout, "sketch", ("sketch",), **options)
    with pytest.raises(DataError, match="two different classes"):
        domainnet(layout, "real", classes=["cup"], **options)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="cannot keep features"):
        domainnet(layout, "real", classes=2, image_size=32, cache=file)

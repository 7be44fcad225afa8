"""The programmatic-labels protocol on made copies of the layout users have on disk."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hesstune.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "field"))
from weak_tasks import PACS, weak_domain

COLOURS = {"cup": (200, 40, 40), "dog": (40, 40, 200)}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Classes are colours; each domain has a tint and a contrast of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for at, domain in enumerate(PACS):
        tint = rng.normal(0, 40, 3)
        for name, colour in COLOURS.items():
            folder = tmp_path / "pacs" / domain / name
            folder.mkdir(parents=True)
            for i in range(10):
                level = (np.array(colour) - 128) * (1 - 0.15 * at) + 128 + tint + rng.normal(0, 30, 3)
                pixels = np.clip(level + rng.normal(0, 20, (18, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{domain}_{i:03d}.png")
    return tmp_path / "pacs"


def test_labels_are_votes_of_the_other_domains_and_no_label_of_the_target_is_read(root):
    before = weak_domain(root, "photo", 0, image_size=32)
    assert [len(before[name].true) for name in ("train", "val", "test")] == [12, 4, 4]
    for part in before.values():
        assert part.votes.names == [name for name in PACS if name != "photo"]
        assert (part.weak == part.votes.soft.sum(axis=1).argmax(axis=1)).all()
    photo = root / "photo"
    (photo / "cup").rename(photo / "kept")
    (photo / "dog").rename(photo / "cup")
    (photo / "kept").rename(photo / "dog")
    after = weak_domain(root, "photo", 0, image_size=32)

    def votes(parts):
        found = np.concatenate([part.votes.soft.reshape(len(part.true), -1) for part in parts.values()])
        return found[np.lexsort(found.T)]

    np.testing.assert_allclose(votes(after), votes(before), rtol=1e-3, atol=1e-6)
    assert (weak_domain(root, "photo", 1, image_size=32)["train"].features != after["train"].features).any()


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(ConfigError, match="skech"):
        weak_domain(root, "skech", 0)
    with pytest.raises(DataError, match="nowhere"):
        weak_domain(tmp_path / "nowhere", "photo", 0)
    (root / "photo" / "hat").mkdir()
    with pytest.raises(DataError, match="hat"):
        weak_domain(root, "photo", 0, image_size=32)

"""Votes of classifiers trained on other domains: no label of the target domain is read."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "field"))
from tasks import PACS, field_task


def test_labels_are_votes_of_the_other_domains(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, root = np.random.default_rng(0), tmp_path / "pacs128"
    for domain in PACS:
        for name, colour in {"cup": (200, 40, 40), "dog": (40, 40, 200)}.items():
            (root / domain / name).mkdir(parents=True)
            for i in range(5):
                pixels = np.array(colour) + rng.normal(0, 30, 3) + rng.normal(0, 20, (18, 20, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / domain / name / f"{domain}_{i:03d}.png")
    before = field_task("photo weak", 0, tmp_path)
    assert (len(before.x), len(before.clean[0]), len(before.x_test)) == (6, 2, 2)
    assert before.votes.names == [name for name in PACS if name != "photo"]
    assert (before.given == before.votes.soft.sum(axis=1).argmax(axis=1)).all()
    photo = root / "photo"
    (photo / "cup").rename(photo / "kept")
    (photo / "dog").rename(photo / "cup")
    (photo / "kept").rename(photo / "dog")
    after = field_task("photo weak", 0, tmp_path)

    def by_image(task):
        """The votes by image: the classes' order is another."""
        x = np.round(task.x, 2)
        return {tuple(x[i]): task.votes.soft[i] for i in range(len(x))}

    one, other = by_image(before), by_image(after)
    assert set(one) & set(other)
    for image in set(one) & set(other):
        np.testing.assert_allclose(other[image], one[image], rtol=1e-3, atol=1e-6)

"""A comparison's runs decode each image once, whatever seed its labels are made with."""

import numpy as np
import pytest
from PIL import Image

from hesstune.data import images
from hesstune.data.load import load_task, reusing_decoded
from hesstune.data.reading import Reading, Voting


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("cache_mib", [64, 0])
def test_images_are_decoded_once_for_all_seeds(folder, monkeypatch, cache_mib):
    (folder / "a" / "broken.png").write_bytes(b"no image")
    seen, decode = [], images.decode_and_hash
    monkeypatch.setattr(images, "decode_and_hash", lambda path, *how: seen.append(path) or decode(path, *how))
    tasks = {}
    with reusing_decoded():
        for seed in (0, 1, 0):
            tasks[seed] = load_task(
                f"folder:{folder}", size=8, seed=seed, val_fraction=0.0, test_fraction=0.5,
                skip_bad=True, cache_mib=cache_mib, how=Reading(voting=Voting(seed=seed)),
            )  # fmt: skip
    assert sorted(seen) == sorted(folder.glob("*/*.png"))
    assert sorted(tasks[0].train.ids + tasks[0].test.ids) == sorted(tasks[1].train.ids + tasks[1].test.ids)
    again = load_task(f"folder:{folder}", size=8, seed=1, val_fraction=0.0, test_fraction=0.5, skip_bad=True)
    for part in ("train", "test"):
        own, other = getattr(tasks[1], part), getattr(again, part)
        assert own.ids == other.ids
        np.testing.assert_array_equal(own.source.batch(own.rows), other.source.batch(other.rows))

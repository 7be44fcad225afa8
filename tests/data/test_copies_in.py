"""Copies found by names and inputs before the parts are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hesstune.data import near_duplicates
from hesstune.data.load import load_task
from hesstune.data.near_duplicates import named_groups


@pytest.mark.parametrize(
    "name", ["p_jpg.rf.0a1b2c3d4e5f", "p_aug1", "p (1)", "p_copy", "p-flip", "p_rot90", "p_aug1 (2)"]
)
def test_endings_of_copies_are_recognised(name: str) -> None:
    groups = named_groups(["a/p.jpg", f"a/{name}.jpg", f"b/{name}.jpg", "a/q_1.jpg"])
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 3


def _folder(path: Path, copies: int) -> str:
    rng = np.random.default_rng(0)
    for at in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        folder = path / f"class{at % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            Image.fromarray(pixels).save(folder / f"{rng.integers(1 << 60):x}_{copy}.png")
    return f"folder:{path}"


@pytest.mark.parametrize("split", ["uniform", "stratified"])
def test_no_copy_of_a_test_image_is_in_training(tmp_path: Path, split: str) -> None:
    task = load_task(_folder(tmp_path, 2), size=16, split=split)
    parts = (task.train, task.val, task.test)
    assert [len(part) for part in parts] == [28, 10, 10]
    groups = np.concatenate([np.unique(np.asarray(part.copies)) for part in parts])
    assert len(np.unique(groups)) == len(groups) == 24
    assert any("48 of 48 examples are copies" in note for note in task.notes)


def test_copies_between_given_parts_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    rows = [f"text number {n} is here,{n % 2},{'test' if n > 7 else 'train'}" for n in range(10)]
    rows += [rows[0].replace("train", "test")]
    table.write_text("text,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    notes = load_task(f"csv:{table}", size=8).notes
    assert any(note.startswith("1 of the 3 test examples") for note in notes)


@pytest.fixture
def searched(monkeypatch, tmp_path):
    """The numbers of images that were searched for copies, by commands that share a cache."""
    found, search = [], near_duplicates._group_images

    def count(parts, quick=False):
        found.append(sum(map(len, parts)))
        return search(parts, quick)

    monkeypatch.setattr(near_duplicates, "_group_images", count)
    monkeypatch.setenv("HESSTUNE_CACHE", str(tmp_path / "cache"))
    return found


def _groups(monkeypatch, spec: str, **options) -> list[int]:
    """Return the groups of a load in a process of its own."""
    monkeypatch.setattr(near_duplicates, "_KEPT", type(near_duplicates._KEPT)())
    task = load_task(spec, **options)
    parts = (task.train, task.val, task.test)
    return np.concatenate([np.asarray(part.copies) for part in parts]).tolist()


@pytest.mark.parametrize("cache_mib", [100, 0])
def test_a_second_command_does_not_search_for_copies_again(
    tmp_path, monkeypatch, searched, cache_mib
) -> None:
    spec, options = _folder(tmp_path / "images", 2), {"size": 16, "cache_mib": cache_mib}
    first = _groups(monkeypatch, spec, **options)
    assert _groups(monkeypatch, spec, **options) == first
    assert searched == [48]
    kept = next((tmp_path / "cache").rglob("copies_*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-9])  # damaged
    assert _groups(monkeypatch, spec, **options) == first
    assert len(searched) == 2
    _groups(monkeypatch, spec, **(options | {"size": 12}))  # other pixels
    assert len(searched) == 3
    Image.new("RGB", (16, 16), (255, 0, 0)).save(next((tmp_path / "images").rglob("*.png")))
    assert _groups(monkeypatch, spec, **options) != first
    assert len(searched) == 4
    monkeypatch.setenv("HESSTUNE_CACHE", "")
    _groups(monkeypatch, spec, **options)
    assert len(searched) == 5

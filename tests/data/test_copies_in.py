"""Copies found by names and inputs before the parts are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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

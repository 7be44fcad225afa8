"""Data sets of the library datasets, from disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hesstune.data.load import load_examples, load_task
from hesstune.errors import DataError

datasets = pytest.importorskip("datasets")


def test_texts_with_splits_and_named_classes(tmp_path):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"sentence": [f"text {i}" for i in range(8)], "label": [i % 2 for i in range(8)]}
    hidden = {"sentence": ["a", "b", "c"], "label": [1, -1, 0]}
    made = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(rows, features=features),
            "validation": datasets.Dataset.from_dict(rows, features=features),
            "test": datasets.Dataset.from_dict(hidden, features=features),
        }
    )
    made.save_to_disk(tmp_path / "set")
    task = load_task(f"hf:{tmp_path / 'set'}", size=8)
    assert task.is_text
    assert task.classes == ["neg", "pos"]
    assert (len(task.train), len(task.val), len(task.test)) == (8, 8, 2)
    assert task.test.ids == ["test/0", "test/2"]
    assert task.train.texts[3] == ("text 3", None)
    assert task.split == "given"


def test_images_without_splits(tmp_path):
    images = [Image.fromarray(np.full((10, 14, 3), 20 * i, dtype=np.uint8)) for i in range(10)]
    made = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 5})
    made.save_to_disk(tmp_path / "set")
    task = load_task(f"hf:{tmp_path / 'set'}", size=8, val_fraction=0, test_fraction=0.2)
    assert not task.is_text
    assert task.train.images(np.array([0])).shape == (1, 3, 8, 8)
    row = int(task.train.ids[0])
    assert int(task.train.images(np.array([0]))[0, 0, 0, 0]) == 20 * row
    examples = load_examples(f"hf:{tmp_path / 'set'}", size=8, classes=["a", "b"]).examples
    assert examples.labels.tolist() == [0, 1] * 5


def test_pairs_and_wrong_columns(tmp_path):
    rows = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "pairs")
    task = load_task(f"hf:{tmp_path / 'pairs'}", size=8, val_fraction=0, test_fraction=0)
    assert task.train.texts == [("a", "b")] * 4
    datasets.Dataset.from_dict({"x": [1], "label": [0]}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="or a column 'text'"):
        load_task(f"hf:{tmp_path / 'none'}", size=8)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match="needs a column 'label'"):
        load_task(f"hf:{tmp_path / 'bare'}", size=8)
    with pytest.raises(DataError, match="cannot load"):
        load_task(f"hf:{tmp_path / 'absent'}", size=8)

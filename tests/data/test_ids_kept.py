"""Frames and data sets as data: ids are the user's own from the first record to the last page."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.data.load import load_examples, load_task
from hesstune.errors import DataError

pandas = pytest.importorskip("pandas")
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}


def frame_of(tiny, **columns):
    paths = sorted(Path(tiny["data"].removeprefix("folder:")).rglob("*.png"))
    return pandas.DataFrame(
        {"image": [str(p) for p in paths], "label": [p.parent.name for p in paths], **columns}
    )


def given(kind, tiny):
    """Return data, and the ids that its user knows its rows by."""
    ids = [f"patient {i:03d}" for i in range(24)]
    if kind == "column":
        return frame_of(tiny, id=ids), ids
    if kind == "numbers":
        return frame_of(tiny, id=np.arange(24) + 1000), [str(i + 1000) for i in range(24)]
    if kind == "index":
        return frame_of(tiny).set_index(pandas.Index(ids)), ids
    if kind == "filtered":
        kept = [i for i in range(24) if i not in (3, 17)]
        return frame_of(tiny).iloc[kept], [str(i) for i in kept]
    if kind == "pictures":
        frame = frame_of(tiny, id=ids)
        return frame.assign(image=[Image.open(path) for path in frame["image"]]), ids
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_pandas(frame_of(tiny, id=ids))
    return made.cast_column("image", datasets.Image()), ids


@pytest.mark.parametrize("kind", ["column", "numbers", "index", "filtered", "pictures", "data set"])
def test_ids_are_kept_to_the_end(tiny, tmp_path, kind):
    data, ids = given(kind, tiny)
    options = {k: v for k, v in tiny.items() if k != "data"} | {"epochs": 1}
    run = ht.finetune(data, config=options, out=str(tmp_path / "run"))
    assert sorted(row["id"] for row in run.labels()) == sorted(ids)
    assert bool(run.facts.data_notes) == (kind in ("index", "filtered"))
    found = run.predict(data)
    assert found.ids == ids
    found.save(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ids
    names = {p.parent.name for p in Path(tiny["data"].removeprefix("folder:")).rglob("*.png")}
    assert found.accuracy is not None
    assert {run.classes[y] for y in found.labels} == names
    run.measure(part="train", max_examples=4, examples="max", mean_sample=0, trace=False)
    assert set(json.loads((run.path / "measure.json").read_text())["ids"]) <= set(ids)
    assert {row["id"] for row in run.label_issues()} <= set(ids)
    page = html.unescape(run.report().read_text())
    assert all(note in page for note in run.facts.data_notes)
    assert any(example in page for example in ids)
    again = ht.Run.load(run.path, data=data).task()
    assert [i for part in (again.train, again.val, again.test) for i in part.ids] == [
        row["id"] for row in run.labels()
    ]


def test_an_index_that_tells_nothing_numbers_the_rows():
    frame = pandas.DataFrame({"text": list("abcd"), "label": [0, 1, 0, 1]})
    assert load_task(frame, **WHOLE).train.ids == ["0", "1", "2", "3"]
    assert load_task(frame.set_index(pandas.Index([1, 1, 2, 3])), **WHOLE).train.ids == ["0", "1", "2", "3"]
    found = load_task(frame.iloc[::-1], **WHOLE)
    assert found.train.ids == ["3", "2", "1", "0"]
    assert "the ids are the DataFrame's index" in found.notes
    assert found.train.texts[0] == ("d", None)


def test_labels_of_another_index_are_refused():
    frame = pandas.DataFrame({"text": list("abcd"), "label": [0, 1, 1, 1]})
    shuffled = frame["label"].sample(frac=1, random_state=1)
    with pytest.raises(DataError, match=r"X and y have different indices.*y\.loc\[X\.index\]"):
        load_task((frame["text"], shuffled), **WHOLE)
    with pytest.raises(DataError, match="different indices"):
        load_task((frame[["text"]], shuffled), **WHOLE)
    frame.loc[0, "label"] = 0
    frame = pandas.concat([frame, frame.assign(label=0)], ignore_index=True)
    assert (
        load_task((frame[["text"]], frame["label"].to_numpy()), **WHOLE).train.labels.tolist()
        == frame["label"].tolist()
    )


def test_missing_values_of_frames_are_no_words(tmp_path):
    frame = pandas.DataFrame({"text": ["a", None, "c", float("nan"), "e"], "label": [0, 1, 0, 1, 1]})
    found = load_task(frame, **WHOLE)
    assert [text for text, _ in found.train.texts] == ["a", "", "c", "", "e"]
    for kind in ("string", "category", object):
        labels = pandas.Series(["x", "y", None, "x", "y"]).astype(kind)
        with pytest.raises(DataError, match="row 4: the label is empty"):
            load_task(frame.assign(label=labels), **WHOLE)
    floats = pandas.DataFrame({"text": list("abcde"), "label": [1, 2, 1, 2, None]})
    with pytest.raises(DataError, match="row 6: the label is empty"):
        load_task(floats, **WHOLE)
    new = load_examples(floats, size=8, classes=["1", "2"])
    assert new.examples.labels.tolist() == [0, 1, 0, 1, -1]


def test_damaged_pictures_in_memory_are_named_or_skipped(tmp_path):
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "y.png").write_bytes(whole[:60])
    rows = [Image.open(tmp_path / name) for name in ("x.png", "x.png", "y.png", "x.png", "x.png")]
    frame = pandas.DataFrame({"image": rows, "label": [0, 1, 1, 0, 1], "id": list("abcde")})
    for data, ids in ((frame, list("abde")), ((rows, [0, 1, 1, 0, 1]), ["0", "1", "3", "4"])):
        with pytest.raises(DataError, match="cannot decode the image of example 2"):
            load_task(data, **WHOLE)
        found = load_task(data, skip_bad=True, **WHOLE)
        assert found.train.ids == ids
        assert found.train.labels.tolist() == [0, 1, 0, 1]


def test_an_input_that_is_missing_is_told():
    images = [np.zeros((5, 5), np.uint8), None, np.zeros((5, 5), np.uint8)]
    with pytest.raises(DataError, match=r"X has no input at 1 \(1 in all\)"):
        load_task((images, [0, 1, 0]), **WHOLE)
    found = load_task((["a", None, "c", "d"], [0, 1, 0, 1]), **WHOLE)
    assert found.train.texts[1] == ("", None)


class Subset:
    """A map-style data set whose classes are not all there."""

    classes = ("ant", "bee", "cow", "dog")

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((6, 6), index, np.uint8), self.labels[index]


def test_a_subset_keeps_its_classes_names():
    found = load_task(Subset([3, 1, 3, 1]), **WHOLE)
    assert found.classes == ["bee", "dog"]
    assert found.train.labels.tolist() == [1, 0, 1, 0]
    assert "classes without an example left out: ant, cow" in found.notes
    with pytest.raises(DataError, match="label 4 has no name"):
        load_task(Subset([4, 1, 3, 1]), **WHOLE)
    assert load_examples(Subset([1, 0]), size=6, classes=["ant", "bee"]).examples.labels.tolist() == [1, 0]

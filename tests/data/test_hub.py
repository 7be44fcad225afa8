"""Data sets of the library datasets, from disk and in memory: splits, None, damaged and odd images."""

import io

import numpy as np
import pytest
from PIL import Image

from hesstune.data.load import load_examples, load_task
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError

datasets = pytest.importorskip("datasets")
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}
NAMED = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})


def texts(count, **more):
    return datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(count)], "label": ["a", "b"] * (count // 2), **more}
    )


def stored(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    return f"hf:{tmp_path / 'set'}"


def encoded(level):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 12), (level,) * 3).save(buffer, format="PNG")
    return buffer.getvalue()


def images(contents, labels=(0, 1, 0, 1), **more):
    column = [{"bytes": content, "path": None} for content in contents]
    made = datasets.Dataset.from_dict({"image": column, "label": list(labels), **more})
    return made.cast_column("image", datasets.Image())


@pytest.mark.parametrize("on_disk", [False, True])
def test_splits_are_recognised_by_usual_names(tmp_path, on_disk):
    counts = {
        "Train": 8,
        "validation_matched": 4,
        "validation_mismatched": 2,
        "testing": 2,
        "unsupervised": 6,
    }
    made = datasets.DatasetDict({name: texts(count) for name, count in counts.items()})
    data = stored(made, tmp_path) if on_disk else made
    found = load_task(data, size=8)
    assert (found.is_text, found.split) == (True, "given")
    assert [len(part) for part in (found.train, found.val, found.test)] == [8, 6, 2]
    assert found.val.ids[3:5] == ["validation_matched/3", "validation_mismatched/0"]
    notes = " ".join(found.notes)
    assert "'validation_matched', 'validation_mismatched' for val" in notes
    assert "unsupervised (6 rows)" in notes
    assert len(load_examples(data, size=8, classes=["a", "b"]).examples) == 22
    with pytest.raises(DataError, match="'train'; got unsupervised"):
        load_task(datasets.DatasetDict({"unsupervised": texts(6)}), size=8)


def test_images_pairs_and_wrong_columns(tmp_path):
    rows = [Image.fromarray(np.full((10, 14, 3), 20 * i, dtype=np.uint8)) for i in range(10)]
    data = stored(datasets.Dataset.from_dict({"image": rows, "label": ["a", "b"] * 5}), tmp_path)
    task = load_task(data, size=8, val_fraction=0, test_fraction=0.2)
    assert int(task.train.images(np.array([0]))[0, 0, 0, 0]) == 20 * int(task.train.ids[0])
    assert load_examples(data, size=8, classes=["a", "b"]).examples.labels.tolist() == [0, 1] * 5
    pairs = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "label": [0, 1, 0, 1]}
    assert load_task(datasets.Dataset.from_dict(pairs), **WHOLE).train.texts == [("a", "b")] * 4
    for columns, message in (({"x": [1], "label": [0]}, "a column 'text'"), ({"text": ["a"]}, "'label'")):
        with pytest.raises(DataError, match=message):
            load_task(datasets.Dataset.from_dict(columns), size=8)
    short = datasets.DatasetDict({"train": texts(4), "test": texts(2).rename_column("text", "words")})
    with pytest.raises(DataError, match=r"'test' .* no column 'text'"):
        load_task(short, size=8)
    with pytest.raises(DataError, match="cannot load"):
        load_task(f"hf:{tmp_path / 'absent'}", size=8)
    with pytest.raises(DataError, match="streamed"):
        load_task(texts(4).to_iterable_dataset(), **WHOLE)


def test_a_text_of_none_is_no_word():
    pairs = texts(4, text=["t0", "t1", None, "t3"], text2=["x", None, "y", "z"])
    found = load_task(pairs, **WHOLE)
    assert found.train.texts == [("t0", "x"), ("t1", ""), ("", "y"), ("t3", "z")]
    new = load_examples(pairs, size=8, classes=["a", "b"], skip_blank=True)
    assert new.examples.ids == ["0", "1", "3"]
    assert load_task(texts(4, text=[1, 2, 3, 4]), **WHOLE).train.texts[0] == ("1", None)
    with pytest.raises(DataError, match="'text' of the data set holds list"):
        load_task(texts(4, text=[["a", "b"]] * 4), **WHOLE)


@pytest.mark.parametrize(
    ("labels", "features"),
    [([0, 1, None, 0, 1, -1], NAMED), ([1, 2, None, 1, 2, -1], None), ([*"ab", None, *"ab", ""], None)],
)
def test_hidden_labels_are_left_out_and_reported(labels, features):
    made = datasets.Dataset.from_dict({"text": list("uvwxyz"), "label": labels}, features=features)
    found = load_task(made, **WHOLE)
    assert [text for text, _ in found.train.texts] == ["u", "v", "x", "y"]
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert any("2 of 6" in note and "such as 2" in note for note in found.notes)
    new = load_examples(made, size=8, classes=found.classes)
    assert new.examples.labels.tolist() == [0, 1, -1, 0, 1, -1]


def test_a_split_without_labels_is_one_of_hidden_labels():
    made = datasets.DatasetDict({"train": texts(4), "test": texts(2).remove_columns("label")})
    found = load_task(made, size=8, val_fraction=0)
    assert (len(found.train), len(found.test)) == (4, 0)
    assert any("such as test/0" in note for note in found.notes)


@pytest.mark.parametrize("how", ["bytes", "files", "binary"])
def test_damaged_images_are_named_or_skipped(tmp_path, how):
    whole = encoded(60)
    contents = [encoded(0), whole[: len(whole) // 2], encoded(90), b"no image", encoded(120), encoded(150)]
    labels = [0, 1, 0, 1, 1, 1]
    if how == "bytes":
        made = images(contents, labels)
    elif how == "binary":
        made = datasets.Dataset.from_dict({"image": contents, "label": labels})
    else:
        for i, content in enumerate(contents):
            (tmp_path / f"{i}.png").write_bytes(content)
        paths = [str(tmp_path / f"{i}.png") for i in range(6)]
        made = datasets.Dataset.from_dict({"image": paths, "label": labels})
        made = made.cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=r"image of example 1: .*and 1 more.*--skip-bad-images"):
        load_task(made, **WHOLE)
    found = load_task(made, skip_bad=True, **WHOLE)
    assert (found.train.ids, [name for name, _ in found.skipped]) == (["0", "2", "4", "5"], ["1", "3"])
    assert found.train.images(np.arange(4))[:, 0, 0, 0].tolist() == [0, 90, 120, 150]
    assert found.train.labels.tolist() == [0, 0, 1, 1]


def test_images_that_are_missing_or_of_formats_that_run_programs_are_not_read():
    made = datasets.Dataset.from_dict(
        {"image": [None, *([{"bytes": encoded(9), "path": None}] * 4)], "label": [0, 1, 0, 1, 0]}
    )
    found = load_task(made.cast_column("image", datasets.Image()), skip_bad=True, **WHOLE)
    assert [name for name, _ in found.skipped] == ["0"]
    with pytest.raises(DataError, match="it is a int, not an image"):
        load_task(datasets.Dataset.from_dict({"image": [3, 4, 5, 6], "label": [0, 1, 0, 1]}), **WHOLE)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="cannot identify image file"):
        load_task(images([script] * 4), **WHOLE)


def test_ids_are_those_of_the_column_if_they_differ():
    assert load_task(texts(4, id=["k", "l", "m", "n"]), **WHOLE).train.ids == ["k", "l", "m", "n"]
    found = load_task(texts(4, id=[1, 1, 2, 3]), **WHOLE)
    assert found.train.ids == ["0", "1", "2", "3"]
    assert "numbered" in found.notes[0]
    with pytest.raises(DataError, match="'id' of the data set repeats some ids"):
        load_task(texts(4, id=[1, 1, 2, 3]), how=Reading(columns=Columns(id="id")), **WHOLE)
    both = datasets.DatasetDict({"train": texts(4, id=list("abcd")), "test": texts(2, id=list("ef"))})
    assert load_task(both, size=8).test.ids == ["e", "f"]


def test_a_question_beside_an_image_is_no_text_to_train_on():
    made = images([encoded(9)] * 4, question=["q"] * 4)
    assert not load_task(made, **WHOLE).is_text
    found = load_task(made, how=Reading(columns=Columns(text="question")), **WHOLE)
    assert found.train.texts[0] == ("q", None)


def test_votes_and_a_column_named_split_of_a_data_set():
    votes = {"vote_x": [*"abba", ""], "vote_y": [*"abba", "b"], "split": ["train"] * 5}
    made = datasets.Dataset.from_dict({"text": list("uvwxy"), **votes})
    found = load_task(made, **WHOLE)
    assert found.split == "uniform"  # parts are splits of a DatasetDict
    assert found.train.votes.table.shape == (5, 2)
    assert [found.classes[y] for y in found.train.labels] == [*"abbab"]


def test_a_damaged_file_is_refused_and_does_not_end_the_process(tmp_path):
    spec = stored(texts(8, id=[f"long name {i}" for i in range(8)]), tmp_path)
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole = file.read_bytes()
    at = whole.index(np.arange(0, 8 * 11 + 1, 11, dtype=np.int32).tobytes())  # the ids' offsets
    wrong = [whole[: at + 8] + np.int32(offset).tobytes() + whole[at + 12 :] for offset in (2**30, -5)]
    for content in (*wrong, whole[: len(whole) // 2]):
        file.unlink()
        file.write_bytes(content)
        with pytest.raises(DataError, match="datasets cannot load"):
            load_task(spec, **WHOLE)

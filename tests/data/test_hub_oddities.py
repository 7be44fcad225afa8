"""Data sets of the library datasets as they come: splits by other names, None, damaged and odd images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hesstune.data.load import load_examples, load_task
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError

datasets = pytest.importorskip("datasets")
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}


def texts(count, **more):
    return datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(count)], "label": ["a", "b"] * (count // 2), **more}
    )


def stored(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    return f"hf:{tmp_path / 'set'}"


def picture(level, **saved):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 12), (level,) * 3).save(buffer, **{"format": "PNG", **saved})
    return buffer.getvalue()


@pytest.mark.parametrize("on_disk", [False, True])
def test_splits_by_their_usual_names_and_others_left_out(tmp_path, on_disk):
    made = datasets.DatasetDict(
        {
            "Train": texts(8),
            "validation_matched": texts(4),
            "validation_mismatched": texts(2),
            "testing": texts(2),
            "unsupervised": texts(6),
        }
    )
    data = stored(made, tmp_path) if on_disk else made
    found = load_task(data, size=8)
    assert [len(part) for part in (found.train, found.val, found.test)] == [8, 6, 2]
    assert found.val.ids == [f"validation_matched/{i}" for i in range(4)] + [
        f"validation_mismatched/{i}" for i in range(2)
    ]
    told = " ".join(found.notes)
    assert (
        "'Train' for train; 'validation_matched', 'validation_mismatched' for val; 'testing' for test" in told
    )
    assert "left out: unsupervised (6 rows)" in told
    new = load_examples(data, size=8, classes=["a", "b"])
    assert len(new.examples) == 22
    with pytest.raises(DataError, match="needs a split 'train'; got unsupervised"):
        load_task(datasets.DatasetDict({"unsupervised": texts(6)}), size=8)


def test_a_text_of_none_is_no_word(tmp_path):
    made = texts(4).to_dict()
    made["text"][2] = None
    pairs = datasets.Dataset.from_dict({**made, "text2": ["x", None, "y", "z"]})
    found = load_task(pairs, **WHOLE)
    assert found.train.texts == [("t0", "x"), ("t1", ""), ("", "y"), ("t3", "z")]
    new = load_examples(pairs, size=8, classes=["a", "b"], skip_blank=True)
    assert new.examples.ids == ["0", "1", "3"]
    numbers = datasets.Dataset.from_dict({"text": [1, 2, 3, 4], "label": [0, 1, 0, 1]})
    assert load_task(numbers, **WHOLE).train.texts[0] == ("1", None)
    lists = datasets.Dataset.from_dict({"text": [["a", "b"]] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match="column 'text' of the data set holds list, not one text"):
        load_task(lists, **WHOLE)


@pytest.mark.parametrize("kind", ["names", "integers", "strings"])
def test_labels_of_none_are_left_out_and_said(tmp_path, kind):
    labels = {
        "names": [0, 1, None, 0, 1, -1],
        "integers": [1, 2, None, 1, 2, -1],
        "strings": [*"ab", None, *"ab", ""],
    }
    features = None
    if kind == "names":
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
        )
    made = datasets.Dataset.from_dict({"text": list("uvwxyz"), "label": labels[kind]}, features=features)
    found = load_task(made, **WHOLE)
    assert [text for text, _ in found.train.texts] == ["u", "v", "x", "y"]
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert "2 of 6 examples without a label left out (such as 2)" in found.notes
    new = load_examples(made, size=8, classes=found.classes)
    assert new.examples.labels.tolist() == [0, 1, -1, 0, 1, -1]


def test_a_split_without_labels_is_one_of_hidden_labels():
    made = datasets.DatasetDict({"train": texts(4), "test": texts(2).remove_columns("label")})
    found = load_task(made, size=8, val_fraction=0)
    assert (len(found.train), len(found.test)) == (4, 0)
    assert "2 of 6 examples without a label left out (such as test/0)" in found.notes


@pytest.mark.parametrize("how", ["bytes", "files", "binary"])
def test_damaged_images_are_named_or_skipped(tmp_path, how):
    whole = picture(60)
    contents = [picture(0), whole[: len(whole) // 2], picture(90), b"no image", picture(120), picture(150)]
    if how == "files":
        for i, content in enumerate(contents):
            (tmp_path / f"{i}.png").write_bytes(content)
        column = [str(tmp_path / f"{i}.png") for i in range(6)]
    else:
        column = [{"bytes": content, "path": None} for content in contents] if how == "bytes" else contents
    made = datasets.Dataset.from_dict({"image": column, "label": [0, 1, 0, 1, 1, 1]})
    if how != "binary":
        made = made.cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=r"image of example 1: .*and 1 more.*--skip-bad-images"):
        load_task(made, **WHOLE)
    found = load_task(made, skip_bad=True, **WHOLE)
    assert found.train.ids == ["0", "2", "4", "5"]
    assert [example for example, _ in found.skipped] == ["1", "3"]
    assert found.train.images(np.arange(4))[:, 0, 0, 0].tolist() == [0, 90, 120, 150]
    assert found.train.labels.tolist() == [0, 0, 1, 1]


def test_a_missing_image_is_a_damaged_one():
    made = datasets.Dataset.from_dict(
        {"image": [None, *([{"bytes": picture(9), "path": None}] * 4)], "label": [0, 1, 0, 1, 0]}
    )
    made = made.cast_column("image", datasets.Image())
    found = load_task(made, skip_bad=True, **WHOLE)
    assert found.skipped == [("0", "cannot decode the image of example 0: there is none")]
    wrong = datasets.Dataset.from_dict({"image": [3, 4, 5, 6], "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match="it is a int, not an image"):
        load_task(wrong, **WHOLE)


def test_images_stand_upright_as_files_do():
    exif = Image.new("RGB", (2, 2)).getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:2] = 255  # the top row goes to the right
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": buffer.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    )
    found = load_task(made.cast_column("image", datasets.Image()), **WHOLE)
    assert (found.train.images(np.array([0]))[0, 0].numpy() == np.asarray(pixels)[:, :, 0].T[:, ::-1]).all()
    assert "4 of 4 images turned upright, as their EXIF orientation says" in found.notes


def test_formats_that_run_other_programs_are_not_read():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    made = datasets.Dataset.from_dict({"image": [{"bytes": script, "path": None}] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match="cannot identify image file"):
        load_task(made.cast_column("image", datasets.Image()), **WHOLE)


def test_ids_are_those_of_the_column_where_each_is_another():
    found = load_task(texts(4, id=["k", "l", "m", "n"]), **WHOLE)
    assert found.train.ids == ["k", "l", "m", "n"]
    found = load_task(texts(4, id=[1, 1, 2, 3]), **WHOLE)
    assert found.train.ids == ["0", "1", "2", "3"]
    assert "rows are numbered instead" in found.notes[0]
    with pytest.raises(DataError, match="'id' of the data set repeats some ids"):
        load_task(texts(4, id=[1, 1, 2, 3]), how=Reading(columns=Columns(id="id")), **WHOLE)
    both = datasets.DatasetDict({"train": texts(4, id=list("abcd")), "test": texts(2, id=list("ef"))})
    assert load_task(both, size=8).test.ids == ["e", "f"]


def test_a_streamed_data_set_is_told_to_be_loaded():
    with pytest.raises(DataError, match="is streamed; load it whole"):
        load_task(texts(4).to_iterable_dataset(), **WHOLE)


def test_a_question_beside_an_image_is_no_text_to_train_on():
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(9), "path": None}] * 4, "question": ["q"] * 4, "label": [0, 1, 0, 1]}
    )
    made = made.cast_column("image", datasets.Image())
    assert not load_task(made, **WHOLE).is_text
    found = load_task(made, how=Reading(columns=Columns(text="question")), **WHOLE)
    assert found.train.texts[0] == ("q", None)


def test_a_damaged_file_of_a_data_set_is_refused_and_does_not_end_the_process(tmp_path):
    spec = stored(texts(8, id=[f"long name {i}" for i in range(8)]), tmp_path)
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole = file.read_bytes()
    at = whole.index(np.arange(0, 8 * 11 + 1, 11, dtype=np.int32).tobytes())  # the ids' offsets
    for wrong in (2**30, -5):
        file.unlink()
        file.write_bytes(whole[: at + 8] + np.int32(wrong).tobytes() + whole[at + 12 :])
        with pytest.raises(DataError, match="datasets cannot load"):
            load_task(spec, **WHOLE)
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="datasets cannot load"):
        load_task(spec, **WHOLE)

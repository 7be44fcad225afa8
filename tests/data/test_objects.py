"""Data sets that are Python objects give what files of the same content give."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import hesstune as ht
from hesstune.data.load import load_examples, load_task
from hesstune.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 10, 10, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3
NAMES = [("ant", "bee", "cat")[i] for i in LABELS]
TEXTS = [f"text {i}" for i in range(24)]


def same(a, b):
    assert a.classes == b.classes
    for one, other in ((a.train, b.train), (a.val, b.val), (a.test, b.test)):
        assert one.ids == other.ids
        assert one.labels.tolist() == other.labels.tolist()
        assert one.texts == other.texts
        if one.texts is None and len(one):
            every = np.arange(len(one))
            assert torch.equal(one.images(every), other.images(every))


def task(data, size=16, **options):
    return load_task(data, size=size, **options)


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    return task(f"array:{tmp_path / 'x.npz'}")


def written(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return f"csv:{path}"


class Items(Dataset):
    def __init__(self, items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.astype(np.int64),
        IMAGES / 255,
        torch.from_numpy(IMAGES),
        IMAGES.transpose(0, 3, 1, 2),
        torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
        list(IMAGES),
        IMAGES.tolist(),
        [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in IMAGES],
    ],
    ids=["uint8", "int64", "float", "tensor", "channels first", "tensor first", "list", "nested", "tensors"],
)
def test_images_in_memory_are_what_an_npz_file_gives(npz, images):
    same(task((images, LABELS)), npz)
    same(task((images, LABELS.tolist())), npz)


def test_map_style_data_sets(npz):
    tensors = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    same(task(TensorDataset(tensors, torch.from_numpy(LABELS))), npz)
    same(task(list(zip(tensors, LABELS, strict=True))), npz)
    pictures = Items(
        [(Image.fromarray(x), int(y)) for x, y in zip(IMAGES, LABELS, strict=True)], ["a", "b", "c"]
    )
    found = task(pictures)
    assert found.classes == ["a", "b", "c"]
    every = np.arange(len(found.train))
    assert torch.equal(found.train.images(every), npz.train.images(every))
    assert len(task(Subset(pictures, range(12)), val_fraction=0, test_fraction=0).train) == 12
    texts = task(Items(list(zip(TEXTS, NAMES, strict=True))))
    assert texts.is_text
    assert texts.classes == ["ant", "bee", "cat"]


def test_lists_of_texts_and_of_files(tmp_path):
    spec = written(tmp_path / "t.csv", ["text", "label"], zip(TEXTS, NAMES, strict=True))
    for texts in (TEXTS, np.array(TEXTS), tuple(TEXTS)):
        same(task((texts, NAMES)), task(spec))
    pairs = task(([(a, a[::-1]) for a in TEXTS], LABELS))
    assert pairs.train.texts[0][1] == pairs.train.texts[0][0][::-1]
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    files = task(written(tmp_path / "i.csv", ["image", "label"], zip(paths, NAMES, strict=True)))
    same(task((paths, NAMES)), files)
    same(task(([str(path) for path in paths], NAMES)), files)
    with pytest.raises(DataError, match="do not exist"):
        task(([*paths[:-1], tmp_path / "none.png"], NAMES))


def test_frames_are_read_as_csv_files_are(tmp_path):
    pandas = pytest.importorskip("pandas")
    columns = {
        "text": TEXTS,
        "text2": TEXTS[::-1],
        "label": NAMES,
        "id": [f"id{i}" for i in range(24)],
        "split": ["train", "test"] * 12,
    }
    frame = pandas.DataFrame(columns)
    frame.to_csv(tmp_path / "f.csv", index=False)
    same(task(frame), task(f"csv:{tmp_path / 'f.csv'}"))
    same(task((frame.drop(columns="label"), frame["label"])), task(frame))
    voted = pandas.DataFrame(
        {
            "text": TEXTS,
            "vote_a": [*NAMES[:-1], None],
            "vote_b": [*NAMES[:-1], float("nan")],
            "vote_c": [""] * 24,
        }
    )
    voted.to_csv(tmp_path / "v.csv", index=False)
    same(task(voted), task(f"csv:{tmp_path / 'v.csv'}"))
    assert task(voted).unlabelled == ["23"]
    whole = pandas.DataFrame({"text": TEXTS, "label": LABELS.astype(float)})
    assert task(whole).classes == ["0", "1", "2"]
    for images in (IMAGES, [Image.fromarray(image) for image in IMAGES]):
        frame = pandas.DataFrame({"image": list(images), "label": NAMES, "split": ["val", "train"] * 12})
        found = task(frame, size=10)
        assert found.split == "given"
        assert torch.equal(
            found.train.images(np.arange(12)), torch.from_numpy(IMAGES[1::2]).permute(0, 3, 1, 2)
        )
    missing = pandas.DataFrame({"text": TEXTS, "label": [None, *NAMES[1:]]})
    with pytest.raises(DataError, match="row 2: the label is empty"):
        task(missing)
    with pytest.raises(DataError, match="either a column 'image' or a column 'text'; got label, x"):
        task(pandas.DataFrame({"label": NAMES, "x": LABELS}))


def test_data_sets_of_the_library_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {
            part: datasets.Dataset.from_dict({"text": [f"{part} {t}" for t in TEXTS], "label": NAMES})
            for part in ("train", "test")
        }
    )
    made.save_to_disk(tmp_path / "set")
    same(task(made), task(f"hf:{tmp_path / 'set'}"))
    same(task(made["train"]), task((list(made["train"]["text"]), NAMES)))
    with pytest.raises(DataError, match="the data set needs a column 'label'"):
        task(made.remove_columns("label"))


def test_inputs_alone_will_do_to_predict():
    for inputs in (IMAGES[:2], torch.from_numpy(IMAGES[:2]), list(IMAGES[:2]), (IMAGES[:2], None)):
        examples = load_examples(inputs, size=10, classes=["a", "b"]).examples
        assert len(examples) == 2
        assert examples.labels is None
    examples = load_examples(["a text"], size=10, classes=["a", "b"]).examples
    assert examples.texts == [("a text", None)]
    # Labels are those of the run's classes, however few of them occur.
    examples = load_examples((TEXTS[:2], ["cat", "cat"]), size=10, classes=["ant", "bee", "cat"]).examples
    assert examples.labels.tolist() == [2, 2]
    examples = load_examples((TEXTS[:2], ["dog", "cat"]), size=10, classes=["ant", "bee", "cat"]).examples
    assert examples.labels.tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES.reshape(24, -1), LABELS), r"\(N, C, H, W\); got a table of numbers, \(24, 300\)"),
        ((IMAGES, LABELS[:5]), "X has 24 examples, but y has 5 labels"),
        ((IMAGES, np.eye(3)[LABELS]), r"one label an example, \(N,\); got the shape \(24, 3\)"),
        ((IMAGES, LABELS - 2), "not a class index"),
        ((IMAGES, LABELS * 0), "one class only"),
        ((IMAGES, LABELS / 2), "regression targets are not supported"),
        ((IMAGES * 2.0, LABELS), "floats from 0 to 1"),
        ((IMAGES, [None, *NAMES[1:]]), "the label is empty"),
        (IMAGES, "inputs without labels"),
        (TEXTS, "inputs without labels"),
        (("a text", "a label"), "got one text"),
        (([], []), "holds no examples"),
        ((TEXTS[:1] + list(IMAGES[:1]), [0, 1]), "mixes kinds of inputs: ndarray, str"),
        (([object(), object()], [0, 1]), "PIL images or arrays of images; X holds object"),
        (Items([1, 2]), r"items of Items must be \(input, label\); got int"),
        ((i for i in range(3)), "got generator; an iterable must be read into a list first"),
        (3, "a string such as digits .* got int"),
        ({"train": TEXTS}, "got dict"),
    ],
)
def test_what_cannot_be_used_is_told(data, message):
    with pytest.raises(DataError, match=message):
        task(data)


def test_a_run_on_objects_trains_as_on_files_and_predicts_objects(tiny, tmp_path):
    paths = sorted(Path(tiny["data"].removeprefix("folder:")).rglob("*.png"))
    labels = [path.parent.name for path in paths]
    by_name = ht.finetune(tiny, out=str(tmp_path / "names"))
    run = ht.finetune((paths, labels), config=tiny | {"data": "digits"}, out=str(tmp_path / "objects"))
    weights = by_name.model().state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model().state_dict().items())
    assert run.config.data == "memory"
    assert run.measure(part="train", examples="all").quadratic.shape[0] == len(run.task().train)
    found = run.predict(paths)
    assert found.predicted == by_name.predict(tiny["data"]).predicted
    assert found.accuracy is None
    assert run.predict((paths, labels)).accuracy == by_name.predict(tiny["data"]).accuracy
    with pytest.raises(ht.HesstuneError, match="given in Python"):
        ht.Run.load(run.path).task()
    assert ht.Run.load(run.path, data=(paths, labels)).task().train.ids == run.task().train.ids
    with pytest.raises(ht.HesstuneError, match="labels of 24 of 24 examples changed"):
        ht.Run.load(run.path, data=(paths, labels[::-1])).task()

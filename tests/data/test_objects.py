"""Python objects as data give what files of the same content give; ids are the user's to the last page."""

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import hesstune as ht
from hesstune.data.load import load_examples, load_task
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError

pandas = pytest.importorskip("pandas")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 10, 10, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3
NAMES = [("ant", "bee", "cat")[i] for i in LABELS]
TEXTS = [f"text {i}" for i in range(24)]
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}


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
        torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
        list(IMAGES),
        IMAGES.tolist(),
        [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in IMAGES],
    ],
    ids=["uint8", "int64", "float", "tensor", "list", "nested", "tensors"],
)
def test_images_in_memory_are_what_an_npz_file_gives(npz, images):
    same(task((images, LABELS)), npz)


def test_map_style_data_sets(npz):
    tensors = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    same(task(TensorDataset(tensors, torch.from_numpy(LABELS))), npz)
    same(task(list(zip(tensors, LABELS.tolist(), strict=True))), npz)
    items = [(Image.fromarray(x), int(y)) for x, y in zip(IMAGES, LABELS, strict=True)]
    found = task(Items(items, ["a", "b", "c"]))
    assert found.classes == ["a", "b", "c"]
    every = np.arange(len(found.train))
    assert torch.equal(found.train.images(every), npz.train.images(every))
    assert len(task(Subset(Items(items), range(12)), val_fraction=0, test_fraction=0).train) == 12
    assert task(Items(list(zip(TEXTS, NAMES, strict=True)))).classes == ["ant", "bee", "cat"]
    subset = [(np.full((6, 6), i, np.uint8), y) for i, y in enumerate((3, 1, 3, 1))]
    found = load_task(Items(subset, ("ant", "bee", "cow", "dog")), **WHOLE)
    assert (found.classes, found.train.labels.tolist()) == (["bee", "dog"], [1, 0, 1, 0])
    assert any("left out: ant, cow" in note for note in found.notes)
    with pytest.raises(DataError, match="label 3 has no name"):
        load_task(Items(subset, ("ant", "bee", "cow")), **WHOLE)
    new = load_examples(Items(subset[1:], ("ant", "bee", "cow", "dog")), size=6, classes=["ant", "bee"])
    assert new.examples.labels.tolist() == [1, -1, 1]


def test_lists_of_texts_and_of_files(tmp_path):
    pandas.DataFrame({"text": TEXTS, "label": NAMES}).to_csv(tmp_path / "t.csv", index=False)
    for texts in (TEXTS, np.array(TEXTS), tuple(TEXTS)):
        same(task((texts, NAMES)), task(f"csv:{tmp_path / 't.csv'}"))
    pairs = task(([(a, a[::-1]) for a in TEXTS], LABELS))
    assert pairs.train.texts[0][1] == pairs.train.texts[0][0][::-1]
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    pandas.DataFrame({"image": paths, "label": NAMES}).to_csv(tmp_path / "i.csv", index=False)
    for files in (paths, [str(path) for path in paths]):
        same(task((files, NAMES)), task(f"csv:{tmp_path / 'i.csv'}"))
    with pytest.raises(DataError, match="do not exist"):
        task(([*paths[:-1], tmp_path / "none.png"], NAMES))


def test_frames_are_read_as_csv_files_are(tmp_path):
    texts = pandas.DataFrame({"text": TEXTS, "text2": TEXTS[::-1], "label": NAMES})
    texts = texts.assign(id=[f"id{i}" for i in range(24)], split=["train", "test"] * 12)
    same(task((texts.drop(columns="label"), texts["label"])), task(texts))
    votes = {"vote_a": [*NAMES[:-1], None], "vote_b": [*NAMES[:-1], float("nan")], "vote_c": [""] * 24}
    voted = pandas.DataFrame({"text": TEXTS, **votes})
    for frame in (texts, voted):
        frame.to_csv(tmp_path / "f.csv", index=False)
        same(task(frame), task(f"csv:{tmp_path / 'f.csv'}"))
    assert task(voted).unlabelled == ["23"]
    for images in (IMAGES, [Image.fromarray(image) for image in IMAGES]):
        frame = pandas.DataFrame({"image": list(images), "label": NAMES, "split": ["val", "train"] * 12})
        found = task(frame.assign(text="x"), size=10, how=Reading(columns=Columns(image="image")))
        assert found.split == "given"
        expected = torch.from_numpy(IMAGES[1::2]).permute(0, 3, 1, 2)
        assert torch.equal(found.train.images(np.arange(12)), expected)


def test_missing_values_of_frames_are_no_words():
    frame = pandas.DataFrame({"text": ["a", None, "c", float("nan"), "e"], "label": [0, 1, 0, 1, 1]})
    assert [text for text, _ in load_task(frame, **WHOLE).train.texts] == ["a", "", "c", "", "e"]
    for kind in ("string", "category", object):
        labels = pandas.Series(["x", "y", None, "x", "y"]).astype(kind)
        assert load_task(frame.assign(label=labels), **WHOLE).train.ids == ["0", "1", "3", "4"]
    floats = pandas.DataFrame({"text": list("abcde"), "label": [1, 2, 1, 2, None]})
    found = load_task(floats, **WHOLE)
    assert (found.train.labels.tolist(), found.classes) == ([0, 1, 0, 1], ["1", "2"])
    assert any("1 of 5 examples without a label" in note for note in found.notes)
    new = load_examples(floats, size=8, classes=["1", "2"])
    assert new.examples.labels.tolist() == [0, 1, 0, 1, -1]
    assert load_task(floats[:4], **WHOLE).classes == ["1", "2"]


def test_inputs_alone_can_be_predicted():
    for inputs in (IMAGES[:2], torch.from_numpy(IMAGES[:2]), list(IMAGES[:2]), (IMAGES[:2], None)):
        examples = load_examples(inputs, size=10, classes=["a", "b"]).examples
        assert (len(examples), examples.labels) == (2, None)
    assert load_examples(["a text"], size=10, classes=["a", "b"]).examples.texts == [("a text", None)]
    # Labels are indices of the run's classes, however few of them occur.
    examples = load_examples((TEXTS[:2], ["dog", "cat"]), size=10, classes=["ant", "bee", "cat"]).examples
    assert examples.labels.tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES, LABELS[:5]), "24.*5"),
        ((IMAGES, np.eye(3)[LABELS] + np.eye(3)[0]), r"\(24, 3\).*row 0 is \[2.0, 0.0, 0.0\]"),
        ((IMAGES, np.zeros((24, 3, 2))), r"\(N, K\)"),
        ((IMAGES, LABELS - 2), "not a class index"),
        ((IMAGES, LABELS * 0), "one class only"),
        ((IMAGES, LABELS / 2), "regression"),
        ((IMAGES * 2.0, LABELS), "float"),
        ((IMAGES[:0], LABELS[:0]), "one image or more"),
        ((IMAGES, [None] * 24), "no label at all"),
        (IMAGES, "inputs without labels"),
        (TEXTS, "inputs without labels"),
        (("a text", "a label"), "got one text"),
        (([], []), "holds no examples"),
        ((TEXTS[:1] + list(IMAGES[:1]), [0, 1]), "ndarray, str"),
        (([object(), object()], [0, 1]), "X holds object"),
        (([IMAGES[0], None, IMAGES[1]], [0, 1, 0]), r"X.* 1 "),
        (Items([1, 2]), "Items.*int"),
        ((i for i in range(3)), "generator"),
        (3, "got int"),
        ({"train": TEXTS}, "got dict"),
        (pandas.DataFrame([["a", "b", 0]], columns=["text", "text", "label"]), "'text'"),
        (pandas.DataFrame({"label": NAMES, "x": LABELS}), "got label, x"),
    ],
)
def test_what_cannot_be_used_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        task(data)


def test_damaged_images_in_memory_are_named_or_skipped(tmp_path):
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    rows = [Image.open(tmp_path / name) for name in ("x.png", "x.png", "y.png", "x.png", "x.png")]
    frame = pandas.DataFrame({"image": rows, "label": [0, 1, 1, 0, 1], "id": list("abcde")})
    for data, ids in ((frame, list("abde")), ((rows, [0, 1, 1, 0, 1]), ["0", "1", "3", "4"])):
        with pytest.raises(DataError, match=r"image of example [c2]"):
            load_task(data, **WHOLE)
        found = load_task(data, skip_bad=True, **WHOLE)
        assert (found.train.ids, found.train.labels.tolist()) == (ids, [0, 1, 0, 1])


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


@pytest.mark.parametrize("kind", ["filtered", "images"])
def test_ids_are_kept_to_the_last_page(tiny, tmp_path, kind):
    paths = sorted(Path(tiny["data"].removeprefix("folder:")).rglob("*.png"))
    frame = pandas.DataFrame({"image": [str(p) for p in paths], "label": [p.parent.name for p in paths]})
    if kind == "filtered":
        data = frame.drop([3, 17])
        ids = [str(i) for i in data.index]
    else:
        ids = [f"patient {i:03d}" for i in range(24)]
        data = frame.assign(id=ids, image=[Image.open(path) for path in frame["image"]])
    options = {k: v for k, v in tiny.items() if k != "data"} | {"epochs": 1}
    run = ht.finetune(data, config=options, out=str(tmp_path / "run"))
    assert sorted(row["id"] for row in run.labels()) == sorted(ids)
    assert bool(run.facts.data_notes) == (kind == "filtered")
    found = run.predict(data)
    found.save(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == found.ids == ids
    assert found.accuracy is not None
    run.measure(part="train", max_examples=4, examples="max", mean_sample=0, trace=False)
    assert set(json.loads((run.path / "measure.json").read_text())["ids"]) <= set(ids)
    assert {row["id"] for row in run.label_issues()} <= set(ids)
    page = html.unescape(run.report().read_text())
    assert all(note in page for note in run.facts.data_notes)
    assert any(example in page for example in ids)
    again = ht.Run.load(run.path, data=data).task()
    kept = [i for part in (again.train, again.val, again.test) for i in part.ids]
    assert kept == [row["id"] for row in run.labels()]


def test_an_index_names_the_rows_if_it_tells_them_apart():
    frame = pandas.DataFrame({"text": list("abcd"), "label": [0, 1, 0, 1]})
    for numbered in (frame, frame.set_index(pandas.Index([1, 1, 2, 3]))):
        assert load_task(numbered, **WHOLE).train.ids == ["0", "1", "2", "3"]
    found = load_task(frame.iloc[::-1], **WHOLE)
    assert (found.train.ids, found.train.texts[0]) == (["3", "2", "1", "0"], ("d", None))
    assert "the ids are the DataFrame's index" in found.notes
    numbers = frame.assign(id=np.arange(4) + 1000)
    assert load_task(numbers, **WHOLE).train.ids == ["1000", "1001", "1002", "1003"]


def test_labels_of_another_index_are_refused():
    frame = pandas.DataFrame({"text": list("abcd"), "label": [0, 1, 0, 1]})
    shuffled = frame["label"].sample(frac=1, random_state=1)
    for inputs in (frame["text"], frame[["text"]]):
        with pytest.raises(DataError, match=r"different indices.*y\.loc\[X\.index\]"):
            load_task((inputs, shuffled), **WHOLE)
    matched = load_task((frame[["text"]], frame["label"].to_numpy()), **WHOLE)
    assert matched.train.labels.tolist() == [0, 1, 0, 1]

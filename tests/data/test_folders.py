"""Folders as people have them: parts by other names, hidden copies, other files, links, odd names."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from hesstune.data.examples import PARTS
from hesstune.data.load import load_examples, load_task
from hesstune.data.tables import parts_of
from hesstune.errors import DataError
from hesstune.runs.config import FinetuneConfig


def write_image(path, level=100, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(path, **how)


def fill(root, names, count=3):
    for name in names:
        for i in range(count):
            write_image(root / name / f"{i}.png", 40 * i)


def task(root, **options):
    return load_task(f"folder:{root}", size=8, **options)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("Training", "dev", "Testing"),
        ("TRAIN", "eval", "TEST"),
        ("train2017", "val2017", "test2017"),
        ("training_set", "development", "test-set"),
    ],
)
def test_parts_by_their_usual_names(tmp_path, names):
    for name, count in zip(names, (4, 3, 2), strict=True):
        fill(tmp_path / name, ("ant", "bee"), count)
    found = task(tmp_path)
    assert (found.classes, found.split) == (["ant", "bee"], "given")
    assert [len(part) for part in (found.train, found.val, found.test)] == [8, 6, 4]
    assert found.train.ids[0] == f"{names[0]}/ant/0.png"
    notes = " ".join(found.notes)
    assert all(name in notes for name, part in zip(names, PARTS, strict=True) if name != part)


def test_a_validation_part_is_drawn_from_training_and_folders_of_one_part_are_joined(tmp_path):
    for name in ("train", "test_a", "test_b"):
        fill(tmp_path / name, ("ant", "bee"), 4)
    found = task(tmp_path, val_fraction=0.25)
    assert [len(found.train), len(found.val), len(found.test)] == [6, 2, 16]
    assert "'test_a', 'test_b' for test" in "".join(found.notes)


def test_names_that_only_begin_as_parts_do(tmp_path):
    names = ("trainers", "tests", "evaluate", "valley", "developer", "train1", "test.a", "extra", "")
    assert parts_of(names)[0] == {"train1": "train", "test.a": "test"}
    fill(tmp_path, ("train", "bus", "car"))  # a class may have the name of a part
    assert (task(tmp_path).classes, task(tmp_path).split) == (["bus", "car", "train"], "uniform")


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("val", "test")])
def test_subfolders_that_repeat_are_no_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / name, ("ant", "bee"))
    with pytest.raises(DataError, match=r"the same subfolders \(ant, bee\).*train, val and test"):
        task(tmp_path)
    assert len(load_examples(f"folder:{tmp_path}", size=8, classes=["ant"]).examples) == 6 * len(names)


def test_folders_that_cannot_be_classes_are_refused_by_name(tmp_path):
    fill(tmp_path / "a", ("train", "test"))
    with pytest.raises(DataError, match="train, are parts"):
        task(tmp_path / "a")
    fill(tmp_path / "b" / "train", ("ant", "bee"))
    fill(tmp_path / "b" / "test", ("ant", "bee", "cow"))
    with pytest.raises(DataError, match=r"class 'cow' has no image in .*train/cow"):
        task(tmp_path / "b")
    write_image(tmp_path / "b" / "train" / "ant" / "ant" / "x.png")
    with pytest.raises(DataError, match=r"got ant \(and 3 images beside"):
        task(tmp_path / "b" / "train" / "ant")
    fill(tmp_path / "c", ("n01/images", "n02/images"))  # each class may hold one folder of images
    assert task(tmp_path / "c").classes == ["n01", "n02"]


def test_hidden_and_system_files_are_skipped(tmp_path):
    fill(tmp_path, ("ant", "bee"))
    fill(tmp_path, ("ant/.ipynb_checkpoints", "bee/__MACOSX", "__MACOSX/ant", ".git", "bee/@eaDir"), 2)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        write_image(tmp_path / "ant" / name, format="PNG")
    found = task(tmp_path)
    ids = {i for part in (found.train, found.val, found.test) for i in part.ids}
    assert ids == {f"{name}/{i}.png" for name in ("ant", "bee") for i in range(3)}
    notes = " ".join(found.notes)
    assert "hidden or system images skipped" in notes
    assert ".ipynb_checkpoints" in notes
    assert "files read" not in notes
    assert set(load_examples(f"folder:{tmp_path}", size=8, classes=["ant", "bee"]).examples.ids) == ids


@pytest.mark.parametrize("suffix", [".jfif", ".JPEG", ".dib", ".pbm", ".Tif"])
def test_other_suffixes_are_read(tmp_path, suffix):
    kind = {".dib": "BMP", ".pbm": "PPM", ".tif": "TIFF"}.get(suffix.lower(), "JPEG")
    for name in ("ant/0", "ant/1", "bee/0", "bee/1"):
        write_image(tmp_path / f"{name}{suffix}", format=kind)
    assert len(task(tmp_path, val_fraction=0, test_fraction=0).train) == 4


def test_other_files_folders_and_links_are_counted(tmp_path):
    for name in ("train", "test"):
        fill(tmp_path / name, ("ant", "bee"), 2)
    for i in range(6):
        (tmp_path / "train" / "ant" / f"{i}.heic").write_bytes(b"x")
        (tmp_path / "train" / "bee" / f"{i}.txt").write_bytes(b"x")
    (tmp_path / "train" / "bee" / "LICENSE").write_text("free")
    write_image(tmp_path / "loose.png")
    fill(tmp_path / "unlabelled", ("x",), 5)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    fill(elsewhere, ("more",))
    (tmp_path / "train" / "ant" / "link").symlink_to(elsewhere / "more")
    (tmp_path / "train" / "ant" / "broken.png").symlink_to(elsewhere / "gone.png")
    notes = task(tmp_path).notes
    assert "8 of 21 files read; 6 .heic, 6 .txt, 1 without a suffix left out" in notes
    shown = " ".join(notes)
    for part in ("1 images beside the class folders", "loose.png", "unlabelled (5 images)", "train/ant/link"):
        assert part in shown
    assert "train/ant/broken.png" in shown
    for path in (tmp_path / "train" / "ant").glob("?.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"class 'ant' has no image.*6 \.heic\)"):
        task(tmp_path)
    with pytest.raises(DataError, match="holds no image"):
        load_examples(f"folder:{tmp_path / 'train' / 'ant'}", size=8, classes=["a"])


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    fill(tmp_path / "photos", ("ant", "bee"))
    rows = [
        f"{home}photos/{name}/{i}.png,{name}" for home, name in (("~/", "ant"), ("", "bee")) for i in (0, 1)
    ]
    (tmp_path / "x.csv").write_text("\n".join(["image,label", *rows]))
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 5, 5), np.uint8), labels=[0, 1, 0, 1])
    for spec, count in (("folder:~/photos", 6), ("csv:~/x.csv", 4), ("array:~/x.npz", 4)):
        assert len(load_task(spec, size=8, val_fraction=0, test_fraction=0).train) == count
    assert FinetuneConfig(out="~/runs/a").out == str(tmp_path / "runs" / "a")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_not_utf_8_are_written_out(tmp_path):
    for raw in (b"caf\xe9", b"bee"):
        folder = os.path.join(os.fsencode(tmp_path), raw)
        os.mkdir(folder)
        for i in range(3):
            write_image(tmp_path / "x.png")
            os.rename(tmp_path / "x.png", os.path.join(folder, b"\xff%d.png" % i))
    found = task(tmp_path, val_fraction=0, test_fraction=0)
    assert found.classes == ["bee", r"caf\xe9"]
    assert found.train.ids[-1] == r"caf\xe9/\xff2.png"
    with open(os.path.join(os.fsencode(tmp_path), b"bee", b"\xff0.png"), "wb") as file:
        file.write(b"damaged")
    with pytest.raises(DataError) as error:
        task(tmp_path)
    assert r"\xff0.png" in str(error.value).encode("utf-8").decode()

"""Folders as people have them: parts by other names, hidden copies, other files, links, odd names."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from hesstune.data.examples import PARTS
from hesstune.data.load import load_examples, load_task
from hesstune.data.tables import part_of
from hesstune.errors import DataError
from hesstune.runs.config import FinetuneConfig

BYTES = sys.platform == "linux"


def picture(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(path)


def filled(root, names, count=3, suffix=".png"):
    for name in names:
        for i in range(count):
            picture(root / name / f"{i}{suffix}", 40 * i)


def task(root, **options):
    return load_task(f"folder:{root}", size=8, **options)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("train", "validation", "test"),
        ("Training", "dev", "Testing"),
        ("TRAIN", "eval", "TEST"),
        ("train2017", "val2017", "test2017"),
        ("training_set", "development", "test-set"),
    ],
)
def test_parts_by_their_usual_names(tmp_path, names):
    for name, count in zip(names, (4, 3, 2), strict=True):
        filled(tmp_path / name, ("ant", "bee"), count)
    found = task(tmp_path)
    assert found.classes == ["ant", "bee"]
    assert found.split == "given"
    assert [len(part) for part in (found.train, found.val, found.test)] == [8, 6, 4]
    assert found.train.ids[0] == f"{names[0]}/ant/0.png"
    told = " ".join(found.notes)
    assert all(name in told for name, part in zip(names, PARTS, strict=True) if name != part)


def test_several_folders_of_one_part_are_read_and_said(tmp_path):
    for name in ("train", "val_matched", "val_mismatched"):
        filled(tmp_path / name, ("ant", "bee"), 2)
    found = task(tmp_path)
    assert len(found.val) == 8
    assert "'val_matched', 'val_mismatched' for val" in "".join(found.notes)


def test_names_that_only_begin_as_parts_do():
    names = ("trainers", "tests", "evaluate", "valley", "developer", "train1", "test.a", "extra", "")
    assert [part_of(name) for name in names] == [None] * 5 + ["train", "test", None, None]


def test_a_class_may_be_called_as_a_part(tmp_path):
    filled(tmp_path, ("train", "bus", "car"))
    assert task(tmp_path).classes == ["bus", "car", "train"]
    assert task(tmp_path).split == "uniform"


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("a", "b", "c"), ("val", "test")])
def test_subfolders_that_repeat_are_no_classes(tmp_path, names):
    for name in names:
        filled(tmp_path / name, ("ant", "bee"))
    with pytest.raises(DataError, match=r"all hold the same subfolders \(ant, bee\).*train, val and test"):
        task(tmp_path)
    assert len(load_examples(f"folder:{tmp_path}", size=8, classes=["ant"]).examples) == 6 * len(names)


def test_parts_without_classes_are_refused(tmp_path):
    filled(tmp_path, ("train", "test"))
    with pytest.raises(DataError, match="train, are parts of the data by their names, but hold no subf"):
        task(tmp_path)


def test_classes_may_each_have_one_folder_of_images(tmp_path):
    filled(tmp_path, ("n01/images", "n02/images"))
    assert task(tmp_path).classes == ["n01", "n02"]


def test_a_class_of_the_test_part_alone_is_refused_by_name(tmp_path):
    filled(tmp_path / "train", ("ant", "bee"))
    filled(tmp_path / "test", ("ant", "bee", "cow"))
    with pytest.raises(DataError, match=r"class 'cow' has no image in .*train/cow"):
        task(tmp_path)


def test_hidden_and_system_files_are_skipped(tmp_path):
    filled(tmp_path, ("ant", "bee"))
    filled(tmp_path, ("ant/.ipynb_checkpoints", "bee/__MACOSX", "__MACOSX/ant", ".git", "bee/@eaDir"), 2)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        picture(tmp_path / "ant" / "copy.png")
        (tmp_path / "ant" / "copy.png").rename(tmp_path / "ant" / name)
    found = task(tmp_path)
    ids = {i for part in (found.train, found.val, found.test) for i in part.ids}
    assert ids == {f"{name}/{i}.png" for name in ("ant", "bee") for i in range(3)}
    told = " ".join(found.notes)
    assert "hidden or system images skipped" in told
    assert ".ipynb_checkpoints" in told
    assert "files read" not in told
    new = load_examples(f"folder:{tmp_path}", size=8, classes=["ant", "bee"])
    assert set(new.examples.ids) == ids


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".JPEG", ".dib", ".pbm", ".Tif"])
def test_other_suffixes_are_read(tmp_path, suffix):
    for name in ("ant", "bee"):
        for i in range(2):
            kind = {".dib": "BMP", ".pbm": "PPM", ".tif": "TIFF"}.get(suffix.lower(), "JPEG")
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{i}{suffix}", format=kind)
    assert len(task(tmp_path, val_fraction=0, test_fraction=0).train) == 4


def test_what_is_no_image_is_counted(tmp_path):
    filled(tmp_path, ("ant", "bee"), 4)
    for i in range(6):
        (tmp_path / "ant" / f"{i}.heic").write_bytes(b"x")
        (tmp_path / "bee" / f"{i}.txt").write_bytes(b"x")
    (tmp_path / "bee" / "LICENSE").write_text("free")
    picture(tmp_path / "loose.png")
    found = task(tmp_path)
    assert "8 of 21 files read; 6 .heic, 6 .txt, 1 without a suffix left out" in found.notes
    assert any("1 images beside the class folders left out" in note for note in found.notes)
    filled(tmp_path, ("ant", "bee"), 0)
    for path in (tmp_path / "ant").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"class 'ant' has no image.*\(files left out so far: 6 \.heic\)"):
        task(tmp_path)


def test_folders_beside_parts_and_links_are_told(tmp_path):
    for name in ("train", "test"):
        filled(tmp_path / name, ("ant", "bee"))
    filled(tmp_path / "unlabelled", ("x",), 5)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    filled(elsewhere, ("more",))
    (tmp_path / "train" / "ant" / "link").symlink_to(elsewhere / "more")
    (tmp_path / "train" / "ant" / "broken.png").symlink_to(elsewhere / "gone.png")
    found = task(tmp_path)
    told = " ".join(found.notes)
    assert "folders beside the parts left out: unlabelled (5 images)" in told
    assert "links that are not followed, or lead nowhere, left out" in told
    assert "train/ant/link" in told
    assert "train/ant/broken.png" in told


def test_a_folder_too_high_is_told_the_right_one(tmp_path):
    filled(tmp_path / "data", ("ant", "bee"))
    with pytest.raises(DataError, match=r"did you mean folder:.*/data\?"):
        task(tmp_path)
    picture(tmp_path / "data" / "ant" / "ant" / "x.png")
    with pytest.raises(DataError, match=r"got ant \(and 3 images beside"):
        task(tmp_path / "data" / "ant")


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    filled(tmp_path / "photos", ("ant", "bee"))
    (tmp_path / "x.csv").write_text("image,label\n" + "".join(f"~/photos/ant/{i}.png,a\n" for i in range(2))
                                    + "".join(f"photos/bee/{i}.png,b\n" for i in range(2)))  # fmt: skip
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 5, 5), np.uint8), labels=[0, 1, 0, 1])
    for spec, count in (("folder:~/photos", 6), ("csv:~/x.csv", 4), ("array:~/x.npz", 4)):
        assert len(load_task(spec, size=8, val_fraction=0, test_fraction=0).train) == count
    assert FinetuneConfig(out="~/runs/a").out == str(tmp_path / "runs" / "a")


@pytest.mark.skipif(not BYTES, reason="file names are bytes on Linux")
def test_names_that_are_not_utf_8_are_written_out(tmp_path):
    for raw in (b"caf\xe9", b"bee"):
        folder = os.path.join(os.fsencode(tmp_path), raw)
        os.mkdir(folder)
        for i in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
            os.rename(tmp_path / "x.png", os.path.join(folder, b"\xff%d.png" % i))
    found = task(tmp_path, val_fraction=0, test_fraction=0)
    assert found.classes == ["bee", r"caf\xe9"]
    assert found.train.ids[-1] == r"caf\xe9/\xff2.png"
    with open(os.path.join(os.fsencode(tmp_path), b"bee", b"\xff0.png"), "wb") as file:
        file.write(b"damaged")
    with pytest.raises(DataError) as error:
        task(tmp_path)
    assert r"\xff0.png" in str(error.value).encode("utf-8").decode()

"""A cell's fingerprint depends on the contents of every file that an option names."""

import csv
import shutil

import numpy as np
import pytest
import torch

from hesstune.errors import ConfigError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import FinetuneConfig
from hesstune.study.compare import compare, plan_of


@pytest.fixture
def few(tiny):
    shared = {name: value for name, value in tiny.items() if name not in ("method", "inject_noise")}
    return {**shared, "train": "head", "epochs": 1, "warmup_epochs": 0}


def prints(options, **more):
    plan, _ = plan_of({**options, "methods": ["forward"], "seeds": 1, "noise_matrix": "0.2", **more})
    return [cell.fingerprint for cell in plan.cells]


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def matrix(path, second):
    NoiseMatrix.symmetric(2, 0.2 if second else 0.1).save(path)


def split(path, second):
    rows = [
        [f"{kind}/{i:02d}.png", "train" if i < 8 else "test"] for kind in ("dark", "light") for i in range(12)
    ]
    rows[3][1] = "test" if second else "train"
    table(path, [["id", "split"], *rows])


def checked(path, second):
    table(path, [["id", "label"], [f"dark/0{int(second)}.png", "dark"]])


def network(path, second):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(str(second))


# Options that may name a file: their value, and a writer of two contents.
FILES = {
    "checked_labels": ("{}", checked),
    "noise_matrix": ("{}", matrix),
    "inject_noise": ("file:{}", matrix),
    "split": ("{}", split),
    "weights": ("{}", lambda path, second: torch.save({"v": torch.tensor(second)}, path)),
    "model": ("hf:{}", network),
}


def test_the_options_that_may_name_files_are_declared():
    assert {*FILES, "data"} == set(FinetuneConfig.naming_files())


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_another_cell_and_the_same_file_elsewhere_is_not(few, tmp_path, name):
    form, write = FILES[name]
    suffix = {"noise_matrix": ".json", "inject_noise": ".json", "weights": ".pt", "model": ""}.get(
        name, ".csv"
    )
    path, elsewhere = tmp_path / f"file{suffix}", tmp_path / "other"
    write(path, False)
    first = prints(few, **{name: form.format(path)})
    elsewhere.mkdir()
    shutil.move(path, elsewhere / path.name)
    assert prints(few, **{name: form.format(elsewhere / path.name)}) == first
    write(path, True)
    assert prints(few, **{name: form.format(path)}) != first


def model_code(few, folder, images, monkeypatch):
    source = "from torch import nn\ndef made(k):\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, k))\n"
    monkeypatch.syspath_prepend(folder)
    for second in (False, True):
        (folder / "ownnet.py").write_text(source + "# changed\n" * second)
        yield prints(few, model="py:ownnet:made")


def image_bytes(few, folder, images, monkeypatch):
    yield prints(few)
    path = next(images.rglob("*.png"))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    yield prints(few)


def columns(more, other):
    def of_a_table(few, folder, images, monkeypatch):
        rows = [["image", "label", *more]]
        for path in sorted(images.rglob("*.png")):
            rows.append([str(path), path.parent.name, *more.values()])
        for value in (rows[1][2], other):
            rows[1][2] = value
            table(folder / "t.csv", rows)
            yield prints(few, data=f"csv:{folder / 't.csv'}")

    return of_a_table


def arrays(few, folder, images, monkeypatch):
    x = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    for change in (0, 1):
        x[0, 0, 0] ^= change
        np.savez(folder / "a.npz", images=x, labels=np.arange(24) % 2, classes=np.array(["a", "b"]))
        yield prints(few, data=f"array:{folder / 'a.npz'}")


CHANGES = {
    "code of the model": model_code,
    "bytes of an image": image_bytes,
    "arrays": arrays,
    "soft labels": columns({"p_dark": "0.5", "p_light": "0.5"}, "0.5004"),
    "votes": columns({"vote_a": "dark", "vote_b": "dark"}, "light"),
    "another column": columns({"own": "x"}, "y"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_contents_are_another_cell(what, few, tmp_path, image_folder, monkeypatch):
    first, other = CHANGES[what](few, tmp_path, image_folder, monkeypatch)
    assert first != other


def test_a_comparison_is_not_continued_with_a_changed_file(few, tmp_path):
    path = tmp_path / "clean.csv"
    checked(path, False)
    options = {**few, "checked_labels": str(path), "measure_examples": 0}
    compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "a", jobs=1)
    kept = (tmp_path / "a" / "results.json").read_text()
    checked(path, True)
    with pytest.raises(ConfigError, match="other data or files"):
        compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "a", jobs=1)
    assert (tmp_path / "a" / "results.json").read_text() == kept

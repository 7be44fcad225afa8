"""A cell's fingerprint depends on the contents of every file that an option names."""

import csv
import json
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


def matrix(path, rate):
    NoiseMatrix.symmetric(2, rate).save(path)


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def folder_of(path, content):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(str(content))


def options_with_files(folder):
    """Every option that may name a file: how it is given, and two contents of the file."""
    ids = ["dark/00.png", "dark/01.png"]
    split = [
        [f"{kind}/{i:02d}.png", "train" if i < 8 else "test"] for kind in ("dark", "light") for i in range(12)
    ]
    other = [[name, "test" if i == 3 else part] for i, (name, part) in enumerate(split)]
    return {
        "clean_labels": (
            "{}", lambda p, v: table(p, [["id", "label"], [ids[v], "dark"]]), "clean.csv",
        ),
        "noise_matrix": ("file:{}", lambda p, v: matrix(p, 0.1 + 0.1 * v), "f.json"),
        "inject_noise": ("file:{}", lambda p, v: matrix(p, 0.1 + 0.1 * v), "g.json"),
        "split": ("{}", lambda p, v: table(p, [["id", "split"], *(other if v else split)]), "split.csv"),
        "weights": ("{}", lambda p, v: torch.save({"v": torch.tensor(v)}, p), "w.pt"),
        "model": ("hf:{}", lambda p, v: folder_of(p, v), "m"),
    }  # fmt: skip


def test_the_options_that_may_name_files_are_declared():
    assert {*options_with_files(None), "data"} == set(FinetuneConfig.naming_files())
    told = {
        name
        for name, field in FinetuneConfig.model_fields.items()
        if any(word in (field.description or "") for word in (" file", "PATH", "module:factory"))
    }
    assert told - {"radius", "skip_bad_images", "out"} <= set(FinetuneConfig.naming_files())


@pytest.mark.parametrize("name", sorted(options_with_files(None)))
def test_a_changed_file_is_another_cell_and_the_same_elsewhere_is_not(few, tmp_path, name):
    form, write, called = options_with_files(tmp_path)[name]
    path, elsewhere = tmp_path / called, tmp_path / "other"
    write(path, 0)
    first = prints(few, **{name: form.format(path)})
    write(path, 0)
    assert prints(few, **{name: form.format(path)}) == first
    elsewhere.mkdir()
    shutil.move(path, elsewhere / called)
    assert prints(few, **{name: form.format(elsewhere / called)}) == first
    write(path, 1)
    assert prints(few, **{name: form.format(path)}) != first


def test_bare_paths_count_as_well(few, tmp_path):
    matrix(tmp_path / "f.json", 0.1)
    first = prints(few, noise_matrix=str(tmp_path / "f.json"))
    matrix(tmp_path / "f.json", 0.2)
    assert prints(few, noise_matrix=str(tmp_path / "f.json")) != first


def test_the_code_of_a_model_counts(few, tmp_path, monkeypatch):
    source = "from torch import nn\ndef made(k):\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, k))\n"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ownnet.py").write_text(source)
    first = prints(few, model="py:ownnet:made")
    assert prints(few, model="py:ownnet:made") == first
    (tmp_path / "ownnet.py").write_text(source + "# changed\n")
    assert prints(few, model="py:ownnet:made") != first


def test_images_of_the_same_names_and_sizes_count_by_their_contents(few, tmp_path, image_folder):
    first = prints(few)
    path = next(image_folder.rglob("*.png"))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert prints(few) != first


@pytest.mark.parametrize(
    ("more", "first", "other"),
    [
        ({"p_dark": "0.5", "p_light": "0.5"}, "0.5", "0.5004"),
        ({"vote_a": "dark", "vote_b": "dark"}, "dark", "light"),
        ({"own": "x"}, "x", "y"),
    ],
)
def test_every_column_of_a_table_counts(few, tmp_path, image_folder, more, first, other):
    def write(value):
        rows = [["image", "label", *more]]
        for kind in ("dark", "light"):
            for i in range(12):
                rows.append([str(image_folder / kind / f"{i:02d}.png"), kind, *more.values()])
        rows[1][2] = value
        table(tmp_path / "t.csv", rows)
        return prints(few, data=f"csv:{tmp_path / 't.csv'}")

    assert write(first) == write(first)
    assert write(other) != write(first)


def test_arrays_count_by_their_contents(few, tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 255, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 2
    np.savez(tmp_path / "a.npz", images=x, labels=y, classes=np.array(["a", "b"]))
    first = prints(few, data=f"array:{tmp_path / 'a.npz'}")
    x[0, 0, 0] ^= 1
    np.savez(tmp_path / "a.npz", images=x, labels=y, classes=np.array(["a", "b"]))
    assert prints(few, data=f"array:{tmp_path / 'a.npz'}") != first


def test_a_comparison_is_not_continued_with_a_changed_file(few, tmp_path):
    table(tmp_path / "clean.csv", [["id", "label"], ["dark/00.png", "dark"]])
    options = {**few, "clean_labels": str(tmp_path / "clean.csv"), "measure_examples": 0}
    compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "a", jobs=1)
    kept = (tmp_path / "a" / "results.json").read_text()
    table(tmp_path / "clean.csv", [["id", "label"], ["dark/00.png", "light"]])
    with pytest.raises(ConfigError, match="other data or files"):
        compare(options, methods=["vanilla"], seeds=1, out=tmp_path / "a", jobs=1)
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == json.loads(kept)

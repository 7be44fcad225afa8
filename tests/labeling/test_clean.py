"""Labels that are probably wrong: found, ranked, written, and read again."""

import csv
import json

import numpy as np
import pytest

import hesstune as ht
from hesstune.cli.main import run as run_command
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.labeling.clean import clean


def noisy_features(n=240, wrong=24, k=3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = np.eye(k)[y] + 0.15 * rng.normal(size=(n, k))
    given = y.copy()
    given[:wrong] = (given[:wrong] + 1) % k
    return x, y, given


def test_wrong_labels_come_first():
    x, y, given = noisy_features()
    found = clean(features=x, labels=np.array(["a", "b", "c"])[given])
    assert found.classes == ["a", "b", "c"]
    assert sorted(found.ranked[:24].tolist()) == list(range(24))
    assert np.array_equal(found.wrong, given != y)
    assert np.array_equal(found.labels("corrected"), y)
    assert (found.labels("pruned") == -1).sum() == 24
    assert np.array_equal(found.labels(), given)
    assert np.allclose(found.posterior.sum(axis=1), 1)
    assert ht.clean is clean


def test_numbers_are_classes_in_their_order():
    x, _, given = noisy_features()
    assert clean(features=x, labels=given + 9).classes == ["9", "10", "11"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give data, or else features"),
        ({"features": np.ones((2, 2))}, "features need labels"),
        ({"features": np.ones((2, 2)), "labels": ["a", "a"]}, "two classes"),
        ({"features": np.ones((2, 2)), "labels": ["a"]}, "do not match"),
        ({"data": "digits"}, "without files"),
        ({"features": np.ones((2, 2)), "labels": [0, 1], "sed": 1}, "unknown"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((ConfigError, DataError), match=message):
        clean(**arguments)


@pytest.fixture
def mislabelled(image_folder, tmp_path):
    """The folder's images as a CSV file, four labels wrong, and a test part."""
    rows = []
    for name in ("dark", "light"):
        for i in range(12):
            other = "light" if name == "dark" else "dark"
            part = "test" if i == 11 else "train"
            rows.append([f"{name}{i}", f"images/{name}/{i:02d}.png", other if i < 2 else name, part])
    path = tmp_path / "given.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "label", "split"], *rows])
    return path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_command([str(a) for a in arguments])
    return ended.value.code


def test_the_command_writes_what_finetune_reads(mislabelled, tmp_path, capsys):
    out, page = tmp_path / "clean.csv", tmp_path / "page.html"
    size = ("--image-size", "32")
    code = command("clean", "--data", f"csv:{mislabelled}", "--out", out, "--page", page, *size, "--json")
    said = capsys.readouterr().out
    assert code == 0
    assert "labels are probably wrong" in said
    record = json.loads(said.splitlines()[-1])
    assert record["examples"] == 22
    assert record["written"] == 22
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["split"] for row in rows[-2:]} == {"test"}
    assert {row["id"] for row in rows[:4]} == {"dark0", "dark1", "light0", "light1"}
    assert all(float(row["p_dark"]) + float(row["p_light"]) == pytest.approx(1, abs=1e-4) for row in rows)
    doubts = [float(row["wrong_probability"]) for row in rows[:-2]]
    assert doubts == sorted(doubts, reverse=True)
    task = load_task(f"csv:{out}", size=32)
    assert len(task.train) + len(task.val) == 22
    assert len(task.test) == 2
    assert task.train.soft is not None
    assert task.classes == ["dark", "light"]
    assert "data:image/png" in page.read_text()
    assert "dark0" in page.read_text()
    assert command("clean", "--data", f"csv:{mislabelled}", "--out", out, *size) == 2
    assert "exists" in capsys.readouterr().err


def test_a_corrected_or_pruned_file_and_a_checked_one(mislabelled, tmp_path):
    found = clean(f"csv:{mislabelled}", image_size=32)
    corrected, pruned = tmp_path / "corrected.csv", tmp_path / "pruned.csv"
    found.save(corrected, "corrected")
    assert found.save(pruned, "pruned") == 22 - int(found.wrong.sum())
    with corrected.open(newline="") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file)}
    assert labels["dark0"] == "dark"
    assert labels["light11"] == "light"
    with pytest.raises(RunError, match="exists"):
        found.save(corrected)
    with pytest.raises(ConfigError, match="given"):
        found.save(tmp_path / "other.csv", "right")
    # A person fills in clean_label; the file is then one of checked labels.
    sheet = tmp_path / "sheet.csv"
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "clean_label"], ["dark0", "dark"], ["light5", "light"]])
    again = clean(f"csv:{mislabelled}", image_size=32, clean_labels=sheet)
    at = again.ids.index("dark0")
    assert again.checked.sum() == 2
    assert again.classes[again.given[at]] == "dark"
    assert again.p_wrong[at] == 0
    with sheet.open("a", newline="") as file:
        csv.writer(file).writerow(["nobody", "dark"])
    with pytest.raises(DataError, match="of no example here"):
        clean(f"csv:{mislabelled}", image_size=32, clean_labels=sheet)

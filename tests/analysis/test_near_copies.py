"""Copies on both sides of a certificate: left out of the prior, refused, counted once, and said."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.near_copies import NOT_FOUND, NearCopies
from hesstune.bounds.record import Certificate
from hesstune.cli.main import run as cli
from hesstune.data.examples import Task
from hesstune.errors import DataError
from scenes import photo_tiles, scene

PICTURES, COPIES = 40, 3


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A run on pictures that each lie there thrice, re-encoded, under labels drawn at random."""
    root = tmp_path_factory.mktemp("copied")
    labels = np.random.default_rng(0).permutation(PICTURES) % 2
    for n, label in enumerate(labels):
        for copy in range(COPIES):
            file = io.BytesIO()
            scene(n).save(file, "JPEG", quality=60 + 15 * copy)
            Image.open(file).save(_made(root / "data" / "ab"[label]) / f"{copy}{n:02d}.png")
    return ht.finetune(
        data=f"folder:{root / 'data'}", method="vanilla", train="head", epochs=30, image_size=64, lr=0.01,
        val_fraction=0, test_fraction=0, out=root / "run",
    )  # fmt: skip


def _made(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def _picture(name):
    return name[-6:-4]


def test_a_prior_that_saw_copies_would_certify_what_is_false(copied, monkeypatch):
    """No network does better than chance on fresh pictures: their labels are coins."""
    how = {"bound": "holdout", "prior_fraction": 0.5}
    with pytest.raises(DataError, match=r"near-duplicates of others \(such as .*--repeats drop"):
        certify_run(copied, **how)
    with monkeypatch.context() as patch:
        blind = lambda parts: [np.arange(len(p)) + 1000 * n for n, p in enumerate(parts)]  # noqa: E731
        patch.setattr("hesstune.analysis.near_copies.near_duplicates", blind)
        assert certify_run(copied, **how).risk < 0.45
    found = certify_run(copied, **how, repeats="drop")
    assert found.risk > 0.5
    assert found.near_duplicates["left_out_of_prior"] > 30
    assert found.near_duplicates["repeated"] > 10
    trained = {_picture(r["id"]) for r in ht.Run.load(copied.path / "prior").labels() if r["part"] == "train"}
    assert 0 < len(trained) == PICTURES - found.n  # every picture is on one side
    assert "Near-duplicates among the examples: left out of prior" in found.summary()
    assert Certificate.load(copied.path / "certificate.json") == found
    found = certify_run(copied, **how, diagnostic=True)
    assert any("near-duplicates" in text for text in found.failures)
    allowed = certify_run(copied, **how, repeats="allow")
    assert not allowed.failures
    assert allowed.near_duplicates["left_out_of_prior"] > 30  # whatever is allowed


def test_the_number_is_told_on_the_command_line(copied, capsys):
    with pytest.raises(SystemExit):
        cli(["certify", str(copied.path), "--bound", "compression"])
    assert "80 of the 120 examples" in (told := capsys.readouterr().err)
    assert "--repeats allow" in told
    with pytest.raises(SystemExit):
        cli(["certify", str(copied.path), "--bound", "compression", "--repeats", "drop", "--json"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["n"], record["near_duplicates"]["repeated"]) == (PICTURES, 80)


def test_copies_of_training_in_the_test_part(copied):
    task = copied.task()
    rows = np.arange(len(task.train))
    first = np.array([int(name.split("/")[-1][0]) == 0 for name in task.train.ids])
    parts = {"train": rows[first][:30], "val": rows[first][30:35], "test": rows[~first]}
    apart = Task(**{**vars(task), **{name: task.train.take(at) for name, at in parts.items()}})
    copies = NearCopies.of(apart)
    every = np.arange(2 * PICTURES)
    with pytest.raises(DataError, match=r"70 of the 80 .* trained or selected the network"):
        copies.counted("test", every, seen=True)
    left, found = replace(copies, repeats="drop").counted("test", every, seen=True)
    assert len(left) == 5
    assert found.counts == {"near_training": 70.0, "repeated": 5.0}
    assert len(replace(copies, repeats="allow").counted("test", every, seen=True)[0]) == 80
    assert len(copies.held_out()[0]) == 5
    with pytest.raises(DataError, match="none is left to train it"):
        copies.apart(rows[:30], rows[:30])
    # Which copy is counted does not follow the order.
    kept = [NearCopies.of(task, "drop", seed).counted("train", rows)[0] for seed in range(2)]
    assert all(len({_picture(task.train.ids[row]) for row in one}) == PICTURES for one in kept)
    assert kept[0].tolist() != kept[1].tolist()


ALTERED = {
    "cropped": lambda image: image.crop((5, 10, 90, 95)),
    "rotated": lambda image: image.rotate(8, Image.Resampling.BILINEAR),
    "mirrored and greyed": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("L"),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_images_augmented_before_the_split_are_refused(kind, tmp_path, monkeypatch):
    """Photos and their altered copies under random labels, split at random one by one."""
    blind = lambda parts: [np.arange(len(p)) + 1000 * n for n, p in enumerate(parts)]  # noqa: E731
    monkeypatch.setattr("hesstune.data.load.copies_in", blind)  # a run of its own keeps copies in one part
    tiles = photo_tiles(16)
    for n, label in enumerate(np.random.default_rng(0).permutation(len(tiles)) % 2):
        for name, copy in (("a", tiles[n]), ("b", ALTERED[kind](tiles[n]))):
            copy.save(_made(tmp_path / "data" / "ab"[label]) / f"{name}{n:02d}.png")
    run = ht.finetune(
        data=f"folder:{tmp_path / 'data'}", method="vanilla", train="head", epochs=1, image_size=64, lr=0.01,
        val_fraction=0, test_fraction=0.5, out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(DataError, match="near-duplicates"):
        certify_run(run, bound="holdout")
    found = certify_run(run, bound="holdout", repeats="drop", diagnostic=True)
    trained = {_picture(row["id"]) for row in run.labels() if row["part"] == "train"}
    tested = [_picture(row["id"]) for row in run.labels() if row["part"] == "test"]
    assert found.near_duplicates["near_training"] == sum(name in trained for name in tested) > 2
    assert NOT_FOUND in found.assumptions
    monkeypatch.setattr("hesstune.analysis.near_copies.near_duplicates", blind)
    assert certify_run(run, bound="holdout").n == len(tested)  # what the search prevents

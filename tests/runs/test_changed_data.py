"""A run whose data is no longer what it was made from is refused, by every command that reads the data."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hesstune as ht
from hesstune.cli.main import run as command_line
from hesstune.data.examples import PARTS
from hesstune.errors import ChangedDataError, RunError
from hesstune.runs.records import DATA, LABELS, RECORD
from sentences import sentences

VANILLA = {"method": "vanilla", "inject_noise": None, "epochs": 1}


@pytest.fixture
def run(tiny, tmp_path):
    return ht.finetune(tiny | {"epochs": 1}, out=str(tmp_path / "run"))


def repaint(path):
    Image.new("RGB", (24, 20), "red").save(path)


def refused(run, *named, data=None):
    """Return the message of the refusal, and check that it names the examples and is one line."""
    with pytest.raises(ChangedDataError) as error:
        ht.Run.load(run.path, data=data).task()
    said = str(error.value)
    assert all(name in said for name in named), said
    assert "\n" not in said
    return said


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


# -- what may change -------------------------------------------------------------------------


def of_part(run, part):
    return getattr(run.task(), part).ids


def test_one_image_of_any_part(tiny, tmp_path, image_folder):
    run = ht.finetune(tiny | VANILLA, cache_mib=0, out=str(tmp_path / "run"))
    for part in PARTS:
        changed = image_folder / of_part(run, part)[-1]
        kept = changed.read_bytes()
        repaint(changed)
        refused(run, f"contents of 1 of 24 examples changed ({changed.relative_to(image_folder)})")
        changed.write_bytes(kept)


def swap(folder):
    one, two = folder / "dark" / "00.png", folder / "light" / "00.png"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def one_bit(folder):  # which is gone once the image is decoded at 16 pixels a side
    path = folder / "dark" / "07.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def new_class(folder):
    (folder / "red").mkdir()
    for at in range(2):
        repaint(folder / "red" / f"{at}.png")


CHANGES = [
    (
        lambda folder: [repaint(path) for path in sorted(folder.rglob("*.png"))[3:8]],
        ["contents of 5 of 24 examples changed (dark/03.png, dark/04.png, dark/05.png and 2 more)"],
    ),
    (lambda folder: [repaint(path) for path in folder.rglob("*.png")], ["contents of 24 of 24"]),
    (swap, ["contents of 2 of 24", "dark/00.png", "light/00.png"]),
    (one_bit, ["contents of 1 of 24 examples changed (dark/07.png)"]),
    (lambda folder: (folder / "dark" / "02.png").unlink(), ["1 of 24 examples missing (dark/02.png)"]),
    (lambda folder: repaint(folder / "light" / "99.png"), ["1 new (light/99.png)"]),
    (new_class, ["2 new (red/0.png, red/1.png)", "the classes were dark, light and are dark, light, red"]),
]


def test_changes_of_a_folder_are_named_and_equal_contents_elsewhere_accepted(run, image_folder, tmp_path):
    for at, (change, named) in enumerate(CHANGES):
        other = tmp_path / f"elsewhere{at}"
        shutil.copytree(image_folder, other)  # other times, other folder
        data = f"folder:{other}"
        assert ht.Run.load(run.path, data=data).task().train.ids == run.task().train.ids
        change(other)
        said = refused(run, *named, data=data)
        assert ("contents" in said) == ("contents" in named[0])


@pytest.fixture
def table(tmp_path):
    """A CSV file of images, with ids and a given split."""
    rows = [["id", "image", "label", "split"]]
    for at in range(24):
        name = "dark" if at % 2 else "light"
        rows.append([f"x{at}", f"images/{name}/{at // 2:02d}.png", name, PARTS[max(0, at - 16) // 3]])
    path = tmp_path / "table.csv"

    def write(rows):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    write(rows)
    return path, rows, write


def test_labels_order_and_parts_of_a_table(tiny, tmp_path, table):
    path, rows, write = table
    run = ht.finetune(tiny | {"data": f"csv:{path}", "epochs": 1}, out=str(tmp_path / "run"))
    for at in (0, 18, 23):  # of each part
        changed = [list(row) for row in rows]
        changed[at + 1][2] = "dark" if changed[at + 1][2] == "light" else "light"
        write(changed)
        refused(run, f"labels of 1 of 24 examples changed (x{at})")
    write([rows[0], rows[2], rows[1], *rows[3:]])
    refused(run, "another order", "example 0 of the part train was x0 and is x1")
    rows[1][3] = "test"
    write(rows)
    refused(run, "example 0 of the part train was x0 and is x1")


def test_labels_and_matrices_of_injected_noise(tiny, tmp_path, table):
    path, rows, write = table
    matrix = tmp_path / "f.json"
    matrix.write_text("[[1, 0], [1, 0]]")
    options = VANILLA | {"data": f"csv:{path}", "inject_noise": str(matrix)}
    run = ht.finetune(tiny | options, out=str(tmp_path / "run"))
    assert set(run.task().train.labels) == {0}
    matrix.write_text("[[0, 1], [0, 1]]")
    refused(run, "noise injected", "--inject-noise")
    matrix.write_text("[[1, 0], [1, 0]]")
    rows[1][2], rows[2][2] = rows[2][2], rows[1][2]  # the noise hides it: the labels trained on stay
    write(rows)
    refused(run, "labels of 2 of 24 examples changed (x0, x1)")


def test_votes_and_soft_labels(tiny, tmp_path, voted):
    run = ht.finetune(tiny | VANILLA | {"data": f"csv:{voted}"}, out=str(tmp_path / "run"))
    rows = list(csv.reader(voted.open()))
    at = next(i for i, row in enumerate(rows) if row[1] and row[1] == row[2] == row[3])
    rows[at][3] = ""  # the label stays
    with voted.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    refused(run, "labels of 1 of 22 examples changed")


def test_edited_and_reordered_texts(tmp_path, tiny_bert):
    path = tmp_path / "texts.csv"
    rows = [f"{text},{label}" for text, label in sentences(24)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    options = {"data": f"csv:{path}", "model": f"hf:{tiny_bert}", "batch_size": 8, **VANILLA}
    run = ht.finetune(options, out=str(tmp_path / "run"))
    for at in (0, 11, 23):
        edited = [*rows[:at], rows[at].replace('"', '"Well ', 1) if '"' in rows[at] else f"Well {rows[at]}"]
        path.write_text("\n".join(["text,label", *edited, *rows[at + 1 :]]) + "\n")
        refused(run, f"contents of 1 of 24 examples changed ({at})")
    path.write_text("\n".join(["text,label", *rows[::-1]]) + "\n")
    refused(run, "contents of 24 of 24 examples changed")


def pixels(seed, n=24):
    return np.random.default_rng(seed).integers(0, 256, (n, 10, 10, 3), dtype=np.uint8)


LABELS_OF_24 = ["a", "b"] * 12


def test_arrays_of_a_file(tiny, tmp_path):
    path, images = tmp_path / "x.npz", pixels(0)
    np.savez(path, images=images, labels=np.array(LABELS_OF_24))
    run = ht.finetune(tiny | VANILLA | {"data": f"array:{path}"}, out=str(tmp_path / "run"))
    images[7, 3, 3, 1] ^= 1
    np.savez(path, images=images, labels=np.array(LABELS_OF_24))
    refused(run, "contents of 1 of 24 examples changed (7)")


def as_frame(images, labels):
    return pd.DataFrame({"image": list(images), "label": labels})


def as_pillow(images, labels):
    return [Image.fromarray(image) for image in images], labels


def as_hub(images, labels):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("made", [lambda x, y: (x, y), as_frame, as_pillow, as_hub])
def test_objects_in_memory(tiny, tmp_path, made):
    if made is as_hub:
        pytest.importorskip("datasets")
    images = pixels(0)
    options = {name: value for name, value in (tiny | VANILLA).items() if name != "data"}
    run = ht.finetune(made(images, LABELS_OF_24), config=options, out=str(tmp_path / "run"))
    assert len(ht.Run.load(run.path, data=made(images.copy(), LABELS_OF_24)).task().train) == 14
    images[5, 0, 0, 0] ^= 1
    refused(run, "contents of 1 of 24 examples changed (5)", data=made(images, LABELS_OF_24))
    images[5, 0, 0, 0] ^= 1
    swapped = [LABELS_OF_24[1], LABELS_OF_24[0], *LABELS_OF_24[2:]]
    refused(run, "labels of 2 of 24 examples changed (0, 1)", data=made(images, swapped))


def test_a_source_of_one_s_own(tiny, tmp_path):
    class Source:
        def __init__(self, images):
            self.images = images

        def batch(self, indices):
            return self.images[indices]

    options = {name: value for name, value in (tiny | VANILLA).items() if name not in ("data", "image_size")}
    task = ht.Run.load(ht.finetune(tiny | VANILLA, out=str(tmp_path / "first")).path).task()
    images = task.train.source.array.clone()

    def with_images(images):
        source = Source(images)
        parts = {name: replace(getattr(task, name), source=source) for name in PARTS}
        return replace(task, **parts)

    run = ht.finetune(with_images(images), config=options, out=str(tmp_path / "run"))
    assert len(ht.Run.load(run.path, data=with_images(images.clone())).task().train)
    images[int(task.test.rows[0]), 0, 0, 0] ^= 1
    refused(run, f"contents of 1 of 24 examples changed ({task.test.ids[0]})", data=with_images(images))


# -- who refuses -----------------------------------------------------------------------------

COMMANDS = [
    ["measure", "RUN"],
    ["certify", "RUN", "--draws", "4"],
    ["certify", "RUN", "--bound", "holdout"],
    ["report", "RUN"],
    ["noise", "RUN"],
    ["check", "RUN", "--sample", "2"],
    ["finetune", "--out", "RUN", "--resume"],
]


def test_commands_and_methods_refuse(run, image_folder, capsys, tiny):
    name = of_part(run, "test")[0]
    repaint(image_folder / name)
    before = contents(run.path)
    for words in COMMANDS:
        words = [str(run.path) if word == "RUN" else word for word in words]
        if words[0] == "finetune":
            given = {**tiny, "epochs": 1}
            words += [t for key, value in given.items() for t in (f"--{key.replace('_', '-')}", str(value))]
        with pytest.raises(SystemExit) as ended:
            command_line(words)
        said = capsys.readouterr().err.strip().splitlines()
        assert (ended.value.code, len(said)) == (2, 1), words
        assert f"({name})" in said[0]
        assert contents(run.path) == before
    for method in ("measure", "certify", "noise", "label_issues", "report"):
        with pytest.raises(ChangedDataError, match=name):
            getattr(ht.Run.load(run.path), method)()
        assert contents(run.path) == before


def test_a_report_with_all_it_shows_refuses_too_and_is_written_without_the_data(run, image_folder):
    run.report()
    kept = (image_folder / "dark" / "00.png").read_bytes()
    repaint(image_folder / "dark" / "00.png")
    with pytest.raises(ChangedDataError, match=r"dark/00\.png"):
        ht.Run.load(run.path).report()
    (image_folder / "dark" / "00.png").write_bytes(kept)
    image_folder.rename(image_folder.with_name("moved"))
    assert ht.Run.load(run.path).report().is_file()


def test_a_changed_labels_csv_is_refused(run):
    text = (run.path / LABELS).read_text()
    changed = re.sub(
        r",test,(dark|light),", lambda m: f",test,{'dark' if m[1] == 'light' else 'light'},", text
    )
    (run.path / LABELS).write_text(changed)
    refused(run, LABELS)


def test_a_damaged_record_of_the_data(run, image_folder):
    name = of_part(run, "test")[0]
    repaint(image_folder / name)
    (run.path / DATA).write_bytes(b"x")
    refused(run, "test differ", DATA, "missing or damaged")
    (run.path / DATA).unlink()
    refused(run, "test differ")
    facts = json.loads((run.path / RECORD).read_text())
    del facts["checksums"]["test"]
    (run.path / RECORD).write_text(json.dumps(facts))
    with pytest.raises(RunError, match="no checksum of its test examples"):
        ht.Run.load(run.path).task()


def test_digests_are_the_same_in_another_process(run):
    script = "import sys, hesstune as ht; ht.Run.load(sys.argv[1]).task(); print('unchanged')"
    # Hashes of strings differ between processes.
    command = [sys.executable, "-c", script, str(run.path)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.stdout.strip() == "unchanged", made.stderr


def test_a_finished_run_resumed_with_the_same_data_is_returned(tiny, run):
    assert ht.finetune(tiny | {"epochs": 1}, out=str(run.path), resume=True).result == run.result

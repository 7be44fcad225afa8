"""From data strings to tasks: formats, splits, limits, decoding, augmentation."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hesstune.data import images
from hesstune.data.augment import Augmentation
from hesstune.data.formats import FORMATS, WITHOUT_PATH, data_format
from hesstune.data.images import FileImages
from hesstune.data.load import load_examples, load_task, reusing_decoded
from hesstune.data.reading import Reading, Voting
from hesstune.errors import DataError
from hesstune.storage.tables import read_table

DOCS = (Path(__file__).parents[2] / "docs" / "howto" / "own-data.md").read_text(encoding="utf-8")


def write_csv(folder, rows, header="image,label"):
    path = folder / "labels.csv"
    path.write_text(header + "\n" + "\n".join(rows) + "\n")
    return f"csv:{path}"


def load(spec, **options):
    return load_task(spec, size=16, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_documented_and_named_by_its_file(name):
    kind = data_format(name)
    assert f"| `{kind.written}` | {kind.summary} | {'yes' if kind.has_columns else 'no'} |" in DOCS
    assert kind.written.partition(":")[0] == name
    assert (":" in kind.written) == (name not in WITHOUT_PATH)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:nowhere", "does not exist"),
        ("folder:{folder}/dark/00.png", "is a file"),
        ("folder:{folder}/dark", "two subfolders or more"),
        ("digit", "did you mean 'digits'"),
        ("digits:8", "written digits"),
        ("{folder}", "folder:.*jsonl:.*parquet:"),
        ("{folder}/t.jsonl", "is empty"),
        ("{folder}/t.parquet", "cannot be read as Parquet"),
        ("array:{folder}/t.jsonl", "write jsonl:"),
        ("folder:{folder}/t.jsonl", "write jsonl:"),
        ("{folder}/nowhere", "nowhere.*csv:PATH"),
        ("{folder}/dark/00.png", "00.png.*folder:PATH"),
        ("csv:{folder}/*.tsv", "matches no file"),
        ("jsonl:{folder}", "several kinds .*t.jsonl, t.parquet"),
        ("csv:nowhere.csv", "does not exist"),
        ("folder:", "written folder:PATH"),
        ("memory", "given in Python"),
        ("folder:{folder}/..", "two subfolders or more.*did you mean folder:"),
    ],
)
def test_strings_that_name_no_data_are_refused(image_folder, spec, message):
    for suffix in ("jsonl", "parquet"):
        (image_folder / f"t.{suffix}").touch()
    with pytest.raises(DataError, match=message):
        load(spec.format(folder=image_folder))


def test_a_split_is_uniform_disjoint_complete_and_by_seed(image_folder):
    task = load(f"folder:{image_folder}", seed=1)
    ids = [set(part.ids) for part in (task.train, task.val, task.test)]
    assert [len(i) for i in ids] == [14, 5, 5]
    assert len(set.union(*ids)) == 24
    assert load(f"folder:{image_folder}", seed=1).train.ids == task.train.ids
    assert load(f"folder:{image_folder}", seed=2).train.ids != task.train.ids
    assert [task.classes[y] for y in task.train.labels] == [name.split("/")[0] for name in task.train.ids]
    bright = task.train.images(np.arange(14)).float().mean(dim=(1, 2, 3)) > 120
    assert (bright.numpy() == (task.train.labels == 1)).all()
    some = load(f"folder:{image_folder}", seed=1, limit=6)
    assert set(some.train.ids) < set(task.train.ids)
    assert (len(some.train), some.test.ids) == (6, task.test.ids)
    even = load(f"folder:{image_folder}", split="stratified", test_fraction=0.5, val_fraction=0.0)
    assert np.bincount(even.test.labels).tolist() == [6, 6]
    assert even.split == "stratified"


def test_tables_of_images_with_names_indices_ids_and_parts(image_folder):
    files = [f"{name}/{i:02d}.png" for name in ("dark", "light") for i in range(12)]
    named = load(write_csv(image_folder, [f"{f},{f.split('/')[0]}" for f in files]))
    assert named.classes == ["dark", "light"]
    assert sorted(named.train.ids + named.val.ids + named.test.ids) == sorted(files)
    rows = [f"x{i},{f},{int(i >= 12)},{'test' if i % 3 == 0 else 'train'}" for i, f in enumerate(files)]
    indexed = load(write_csv(image_folder, rows, "id,image,label,split"))
    assert indexed.classes == ["0", "1"]
    assert set(indexed.test.ids) == {f"x{i}" for i in range(0, 24, 3)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["dark/00.png,1", "dark/01.png,2"], "'1'"),
        (["gone.png,a", "dark/01.png,b"], "do not exist: .*gone.png"),
    ],
)
def test_wrong_rows_are_refused(image_folder, rows, message):
    with pytest.raises(DataError, match=message):
        load(write_csv(image_folder, rows))


@pytest.mark.parametrize("cache_mib", [64, 0])
def test_damaged_images_are_named_or_skipped_and_each_is_decoded_once(image_folder, monkeypatch, cache_mib):
    whole = (image_folder / "dark" / "00.png").read_bytes()
    (image_folder / "dark" / "00.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "light" / "03.png").write_bytes(b"not an image")
    spec, options = f"folder:{image_folder}", {"val_fraction": 0.0, "test_fraction": 0.5, "skip_bad": True}
    with pytest.raises(DataError, match=r"dark/00\.png.*and 1 more.*--skip-bad-images"):
        load(spec)
    alone = load(spec, seed=1, cache_mib=cache_mib, **options)  # searches for copies, too
    seen, decode = [], images.decode_and_hash
    monkeypatch.setattr(images, "decode_and_hash", lambda path, *how: seen.append(path) or decode(path, *how))
    with reusing_decoded():
        for seed in (0, 2, 1):
            how = Reading(voting=Voting(seed=seed))
            task = load(spec, seed=seed, cache_mib=cache_mib, how=how, **options)
    assert sorted(seen) == sorted(image_folder.glob("*/*.png"))
    assert [name for name, _ in task.skipped] == ["dark/00.png", "light/03.png"]
    assert len(task.train) + len(task.test) == 22
    assert isinstance(task.train.source, FileImages) == (cache_mib == 0)
    for part in ("train", "test"):
        own, other = getattr(task, part), getattr(alone, part)
        assert own.ids == other.ids
        assert (own.source.batch(own.rows) == other.source.batch(other.rows)).all()


def test_no_image_is_left(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the images"):
        load(f"folder:{tmp_path}", skip_bad=True)


def test_labels_of_new_data_are_in_the_runs_order(image_folder):
    flat = load_examples(f"folder:{image_folder / 'dark'}", size=16, classes=["light", "dark"]).examples
    assert flat.labels is None
    assert flat.ids[0] == "00.png"
    known = load_examples(f"folder:{image_folder}", size=16, classes=["light", "dark"]).examples
    assert known.labels[:12].tolist() == [1] * 12
    assert load_examples(f"folder:{image_folder}", size=16, classes=["x", "y"]).examples.labels is None


def test_augmentation_depends_on_seed_epoch_and_example_alone(image_folder):
    task = load(f"folder:{image_folder}")
    n = len(task.train)
    augment, again = (Augmentation("auto", flip=True, n=n, seed=0) for _ in range(2))
    augment.start_epoch(4)
    again.start_epoch(4)
    rows, shuffled = np.arange(n), np.random.default_rng(0).permutation(n)
    whole = augment(task.train.images(rows), rows)
    assert (again(task.train.images(shuffled), shuffled) == whole[shuffled]).all()
    augment.start_epoch(5)
    assert (augment(task.train.images(rows), rows) != whole).any()
    plain = Augmentation("none", flip=True, n=n, seed=0)
    assert (plain(task.train.images(rows), rows) == task.train.images(rows)).all()


def test_digits_are_never_mirrored():
    task = load("digits")
    assert not task.flip
    assert len(task.train) + len(task.val) + len(task.test) == 1797
    assert Augmentation("auto", flip=task.flip, n=4, seed=0).kind == "shift"
    new = load_examples("digits", size=8, classes=[str(i) for i in range(10)]).examples
    assert new.labels[:3].tolist() == [0, 1, 2]


ROWS = [
    {
        "id": str(n),
        "text": f"text {n}",
        "label": ("no", "yes")[n % 2],
        "split": ("train", "train", "val", "test")[n % 4],
    }
    for n in range(16)
]


def save_rows(folder, rows):
    """Write the rows in every format of one table."""
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tables_in_other_formats_are_read_as_csv_is(tmp_path, kind):
    save_rows(tmp_path, [row | {"stars": None if n == 3 else n} for n, row in enumerate(ROWS)])
    expected, found = load(f"csv:{tmp_path / 't.csv'}"), load(f"{kind}:{tmp_path / f't.{kind}'}")
    assert found.classes == expected.classes == ["no", "yes"]
    for part, other in zip(
        (found.train, found.val, found.test), (expected.train, expected.val, expected.test), strict=True
    ):
        assert part.ids == other.ids
        assert part.labels.tolist() == other.labels.tolist()
    stars = read_table(tmp_path / f"t.{kind}").cells("stars")
    assert stars == [str(n) if n != 3 else "" for n in range(16)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("odd", [["a", "b"], {"a": 1}])
def test_cells_with_lists_or_objects_are_refused_by_name(tmp_path, kind, odd):
    save_rows(tmp_path, [row | {"label": odd} for row in ROWS])
    with pytest.raises(DataError, match=r"row \d: label .*\"a\""):
        load(f"{kind}:{tmp_path / f't.{kind}'}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_other_formats_are_refused(tmp_path, kind):
    (tmp_path / f"t.{kind}").write_text("text,label\na,no\n")
    with pytest.raises(DataError, match=rf"t\.{kind}"):
        load(f"{kind}:{tmp_path / f't.{kind}'}")

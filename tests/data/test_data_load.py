import numpy as np
import pytest
from PIL import Image

from hesstune.data.augment import Augmentation
from hesstune.data.images import FileImages
from hesstune.data.load import load_examples, load_task
from hesstune.errors import DataError


def write_csv(folder, rows, header="image,label"):
    path = folder / "labels.csv"
    path.write_text(header + "\n" + "\n".join(rows) + "\n")
    return f"csv:{path}"


def load(spec, **options):
    return load_task(spec, size=16, **options)


def test_folder_split_is_uniform_disjoint_complete_and_by_seed(image_folder):
    task = load(f"folder:{image_folder}", seed=1)
    ids = [set(part.ids) for part in (task.train, task.val, task.test)]
    assert [len(i) for i in ids] == [14, 5, 5]
    assert len(set.union(*ids)) == 24
    assert task.classes == ["dark", "light"]
    assert load(f"folder:{image_folder}", seed=1).train.ids == task.train.ids
    assert load(f"folder:{image_folder}", seed=2).train.ids != task.train.ids
    for at, name in enumerate(task.train.ids):
        assert task.classes[task.train.labels[at]] == name.split("/")[0]
    bright = task.train.images(np.arange(14)).float().mean(dim=(1, 2, 3)) > 120
    assert (bright.numpy() == (task.train.labels == 1)).all()


def test_limit_and_stratified(image_folder):
    whole = load(f"folder:{image_folder}", seed=3)
    some = load(f"folder:{image_folder}", seed=3, limit=6)
    assert len(some.train) == 6
    assert set(some.train.ids) < set(whole.train.ids)
    assert some.test.ids == whole.test.ids
    even = load(f"folder:{image_folder}", split="stratified", test_fraction=0.5, val_fraction=0.0)
    assert np.bincount(even.test.labels).tolist() == [6, 6]
    assert even.split == "stratified"


def test_given_parts_are_kept(image_folder, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "split" / part).mkdir(parents=True)
        for name in ("dark", "light"):
            (image_folder / name).rename(tmp_path / name)
            (tmp_path / "split" / part / name).mkdir()
            for i, path in enumerate(sorted((tmp_path / name).iterdir())):
                if part == "test" or i % 2 == 0:
                    path.rename(tmp_path / "split" / part / name / path.name)
            (tmp_path / name).rename(image_folder / name)
    task = load(f"folder:{tmp_path / 'split'}", val_fraction=0.25)
    assert task.split == "given"
    assert [len(task.train), len(task.val), len(task.test)] == [9, 3, 12]
    assert all(i.startswith("test/") for i in task.test.ids)


def test_csv_with_names_indices_ids_and_parts(image_folder):
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
        (["dark/00.png,1.5", "dark/01.png,0"], "regression"),
        (["dark/00.png,-1", "dark/01.png,0"], "row 2: label '-1' is not a class index"),
        (["dark/00.png,1", "dark/01.png,2"], "class '1' has one example"),
        (["dark/00.png,-1", "dark/01.png,2"], "row 2: label '-1' is not a class index"),
        (["dark/00.png,a|b", "dark/01.png,a"], "multi-label"),
        (["dark/00.png,", "dark/01.png,a"], "row 2: the label is empty"),
        (["dark/00.png,a", "dark/01.png,a"], "one class only"),
        (["gone.png,a", "dark/01.png,b"], "do not exist"),
        (["dark/00.png,a,b", "dark/01.png,b"], "row 2: the number of cells"),
        (["dark/00.png,a", "dark/01.png,b"], "class 'a' has one example"),
    ],
)
def test_wrong_csv_rows_are_told_by_row(image_folder, rows, message):
    with pytest.raises(DataError, match=message):
        load(write_csv(image_folder, rows))


def test_a_file_without_a_header_is_told_that_it_needs_one(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("a fine film\t1\na poor one\t0\n")
    with pytest.raises(DataError, match=r"got a fine film, 1 \(a file's first row names its columns\)"):
        load(f"csv:{path}")


def test_wrong_folders(image_folder, tmp_path):
    for spec, message in (
        ("folder:nowhere", "does not exist"),
        (f"folder:{image_folder / 'dark' / '00.png'}", "is a file"),
        (f"folder:{image_folder / 'dark'}", "two subfolders or more"),
        ("digit", "did you mean 'digits'"),
        (str(image_folder), "write folder:"),
        ("csv:nowhere.csv", "does not exist"),
        ("folder:", "written folder:PATH"),
    ):
        with pytest.raises(DataError, match=message):
            load(spec)
    (image_folder / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' has no image"):
        load(f"folder:{image_folder}")
    Image.new("RGB", (9, 9)).save(image_folder / "empty" / "one.png")
    with pytest.raises(DataError, match="class 'empty' has one example"):
        load(f"folder:{image_folder}")


def test_damaged_images_are_named_or_skipped(image_folder):
    whole = (image_folder / "dark" / "00.png").read_bytes()
    (image_folder / "dark" / "00.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "light" / "03.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"dark/00\.png.*and 1 more.*--skip-bad-images"):
        load(f"folder:{image_folder}")
    task = load(f"folder:{image_folder}", skip_bad=True)
    assert [name for name, _ in task.skipped] == ["dark/00.png", "light/03.png"]
    assert len(task.train) + len(task.val) + len(task.test) == 22


def test_images_beyond_the_memory_are_decoded_per_batch(image_folder):
    kept = load(f"folder:{image_folder}")
    streamed = load(f"folder:{image_folder}", cache_mib=0)
    assert isinstance(streamed.train.source, FileImages)
    rows = np.array([3, 0, 5])
    assert (kept.train.images(rows) == streamed.train.images(rows)).all()


def test_unlabelled_data_and_labels_in_the_runs_order(image_folder):
    flat = load_examples(f"folder:{image_folder / 'dark'}", size=16, classes=["light", "dark"]).examples
    assert flat.labels is None
    assert flat.ids[0] == "00.png"
    known = load_examples(f"folder:{image_folder}", size=16, classes=["light", "dark"]).examples
    assert known.labels[:12].tolist() == [1] * 12
    other = load_examples(f"folder:{image_folder}", size=16, classes=["x", "y"]).examples
    assert other.labels is None


def test_augmentation_depends_on_seed_epoch_and_example_alone(image_folder):
    task = load(f"folder:{image_folder}")
    n = len(task.train)
    augment = Augmentation("auto", flip=True, n=n, seed=0)
    augment.start_epoch(4)
    rows = np.arange(n)
    whole = augment(task.train.images(rows), rows)
    again = Augmentation("auto", flip=True, n=n, seed=0)
    again.start_epoch(4)
    shuffled = np.random.default_rng(0).permutation(n)
    assert (again(task.train.images(shuffled), shuffled) == whole[shuffled]).all()
    augment.start_epoch(5)
    assert (augment(task.train.images(rows), rows) != whole).any()
    plain = Augmentation("none", flip=True, n=n, seed=0)
    plain.start_epoch(0)
    assert (plain(task.train.images(rows), rows) == task.train.images(rows)).all()


def test_digits_are_never_mirrored():
    task = load("digits")
    assert not task.flip
    assert len(task.train) + len(task.val) + len(task.test) == 1797
    assert Augmentation("auto", flip=task.flip, n=4, seed=0).kind == "shift"

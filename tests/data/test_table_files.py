"""Tables as tools write them: pandas, Spark, datasets, spreadsheets, Kaggle; and paths without a format."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hesstune.data.describe import describe
from hesstune.data.formats import listing, resolved
from hesstune.data.labels import SEVERAL, missing_labels, split_labels
from hesstune.data.load import load_task
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError, MissingExtraError
from hesstune.storage.tables import read_table

WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}
FRAME = pd.DataFrame({"text": [f"text {i}" for i in range(12)], "label": ["no", "yes", "so"] * 4})


def labels_of(spec, how=None):
    """Return {id: class} and the notes of a data string."""
    found = listing(str(spec), 8, how=how)
    assert found.labels is not None
    return dict(zip(found.ids, [found.classes[y] for y in found.labels], strict=True)), found.notes


def expected(ids):
    return dict(zip(ids, FRAME["label"], strict=True))


NUMBERED = [str(i) for i in range(12)]


def spark(folder, suffix=".snappy.parquet"):
    """Write three shards as Spark does, with its marks and checksums."""
    folder.mkdir()
    for n in range(3):
        part = folder / f"part-{n:05d}-8d6f{suffix}"
        rows = FRAME[4 * n : 4 * n + 4]
        rows.to_csv(part, index=False) if suffix == ".csv" else rows.to_parquet(part, index=False)
        (folder / f".{part.name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "_committed_8d6f").write_text("{}")
    return folder


def test_what_pandas_writes_is_read_alike(tmp_path):
    FRAME.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    FRAME.to_json(tmp_path / "b.json", orient="records")
    FRAME.to_parquet(tmp_path / "c.parquet")
    FRAME.to_csv(tmp_path / "d.csv", index=False, sep=";", encoding="utf-8-sig")
    FRAME.to_csv(tmp_path / "e.tsv", index=False, sep="\t")
    for path in sorted(tmp_path.iterdir()):
        assert labels_of(path)[0] == expected(NUMBERED)
        assert any(f"is read as {resolved(str(path))[0]}:{path}" in note for note in labels_of(path)[1])


def test_the_index_of_a_frame_in_parquet_gives_the_ids(tmp_path):
    for index, ids in (
        (pd.Index([f"k{i}" for i in range(12)]), [f"k{i}" for i in range(12)]),
        (pd.Index([f"k{i}" for i in range(12)], name="id"), [f"k{i}" for i in range(12)]),
        (pd.Index(range(7, 19)).values[::-1], [str(i) for i in range(18, 6, -1)]),
        (pd.Index([0] * 12), NUMBERED),  # it repeats
    ):
        FRAME.set_index(index).to_parquet(tmp_path / "x.parquet")
        assert labels_of(f"parquet:{tmp_path / 'x.parquet'}")[0] == expected(ids)
    large = FRAME.assign(id=pd.array([2**60 + i for i in range(12)], dtype="Int64"))
    large.to_parquet(tmp_path / "x.parquet")
    assert labels_of(tmp_path / "x.parquet")[0] == expected([str(2**60 + i) for i in range(12)])
    texts = FRAME.assign(text=[t.encode() for t in FRAME["text"]])
    texts.to_parquet(tmp_path / "x.parquet")  # as Spark writes texts without a type
    assert listing(str(tmp_path / "x.parquet"), 8).texts == [(t, None) for t in FRAME["text"]]


@pytest.mark.parametrize("suffix", [".snappy.parquet", ".csv"])
def test_shards_of_spark_are_one_table(tmp_path, suffix):
    folder = spark(tmp_path / "out", suffix)
    form = suffix.rpartition(".")[2]
    for spec in (folder, f"{form}:{folder}", f"{form}:{folder}/part-*{suffix}", f"{folder}/*{suffix}"):
        found, notes = labels_of(spec)
        assert found == expected(NUMBERED)
        assert any("3 files" in note for note in notes)
    other = FRAME.rename(columns={"label": "class"})
    other.to_csv(folder / "part-00009.csv", index=False)
    with pytest.raises(DataError, match=r"part-00009.csv"):
        labels_of(f"{form}:{folder}")
    (folder / "part-00009.csv").unlink()
    (folder / "notes.txt").touch()
    assert any("1 other files" in note and "notes.txt" in note for note in labels_of(folder)[1])
    bad = folder / f"part-00001-8d6f{suffix}"
    bad.write_text("text,label\na,0|1\nb,no\n") if form == "csv" else FRAME.assign(label="a|b").to_parquet(
        bad
    )
    with pytest.raises(DataError, match=r"row \d of part-00001.*'\w\|\w'"):
        labels_of(folder)


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    for n in range(12):
        FRAME[n : n + 1].to_csv(tmp_path / f"part-{n}.csv", index=False)
    assert labels_of(tmp_path)[0] == expected(NUMBERED)


def test_folders_of_a_column_are_its_values(tmp_path):
    for label, rows in FRAME.groupby("label"):
        part = tmp_path / "x" / f"label={label}" / "source=a%20b"
        part.mkdir(parents=True)
        rows[["text"]].to_csv(part / "part-0.csv", index=False)
    found = read_table(tmp_path / "x")
    assert sorted(zip(found.cells("text"), found.cells("label"), strict=True)) == sorted(
        zip(FRAME["text"], FRAME["label"], strict=True)
    )
    assert set(found.cells("source")) == {"a b"}


def test_shards_of_the_hub_have_parts_and_names_of_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["zebra", "ant"])
    )
    data = {"text": [f"t{i}" for i in range(8)], "label": [0, 1] * 4}
    made = datasets.Dataset.from_dict(data, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["u", "v"], "label": [1, -1]}, features=features)
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").touch()
    for n in range(2):
        made.shard(2, n).to_parquet(folder / "data" / f"train-{n:05d}-of-00002.parquet")
    hidden.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    for spec in (str(folder), f"parquet:{folder}", f"hf:{folder}"):
        found = load_task(spec, **WHOLE)
        assert (found.classes, len(found.train), len(found.test)) == (["zebra", "ant"], 8, 1)
        own = dict(zip((t for t, _ in found.train.texts), found.train.labels.tolist(), strict=True))
        assert own == {f"t{i}": i % 2 for i in range(8)}
        assert any("1 of 10 examples without a label" in note for note in found.notes)
    made.save_to_disk(tmp_path / "disk")
    assert resolved(str(tmp_path / "disk"))[0] == "hf"
    assert load_task(str(tmp_path / "disk"), **WHOLE).classes == ["zebra", "ant"]
    one = folder / "data" / "train-00000-of-00002.parquet"
    found = load_task(f"hf:{one}", **WHOLE)
    assert len(found.train) == 4
    assert any(f"hf:{one} is read as parquet:{one}" in note for note in found.notes)


def test_images_in_parquet_are_decoded(tmp_path):
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(own) for own in pixels]
    data = {"image": images, "label": ["a", "b"] * 3}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "x.parquet")
    found = load_task(str(tmp_path / "x.parquet"), **WHOLE)
    assert np.array_equal(found.train.images(np.arange(6)).permute(0, 2, 3, 1).numpy(), pixels)


@pytest.fixture
def photos(tmp_path):
    """Images as Kaggle gives them: train.csv with ids, and the files in a folder."""
    folder = tmp_path / "kaggle"
    (folder / "train_images").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(folder / "train_images" / f"id{n}.png")
    frame = pd.DataFrame({"image_id": [f"id{n}" for n in range(6)], "class": ["a", "b"] * 3})
    frame.to_csv(folder / "train.csv", index=False)
    return folder


def test_images_are_found_by_their_names_in_folders_beside_the_table(photos):
    how = Reading(Columns(image="image_id", label="class"))
    for spec in (photos / "train.csv", photos):
        found = listing(str(spec), 8, how=how)
        assert [path.name for path in found.paths] == [f"id{n}.png" for n in range(6)]
        assert found.ids == [f"id{n}" for n in range(6)]
        assert any("6 images are found by their names in the folders train_images" in n for n in found.notes)
    (photos / "more").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "more" / "id3.jpg")  # two files of one name
    with pytest.raises(DataError, match=r"do not exist: .*id0"):
        listing(str(photos / "train.csv"), 8, how=how)
    rows = [json.dumps({"file_name": f"id{n}.png", "label": n % 2}) for n in range(6)]
    (photos / "train_images" / "metadata.jsonl").write_text("\n".join(rows))
    found = load_task(str(photos / "train_images"), **WHOLE)
    assert [found.classes[y] for y in found.train.labels] == ["0", "1"] * 3


def test_nested_columns_are_left_out_unless_they_are_needed(tmp_path):
    rows = [
        {"text": "a", "label": "x", "meta": {"by": 1}, "tokens": ["a"]},
        {"text": "b", "label": ["y"], "tokens": None},
        {"text": "c", "label": "x"},
        {"text": ["d"], "label": "y"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows[:3]))
    assert labels_of(path)[0] == {"0": "x", "1": "y", "2": "x"}
    assert read_table(path).row(2) == 5
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="row 4"):
        labels_of(path)


EXPECTED = {
    "leave_out": {"0": "a", "1": "b", "4": "a"},
    "first": {"0": "a", "1": "b", "2": "b", "3": "a", "4": "a"},
    "name": {"0": "a", "1": "b", "2": "b|a", "3": '["a", "b"]', "4": '["a"]'},
}


@pytest.mark.parametrize("several", SEVERAL)
def test_cells_of_several_classes(tmp_path, several):
    labels = ["a", "b", "b|a", '["a", "b"]', '["a"]']
    pd.DataFrame({"text": list("stuvw"), "label": labels}).to_csv(tmp_path / "x.csv", index=False)
    how = Reading(several=several)
    if several == "refuse":
        with pytest.raises(DataError, match=r"row 4: label 'b\|a'"):
            labels_of(tmp_path / "x.csv", how)
    elif several == "share":
        found = listing(str(tmp_path / "x.csv"), 8, how=how)
        assert found.soft.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5], [1, 0]]
    else:
        assert labels_of(tmp_path / "x.csv", how)[0] == EXPECTED[several]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["cat", "dog", "cat,dog"], [["cat"], ["dog"], ["cat", "dog"]]),
        (["cat, bird", "cat"], [["cat", "bird"], ["cat"]]),
        (["a,b", "b,c", "c,a"], [["a", "b"], ["b", "c"], ["c", "a"]]),
        (["Portland, OR", "Salem, OR"], [["Portland, OR"], ["Salem, OR"]]),
        (["R&D", "sales"], [["R&D"], ["sales"]]),
        (["R", "D", "R&D"], [["R"], ["D"], ["R", "D"]]),
        (["['a' 'b']", "['a', 'b']", "[0 1]", "[]"], [["a", "b"], ["a", "b"], ["0", "1"], []]),
        (["[UNK]", "a"], [["[UNK]"], ["a"]]),
        (["a#b", "a"], [["a", "b"], ["a"]]),
        (["C#", "C"], [["C#"], ["C"]]),
    ],
)
def test_joined_labels_are_told_from_names(written, read):
    assert split_labels(written) == read
    assert split_labels(written, written) == [[name] for name in written]


def test_minus_one_is_a_class_beside_one_alone():
    assert missing_labels([1, -1, None]) == [False, False, True]
    assert missing_labels([1.0, 0.0, -1.0, np.nan]) == [False, False, True, True]
    assert missing_labels(["NA", "EU"], ["NA", "EU"]) == [False, False]


def test_confidences_make_soft_labels(tmp_path):
    path = tmp_path / "x.csv"
    frame = FRAME.assign(sure=["0.9", "60%", ""] * 4)
    frame.to_csv(path, index=False)
    found = listing(str(path), 8, how=Reading(confidence="sure"))
    assert np.allclose(found.soft[:3], [[0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0, 1, 0]])
    assert any("4 labels without a confidence" in note for note in found.notes)
    for cell, message in (("95", "row 2.*95"), ("high", "'high'")):
        frame.assign(sure=[cell] * 12).to_csv(path, index=False)
        with pytest.raises(DataError, match=message):
            listing(str(path), 8, how=Reading(confidence="sure"))
    with pytest.raises(DataError, match="'sur'"):
        listing(str(path), 8, how=Reading(confidence="sur"))


def test_data_is_described_before_anything_is_computed(tmp_path):
    FRAME.assign(label=["no", "", "yes"] * 4).to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    facts = describe(str(tmp_path / "x.jsonl"), Reading())
    assert (facts.kind, facts.examples, facts.classes) == ("text", 8, {"no": 4, "yes": 4})
    assert "4 of 12 examples without a label" in " ".join(facts.lines())
    assert describe("digits", Reading()) is None


# -- Excel


@pytest.fixture
def book(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")

    def write(sheets, hidden=()):
        made = openpyxl.Workbook()
        made.remove(made.active)
        for name, rows in sheets.items():
            sheet = made.create_sheet(name)
            for row in rows:
                sheet.append(row)
            sheet.sheet_state = "hidden" if name in hidden else "visible"
        made.save(tmp_path / "book.xlsx")
        return tmp_path / "book.xlsx"

    return write


ROWS = [["text", "label", "stars"], ["a", "no", 1], [], ["b", "yes", 2.0], ["c", None, None], ["d", "no", 3]]


def test_a_sheet_is_read(book):
    path = book({"Data": ROWS, "Empty": [], "Lists": [["x"], ["y"]]}, hidden=["Lists"])
    for spec in (path, f"excel:{path}", f"{path}#Data", f"excel:{path}#Data"):
        found, notes = labels_of(spec)
        assert found == {"0": "no", "1": "yes", "3": "no"}
        assert any("'Data'" in note and "Empty, Lists" in note for note in notes)
        assert any("1 of 4 examples without a label" in note and "row 5" in note for note in notes)
    assert read_table(path).cells("stars") == ["1", "2", "", "3"]


def test_sheets_are_chosen_by_name_and_formulas_are_not_computed(book):
    path = book({"A": ROWS, "B": ROWS})
    with pytest.raises(DataError, match=r"'A' .5 rows., 'B' .* book.xlsx#A"):
        read_table(path)
    with pytest.raises(DataError, match=r"no sheet 'C' .* A, B"):
        read_table(f"{path}#C")
    with pytest.raises(DataError, match=r"row 2.*=1"):
        read_table(book({"A": [["text", "label"], ["a", "=1"]]}))
    with pytest.raises(DataError, match="'text'"):
        read_table(book({"A": [["text", "text"], ["a", "b"]]}))


def test_excel_without_its_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    with pytest.raises(MissingExtraError, match=r"pip install .*\[excel\]"):
        read_table(tmp_path / "x.xlsx")
    (tmp_path / "x.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(DataError, match=r"save it as .xlsx"):
        read_table(tmp_path / "x.xls")

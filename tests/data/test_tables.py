"""Cells of tables: missing, of other columns, encodings and spellings; pandas says what is read."""

import csv
import io

import numpy as np
import pytest

import hesstune as ht
from hesstune.data.labels import alike, class_labels, labels_among
from hesstune.data.load import load_examples, load_task
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError
from hesstune.storage.columns import MISSING, Column
from hesstune.storage.tables import read_table

pandas = pytest.importorskip("pandas")
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0, "size": 8}


def table(path, rows, header="text,label"):
    path.write_text(header + "\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return f"csv:{path}"


def all_kinds(labels, tmp_path):
    """Return the same texts and labels as a table, a frame, a pair and a data set."""
    texts = [f"text {i}" for i in range(len(labels))]
    frame = pandas.DataFrame({"text": texts, "label": labels})
    frame.to_csv(tmp_path / "x.csv", index=False)
    found = {"csv": f"csv:{tmp_path / 'x.csv'}", "frame": frame, "pair": (texts, labels)}
    found["hf"] = pytest.importorskip("datasets").Dataset.from_dict({"text": texts, "label": labels})
    return found


@pytest.mark.parametrize("written", [*MISSING, " NaN ", "null ", "-1", "-1.0"])
def test_missing_labels_are_left_out_of_every_kind_of_data(tmp_path, written):
    for data in all_kinds(["cat", "dog", written, "cat", "dog"], tmp_path).values():
        found = load_task(data, **WHOLE)
        assert (found.classes, found.train.ids) == (["cat", "dog"], ["0", "1", "3", "4"])
        assert any("1 of 5" in note and "such as 2" in note for note in found.notes)
        assert any(f"'{written.strip()}' (1 times)" in note for note in found.notes) == bool(written)
    read = pandas.read_csv(io.StringIO(f"x,y\n{written.strip()},1\n"))
    others = {"NaT", "-1", "-1.0", "NAN", "Nan", "Null", "<na>", "\\N", "(null)"}
    assert read["x"].isna().all() or written in others  # missing is what pandas reads as missing


def test_data_without_any_label_is_refused(tmp_path):
    for data in all_kinds(["", "NaN", "-1", ""], tmp_path).values():
        with pytest.raises(DataError, match="no label at all"):
            load_task(data, **WHOLE)


def test_labels_of_a_table_with_votes_may_be_missing(tmp_path):
    written = [("cat", "cat"), ("NaN", "dog"), ("", "cat"), ("null", "NULL"), ("dog", "N/A"), ("dog", "dog")]
    rows = [f"t{i},{label},{vote}" for i, (label, vote) in enumerate(written)]
    found = load_task(table(tmp_path / "v.csv", rows, "text,label,vote_a"), **WHOLE)
    assert found.unlabelled == ["3"]
    assert [found.classes[y] for y in found.train.labels] == ["cat", "dog", "cat", "dog", "dog"]


def test_labels_are_stripped_and_similar_names_reported(tmp_path):
    for data in all_kinds(["cat", "cat ", " Cat", "dog", "Cat", "dog\t"], tmp_path).values():
        found = load_task(data, **WHOLE)
        assert found.classes == ["Cat", "cat", "dog"]
        assert found.train.labels.tolist() == [1, 1, 0, 2, 0, 2]
        assert "'cat ', ' Cat', 'dog\\t'" in " ".join(found.notes)
        assert "'Cat' and 'cat'" in " ".join(found.notes)
    assert load_task((["a", "b"] * 2, [True, False] * 2), **WHOLE).classes == ["False", "True"]
    assert alike(["a", "b"]) == []
    assert "'é' and 'é'" in alike(["é", "é"])[0]  # one of two code points
    assert "'ant  eater' and 'Ant eater'" in alike(["ant  eater", "Ant eater", "x"])[0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 2, 3, 1, 2, 3], ["1", "2", "3"]),
        ([0, 5, 5, 0], ["0", "5"]),
        ([10, 9, 10, 9], ["9", "10"]),
        ([-1, 1, -1, 1], ["-1", "1"]),
        ([2.0, 1.0, 1.0, 2.0], ["1", "2"]),
    ],
)
def test_numbers_are_mapped_in_order_as_scikit_learn_does(tmp_path, labels, classes):
    from sklearn.preprocessing import LabelEncoder

    np.savez(tmp_path / "x.npz", images=np.zeros((len(labels), 8, 8), np.uint8), labels=np.array(labels))
    for kind, data in {**all_kinds(labels, tmp_path), "array": f"array:{tmp_path / 'x.npz'}"}.items():
        if kind != "hf" or -1 not in labels:
            found = load_task(data, **WHOLE)
            assert found.classes == classes
            assert found.train.labels.tolist() == LabelEncoder().fit_transform(labels).tolist()
            assert any("mapped in their order" in note for note in found.notes)


def test_numbers_that_are_no_classes_are_refused_by_row(tmp_path):
    for labels in ([0, 1, -2, 1], [0, 1, 0.5, 1]):
        for kind, data in all_kinds(labels, tmp_path).items():
            if kind != "hf" or -1 not in labels:
                with pytest.raises(DataError, match=r"row \d: label '-?[\d.]+'"):
                    load_task(data, **WHOLE)
    found = class_labels(Column(["1e0", "0", "01"]), "x")
    assert found.labels.tolist() == [1, 0, 1]
    assert "'1e0', '01'" in found.notes[0]
    assert class_labels(Column(["1_0", "inf"]), "x").classes == ["1_0", "inf"]


def test_named_classes_without_an_example_are_left_out_and_reported(tmp_path):
    def arrays(labels, names):
        np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=labels, classes=names)
        return load_task(f"array:{tmp_path / 'x.npz'}", **WHOLE)

    found = arrays([2, 0, 2, 0], ["ant", "bee", "cow"])
    assert (found.classes, found.train.labels.tolist()) == (["ant", "cow"], [1, 0, 1, 0])
    assert any("left out: bee" in note for note in found.notes)
    assert arrays([1, 0, 1, 0], ["7", "1"]).classes == ["7", "1"]  # names, although they are numbers
    for labels, names, message in (
        ([3, 0, 2, 0], ["ant", "bee", "cow"], r"row 0: label 3 .* ant, bee, cow"),
        ([1, 0, 1, 0], ["ant", "ant"], "'ant'"),
        ([[1, 0]] * 4, ["ant", "bee"], r"labels' .*\(4, 2\)"),
    ):
        with pytest.raises(DataError, match=message):
            arrays(labels, names)


def test_a_class_of_the_test_part_alone_is_refused_in_every_kind_of_data(tmp_path):
    labels, parts = ["a", "b", "a", "b", "c", "c"], ["train"] * 4 + ["test"] * 2
    frame = pandas.DataFrame({"text": [f"t{i}" for i in range(6)], "label": labels, "split": parts})
    frame.to_csv(tmp_path / "x.csv", index=False)
    np.savez(tmp_path / "x.npz", images=np.zeros((6, 8, 8), np.uint8), labels=labels, split=parts)
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict({
        "train": datasets.Dataset.from_dict({"text": ["t"] * 4, "label": labels[:4]}),
        "test": datasets.Dataset.from_dict({"text": ["t"] * 2, "label": labels[4:]}),
    })  # fmt: skip
    for data in (f"csv:{tmp_path / 'x.csv'}", frame, f"array:{tmp_path / 'x.npz'}", made):
        with pytest.raises(DataError, match=r"class 'c' has no training example.* test"):
            load_task(data, **WHOLE)


def test_parts_are_recognised_by_usual_names(tmp_path):
    parts = ["Train", "training", "TEST", "Testing", "dev", "validation"]
    rows = [f"t{i},{i % 2},{part}" for i, part in enumerate(parts)]
    found = load_task(table(tmp_path / "x.csv", rows, "text,label,split"), **WHOLE)
    assert [part.ids for part in (found.train, found.val, found.test)] == [["0", "1"], ["4", "5"], ["2", "3"]]
    rows = ["a,0,train", "b,1,train", "c,0,trian"]
    with pytest.raises(DataError, match=r"row 4.*'trian'"):
        load_task(table(tmp_path / "y.csv", rows, "text,label,split"), **WHOLE)


def test_columns_of_other_names_are_named(tmp_path):
    rows = [f"r{i},body {i},{i % 2},k{i}" for i in range(4)]
    spec = table(tmp_path / "x.csv", rows, "text,body,stars,key")
    how = Reading(columns=Columns(text="body", label="stars", id="key"))
    frame = pandas.read_csv(tmp_path / "x.csv")
    for data in (spec, frame, pytest.importorskip("datasets").Dataset.from_pandas(frame)):
        found = load_task(data, how=how, **WHOLE)
        assert found.train.texts[1] == ("body 1", None)
        assert found.train.ids == ["k0", "k1", "k2", "k3"]
        assert found.train.labels.tolist() == [0, 1, 0, 1]
        with pytest.raises(DataError, match="'star'; did you mean 'stars'"):
            load_task(data, how=Reading(columns=Columns(label="star")), **WHOLE)
        with pytest.raises(DataError, match="two purposes"):
            load_task(data, how=Reading(columns=Columns(text="stars", label="stars")), **WHOLE)
        pair = load_task(data, how=Reading(columns=Columns(text="body,text", label="stars")), **WHOLE)
        assert pair.train.texts[2] == ("body 2", "r2")
        with pytest.raises(DataError, match=r"'label'.*--label-column"):
            load_task(data, **WHOLE)


def test_a_named_column_chooses_between_texts_and_images(image_folder):
    rows = [f"dark/{i:02d}.png,words {i},{i % 2}" for i in range(4)]
    spec = table(image_folder / "both.csv", rows, "image,text,label")
    with pytest.raises(DataError, match="both"):
        load_task(spec, **WHOLE)
    found = load_task(spec, how=Reading(columns=Columns(text="text")), **WHOLE)
    assert found.train.texts[3] == ("words 3", None)
    assert not load_task(spec, how=Reading(columns=Columns(image="image")), **WHOLE).is_text


def test_columns_in_another_case_are_found_and_reported(tmp_path):
    found = load_task(table(tmp_path / "x.csv", [f"t{i},{i % 2}" for i in range(4)], "Text, LABEL"), **WHOLE)
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert "column 'Text' is read as the text" in found.notes
    with pytest.raises(DataError, match="--text-column"):
        load_task(table(tmp_path / "y.csv", ["t,a,0", "u,b,1"], "Text,TEXT,label"), **WHOLE)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["t,0,0", "u,1,0"], "text,label, label", "'label'"),
        (["x,a,0", "y,b,1", "x,c,0"], "id,text,label", "'x'.*2 and 4"),
        (["x,a,0", ",b,1"], "id,text,label", "row 3"),
        (["a,cat", "", "b,dog", "", "", "c,0|1", "d,cat"], "text,label", r"row 7.*'0\|1'"),
        (["a,cat", "", "", "b"], "text,label", "row 5"),
        (["1"], "a fine film", "got a fine film"),
    ],
)
def test_rows_and_columns_are_named_as_the_file_shows_them(tmp_path, rows, header, message):
    with pytest.raises(DataError, match=message):
        load_task(table(tmp_path / "x.csv", rows, header), **WHOLE)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_detected(tmp_path, encoding, separator):
    rows = [
        ["text", "label"],
        ["schön; ein | Film,\tja", "gut"],
        ['"so la la"', "schlecht"],
        ["ein\nandrer", "x"],
    ]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    (tmp_path / "x.csv").write_bytes(buffer.getvalue().encode(encoding))
    found = read_table(tmp_path / "x.csv")
    assert [list(row.values()) for row in found.rows()] == rows[1:]
    assert len(found.notes) == (separator != ",") + (encoding[4:6] in ("16", "32"))


def test_the_first_line_of_a_spreadsheet_may_name_the_separator(tmp_path):
    (tmp_path / "x.csv").write_text("sep=;\ntext;label\na, b;0\nc;1\n")
    found = read_table(tmp_path / "x.csv")
    assert found.cells("text") == ["a, b", "c"]
    assert [found.row(0), found.row(1)] == [3, 4]


def test_long_texts_are_read_and_the_limit_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    found = load_task(table(tmp_path / "x.csv", [f"{'word ' * 60_000},{i % 2}" for i in range(4)]), **WHOLE)
    assert len(found.train.texts[0][0]) == 300_000
    assert csv.field_size_limit() == before


def test_labels_to_compare_with_are_those_of_the_run():
    labels, notes = labels_among(["1", "2.0", "x", "", "NaN", "1 "], ["1", "2"])
    assert labels.tolist() == [0, 1, -1, -1, -1, 0]
    assert notes[0].startswith("2 of 6")
    assert "(x)" in notes[1]
    assert labels_among(["", "NA"], ["1", "2"]) == (None, [])
    assert labels_among(["NA"], ["EU", "NA"])[0].tolist() == [1]
    labels, notes = labels_among(["cow", ""], ["cat", "dog"])
    assert labels is None
    assert "(cow)" in " ".join(notes)


@pytest.mark.parametrize(
    ("rows", "header", "known"),
    [
        (["a", "b", "c"], "text", None),
        (["a,", "b,", "c,"], "text,label", None),
        (["a,bad", "b,", "c,good"], "text,label", [0, -1, 1]),
        (["a,7", "b,9", "c,1.5"], "text,label", None),
        (["a,x|y", "b,[1]", "c,good"], "text,label", [-1, -1, 1]),
        (["a,good"], "text,label", [1]),
        (["a,good,holdout", "b,bad,x", "c,bad,train"], "text,label,split", [1, 0, 0]),
    ],
)
def test_prediction_reads_every_row_whatever_its_label(tmp_path, rows, header, known):
    spec = table(tmp_path / "x.csv", rows, header)
    for data in (spec, pandas.read_csv(tmp_path / "x.csv", keep_default_na=False, dtype=str)):
        found = load_examples(data, size=8, classes=["bad", "good"])
        assert [text for text, _ in found.examples.texts] == [row.split(",")[0] for row in rows]
        assert known == (None if found.examples.labels is None else found.examples.labels.tolist())
        assert found.notes or -1 not in (known or [])


def test_texts_that_may_be_missing_are_read_and_reported(tmp_path):
    rows = ["good,x,1", "nan,,0", "None,y,1", "a none,z,0"]
    found = load_task(table(tmp_path / "x.csv", rows, "text,text2,label"), **WHOLE)
    assert found.train.texts[2] == ("None", "y")
    assert any("None, nan" in note and "1, 2" in note for note in found.notes)
    assert "1 second texts are blank: 1" in found.notes


def test_blank_texts_are_predicted_or_listed(tmp_path):
    spec = table(tmp_path / "x.csv", ["a,good", '"  ",bad', "c,good", '"",bad'])
    found = load_examples(spec, size=8, classes=["bad", "good"])
    assert len(found.examples) == 4
    assert any("2 of 4 texts" in note and "1, 3" in note for note in found.notes)
    found = load_examples(spec, size=8, classes=["bad", "good"], skip_blank=True)
    assert found.examples.ids == ["0", "2"]
    assert [name for name, _ in found.skipped] == ["1", "3"]
    with pytest.raises(DataError, match="all texts are blank"):
        load_examples(table(tmp_path / "y.csv", ['" ",a']), size=8, classes=["a"], skip_blank=True)


def test_matrices_of_spreadsheets(tmp_path):
    wanted = ht.NoiseMatrix.symmetric(2, 0.2)
    np.save(tmp_path / "m.npy", wanted.array)
    for name, content in {
        "a.CSV": b"0.8,0.2\n0.2,0.8\n",
        "b.csv": b"\xef\xbb\xbf0.8,0.2\r\n0.2,0.8\r\n",
        "c.json": b"\xef\xbb\xbf[[0.8, 0.2], [0.2, 0.8]]",
        "d.JSON": b'{"matrix": [[0.8, 0.2], [0.2, 0.8]]}',
        "e.csv": b"0.8;0.2\n0.2;0.8\n",
        "f.tsv": b"0.8\t0.2\n0.2\t0.8\n",
        "g.csv": "0.8,0.2\n0.2,0.8\n".encode("utf-16"),
        "h.csv": b"0,8;0,2\r\n0,2;0,8\r\n",
        "i.txt": b"0.8 0.2\n0.2  0.8\n",
        "j.NPY": (tmp_path / "m.npy").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert ht.NoiseMatrix.load(tmp_path / name) == wanted, name


def test_paths_as_other_systems_write_them(image_folder, tmp_path):
    names = [f"images\\{kind}\\{i:02d}.png" for kind in ("dark", "light") for i in range(4)]
    rows = [f"{name},{name.split(chr(92))[1]}" for name in names] + [" images/dark/05.png ,dark"]
    found = load_task(table(tmp_path / "x.csv", rows, "image,label"), **WHOLE)
    assert (len(found.train), found.train.ids[0]) == (9, names[0])
    assert any(n.startswith("9 paths of images are read without spaces") for n in found.notes)
    for wrong in ("..\\secret.png", "images\\..\\..\\secret.png"):
        with pytest.raises(DataError, match=r"outside its folder|do not exist"):
            load_task(table(tmp_path / "y.csv", [f"{wrong},a", f"{names[0]},b"], "image,label"), **WHOLE)


def test_a_class_of_one_example_names_the_class_it_may_belong_to(tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "good,yes\nbad,no\n" * 5 + "fine,Yes\n")
    with pytest.raises(DataError, match="'Yes' and 'yes'"):
        load_task(f"csv:{table}", size=8)
    table.write_text("text,label\n" + "good,yes\nbad,no\nfine,Yes\n" * 5 + "so,maybe\n")
    with pytest.raises(DataError, match="'maybe' has one example") as error:
        load_task(f"csv:{table}", size=8)
    assert "Yes" not in str(error.value)

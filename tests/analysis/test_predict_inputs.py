"""What prediction takes that training does not: everything is predicted, and what had no label is said."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.cli.main import run as cli
from hesstune.errors import DataError


def predictions(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_is_predicted_and_what_had_no_label_is_said(tiny, image_folder, tmp_path, capsys):
    run = ht.finetune(tiny, out=str(tmp_path / "run"))
    capsys.readouterr()

    def predict(data, *more):
        out = tmp_path / "p.csv"
        arguments = ["predict", run.path, "--data", data, "--out", out, "--overwrite", "--json", *more]
        with pytest.raises(SystemExit) as end:
            cli([str(a) for a in arguments])
        told = capsys.readouterr()
        assert end.value.code == 0, told.err
        rows = predictions(out)
        record = json.loads(told.out.splitlines()[-1])
        assert record["examples"] == len(rows)
        assert all(row["prediction"] in run.classes for row in rows)
        for note in record["notes"]:
            assert f"Data: {note}." in told.out
        return rows, record, " ".join(record["notes"])

    whole = {row["id"]: row["prediction"] for row in predict(f"folder:{image_folder}")[0]}
    assert len(whole) == 24
    # One class alone, flat or in its folder; images beside subfolders, deep ones, and unknown classes.
    rows, record, _ = predict(f"folder:{image_folder / 'dark'}")
    assert len(rows) == 12
    assert record["accuracy"] is None
    mixed = tmp_path / "mixed"
    for source, place in (
        ("dark/00", "a"),
        ("dark/01", "dark/b"),
        ("light/02", "cow/c"),
        ("light/03", "light/x/y/d"),
    ):
        (mixed / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / f"{source}.png", mixed / f"{place}.png")
    rows, record, notes = predict(f"folder:{mixed}")
    assert [(row["id"], row["label"]) for row in rows] == [
        ("a.png", ""), ("cow/c.png", ""), ("dark/b.png", "dark"), ("light/x/y/d.png", "light"),
    ]  # fmt: skip
    assert rows[0]["prediction"] == whole["dark/00.png"]
    hits = [rows[2]["prediction"] == "dark", rows[3]["prediction"] == "light"]
    assert record["accuracy"] == pytest.approx(np.mean(hits))
    assert "1 of 4 examples have no label" in notes
    assert "1 of 4 examples have labels that are none of the run's classes (cow)" in notes
    shutil.rmtree(mixed / "light")
    shutil.rmtree(mixed / "dark")
    (mixed / "a.png").unlink()
    assert len(predict(f"folder:{mixed}")[0]) == 1  # one subfolder
    # Damaged images are listed; tables without labels, with one row, with a gap.
    (image_folder / "dark" / "00.png").write_bytes(b"no image")
    _, record, _ = predict(f"folder:{image_folder}", "--skip-bad-images")
    assert (record["examples"], record["skipped"]) == (23, 1)
    for content, count in (
        ("picture\nimages/dark/01.png\n", 1),
        ("image;label\nimages/dark/01.png;\nimages/light/02.png;1,5\n", 2),
    ):
        (tmp_path / "x.csv").write_text(content)
        more = ["--image-column", "picture"] if "picture" in content else []
        assert len(predict(f"csv:{tmp_path / 'x.csv'}", *more)[0]) == count


def test_columns_of_a_run_are_taken_again_where_they_are(tiny, image_folder, tmp_path):
    paths = sorted(image_folder.rglob("*.png"))
    named = tmp_path / "named.csv"
    named.write_text("file,kind\n" + "".join(f"{path},{path.parent.name}\n" for path in paths))
    options = tiny | {"data": f"csv:{named}", "image_column": "file", "label_column": "kind", "epochs": 1}
    run = ht.finetune(options, out=str(tmp_path / "run"))
    usual = tmp_path / "usual.csv"
    usual.write_text(named.read_text().replace("file,kind", "image,label"))
    found, other = run.predict(f"csv:{named}"), run.predict(f"csv:{usual}")
    assert (found.probabilities == other.probabilities).all()
    assert found.accuracy == other.accuracy
    assert len(run.predict(f"folder:{image_folder}").ids) == 24
    with pytest.raises(DataError, match=r"unknown column of .* 'label'"):
        run.predict(f"csv:{named}", label_column="label")
    with pytest.raises(DataError, match="folder data has none"):
        run.predict(f"folder:{image_folder}", image_column="file")


def test_new_images_are_laid_on_the_run_s_background(tiny, image_folder, tmp_path):
    run = ht.finetune(tiny | {"background": "black", "epochs": 1}, out=str(tmp_path / "run"))
    Image.new("RGBA", (20, 20), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    found = run.predict([tmp_path / "clear.png", tmp_path / "black.png"])
    assert (found.probabilities[0] == found.probabilities[1]).all()
    assert "laid on the colour (0, 0, 0)" in found.notes[0]


def test_blank_texts_are_predicted_or_left_out(tiny_bert, tmp_path):
    from sentences import sentences

    rows = sentences(24)
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    run = ht.finetune(
        data=f"csv:{tmp_path / 't.csv'}",
        model=f"hf:{tiny_bert}",
        method="vanilla",
        epochs=1,
        batch_size=8,
        out=str(tmp_path / "run"),
    )
    (tmp_path / "new.csv").write_text('text\na good film\n""\n"  "\na bad one\n')
    found = run.predict(f"csv:{tmp_path / 'new.csv'}")
    assert found.ids == ["0", "1", "2", "3"]
    assert np.isfinite(found.probabilities).all()
    assert "2 of 4 texts are blank" in found.notes[0]
    left = run.predict(f"csv:{tmp_path / 'new.csv'}", blank_texts="leave_out")
    assert left.ids == ["0", "3"]
    np.testing.assert_allclose(left.probabilities, found.probabilities[[0, 3]], rtol=1e-5)
    assert [example for example, _ in left.skipped] == ["1", "2"]
    (tmp_path / "u.csv").write_text('text,label\na,0\n"",1\nb,0\nc,1\n')
    options = {"data": f"csv:{tmp_path / 'u.csv'}", "val_fraction": 0, "test_fraction": 0}
    with pytest.raises(DataError, match=r"example '1' is empty"):
        ht.finetune(run.config, out=str(tmp_path / "other"), **options)

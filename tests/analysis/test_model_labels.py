"""Labels that a model made, chose or rewrote: the file says so, and certificates ask for a statement."""

import csv
import shutil

import numpy as np
import pandas as pd
import pytest

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.data.examples import KEPT, MODEL_LABEL, MODEL_SOURCES, PREDICTED, REWRITTEN
from hesstune.data.labels import read_clean_labels
from hesstune.data.load import load_task
from hesstune.errors import ChangedDataError, DataError


@pytest.fixture
def options(tiny):
    kept = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size", "data")}
    return {**kept, "method": "vanilla", "train": "head", "epochs": 1, "val_fraction": 0}


def table_of(image_folder, path, **more):
    """Write a table of the images with further columns; return its rows."""
    images = sorted(image_folder.rglob("*.png"))
    table = pd.DataFrame(
        {"image": [str(p) for p in images], "label": [p.parent.name for p in images], **more}
    )
    table.to_csv(path, index=False)
    return table


def test_each_source_asks_for_a_statement(image_folder, tmp_path, options):
    # Headers and cells as spreadsheets and people rewrite them.
    headers = ["label_source", " Label_Source", "LABEL_SOURCE "]
    for at, source in enumerate(MODEL_SOURCES):
        path, cells = tmp_path / f"{at}.csv", ["given"] * 23 + [f" {source.upper()}"]
        table_of(image_folder, path, **{headers[at % 3]: cells})
        run = ht.finetune(options, data=f"csv:{path}", test_fraction=0, out=str(tmp_path / str(at)))
        assert run.task().train.count_source(source) == 1
        for noise_is in ("auto", "known"):
            with pytest.raises(DataError, match="depend on the input"):
                certify_run(run, noise_is=noise_is, draws=32)
        stated = certify_run(run, noise_is="none", draws=32)
        assert "you state that the given labels are the true ones" in stated.assumptions
        assert not [text for text in stated.assumptions if "no example was left out" in text]


@pytest.mark.parametrize("source", [KEPT, MODEL_LABEL])
def test_made_labels_of_the_test_part_alone_are_no_truth(image_folder, tmp_path, options, source):
    parts = ["test" if at % 3 == 0 else "train" for at in range(24)]
    cells = [source if part == "test" else "" for part in parts]
    table = table_of(image_folder, tmp_path / "t.csv", split=parts, label_source=cells)
    run = ht.finetune(options, data=f"csv:{tmp_path / 't.csv'}", out=str(tmp_path / "a"))
    with pytest.raises(DataError, match="--test-labels"):
        certify_run(run, bound="holdout")
    assert certify_run(run, draws=32).held_out["bound"] == 1.0
    sheet = tmp_path / "sheet.csv"
    table.assign(id=table.image, clean_label=table.label)[table.split == "test"].to_csv(sheet, index=False)
    if source == KEPT:  # its true labels are those of the easy ones
        with pytest.raises(DataError, match="left suspected label errors out"):
            certify_run(run, checked_labels=str(sheet))
    # Labels without a source cannot show that.
    table_of(image_folder, tmp_path / "p.csv")
    plain = ht.finetune(options, data=f"csv:{tmp_path / 'p.csv'}", out=str(tmp_path / "b"))
    said = certify_run(plain, bound="holdout").assumptions
    assert any("no example was left out or relabelled because of a model" in line for line in said)


def test_a_hub_data_set_keeps_the_sources(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"t {at}" for at in range(20)], "label": list("ab" * 10)}
    found = datasets.Dataset.from_dict({**rows, "label_source": [KEPT] * 20})
    assert load_task(found, size=16).train.has_model_labels
    # A rewritten label is known by the given one, of class indices, too.
    features = datasets.Features({"text": datasets.Value("string"), "given_label": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["a", "b"])})  # fmt: skip
    given = ["b", *list("ab" * 10)[1:]]
    found = datasets.Dataset.from_dict({**rows, "given_label": given}, features=features)
    task = load_task(found, size=16, val_fraction=0, test_fraction=0)
    assert task.train.count_source(REWRITTEN) == 1


def test_label_and_predict_write_the_column_and_clean_keeps_it(image_folder, tmp_path, options):
    images = sorted(image_folder.rglob("*.png"))
    rng = np.random.default_rng(0)
    votes = [[p.parent.name if rng.random() < a else "dark" for a in (0.9, 0.8)] for p in images]
    table = pd.DataFrame({"image": [str(p) for p in images], "vote_a": [v[0] for v in votes],
                          "vote_b": [v[1] for v in votes], "patient_id": [f"p{at % 5}" for at in range(24)],
                          "split": ["test" if at % 4 == 0 else "train" for at in range(24)],
                          "true_label": [p.parent.name for p in images]})  # fmt: skip
    table.to_csv(tmp_path / "votes.csv", index=False)
    ht.label_data(target=f"csv:{tmp_path / 'votes.csv'}").save(tmp_path / "labels.csv")
    made = pd.read_csv(tmp_path / "labels.csv")
    assert set(made.label_source[made.split == "train"]) == {MODEL_LABEL}
    assert set(made.label_source[made.split == "test"]) == {"given"}
    assert made.patient_id.nunique() == 5
    # Without soft labels and votes it is still known, also after another cleaning.
    plain = made[["id", "image", "label", "label_source", "split"]]
    plain.to_csv(tmp_path / "plain.csv", index=False)
    assert load_task(f"csv:{tmp_path / 'plain.csv'}", size=16).train.has_model_labels
    found = ht.clean(f"csv:{tmp_path / 'plain.csv'}", model=options["model"], image_size=16)
    found.save(tmp_path / "cleaned.csv")
    again = pd.read_csv(tmp_path / "cleaned.csv")
    assert set(again.label_source[again.split == "train"]) == {MODEL_LABEL}
    run = ht.finetune(options, data=f"folder:{image_folder}", out=str(tmp_path / "a"))
    ht.predict(run, f"folder:{image_folder}").save(tmp_path / "predicted.csv")
    assert set(pd.read_csv(tmp_path / "predicted.csv").label_source) == {PREDICTED}


@pytest.mark.parametrize("source", [MODEL_SOURCES[0], "Given "])
def test_labels_that_nobody_checked_are_no_checked_labels(tmp_path, source):
    path = tmp_path / "c.csv"
    path.write_text(f"id,label,label_source\nx,a,checked\ny,b,{source}\n")
    with pytest.raises(DataError, match=f"row 3.*'{source.strip().lower()}'"):
        read_clean_labels(path, ["a", "b"])
    path.write_text(f"id,label,label_source,clean_label\nx,a,checked,a\ny,b,{source},a\n")
    assert read_clean_labels(path, ["a", "b"]) == {"x": 0, "y": 0}
    path.write_text("id,label,label_source\nx,a,checked\ny,b,expert\n")
    assert read_clean_labels(path, ["a", "b"]) == {"x": 0, "y": 1}


# -- test rows that are changed after training, to suit the network -----------------------------


def wrong_of(run):
    """Return the ids of test examples that the network gets wrong, with what it says."""
    found = run.predict(run.config.data)
    said = dict(zip(found.ids, found.predicted, strict=True))
    part = run.task().test
    names = dict(zip(part.ids, (run.classes[at] for at in part.labels), strict=True))
    return {name: said[name] for name in part.ids if said[name] != names[name]}


def delete_rows(path, wrong):
    rows = [row for row in csv.reader(path.open()) if row[0] not in wrong]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def move_files(path, wrong):
    for name, said in wrong.items():
        shutil.move(path / name, path / said / f"moved_{name.replace('/', '_')}")


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_test_rows_deleted_or_corrected_to_suit_the_network_are_refused(
    image_folder, tmp_path, options, kind
):
    images = sorted(image_folder.rglob("*.png"))
    rng = np.random.default_rng(1)
    names = rng.permutation([p.parent.name for p in images])  # labels at random
    path = tmp_path / ("t.csv" if kind == "csv" else "shuffled")
    if kind == "csv":
        with path.open("w", newline="") as file:
            pairs = zip(map(str, images), names, strict=True)
            csv.writer(file).writerows([["image", "label"], *pairs])
    else:
        for at, (image, name) in enumerate(zip(images, names, strict=True)):
            (path / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, path / name / f"{at}.png")
    run = ht.finetune(options, data=f"{kind}:{path}", test_fraction=0.5, out=str(tmp_path / "run"))
    wrong = wrong_of(run)
    assert wrong
    (delete_rows if kind == "csv" else move_files)(path, wrong)
    with pytest.raises(ChangedDataError, match="train again"):
        ht.Run.load(run.path).certify(bound="holdout")
    assert not (run.path / "certificate.json").exists()

"""Columns that may group examples: found, said by training, and refused by certificates unless stated."""

import csv

import pandas as pd
import pytest

import hesstune as ht
from hesstune.data.load import load_task
from hesstune.data.tables import possible_groups
from hesstune.errors import DataError
from hesstune.storage.columns import Column

N = 60
PATIENTS = [f"p{at % 9}" for at in range(N)]


def frame(**more):
    texts = [f"text number {at}" for at in range(N)]
    return pd.DataFrame({"text": texts, "label": ["ab"[at % 7 % 2] for at in range(N)], **more})


def groups_of(data, **options):
    return load_task(data, size=16, **options).possible_groups


NAMED = ["patient_id", "SubjectID", "userId", "Authors", "video clip", "site", "doc_id", "case-number"]
COLUMNS = {
    "who": (PATIENTS, 9),  # by its values alone
    "subject": ([f"s{at // 30}" for at in range(N)], 2),  # by its name: no more values than classes
    "sessions": ([f"s{max(at, 1)}" for at in range(N)], N - 1),  # by its name: one value repeats
    "code": ([str(at % 9) for at in range(N)], 9),
    "site": (["", *PATIENTS[1:]], 9),
    "kind": ([f"k{at % 2}" for at in range(N)], None),
    "patient": ([f"p{at}" for at in range(N)], None),  # each its own
    "source": (["web"] * N, None),
    "user_score": ([f"{at % 9 / 8}" for at in range(N)], None),
    "confidence": ([f"{at % 9 / 8}" for at in range(N)], None),
    "title": ([f"t{max(at, 3)}" for at in range(N)], None),
    "p_a": (PATIENTS, None),
    "true_label": (PATIENTS, None),
    "vote_x": (PATIENTS, None),
    "annotators": (PATIENTS, 9),
}


def test_columns_that_look_like_groups():
    for name, (cells, count) in COLUMNS.items():
        found = possible_groups({"text": Column(PATIENTS), name: Column(cells)}, ["a", "b"])
        assert found == ({} if count is None else {name: count})
        assert not possible_groups({name: Column(cells)}, ["a", "b"], used=[name])
    cells = [str(at // 30) for at in range(N)]
    for name in NAMED:
        assert possible_groups({name: Column(cells)}, ["a", "b"]) == {name: 2}
    assert not possible_groups({"sitting": Column(cells), "basecase1": Column(cells)}, ["a", "b"])


@pytest.mark.parametrize("kind", ["csv", "index", "pair", "datasets"])
def test_every_kind_of_table(kind, tmp_path):
    table = frame(patient_id=PATIENTS)
    if kind == "csv":
        table.to_csv(tmp_path / "t.csv", index=False)
        table = f"csv:{tmp_path / 't.csv'}"
    elif kind == "datasets":
        table = pytest.importorskip("datasets").Dataset.from_pandas(table)
    elif kind == "index":
        table = table.set_index("patient_id")
    elif kind == "pair":
        table = (table.drop(columns="label"), table["label"])
    task = load_task(table, size=16)
    assert task.possible_groups == {"patient_id": 9}
    assert any("--split group:patient_id" in note for note in task.notes)


def test_the_column_of_the_split_is_no_question():
    table = frame(patient_id=PATIENTS, hospital=[f"h{at % 4}" for at in range(N)])
    assert groups_of(table, split="group:patient_id") == {"hospital": 4}
    # Parts that the data gives are no split by groups, whatever was asked.
    own = ["test" if at % 9 < 3 else "train" for at in range(N)]
    assert groups_of(frame(patient_id=PATIENTS, split=own), split="group:patient_id") == {"patient_id": 9}


@pytest.fixture
def grouped(image_folder, tmp_path, tiny):
    """A run on a table of images with patients."""
    path = tmp_path / "scans.csv"
    rows = [("image", "label", "patient_id")]
    for at, image in enumerate(sorted(image_folder.rglob("*.png"))):
        rows.append((str(image), image.parent.name, f"p{at % 5}"))
    write(path, rows)
    options = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size")}
    options |= {"data": f"csv:{path}", "method": "vanilla", "train": "head", "epochs": 1, "val_fraction": 0}
    return path, rows, ht.finetune(options, out=str(tmp_path / "run"))


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_training_names_it_and_certificates_need_a_statement(grouped):
    path, rows, run = grouped
    assert run.facts.possible_groups == {"patient_id": 5}
    assert any("--split group:patient_id" in note for note in run.facts.data_notes)
    with pytest.raises(DataError, match=r"patient_id: 5 groups.*--no-groups"):
        run.certify(bound="best")
    assert not (run.path / "certificate.json").exists()
    marked = run.certify(bound="holdout", diagnostic=True)
    assert marked.diagnostic
    assert any("patient_id" in failure for failure in marked.failures)
    stated = run.certify(bound="holdout", no_groups=True)
    assert not stated.diagnostic
    assert [told for told in stated.assumptions if "you state" in told and "patient_id" in told]
    # A column that is taken out after training still groups the examples.
    write(path, [row[:2] for row in rows])
    with pytest.raises(DataError, match="patient_id"):
        ht.Run.load(run.path).certify(bound="holdout")

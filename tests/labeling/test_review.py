"""The review of suspected label errors: decisions applied, as checked labels, and with Label Studio."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import hesstune as ht
from hesstune.cli.main import run as run_command
from hesstune.data.decisions import REMOVE_CHOICE, decisions_in, read_checked_table
from hesstune.data.labels import read_checked_labels, read_clean_labels
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.labeling.clean import LabelIssues, clean
from hesstune.labeling.review import apply_decisions, contents_of
from hesstune.labeling.sources import read_target
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.config import make_config
from hesstune.runs.loading import run_task
from hesstune.storage.columns import CsvTable
from hesstune.storage.tables import write_csv

HEADER = ["id", "given_label", "decision", "label", "content"]
# Class names that HTML, CSV, spreadsheets and XML could misread.
ODD = ['cat "big"', "<b>dog</b>", "a, b\nc", "=1+1"]


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_command([str(a) for a in arguments])
    return ended.value.code


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(*rows, header=HEADER):
    return CsvTable.of({name: [row[at] for row in rows] for at, name in enumerate(header)}, "d.csv")


@pytest.fixture
def reviews(tmp_path):
    """Twelve texts; a column of the user, columns that hesstune wrote, one unlabelled text, a test part."""
    rows = [
        [
            f"r{n}",
            f"text {n}",
            ODD[n % 3] if n != 5 else "",
            "train" if n < 10 else "test",
            f"u{n % 4}",
            "0.5",
        ]
        for n in range(12)
    ]
    path = tmp_path / "reviews.csv"
    write_csv(path, ["id", "text", "label", "split", "user", f"p_{ODD[0]}"], rows)
    return path


def write_decisions(path, data, *rows):
    """Write (id, decision, label), with the labels and contents that the data has."""
    target = read_target(f"csv:{data}")
    given = dict(zip(target.ids, target.true, strict=True))
    contents = contents_of(target, [row[0] for row in rows if row[0] in given])
    cells = [[i, given.get(i, ODD[0]), what, label, contents.get(i, "")] for i, what, label in rows]
    write_csv(path, HEADER, cells)
    return path


THREE = (("r0", "keep", ODD[0]), ("r1", "change", ODD[2]), ("r2", "remove", ""))


def test_decisions_are_applied_to_the_data(reviews, tmp_path, capsys):
    decisions = write_decisions(tmp_path / "d.csv", reviews, *THREE, ("gone", "remove", ""))
    out, before = tmp_path / "deep" / "reviewed.csv", reviews.read_bytes()
    arguments = ("clean", "--data", f"csv:{reviews}", "--apply", decisions, "--out", out)
    assert command(*arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    counts = {"kept": 1, "changed": 1, "removed": 1, "undecided": 9, "not_found": 1}
    assert {name: record[name] for name in counts} == counts
    assert record["written"] == 11
    found = pd.read_csv(out, keep_default_na=False)
    assert list(found) == ["id", "text", "label", "split", "user", "label_source", "label_before_review"]
    assert found["id"].tolist() == [f"r{n}" for n in range(12) if n != 2]
    assert found["label_source"].tolist() == ["checked", "checked", "given", "given", "", *["given"] * 6]
    target = read_target(f"csv:{out}")
    labels = dict(zip(target.ids, target.true, strict=True))
    assert labels["r0"] == ODD[0]
    assert labels["r1"] == ODD[2]
    assert labels["r3"] == ODD[0]
    assert found["label_before_review"][1] == ODD[1]
    # Again with --overwrite; never over what is read, and what is there stays without it.
    assert command(*arguments) == 2
    assert command(*arguments, "--overwrite") == 0
    assert command(*arguments[:-1], reviews, "--overwrite") == 2
    assert command(*arguments[:-1], decisions, "--overwrite") == 2
    assert reviews.read_bytes() == before
    # Applied again to the result, decisions change nothing: the labels are those decided on.
    again = tmp_path / "again.csv"
    assert command("clean", "--data", f"csv:{out}", "--apply", decisions, "--out", again) == 0
    assert [row["label"] for row in read(again)] == [row["label"] for row in read(out)]


def test_images_keep_their_paths_and_folders_become_tables(image_folder, tmp_path):
    target = read_target(f"folder:{image_folder}")
    given = dict(zip(target.ids, target.true, strict=True))
    first, second = [name for name in target.ids if given[name] == "dark"][:2]
    contents = contents_of(target, [first, second])
    rows = [
        [first, "dark", "change", "light", contents[first]],
        [second, "dark", "remove", "", contents[second]],
    ]
    decisions = tmp_path / "d.csv"
    write_csv(decisions, HEADER, rows)
    reviewed = apply_decisions(target, decisions)
    assert (len(reviewed), reviewed.counts["undecided"]) == (23, 22)
    reviewed.save(tmp_path / "reviewed.csv")
    task = load_task(f"csv:{tmp_path / 'reviewed.csv'}", size=16)
    every = [part for part in (task.train, task.val, task.test) if len(part)]
    labels = {i: task.classes[y] for part in every for i, y in zip(part.ids, part.labels, strict=True)}
    assert labels == {n: "light" if n == first else y for n, y in given.items() if n != second}
    # Another file of the same name and class is another image.
    (image_folder / first).write_bytes((image_folder / second).read_bytes())
    with pytest.raises(DataError, match="not as it was"):
        apply_decisions(read_target(f"folder:{image_folder}"), decisions)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([["r0", ODD[0], "keep", ODD[0], ""], ["r0", ODD[0], "keep", ODD[0], ""]], "r0"),
        ([["r0", ODD[0], "keep", ODD[0], ""], ["r0", ODD[0], "remove", "", ""]], "r0"),
        ([["r0", ODD[0], "keep", ODD[1], ""]], "keep"),
        ([["r0", ODD[0], "change", ODD[0], ""]], "change"),
        ([["r0", ODD[0], "change", "", ""]], "change"),
        ([["r0", ODD[0], "remove", ODD[0], ""]], "remove"),
        ([["r0", ODD[0], "change", "cow", ""]], "cow"),
        ([["r0", "cow", "keep", "", ""]], "cow"),
        ([["r0", ODD[0], "maybe", "", ""]], "maybe"),
        ([["r0", ODD[0], "", "", ""]], "no decision"),
        ([["r0", ODD[1], "keep", ODD[1], ""]], "not as it was"),
        ([["r0", ODD[0], "keep", ODD[0], "00" * 16]], "not as it was"),
        ([["x", ODD[0], "keep", ODD[0], ""]], "other data"),
    ],
)
def test_wrong_decisions_are_refused_in_one_line(reviews, tmp_path, capsys, rows, named):
    decisions, out = tmp_path / "d.csv", tmp_path / "out.csv"
    write_csv(decisions, HEADER, rows)
    assert command("clean", "--data", f"csv:{reviews}", "--apply", decisions, "--out", out) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--checked-labels", "d.csv"), "--checked-labels"),
        (("--write", "pruned", "--seed", "1"), "--seed, --write"),
        (("--page", "p.html"), "--page"),
        (("--label-studio", "t.json", "--image-size", "32"), "--image-size, --label-studio"),
    ],
)
def test_options_without_effect_beside_apply_are_refused(reviews, tmp_path, monkeypatch, capsys, more, named):
    monkeypatch.chdir(tmp_path)
    write_decisions(tmp_path / "d.csv", reviews, *THREE)
    assert command("clean", "--data", f"csv:{reviews}", "--apply", "d.csv", "--out", "o.csv", *more) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_a_plain_table_is_no_decisions_and_decisions_are_no_random_sample(reviews, tmp_path):
    sheet = tmp_path / "sheet.csv"
    write_csv(sheet, ["id", "clean_label"], [["r0", ODD[0]]])
    with pytest.raises(DataError, match="decision"):
        apply_decisions(read_target(f"csv:{reviews}"), sheet)
    with pytest.raises(DataError, match="given_label"):
        decisions_in(table(["r0", "keep"], header=["id", "decision"]), ODD)
    decisions = write_decisions(tmp_path / "d.csv", reviews, *THREE)
    with pytest.raises(DataError, match="random sample"):
        read_clean_labels(decisions, ODD)
    found = read_checked_labels(decisions, ODD)
    assert found.labels == {"r0": 0, "r1": 2}
    assert found.removed == {"r2"}
    # A column of the user's with that name, and decisions that lost a column.
    for word, column in (("approved", "r0"), ("remove", None)):
        write_csv(sheet, ["id", "label", "decision"], [["r0", ODD[0], word], ["r1", "", ""]])
        if column is None:
            with pytest.raises(DataError, match="given_label"):
                read_checked_labels(sheet, ODD)
        else:
            assert read_checked_labels(sheet, ODD).labels == {column: 0}


def test_a_class_without_examples_after_a_review_is_left_out(tmp_path):
    x, noisy = blobs()
    rows = [[str(n), "2", "remove", ""] for n in np.flatnonzero(noisy == 2)]
    pd.DataFrame(rows, columns=HEADER[:4]).to_csv(tmp_path / "d.csv", index=False)
    found = ht.clean(features=x, labels=noisy, checked_labels=tmp_path / "d.csv")
    assert found.classes == ["0", "1"]
    assert np.array_equal(found.given, noisy[noisy != 2])
    rows += [[str(n), "1", "remove", ""] for n in np.flatnonzero(noisy == 1)]
    pd.DataFrame(rows, columns=HEADER[:4]).to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(DataError, match="two classes"):
        ht.clean(features=x, labels=noisy, checked_labels=tmp_path / "d.csv")


def test_cells_that_a_spreadsheet_changed_are_read():
    found = decisions_in(
        table([" a ", "1.0", " Keep", " 1 ", ""], ["b", "2", "CHANGE", "1.0", " "]), ["1", "2"]
    )
    assert [(i, own.given, own.decision, own.label) for i, own in found.by_id.items()] == [
        (" a ", "1", "keep", "1"),
        ("b", "2", "change", "1"),
    ]


def blobs(n=120, wrong=12):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    noisy = np.where(np.arange(n) < wrong, (y + 1) % 3, y)
    return np.eye(3)[y] + 0.1 * rng.normal(size=(n, 3)), noisy


def test_decisions_on_features_are_applied_and_are_checked_labels(tmp_path):
    x, noisy = blobs()
    found = ht.clean(features=x, labels=noisy)
    cells = [["0", "1", "change", "0"], ["1", "2", "keep", "2"], ["2", "0", "remove", ""]]
    frame = pd.DataFrame(cells, columns=HEADER[:4])
    reviewed = found.apply(frame)
    assert reviewed.ids == [str(n) for n in range(120) if n != 2]
    assert reviewed.labels == ["0", "2", *(str(c) for c in noisy[3:])]
    assert reviewed.to_frame()["label_source"].tolist() == ["checked"] * 2 + ["given"] * 117
    path = tmp_path / "d.csv"
    frame.to_csv(path, index=False)
    again = ht.clean(features=x, labels=noisy, checked_labels=path)
    assert again.ids == reviewed.ids
    assert np.flatnonzero(again.checked).tolist() == [0, 1]
    assert [again.classes[c] for c in again.given] == reviewed.labels
    assert not again.suspected[:2].any()
    assert any("1 examples are left out" in note for note in again.notes)
    # Numbers as numbers.
    assert found.apply(frame.assign(id=[0, 1, 2], label=[0.0, 2.0, np.nan])).labels == reviewed.labels
    frame["given_label"] = ["2", "2", "0"]
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match="'2' and is '1'"):
        ht.clean(features=x, labels=noisy, checked_labels=path)


def test_finetune_takes_decisions_as_checked_labels(image_folder, tiny, tmp_path):
    options = {**tiny, "inject_noise": None, "test_fraction": 0.2, "data": f"folder:{image_folder}"}
    plain = run_task(make_config(options), seed=0)
    target = read_target(f"folder:{image_folder}")
    given = dict(zip(target.ids, target.true, strict=True))
    kept, changed, removed = plain.train.ids[0], plain.train.ids[1], plain.train.ids[2]
    contents = contents_of(target, [kept, changed, removed])
    other = "dark" if given[changed] == "light" else "light"
    rows = [
        [kept, given[kept], "keep", given[kept], contents[kept]],
        [changed, given[changed], "change", other, contents[changed]],
        [removed, given[removed], "remove", "", contents[removed]],
        ["gone", "dark", "remove", "", ""],
    ]
    path = tmp_path / "d.csv"
    write_csv(path, HEADER, rows)
    task = run_task(make_config({**options, "checked_labels": str(path)}), seed=0)
    assert task.train.ids == [name for name in plain.train.ids if name != removed]
    assert [name for name, sure in zip(task.train.ids, task.train.clean, strict=True) if sure] == [
        kept,
        changed,
    ]
    assert task.classes[task.train.labels[task.train.ids.index(changed)]] == other
    assert any("1 decisions" in note for note in task.notes)
    # Suspected errors are no random sample of the labels: no noise matrix is estimated from them.
    with pytest.raises(ConfigError, match="drawn at random"):
        ht.finetune(
            options, checked_labels=str(path), noise_matrix="estimate:holdout", out=str(tmp_path / "a")
        )
    run = ht.finetune(options, checked_labels=str(path), noise_matrix="0.1", out=str(tmp_path / "b"))
    assert run.record["checked_labels"] == 2
    rows[0][-1] = "00" * 16
    write_csv(path, HEADER, rows)
    with pytest.raises(DataError, match="not as it was"):
        run_task(make_config({**options, "checked_labels": str(path)}), seed=0)


def test_label_takes_decisions_as_checked_labels(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 60)
    votes = np.where(rng.random((60, 3)) < 0.8, true[:, None], 1 - true[:, None])
    path, decisions = tmp_path / "votes.csv", tmp_path / "d.csv"
    rows = [[f"r{n}", f"text {n}", *("ab"[v] for v in votes[n])] for n in range(60)]
    write_csv(path, ["id", "text", "vote_1", "vote_2", "vote_3"], rows)
    contents = contents_of(read_target(f"csv:{path}"), ["r0", "r1"])
    cells = [["r0", "a", "change", "b", contents["r0"]], ["r1", "b", "remove", "", contents["r1"]]]
    write_csv(decisions, HEADER, cells)
    found = ht.label_data(votes=str(path), label_model="dawid_skene", checked_labels=str(decisions))
    assert found.classes[found.labels[0]] == "b"
    assert found.labels[1] == -1
    assert (found.labels[2:] >= 0).all()
    assert any("1 examples are left out" in note for note in found.notes)
    out = tmp_path / "labels.csv"
    found.save(out)
    assert "r1" not in [row["id"] for row in read(out)]
    write_csv(decisions, HEADER, [[*cells[0][:4], "00" * 16]])
    with pytest.raises(DataError, match="not as it was"):
        ht.label_data(votes=str(path), label_model="dawid_skene", checked_labels=str(decisions))


# Label Studio


@pytest.fixture
def found(tmp_path):
    """Suspected errors of twelve texts with odd class names."""
    given = np.arange(12) % 4
    posterior = np.full((12, 4), 0.02)
    posterior[np.arange(12), (given + 1) % 4] = 0.94
    path = tmp_path / "data.csv"
    write_csv(path, ["id", "text", "label"], [[f"x{n}", f"text {n}", ODD[c]] for n, c in enumerate(given)])
    target = read_target(f"csv:{path}")
    contents = contents_of(target, target.ids)
    checked = np.zeros(12, dtype=bool)
    return LabelIssues(
        target.ids, ODD, given, posterior, checked, NoiseMatrix.identity(4), "", target, contents=contents
    )


def finished(tasks, picks):
    """Tasks as Label Studio exports them, with one answer each; None is a task without an answer."""
    done = []
    for at, (task, pick) in enumerate(zip(tasks, picks, strict=True)):
        value = {"from_name": "label", "to_name": "example", "type": "choices", "value": {"choices": [pick]}}
        answer = {"completed_by": {"id": 1, "email": "ann@example.com"}, "result": [value], "updated_at": "1"}
        done.append({**task, "id": 100 + at, "annotations": [] if pick is None else [answer]})
    return done


def as_table(done):
    """The rows of the same tasks as Label Studio's JSON-MIN and CSV have them."""
    rows = []
    for task in done:
        for answer in task["annotations"] or [None]:
            shown = answer and answer["result"][0]["value"]["choices"][0]
            facts = {"annotator": answer and 1, "annotation_id": answer and 7, "lead_time": 1.5}
            rows.append({**task["data"], "id": task["id"], "label": shown, **facts})
    return rows


def test_tasks_for_label_studio_have_predictions_and_a_configuration(found, tmp_path, capsys):
    path = tmp_path / "tasks.json"
    said = found.to_label_studio(path)
    tasks = json.loads(path.read_text())
    config = ElementTree.parse(path.with_suffix(".xml")).getroot()
    choices = config.find("Choices")
    shown = config.find("Text")
    assert [choice.get("value") for choice in choices] == [*ODD, REMOVE_CHOICE]
    assert len(tasks) == len(found.issues) == 12
    for task, own in zip(tasks, found.suspects(), strict=True):
        assert shown.get("value") == "$text"
        assert task["data"]["text"] == f"text {own.at}"
        prediction = task["predictions"][0]
        assert prediction["model_version"]
        assert prediction["score"] == pytest.approx(0.94)
        result = prediction["result"][0]
        assert (result["from_name"], result["to_name"]) == (choices.get("name"), shown.get("name"))
        assert choices.get("toName") == shown.get("name")
        assert result["value"]["choices"] == [ODD[(own.at + 1) % 4]]
    assert any(str(path.with_suffix(".xml")) in line for line in said)
    with pytest.raises(RunError, match="exists"):
        found.to_label_studio(path)
    with pytest.raises(RunError):
        found.to_label_studio(tmp_path / "tasks.xml")


@pytest.mark.parametrize("form", ["json", "min.json", "csv"])
def test_a_finished_export_is_read_as_decisions(found, tmp_path, form):
    found.to_label_studio(tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    picks = [task["data"]["given_label"] for task in tasks]
    picks[1], picks[2], picks[3] = ODD[3], REMOVE_CHOICE, None
    done, path = finished(tasks, picks), tmp_path / f"export.{form}"
    if form == "csv":
        pd.DataFrame(as_table(done)).to_csv(path, index=False)
    else:
        path.write_text(json.dumps(done if form == "json" else as_table(done)))
    names = [task["data"]["hesstune_id"] for task in tasks]
    reviewed = found.apply(path)
    assert reviewed.counts == {"kept": 9, "changed": 1, "removed": 1, "undecided": 1, "not_found": 0}
    assert set(found.ids) - set(reviewed.ids) == {names[2]}
    assert reviewed.labels[reviewed.ids.index(names[1])] == ODD[3]
    assert any("1 tasks have no answer" in note for note in reviewed.notes)
    assert read_checked_labels(path, ODD).removed == {names[2]}


def test_exports_that_are_no_decisions_are_refused(found, tmp_path):
    found.to_label_studio(tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    done, path = finished(tasks, [ODD[0]] * 12), tmp_path / "export.json"
    second = json.loads(json.dumps(done[0]["annotations"][0]).replace("ann@", "bob@"))
    second["result"][0]["value"]["choices"] = [ODD[1]]
    done[0]["annotations"].append(second)
    path.write_text(json.dumps(done))
    with pytest.raises(DataError, match="annotators differ"):
        read_checked_table(path, "the file")
    for wrong in ([{"id": 1, "data": {"text": "a"}, "annotations": []}], [], {"a": 1}, [1]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="Label Studio"):
            read_checked_table(path, "the file")
    path.write_text(json.dumps(finished(tasks, [None] * 12)))
    with pytest.raises(DataError, match="no answers"):
        found.apply(path)
    with pytest.raises(DataError, match="no answers"):
        found.apply(tmp_path / "tasks.json")


def test_images_for_label_studio_are_files_below_its_root(image_folder, tmp_path):
    mixed = image_folder / "dark" / "00.png"
    spaced = mixed.rename(mixed.with_name("0 0&1.png"))
    target = read_target(f"folder:{image_folder}")
    n = len(target)
    posterior = np.full((n, 2), 0.5)
    given = np.array([["dark", "light"].index(name) for name in target.true])
    posterior[np.arange(n), given] = 0.3
    issues = LabelIssues(
        target.ids, ["dark", "light"], given, posterior, np.zeros(n, dtype=bool), NoiseMatrix.identity(2), "",
        target,
    )  # fmt: skip
    said = issues.to_label_studio(tmp_path / "tasks.json")
    images = {t["data"]["image"] for t in json.loads((tmp_path / "tasks.json").read_text())}
    assert "/data/local-files/?d=dark/0%200%261.png" in images
    assert any(f"DOCUMENT_ROOT={spaced.parents[1]}" in line for line in said)


def test_the_command_writes_page_and_tasks(image_folder, tmp_path, capsys):
    rows = [[f"images/{c}/{i:02d}.png", ("light" if c == "dark" else "dark") if i < 2 else c]
            for c in ("dark", "light") for i in range(12)]  # fmt: skip
    data = tmp_path / "given.csv"
    write_csv(data, ["image", "label"], rows)
    out, page, tasks = tmp_path / "clean.csv", tmp_path / "clean.html", tmp_path / "tasks.json"
    arguments = ["clean", "--data", f"csv:{data}", "--image-size", "32", "--out", out]
    assert command(*arguments, "--page", page, "--label-studio", tasks) == 0
    said = capsys.readouterr().out
    assert str(tasks.with_suffix(".xml")) in said
    assert len(json.loads(tasks.read_text())) >= 4
    kept = out.read_bytes()
    assert command(*arguments, "--label-studio", tasks.with_suffix(".xml")) == 2
    assert command(*arguments[:-1], data, "--overwrite") == 2
    assert command(*arguments, "--page", out, "--overwrite") == 2
    assert out.read_bytes() == kept
    found = clean(f"csv:{data}", image_size=32)
    first = found.suspects()[0]
    assert first.content == contents_of(found.target, [first.id])[first.id]

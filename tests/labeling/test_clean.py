"""Labels that are probably wrong: found, ranked, written, and read again."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import hesstune as ht
from hesstune.cli.main import run as run_command
from hesstune.data import vectors
from hesstune.data.load import load_task
from hesstune.errors import ConfigError, DataError, HesstuneError, RunError
from hesstune.labeling.clean import LabelIssues, clean
from hesstune.noise.matrix import NoiseMatrix
from hesstune.report.run_page import render_run
from hesstune.runs.model_card import test_labels as labels_tested_on


def noisy_features(n=240, wrong=24, k=3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = np.eye(k)[y] + 0.15 * rng.normal(size=(n, k))
    given = y.copy()
    given[:wrong] = (given[:wrong] + 1) % k
    return x, y, given


def test_suspected_errors_have_the_largest_expected_f_measure():
    """Against every other set of few examples."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 9))
        p = np.round(rng.random(n) ** 2, 3)
        posterior = np.stack([1 - p, p], axis=1)
        checked = rng.random(n) < 0.2
        found = LabelIssues(
            [str(i) for i in range(n)], ["a", "b"], np.zeros(n, np.int64), posterior, checked,
            NoiseMatrix.identity(2), "",
        )  # fmt: skip
        own = np.where(checked, 0, p)

        def expected(chosen, own=own):
            return 2 * own[chosen].sum() / max(len(chosen) + own.sum(), 1e-9)

        every = [np.flatnonzero([at >> i & 1 for i in range(n)]) for at in range(1, 2**n)]
        best = max(every, key=lambda chosen: round(expected(chosen), 12))
        taken = np.flatnonzero(found.suspected)
        assert not found.suspected[checked].any()
        assert (own[taken] >= 0.25).all()
        if (own[best] >= 0.25).all():
            assert expected(taken) == pytest.approx(expected(best))
        assert found.suspected[found.wrong & ~checked].all()


def test_wrong_labels_come_first():
    x, y, given = noisy_features()
    found = clean(features=x, labels=given + 9)
    assert found.classes == ["9", "10", "11"]  # numbers in their order
    assert sorted(found.ranked[:24].tolist()) == list(range(24))
    assert np.array_equal(found.wrong, given != y)
    assert np.array_equal(found.labels("corrected"), y)
    assert (found.labels("pruned") == -1).sum() == 24
    assert np.array_equal(found.labels(), given)
    assert np.allclose(found.posterior.sum(axis=1), 1)
    assert set(found.issues.tolist()) == set(np.flatnonzero(found.suspected).tolist())
    assert (np.diff(found.p_wrong[found.issues]) <= 0).all()
    frame = found.to_frame()
    assert frame["label"].tolist() == [str(c + 9) for c in given]
    assert frame["suspected"].sum() == len(found.issues)
    own = [1 - frame[f"p_{c + 9}"][n] for n, c in enumerate(given)]
    np.testing.assert_allclose(frame["wrong_probability"], own)
    # F is the one realised in these labels.
    by_hand = found.posterior.T @ np.eye(3)[given] / found.posterior.sum(axis=0)[:, None]
    np.testing.assert_allclose(found.noise_matrix.array, by_hand, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give data, or else features"),
        ({"features": np.ones((2, 2))}, "features need labels"),
        ({"features": np.ones((2, 2)), "labels": ["a", "a"]}, "two classes"),
        ({"features": np.ones((2, 2)), "labels": ["a"]}, "2 examples, but y has 1"),
        ({"features": np.ones((2, 2, 2)), "labels": ["a", "b"]}, "must be numbers"),
        ({"features": np.array([[1.0, np.nan], [0, 1]]), "labels": ["a", "b"]}, "row 0"),
        ({"data": (["a text", "b"], None)}, "no labels"),
        ({"data": "digits"}, "without files"),
        ({"features": np.ones((2, 2)), "labels": [0, 1], "sed": 1}, "unknown"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((ConfigError, DataError), match=message):
        clean(**arguments)


def test_a_table_without_named_labels_shows_its_columns(tmp_path):
    texts = pd.DataFrame({"text": ["good", "bad"], "sentiment": [1, 0]})
    vectors = pd.DataFrame({"features": [[0.0, 1.0], [1.0, 0.0]], "sentiment": [1, 0]})
    texts.to_csv(tmp_path / "reviews.csv", index=False)
    vectors.to_parquet(tmp_path / "vectors.parquet")
    np.save(tmp_path / "x.npy", np.eye(2))
    texts[["sentiment"]].to_csv(tmp_path / "x.csv", index=False)
    for data in ("reviews.csv", "features:vectors.parquet", "x.npy"):
        kind, _, name = data.rpartition(":")
        with pytest.raises(DataError, match=r"(?=.*sentiment)(?=.*--label-column)"):
            clean(f"{kind}:{tmp_path / name}" if kind else tmp_path / name)
    with pytest.raises(DataError, match=r"(?=.*sentiment)(?=.*--label-column)"):
        clean(vectors)


def test_classes_that_differ_by_case_only_are_said():
    x, _, given = noisy_features()
    labels = np.array(["cat", "Cat", "dog"])[given]
    assert any("'Cat' and 'cat'" in note for note in clean(features=x, labels=labels).notes)


@pytest.mark.parametrize("missing", [None, float("nan"), "", "NA", -1, "-1.0", pd.NA])
def test_missing_labels_are_no_class_by_any_entrance(missing):
    x, _, given = noisy_features()
    labels = given.astype(object)
    labels[:5] = missing
    frame = pd.DataFrame({"features": list(x), "label": labels})
    inputs = {"features": x, "labels": labels}, {"data": (x, list(labels))}, {"data": frame}
    for found in (clean(**one) for one in (inputs if missing is None else inputs[1:2])):
        assert (found.classes, len(found)) == (["0", "1", "2"], 235)
        assert found.ids[0] == "5"
        assert any("5 of 240 examples without a label" in note for note in found.notes)
        assert len(found.to_frame()) == 235
    task = load_task((x, labels), size=8)
    assert len(task.train) + len(task.val) + len(task.test) == 235


def test_every_form_of_features_and_labels_finds_the_same_errors(monkeypatch, tmp_path):
    x, _, given = noisy_features()
    names = np.array(["a", "b", "c"])[given]
    np.savez(tmp_path / "x.npz", X=x, y=names)
    wanted = clean(features=x, labels=names)
    dummies = pd.get_dummies(pd.Series(names))
    for found in (
        clean(features=sparse.csr_matrix(x), labels=names),
        clean(features=pd.DataFrame(x), labels=dummies),
        clean((x, pd.Series(names, dtype="category"))),
        clean(pd.DataFrame({"vector": list(x), "label": names})),
        clean(f"features:{tmp_path / 'x.npz'}"),
        clean(features=x, labels=0.8 * dummies.astype(float) + 0.2 / 3),
    ):
        np.testing.assert_array_equal(found.posterior, wanted.posterior)
        assert found.classes == wanted.classes
    assert any("soft labels" in note for note in found.notes)
    monkeypatch.setattr(vectors, "MOST_DENSE_MIB", 0)
    reduced = clean(features=sparse.csr_matrix(x), labels=names)
    assert any("reduced to 2 dimensions" in note for note in reduced.notes)
    assert sorted(reduced.ranked[:24].tolist()) == list(range(24))
    with pytest.raises(DataError, match="TruncatedSVD"):
        load_task((sparse.csr_matrix(x), names), size=8)


def test_texts_and_images_given_as_objects_are_cleaned_as_files_are(mislabelled):
    frame = pd.read_csv(mislabelled)
    frame["image"] = [str(mislabelled.parent / name) for name in frame["image"]]
    by_file, by_frame = (clean(data, image_size=32) for data in (f"csv:{mislabelled}", frame))
    np.testing.assert_array_equal(by_frame.posterior, by_file.posterior)
    assert (by_frame.ids, by_frame.classes) == (by_file.ids, by_file.classes)
    inputs = [Image.open(path) for path in frame["image"]]
    kept = frame["split"] == "train"
    images = [image for image, is_kept in zip(inputs, kept, strict=True) if is_kept]
    by_image = clean((images, frame["label"][kept]), image_size=32)
    assert (len(by_image), by_image.classes) == (len(by_file), by_file.classes)


@pytest.fixture
def mislabelled(image_folder, tmp_path):
    """The folder's images as a CSV file, four labels wrong, and a test part."""
    rows = []
    for name in ("dark", "light"):
        for i in range(12):
            other = "light" if name == "dark" else "dark"
            part = "test" if i == 11 else "train"
            rows.append([f"{name}{i}", f"images/{name}/{i:02d}.png", other if i < 2 else name, part])
    path = tmp_path / "given.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "label", "split"], *rows])
    return path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_command([str(a) for a in arguments])
    return ended.value.code


def test_the_command_writes_what_finetune_reads(mislabelled, tmp_path, capsys):
    out, page = tmp_path / "clean.csv", tmp_path / "page.html"
    size = ("--image-size", "32")
    code = command("clean", "--data", f"csv:{mislabelled}", "--out", out, "--page", page, *size, "--json")
    said = capsys.readouterr().out
    assert code == 0
    record = json.loads(said.splitlines()[-1])
    assert record["examples"] == record["written"] == 22
    low, high = record["rate_interval"]
    assert low <= 4 / 22 <= high
    counts = record["wrong_labels"]
    assert f"about {counts['expected']} wrong labels ({counts['low']} to {counts['high']})" in " ".join(
        said.split()
    )
    assert f"({counts['low']} to {counts['high']})" in page.read_text()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["split"] for row in rows[-2:]} == {"test"}
    assert {row["id"] for row in rows[:4]} == {"dark0", "dark1", "light0", "light1"}
    assert all(float(row["p_dark"]) + float(row["p_light"]) == pytest.approx(1, abs=1e-4) for row in rows)
    wrong = [float(row["wrong_probability"]) for row in rows[:-2]]
    assert wrong == sorted(wrong, reverse=True)
    task = load_task(f"csv:{out}", size=32)
    assert len(task.train) + len(task.val) == 22
    assert len(task.test) == 2
    assert task.train.soft is not None
    assert task.classes == ["dark", "light"]
    assert '"image","/9j/' in page.read_text()  # how JPEG begins
    assert "dark0" in page.read_text()
    assert command("clean", "--data", f"csv:{mislabelled}", "--out", out, *size) == 2
    assert "exists" in capsys.readouterr().err


def test_a_corrected_or_pruned_file_and_a_checked_one(mislabelled, tmp_path):
    found = clean(f"csv:{mislabelled}", image_size=32)
    corrected, pruned = tmp_path / "corrected.csv", tmp_path / "pruned.csv"
    found.save(corrected, "corrected")
    assert found.save(pruned, "pruned") == 22 - int(found.suspected.sum())
    with corrected.open(newline="") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file)}
    assert labels["dark0"] == "dark"
    assert labels["light11"] == "light"
    with pytest.raises(RunError, match="exists"):
        found.save(corrected)
    with pytest.raises(ConfigError, match="given"):
        found.save(tmp_path / "other.csv", "right")
    # A person fills in clean_label; the file is then one of checked labels.
    sheet = tmp_path / "sheet.csv"
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "clean_label"], ["dark0", "dark"], ["light5", "light"]])
    again = clean(f"csv:{mislabelled}", image_size=32, checked_labels=sheet)
    at = again.ids.index("dark0")
    assert again.checked.sum() == 2
    assert again.classes[again.given[at]] == "dark"
    assert again.p_wrong[at] == 0
    with sheet.open("a", newline="") as file:
        csv.writer(file).writerow(["nobody", "dark"])
    with pytest.raises(DataError, match="of no example here"):
        clean(f"csv:{mislabelled}", image_size=32, checked_labels=sheet)


@pytest.fixture
def undivided(mislabelled):
    """The same without a test part: `finetune` draws one from it."""
    path = mislabelled.with_name("undivided.csv")
    pd.read_csv(mislabelled).drop(columns="split").to_csv(path, index=False)
    return path


def count_corrected(task):
    return sum(part.count_source("corrected") for part in (task.train, task.val, task.test))


def test_labels_that_were_rewritten_are_known_when_they_are_read(undivided, tmp_path):
    given = dict(pd.read_csv(undivided)[["id", "label"]].to_numpy())
    path = tmp_path / "corrected.csv"
    found = clean(f"csv:{undivided}", image_size=32)
    found.save(path, "corrected")
    whole, changed = pd.read_csv(path), set(np.array(found.ids)[found.wrong])
    assert {"dark0", "light1"} <= changed
    options = {"size": 32, "test_fraction": 0.5, "val_fraction": 0.2}
    for seed, lost in enumerate(([], ["label_source"], ["given_label"])):
        whole.drop(columns=lost).to_csv(path, index=False)
        asked = load_task(f"csv:{path}", seed=seed, corrected_test=True, **options)
        for part in (asked.train, asked.val, asked.test):
            sources = zip(part.ids, part.label_sources, strict=True)
            assert {name for name, source in sources if source == "corrected"} == changed & set(part.ids)
        wrong = changed & set(asked.test.ids)
        assert any(f"{len(wrong)} of 12 test labels" in note for note in asked.notes) == bool(wrong)
        task = load_task(f"csv:{path}", seed=seed, **options)
        assert task.train.ids == asked.train.ids
        if lost != ["given_label"]:  # without that column the given labels are unknown
            labels = [task.classes[label] for label in task.test.labels]
            assert labels == [given[name] for name in task.test.ids]
            wrong = set()
        assert task.test.count_source("corrected") == len(wrong)


def test_a_label_that_a_spreadsheet_changed_is_not_as_given(undivided, tmp_path):
    path = tmp_path / "kept.csv"
    clean(f"csv:{undivided}", image_size=32).save(path)
    assert count_corrected(load_task(f"csv:{path}", size=32)) == 0
    frame = pd.read_csv(path, keep_default_na=False)
    frame.loc[frame["id"] == "light7", "label"] = "dark"
    frame.to_csv(path, index=False)
    frame["image"] = [str(path.parent / name) for name in frame["image"]]
    for data in (f"csv:{path}", frame):
        assert count_corrected(load_task(data, size=32, test_fraction=0.5, corrected_test=True)) == 1


def test_an_accuracy_on_rewritten_labels_says_so(undivided, tiny, tmp_path, capsys):
    corrected, pruned = tmp_path / "corrected.csv", tmp_path / "pruned.csv"
    found = clean(f"csv:{undivided}", image_size=32)
    found.save(corrected, "corrected")
    found.save(pruned, "pruned")
    tiny = tiny | {"inject_noise": None, "method": "vanilla", "epochs": 1, "test_fraction": 0.5}
    said = {}
    for name, path, more in (
        ("given", corrected, {}),
        ("asked", corrected, {"corrected_test_labels": True}),
        ("pruned", pruned, {}),
    ):
        run = ht.finetune(tiny | more, data=f"csv:{path}", out=str(tmp_path / name))
        stored = json.loads((tmp_path / name / "run.json").read_text())
        result = stored["result"]
        said[name] = (
            result["test_labels_rewritten"],
            result["test_labels_kept"],
            labels_tested_on(run.facts),
        )
        assert labels_tested_on(run.facts) in (tmp_path / name / "README.md").read_text()
        report = render_run(tmp_path / name)
        assert f"Test accuracy ({labels_tested_on(run.facts)})" in report
        command("finetune", "--out", tmp_path / name, "--resume")
        assert labels_tested_on(run.facts) in capsys.readouterr().out
    changed = set(np.array(found.ids)[found.wrong])
    rewritten = len(changed & set(load_task(f"csv:{corrected}", size=32, test_fraction=0.5).test.ids))
    assert rewritten
    assert said["given"] == (0, 0, "labels as given")
    assert said["asked"] == (rewritten, 0, f"{rewritten} of 12 labels rewritten")
    assert said["pruned"] == (0, result["test_labels_kept"], "without suspected label errors")
    assert result["test_labels_kept"] == stored["examples"]["test"] > 0

    with pytest.raises(HesstuneError):  # who says nothing of these labels gets no certificate on them
        ht.Run.load(tmp_path / "asked").certify(bound="holdout")
    predicted = ht.Run.load(tmp_path / "given").predict(f"csv:{corrected}")
    assert any(f"{len(changed)} of 24 new labels" in note for note in predicted.notes)
    compared = ht.compare(
        **{n: v for n, v in tiny.items() if n not in ("method", "out", "data")}, data=f"csv:{corrected}",
        corrected_test_labels=True, methods="vanilla", seeds=1, measure_examples=0, out=str(tmp_path / "c"),
    )  # fmt: skip
    assert compared.results.cells[0].metrics["test_labels_rewritten"] == rewritten
    assert any(f"{rewritten} of 12 test labels are not as given" in line for line in compared.results.header)
    assert "test_labels_rewritten" in (tmp_path / "c" / "results.csv").read_text()

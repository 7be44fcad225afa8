"""From votes to labels, their noise matrix, and a run: `hesstune label` and what it leads to."""

import csv
import json
import shutil
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hesstune as ht
from hesstune.cli.main import run as command_line
from hesstune.errors import ConfigError, DataError, HesstuneWarning, NoiseMatrixError
from hesstune.labeling.label_data import _noise, guessing_notes, label_rate_interval
from hesstune.storage import tables
from hesstune.weak import Votes, label


def hesstune(capsys, *words):
    """Run a command in this process; return the exit code, its output, and its error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command_line([str(word) for word in words])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


RULES = """
def bright(row):
    from PIL import Image
    from numpy import asarray
    return "light" if asarray(Image.open(row["path"])).mean() > 120 else "dark"

def named(row):
    return None if row["id"].endswith("1.png") else row["id"].split("/")[0]

def never(row):
    return None

def odd(row):
    return "grey"

def good(row):
    return "pos" if "good" in row["text"] else None

def bad(row):
    return "neg" if "bad" in row["text"] else None

def length(row):
    return 1 if len(row["text"]) > 12 else 0

IMAGES = [bright, named, never]
TEXTS = [good, bad, length]
"""


@pytest.fixture
def rules(tmp_path, monkeypatch):
    (tmp_path / "labelling_rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    return "py:labelling_rules"


@pytest.fixture
def domains(image_folder, tmp_path):
    """Two more domains: one with its classes inverted, one that lacks contrast."""
    turned, faint = tmp_path / "turned", tmp_path / "faint"
    shutil.copytree(image_folder, turned)
    for name in ("dark", "light"):
        (turned / name).rename(turned / f"{name}_")
    (turned / "dark_").rename(turned / "light")
    (turned / "light_").rename(turned / "dark")
    for name in ("dark", "light"):
        (faint / name).mkdir(parents=True)
        for path in (image_folder / name).iterdir():
            Image.open(path).point(lambda v: 90 + v // 8).save(faint / name / path.name)
    return turned, faint


def test_annotators_of_other_domains_vote_and_the_labels_train(tiny, image_folder, domains, tmp_path, capsys):
    turned, faint = domains
    out = tmp_path / "weak" / "labels.csv"
    words = ["label", "--target", tiny["data"], "--image-size", 32, "--out", out]
    words += ["--labelers", f"folder:{turned},low=folder:{faint},folder:{image_folder}", "--json"]
    code, said, error = hesstune(capsys, *words)
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    first, low, last = record["labelers"]
    assert [row["labeler"] for row in (first, low, last)] == ["turned", "low", "images"]
    assert first["accuracy"] == pytest.approx(0, abs=0.1)  # right at home, wrong here
    assert first["own_accuracy"] == pytest.approx(1, abs=0.1)
    assert last["accuracy"] == pytest.approx(1, abs=0.1)
    # An annotator that is always wrong makes soft_features lose the classes; the model in its place is named.
    assert record["label_model"] == "soft"
    assert record["noise_matrix"]["method"].startswith("labelmodel (weighted")
    assert any("soft_features" in note for note in record["notes"])
    rows = rows_of(out)
    assert len(rows) == record["labelled"] == 24
    assert {"id", "image", "label", "true_label", "p_dark", "p_light", "vote_low"} <= set(rows[0])
    for row in rows:
        assert float(row["p_dark"]) + float(row["p_light"]) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(("dark", "light"), key=lambda c, r=row: float(r[f"p_{c}"]))
    right = np.mean([r["label"] == r["true_label"] for r in rows])
    assert record["accuracy"] == pytest.approx(right)

    matrix = out.with_name("labels.noise.json")
    options = tiny | {"data": f"csv:{out}", "inject_noise": None, "train": "head", "epochs": 1}
    with pytest.warns(HesstuneWarning, match="class dark"):  # most examples of it are not labelled dark
        run = ht.finetune(options, noise_matrix=str(matrix), soft_labels=True, out=str(tmp_path / "run"))
    assert run.noise_matrix == ht.NoiseMatrix.load(matrix)
    assert run.record["soft_labels"]
    assert {row["id"]: row["label"] for row in run.labels()} == {row["id"]: row["label"] for row in rows}

    # Nothing is overwritten, and this is refused before anything is trained.
    before = out.read_bytes()
    code, _, error = hesstune(capsys, *words)
    assert code == 2
    assert "--overwrite" in error
    assert out.read_bytes() == before
    code, _, _ = hesstune(capsys, "label", "--target", tiny["data"], "--functions", "py:a:b", "--out", ".")
    assert code == 2
    code, said, error = hesstune(capsys, *words[:-1], "--overwrite", "--quiet")
    assert (code, said, error) == (0, "", "")
    assert out.read_bytes() == before  # the same by seed


def test_fine_tuned_annotators_vote_too(tiny, image_folder, tmp_path):
    own = {"labelers": [f"folder:{image_folder}"], "labeler": "finetune", "epochs": 8, "image_size": 32}
    found = ht.label_data(tiny["data"], threshold=0.5, **own)
    assert found.annotators[0]["accuracy"] > 0.9
    assert found.votes.soft is not None
    assert any("three annotators (1) do not determine" in note for note in found.notes)


def test_functions_on_images_and_what_is_refused(tiny, image_folder, rules, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    words = ["label", "--target", tiny["data"], "--functions", f"{rules}:IMAGES", "--out", out]
    code, said, _ = hesstune(capsys, *words, "--json")
    assert code == 0
    record = json.loads(said.splitlines()[-1])
    assert any("never never votes" in note for note in record["notes"])
    rows = {row["labeler"]: row for row in record["labelers"]}
    assert (rows["never"]["coverage"], rows["never"]["accuracy"]) == (0, None)
    assert rows["bright"]["accuracy"] == 1
    assert rows["named"]["coverage"] == pytest.approx(20 / 24)
    for given, message in (
        ({"functions": f"{rules}:odd", "classes": ["grey", "dark"]}, "'light'"),
        ({"functions": f"{rules}:never"}, "none"),
        ({"functions": f"{rules}:nowhere"}, "'nowhere'"),
        ({"functions": "rules.py"}, "py:module:name"),
        ({"functions": "py:a:b", "vote_columns": ["b"]}, "--vote-columns"),
        ({"labelers": ["a=folder:x", "a=folder:y"]}, "same name"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            ht.label_data(tiny["data"], **given)
    code, _, error = hesstune(capsys, "label", "--target", tiny["data"], "--out", tmp_path / "no.csv")
    assert code == 2
    assert "--labelers, --functions or --votes" in error
    assert not (tmp_path / "no.csv").exists()


def test_texts_from_rules_to_a_run(tiny_bert, image_folder, rules, tmp_path, capsys):
    texts = [f"a good film number {i}" if i % 2 else f"a bad one {i % 7}" for i in range(40)]
    texts[:3] = ["what", "is", "this"]
    true = ["pos" if "good" in text else "neg" for text in texts]
    path = write(tmp_path / "reviews.csv", [["text", "true_label"], *zip(texts, true, strict=True)])
    out, model = tmp_path / "labels.csv", f"hf:{tiny_bert}"
    words = ["label", "--target", f"csv:{path}", "--functions", f"{rules}:TEXTS", "--out", out, "--json"]
    words += ["--label-model", "dawid_skene", "--noise-from", "soft_features", "--model", model]
    code, said, error = hesstune(capsys, *words)
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    assert record["classes"] == ["neg", "pos"]
    assert {row["labeler"]: row["accuracy"] for row in record["labelers"]}["good"] == 1
    assert record["noise_matrix"]["method"] == "labelmodel (soft_features)"
    assert rows_of(out)[0]["text"] == "what"
    options = {"model": model, "data": f"csv:{out}", "epochs": 1, "train": "head"}
    run = ht.finetune(options, noise_matrix=str(tmp_path / "labels.noise.json"))
    assert run.record["kind"] == "text"
    with pytest.raises(DataError, match="images, but the target holds texts"):
        ht.label_data(f"csv:{path}", labelers=[f"folder:{image_folder}"], model=model)


def votes_file(path, n=300, seed=0, silent=5):
    """Four annotators of three classes; the first examples have no votes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    names = np.array(["ant", "bee", "cow", "dog"])
    table = np.where(rng.random((n, 4)) < [0.9, 0.8, 0.7, 0.6], y[:, None], rng.integers(0, 3, (n, 4)))
    cells = names[table].astype(object)
    cells[rng.random((n, 4)) < 0.1] = ""
    cells[:silent] = "abstain"
    rows = [[f"x{i}", f"text {i}", names[y[i]], *cells[i]] for i in range(n)]
    write(path, [["id", "text", "true_label", "vote_a", "vote_b", "vote_c", "vote_d"], *rows])
    return y


def test_votes_from_a_file_and_what_no_vote_leaves_out(tmp_path, tiny_bert, capsys):
    path, out = tmp_path / "votes.csv", tmp_path / "labels.csv"
    y = votes_file(path)
    words = ("label", "--votes", path, "--label-model", "dawid_skene", "--out", out, "--json")
    code, said, error = hesstune(capsys, *words)
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    assert (record["examples"], record["labelled"], record["left_out"]) == (300, 295, 5)
    assert any(note.startswith("5 of 300 examples") for note in record["notes"])
    assert record["accuracy"] > 0.9
    rows = rows_of(out)
    assert len(rows) == 295
    # The estimated matrix against the labels' true one.
    made = np.array([["ant", "bee", "cow"].index(row["label"]) for row in rows])
    true = np.stack([np.bincount(made[y[5:] == i], minlength=3) / (y[5:] == i).sum() for i in range(3)])
    np.testing.assert_allclose(record["noise_matrix"]["matrix"], true, atol=0.1)
    # The printed and saved counts are those of the rate and its interval.
    counts, rate, (low, high) = record["wrong_labels"], record["rate"], record["rate_interval"]
    ends = int(295 * low), int(np.ceil(295 * high))
    assert counts == {"expected": round(295 * rate), "low": ends[0], "high": ends[1]}
    assert low <= 1 - record["accuracy"] <= high
    assert f"about {counts['expected']} wrong labels ({ends[0]} to {ends[1]})" in " ".join(said.split())
    matrix = tmp_path / "labels.noise.json"
    assert json.loads(matrix.read_text())["rate_interval"] == [low, high]
    # A class without votes has no place in the matrix, and finetune takes the result.
    four = ht.label_data(votes=path, classes=["ant", "bee", "cow", "dog"], label_model="majority")
    assert four.classes == ["ant", "bee", "cow"]
    options = {"model": f"hf:{tiny_bert}", "data": f"csv:{out}", "epochs": 1, "train": "head"}
    assert ht.finetune(options, noise_matrix=str(matrix)).classes == ["ant", "bee", "cow"]
    assert ht.finetune(options, noise_matrix="estimate:labelmodel").record["noise"]["loss_matrix_rate"] < 0.2
    with pytest.raises(DataError, match=r"row 7, column vote_a gave 'ant'.* bee, cow, dog$"):
        ht.label_data(votes=path, classes=["bee", "cow", "dog"], vote_columns=["vote_a"])


def test_numbers_as_classes_keep_their_places_if_one_is_missing(tmp_path, tiny_bert):
    votes = np.random.default_rng(0).choice(["0", "2"], (60, 3))
    rows = [[f"text {i}", *row] for i, row in enumerate(votes)]
    found = ht.label_data(votes=write(tmp_path / "v.csv", [["text", "vote_a", "vote_b", "vote_c"], *rows]))
    assert found.classes == ["0", "2"]
    matrix = found.save(tmp_path / "labels.csv")
    options = {"model": f"hf:{tiny_bert}", "data": f"csv:{tmp_path / 'labels.csv'}", "epochs": 1}
    assert ht.finetune(options, train="head", noise_matrix=str(matrix)).classes == ["0", "2"]


def test_a_matrix_that_names_its_classes_is_brought_to_the_datas_order(tiny, tmp_path):
    record = {"matrix": [[0.9, 0.1], [0.3, 0.7]], "classes": ["light", "dark"]}
    path = tmp_path / "F.json"
    path.write_text(json.dumps(record))
    run = ht.finetune(tiny, inject_noise=None, noise_matrix=str(path), epochs=1, train="head")
    np.testing.assert_allclose(run.noise_matrix.array, [[0.7, 0.3], [0.1, 0.9]])
    path.write_text(json.dumps(record | {"classes": ["light", "grey"]}))
    with pytest.raises(NoiseMatrixError, match=r"light, grey, .* dark, light"):
        ht.finetune(tiny, inject_noise=None, noise_matrix=str(path), epochs=1)


def test_votes_that_differ_by_case_only_are_said():
    votes = pd.DataFrame({"id": range(6), "vote_a": ["yes", "no"] * 3, "vote_b": ["Yes", "no"] * 3})
    assert any("'Yes' and 'yes'" in note for note in ht.label_data(votes=votes).notes)


def test_votes_join_the_target_by_id(tiny, image_folder, tmp_path):
    ids = [f"{name}/{i:02d}.png" for name in ("dark", "light") for i in range(12)]
    rows = [[i, i.split("/")[0], "dark"] for i in reversed(ids[:-2])]
    path, label_data = tmp_path / "votes.csv", partial(ht.label_data, tiny["data"], label_model="majority")
    found = label_data(votes=write(path, [["id", "a", "b"], *rows]))
    assert found.ids == ids
    assert found.votes.table[:, 0].tolist() == [0] * 12 + [1] * 10 + [-1, -1]
    assert (found.labels[-2:] == -1).all()
    # Indices, if no class is named so.
    rows = [[i, int(i.startswith("light"))] for i in ids]
    found = label_data(votes=write(path, [["id", "a"], *rows]))
    assert found.accuracy(found.labels) == 1
    for change, message in (
        ([["id", "a"], ["gone.png", "dark"]], "'gone.png'"),
        ([["id", "a"], [ids[0], "dark"], [ids[0], "light"]], "repeats some ids"),
        ([["x", "a"], [ids[0], "dark"]], "column 'id'"),
        ([["id", "a"], [ids[0]]], "row 2"),
        ([["id", "a"]], "no rows"),
    ):
        with pytest.raises(DataError, match=message):
            label_data(votes=write(path, change))


def test_a_test_part_keeps_its_true_labels_and_stays_out_of_the_estimates(image_folder, tmp_path):
    root = tmp_path / "parts"
    for part, keep in (("train", range(8)), ("test", range(8, 12))):
        for name in ("dark", "light"):
            (root / part / name).mkdir(parents=True)
            for i in keep:
                shutil.copy(image_folder / name / f"{i:02d}.png", root / part / name)
    votes = [[p.relative_to(root).as_posix(), "dark"] for p in root.rglob("*.png")]
    votes[0][1] = "light"
    path = write(tmp_path / "votes.csv", [["id", "a"], *votes])
    found = ht.label_data(f"folder:{root}", votes=path, label_model="majority")
    kept = [i for i, example in enumerate(found.ids) if example.startswith("test/")]
    assert sorted(found.kept.tolist()) == kept
    assert [found.classes[found.labels[i]] for i in kept] == [found.target.true[i] for i in kept]
    assert found.noise.n == 16
    found.save(tmp_path / "labels.csv")
    assert {row["split"] for row in rows_of(tmp_path / "labels.csv")} == {"train", "test"}


def test_a_singular_matrix_is_moved_from_singularity_with_a_note(tmp_path):
    rows = [[f"x{i}", *("ab" if i % 2 else "ba")] for i in range(60)]
    votes = write(tmp_path / "votes.csv", [["id", "u", "v"], *rows])
    found = ht.label_data(votes=votes, noise_from="majority")
    assert any("what is written" in note for note in found.notes)
    assert found.noise.condition <= 100
    assert found.noise.smoothing > 0


def test_a_model_that_lost_the_classes_is_refused():
    assert guessing_notes(0.40, 2, "dawid_skene") == []
    assert "49%" in guessing_notes(0.49, 2, "majority")[0]
    for rate, k in ((0.49, 2), (0.79, 6)):
        with pytest.raises(NoiseMatrixError, match=f"{rate:.0%} of the labels"):
            guessing_notes(rate, k, "dawid_skene")


@pytest.mark.parametrize("model", ["soft", "majority"])
def test_the_noise_of_uncalibrated_labels_is_estimated_from_features_or_accuracies(model):
    rng = np.random.default_rng(0)
    true = np.arange(240) % 3
    x = (np.eye(3)[true] + 0.2 * rng.normal(size=(240, 3))).astype(np.float32)
    wrong = rng.random((240, 3)) < 0.3
    votes = Votes(np.where(wrong, (true[:, None] + 1) % 3, true[:, None]), 3, ["a", "b", "c"])
    for features, name in ((x, "soft_features"), (None, "weighted")):
        fit = partial(label, votes, features=features, balance=np.array([0.5, 0.3, 0.2]))
        made, has_features = fit(model), features is not None
        found = _noise(fit, made, "auto", votes, has_features)
        assert found.method.startswith(f"labelmodel ({name}")
        posterior = fit(name).posterior
        by_hand = np.stack([posterior[made.labels == j].sum(axis=0) for j in range(3)], axis=1)
        by_hand /= by_hand.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.matrix.array, by_hand, atol=0.03)
        others = [_noise(fit, made, other, votes, has_features) for other in ("dawid_skene", model)]
        assert not any(np.allclose(found.matrix.array, other.matrix.array, atol=1e-3) for other in others)


def test_auto_uses_texts_and_is_right_if_rules_are_wrong(tmp_path):
    """Rules see one word each; the texts' features show the others."""
    words = {
        "good": ("a wonderful film", "great acting", "i loved it"),
        "bad": ("a boring film", "awful acting", "i hated it"),
    }
    rows = [["id", "text", "label", "vote_a", "vote_b"]]
    rng = np.random.default_rng(0)
    for i in range(120):
        true, wrong = ("good", "bad") if i % 2 == 0 else ("bad", "good")
        text = " and ".join(rng.choice(words[true], 3)) + f" {i}"
        votes = [true if rng.random() < 0.75 else wrong, true if rng.random() < 0.7 else ""]
        rows.append([f"e{i}", text, true, *votes])
    found = ht.label_data(f"csv:{write(tmp_path / 'texts.csv', rows)}", model="minilm")
    assert (found.model, found.noise.method) == ("auto: latent", "labelmodel (auto: latent)")
    assert found.accuracy(found.labels) > found.accuracy(found.majority) + 0.05
    votes = write(tmp_path / "votes.csv", [[row[0], *row[3:]] for row in rows])
    for model in ("auto", "majority"):  # no texts; a label model without features
        with pytest.raises(ConfigError, match="model"):
            ht.label_data(votes=votes, model="minilm", label_model=model)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_votes_is_read_once(tmp_path, monkeypatch, suffix):
    rows = [{"id": f"x{n}", "vote_a": "dog", "vote_b": "dog" if n % 3 else "cat"} for n in range(12)]
    path = tmp_path / f"votes.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("id,vote_a,vote_b\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    read, table = [], tables._csv_table
    monkeypatch.setattr(tables, "_csv_table", lambda *args: read.append(args[1]) or table(*args))
    found = ht.label_data(votes=str(path), label_model="majority")
    assert len(found.target) == 12
    assert read == ([path] if suffix == "csv" else [])


def test_the_interval_of_wrong_labels_reaches_up_to_the_disagreement():
    rng = np.random.default_rng(0)
    table = np.where(rng.random((400, 3)) < 0.3, -1, rng.integers(0, 3, (400, 3)))
    differ = [a != b for row in table for a, b in combinations(row[row >= 0], 2)]
    low, high = label_rate_interval(Votes(table, 3), None, 0.1)
    assert low <= 0.1
    assert np.mean(differ) < high < np.mean(differ) + 0.2
    # Annotators that copy one another never differ; features that do not fit their votes show it.
    copies = Votes(np.repeat(rng.integers(0, 3, (400, 1)), 3, axis=1), 3)
    assert label_rate_interval(copies, None, 0.1)[1] < 0.25
    assert label_rate_interval(copies, rng.normal(size=(400, 4)).astype(np.float32), 0.1)[1] > 0.5
    # One vote an example, and no features: up to guessing.
    assert label_rate_interval(Votes(table[:, :1], 3), None, 0.1)[1] >= 2 / 3

"""From votes to labels, their noise matrix, and a run: `hesstune label` and what it leads to."""

import csv
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.cli.main import run as command_line
from hesstune.errors import ConfigError, DataError, HesstuneWarning, NoiseMatrixError
from hesstune.labeling.label_data import label_rate_interval
from hesstune.noise.matrix import NoiseMatrix
from hesstune.storage import tables
from hesstune.weak import Votes


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


def test_labelers_of_other_domains_vote_and_the_labels_train(tiny, image_folder, domains, tmp_path, capsys):
    turned, faint = domains
    out = tmp_path / "weak" / "labels.csv"
    words = ["label", "--target", tiny["data"], "--image-size", 32, "--out", out]
    words += ["--labelers", f"folder:{turned},low=folder:{faint},folder:{image_folder}", "--json"]
    code, said, error = hesstune(capsys, *words)
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    assert [row["labeler"] for row in record["labelers"]] == ["turned", "low", "images"]
    assert record["labelers"][0]["accuracy"] == pytest.approx(0, abs=0.1)  # right at home, wrong here
    assert record["labelers"][0]["own_accuracy"] == pytest.approx(1, abs=0.1)
    assert record["labelers"][2]["accuracy"] == pytest.approx(1, abs=0.1)
    assert "majority vote (baseline)" in said
    assert len(record["noise_matrix"]["matrix"]) == 2
    # A labeler that is always wrong makes soft_features lose the classes; what stands in is named.
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
    with pytest.warns(HesstuneWarning, match="class dark"):  # which most examples of it are not labelled
        run = ht.finetune(options, noise_matrix=str(matrix), out=str(tmp_path / "run"))
    assert run.noise_matrix == ht.NoiseMatrix.load(matrix)
    given = {row["id"]: row["label"] for row in rows}
    assert {row["id"]: row["label"] for row in run.labels()} == given
    with pytest.warns(HesstuneWarning, match="class dark"):
        soft = ht.finetune(options, noise_matrix=str(matrix), soft_labels=True)
    assert soft.record["soft_labels"]

    # Nothing is overwritten, and the wrong answer to that is told before anything is trained.
    before = out.read_bytes()
    code, _, error = hesstune(capsys, *words)
    assert code == 2
    assert "--overwrite" in error
    assert out.read_bytes() == before
    code, _, error = hesstune(
        capsys, "label", "--target", tiny["data"], "--functions", "py:a:b", "--out", "."
    )
    assert (code, error) == (2, "hesstune: . is a folder; give the path of a file\n")
    code, said, error = hesstune(capsys, *words[:-1], "--overwrite", "--quiet")
    assert (code, said, error) == (0, "", "")
    assert out.read_bytes() == before  # by seed the same


def test_fine_tuned_labelers_vote_too(tiny, image_folder, tmp_path):
    found = ht.label_data(
        tiny["data"],
        labelers=[f"folder:{image_folder}"],
        labeler="finetune",
        epochs=8,
        threshold=0.5,
        image_size=32,
    )
    assert found.labelers[0]["accuracy"] > 0.9
    assert found.votes.soft is not None
    assert any("do not determine their own error rates" in note for note in found.notes)


def test_functions_on_images_and_all_they_may_do_wrong(tiny, image_folder, rules, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    words = ["label", "--target", tiny["data"], "--functions", f"{rules}:IMAGES", "--out", out]
    code, said, _ = hesstune(capsys, *words, "--json")
    assert code == 0
    record = json.loads(said.splitlines()[-1])
    assert any("never never votes; it is left out" in note for note in record["notes"])
    rows = {row["labeler"]: row for row in record["labelers"]}
    assert (rows["never"]["coverage"], rows["never"]["accuracy"]) == (0, None)
    assert rows["bright"]["accuracy"] == 1
    assert rows["named"]["coverage"] == pytest.approx(20 / 24)
    run = ht.finetune(tiny | {"data": f"csv:{out}", "inject_noise": None, "epochs": 1}, noise_matrix="0.1")
    assert sum(run.record["examples"].values()) == 24
    for given, message in (
        (f"{rules}:odd", "own label 'light' is none"),
        (f"{rules}:never", "vote for one class only \\(none\\)"),
        (f"{rules}:nowhere", "unknown name in labelling_rules 'nowhere'"),
        ("rules.py", "py:module:name"),
    ):
        classes = ["grey", "dark"] if given.endswith("odd") else []
        with pytest.raises((ConfigError, DataError), match=message):
            ht.label_data(tiny["data"], functions=given, classes=classes)
    code, _, error = hesstune(capsys, "label", "--target", tiny["data"], "--out", tmp_path / "no.csv")
    assert code == 2
    assert "nobody votes" in error
    assert not (tmp_path / "no.csv").exists()


def test_texts_from_rules_to_a_run(tiny_bert, image_folder, rules, tmp_path, capsys):
    texts = [f"a good film number {i}" if i % 2 else f"a bad one {i % 7}" for i in range(40)]
    texts[:3] = ["what", "is", "this"]
    true = ["pos" if "good" in text else "neg" for text in texts]
    path = write(tmp_path / "reviews.csv", [["text", "true_label"], *zip(texts, true, strict=True)])
    out = tmp_path / "labels.csv"
    words = ["label", "--target", f"csv:{path}", "--functions", f"{rules}:TEXTS", "--out", out, "--json"]
    code, said, error = hesstune(capsys, *words, "--label-model", "dawid_skene")
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    assert record["classes"] == ["neg", "pos"]
    assert {row["labeler"]: row["accuracy"] for row in record["labelers"]}["good"] == 1
    assert rows_of(out)[0]["text"] == "what"
    options = {"model": f"hf:{tiny_bert}", "data": f"csv:{out}", "epochs": 1, "train": "head"}
    run = ht.finetune(options, noise_matrix=str(tmp_path / "labels.noise.json"))
    assert run.record["kind"] == "text"
    with_model = [*words, "--noise-from", "soft_features", "--model", f"hf:{tiny_bert}", "--overwrite"]
    code, said, _ = hesstune(capsys, *with_model)
    assert code == 0
    assert json.loads(said.splitlines()[-1])["noise_matrix"]["method"] == "labelmodel (soft_features)"
    with pytest.raises(DataError, match="trained on images, but the target holds texts"):
        ht.label_data(f"csv:{path}", labelers=[f"folder:{image_folder}"], model=f"hf:{tiny_bert}")


def votes_file(path, n=300, seed=0, silent=5):
    """Four annotators of three classes; nobody votes on the first examples."""
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
    code, said, error = hesstune(
        capsys, "label", "--votes", path, "--label-model", "dawid_skene", "--out", out, "--json"
    )
    assert (code, error) == (0, "")
    record = json.loads(said.splitlines()[-1])
    assert (record["examples"], record["labelled"], record["left_out"]) == (300, 295, 5)
    assert "5 of 300 examples have no vote; they are left out" in said
    assert record["accuracy"] > 0.9
    rows = rows_of(out)
    assert len(rows) == 295
    # The estimated matrix against the labels' true one.
    made = np.array([["ant", "bee", "cow"].index(row["label"]) for row in rows])
    true = np.stack([np.bincount(made[y[5:] == i], minlength=3) / (y[5:] == i).sum() for i in range(3)])
    np.testing.assert_allclose(record["noise_matrix"]["matrix"], true, atol=0.1)
    # A class that nobody votes for has no place in the matrix, and nothing breaks in finetune.
    four = ht.label_data(votes=path, classes=["ant", "bee", "cow", "dog"])
    assert four.classes == ["ant", "bee", "cow"]
    assert any("no labeler ever votes for dog" in note for note in four.notes)
    options = {"model": f"hf:{tiny_bert}", "data": f"csv:{out}", "epochs": 1, "train": "head"}
    run = ht.finetune(options, noise_matrix=str(tmp_path / "labels.noise.json"))
    assert run.classes == ["ant", "bee", "cow"]
    assert ht.finetune(options, noise_matrix="estimate:labelmodel").record["noise"]["loss_matrix_rate"] < 0.2
    with pytest.raises(
        DataError, match=r"row 7, column vote_a gave 'ant', which is no class; .* are bee, cow, dog$"
    ):
        ht.label_data(votes=path, classes=["bee", "cow", "dog"], vote_columns=["vote_a"])


def test_numbers_as_classes_keep_their_places_where_one_is_missing(tmp_path, tiny_bert):
    rng = np.random.default_rng(0)
    votes = rng.choice(["0", "2"], (60, 3))
    rows = [[f"text {i}", *row] for i, row in enumerate(votes)]
    path = write(tmp_path / "votes.csv", [["text", "vote_a", "vote_b", "vote_c"], *rows])
    found = ht.label_data(votes=path)
    assert found.classes == ["0", "2"]
    matrix = found.save(tmp_path / "labels.csv")
    options = {"model": f"hf:{tiny_bert}", "data": f"csv:{tmp_path / 'labels.csv'}", "epochs": 1}
    run = ht.finetune(options, train="head", noise_matrix=str(matrix))
    assert run.classes == ["0", "2"]


def test_a_matrix_that_names_its_classes_is_brought_to_the_datas_order(tiny, tmp_path):
    record = {"matrix": [[0.9, 0.1], [0.3, 0.7]], "classes": ["light", "dark"]}
    path = tmp_path / "F.json"
    path.write_text(json.dumps(record))
    run = ht.finetune(tiny, inject_noise=None, noise_matrix=str(path), epochs=1, train="head")
    np.testing.assert_allclose(run.noise_matrix.array, [[0.7, 0.3], [0.1, 0.9]])
    path.write_text(json.dumps(record | {"classes": ["light", "grey"]}))
    with pytest.raises(NoiseMatrixError, match="for the classes light, grey, but the data has dark, light"):
        ht.finetune(tiny, inject_noise=None, noise_matrix=str(path), epochs=1)


def test_votes_join_the_target_by_id(tiny, image_folder, tmp_path):
    ids = [f"{name}/{i:02d}.png" for name in ("dark", "light") for i in range(12)]
    rows = [[i, i.split("/")[0], "dark"] for i in reversed(ids[:-2])]
    path = write(tmp_path / "votes.csv", [["id", "a", "b"], *rows])
    found = ht.label_data(tiny["data"], votes=path)
    assert found.ids == ids
    assert found.votes.table[:, 0].tolist() == [0] * 12 + [1] * 10 + [-1, -1]
    assert (found.labels[-2:] == -1).all()
    # Indices, where no class is called so.
    rows = [[i, int(i.startswith("light"))] for i in ids]
    found = ht.label_data(tiny["data"], votes=write(path, [["id", "a"], *rows]))
    assert found.labels.tolist() == [0] * 12 + [1] * 12
    assert found.accuracy(found.labels) == 1
    for change, message in (
        ([["id", "a"], ["gone.png", "dark"]], "1 ids of .* are no example's, such as 'gone.png'"),
        ([["id", "a"], [ids[0], "dark"], [ids[0], "light"]], "repeats some ids"),
        ([["x", "a"], [ids[0], "dark"]], "needs a column 'id'"),
        ([["id", "a"], [ids[0]]], "row 2: the number of cells"),
        ([["id", "a"]], "no rows below its header"),
    ):
        with pytest.raises(DataError, match=message):
            ht.label_data(tiny["data"], votes=write(path, change))


def test_a_test_part_keeps_its_true_labels_and_stays_out_of_the_estimates(image_folder, rules, tmp_path):
    root = tmp_path / "parts"
    for part, keep in (("train", range(8)), ("test", range(8, 12))):
        for name in ("dark", "light"):
            (root / part / name).mkdir(parents=True)
            for i in keep:
                shutil.copy(image_folder / name / f"{i:02d}.png", root / part / name)
    votes = [[p.relative_to(root).as_posix(), "dark"] for p in root.rglob("*.png")]
    votes[0][1] = "light"
    path = write(tmp_path / "votes.csv", [["id", "a"], *votes])
    found = ht.label_data(f"folder:{root}", votes=path)
    kept = [i for i, example in enumerate(found.ids) if example.startswith("test/")]
    assert sorted(found.kept.tolist()) == kept
    assert [found.classes[found.labels[i]] for i in kept] == [found.target.true[i] for i in kept]
    assert found.noise.n == 16
    found.save(tmp_path / "labels.csv")
    assert {row["split"] for row in rows_of(tmp_path / "labels.csv")} == {"train", "test"}


def test_labels_that_say_nothing_have_a_singular_matrix_that_is_told(tmp_path):
    rows = [[f"x{i}", "a" if i % 2 else "b", "a" if i % 4 < 2 else "b", "ab"[i % 3 == 0]] for i in range(120)]
    path = write(tmp_path / "votes.csv", [["id", "u", "v", "w"], *rows])
    found = ht.label_data(votes=path, label_model="majority", noise_from="majority")
    assert np.isfinite(found.noise.condition)
    rows = [[f"x{i}", *("ab" if i % 2 else "ba")] for i in range(60)]
    found = ht.label_data(votes=write(path, [["id", "u", "v"], *rows]), noise_from="majority")
    assert any("the estimated noise matrix was" in note and "what is written" in note for note in found.notes)
    assert found.noise.condition <= 100
    assert found.noise.smoothing > 0


def test_labels_that_are_as_good_as_guessed_have_no_noise_matrix(tmp_path, capsys):
    """A label model that has lost the classes is refused, and nothing is written."""
    rng = np.random.default_rng(0)
    rows = [["id", "vote_a", "vote_b", "vote_c"]]
    rows += [[f"e{i}", *rng.choice(["x", "y"], 3)] for i in range(200)]
    path, out = write(tmp_path / "votes.csv", rows), tmp_path / "labels.csv"
    words = ("label", "--votes", path, "--out", out)
    code, said, _ = hesstune(capsys, *words)
    assert code == 0
    assert "wrong labels (" in said
    from hesstune.labeling.label_data import _beside_guessing

    assert _beside_guessing(0.40, 2, "dawid_skene") == []
    assert "next to nothing" in _beside_guessing(0.49, 2, "majority")[0]
    with pytest.raises(NoiseMatrixError, match="guessing is wrong on 50%"):
        _beside_guessing(0.49, 2, "dawid_skene")
    with pytest.raises(NoiseMatrixError, match="lost the classes"):
        _beside_guessing(0.79, 6, "dawid_skene")


def test_auto_looks_at_texts_and_mends_what_rules_get_wrong(tmp_path, capsys):
    """Rules that see one word each; what they get wrong the texts' features tell."""
    good, bad = (
        ("a wonderful film", "great acting", "i loved it"),
        ("a boring film", "awful acting", "i hated it"),
    )
    rows = [["id", "text", "label", "vote_a", "vote_b"]]
    rng = np.random.default_rng(0)
    for i in range(120):
        true = ("good", "bad")[i % 2]
        words = rng.choice(good if true == "good" else bad, 3)
        wrong = "bad" if true == "good" else "good"
        votes = [true if rng.random() < 0.75 else wrong, true if rng.random() < 0.7 else ""]
        rows.append([f"e{i}", " and ".join(words) + f" {i}", true, *votes])
    path = write(tmp_path / "texts.csv", rows)
    out = tmp_path / "labels.csv"
    words = ["label", "--target", f"csv:{path}", "--out", out, "--json", "--model", "minilm"]
    code, said, error = hesstune(capsys, *words)
    assert code == 0, error
    record = json.loads(said.splitlines()[-1])
    assert any("latent" in note for note in record["notes"])
    assert record["label_model"] == "auto: latent"
    assert record["noise_matrix"]["method"] == "labelmodel (auto: latent)"
    votes = write(tmp_path / "votes.csv", [[row[0], *row[3:]] for row in rows])
    for model in ("auto", "majority"):  # nothing to look at; a label model that does not look
        with pytest.raises(ConfigError, match="model"):
            ht.label_data(votes=votes, model="minilm", label_model=model)
    assert record["accuracy"] > record["majority_accuracy"] + 0.05


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_votes_is_read_once(tmp_path, monkeypatch, suffix):
    """And rows of records are not read as a table's."""
    rows = [{"id": f"x{n}", "vote_a": "dog", "vote_b": "dog" if n % 3 else "cat"} for n in range(12)]
    path = tmp_path / f"votes.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("id,vote_a,vote_b\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    read = []
    table = tables._table
    monkeypatch.setattr(tables, "_table", lambda *args: read.append(args[1]) or table(*args))
    found = ht.label_data(votes=str(path), label_model="majority")
    assert len(found.target) == 12
    assert read == ([path] if suffix == "csv" else [])


def test_the_interval_of_wrong_labels_reaches_up_to_the_disagreement_of_labelers_and_features():
    rng = np.random.default_rng(0)
    table = np.where(rng.random((400, 3)) < 0.3, -1, rng.integers(0, 3, (400, 3)))
    votes = Votes(table, 3)
    differ = [a != b for row in table for a, b in combinations(row[row >= 0], 2)]
    low, high = label_rate_interval(votes, None, 0.1)
    assert low <= 0.1
    assert np.mean(differ) < high < np.mean(differ) + 0.2
    # Labelers that copy one another never differ; features that are unlike their votes speak.
    copies = Votes(np.repeat(rng.integers(0, 3, (400, 1)), 3, axis=1), 3)
    assert label_rate_interval(copies, None, 0.1)[1] < 0.25
    x = rng.normal(size=(400, 4)).astype(np.float32)
    assert label_rate_interval(copies, x, 0.1)[1] > 0.5
    # One vote an example, and no features: nothing speaks against guessing.
    assert label_rate_interval(Votes(table[:, :1], 3), None, 0.1)[1] >= 2 / 3


def test_printed_counts_are_those_of_the_rate_and_its_interval(tmp_path, capsys):
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 200)
    rows = [
        [f"e{i}", *("xy"[int(t) ^ int(rng.random() < 0.25)] for _ in range(3))] for i, t in enumerate(true)
    ]
    path, out = (
        write(tmp_path / "votes.csv", [["id", "vote_a", "vote_b", "vote_c"], *rows]),
        tmp_path / "l.csv",
    )
    code, said, _ = hesstune(capsys, "label", "--votes", path, "--out", out, "--json")
    assert code == 0
    record = json.loads(said.splitlines()[-1])
    counts, (low, high) = record["wrong_labels"], record["rate_interval"]
    assert low <= record["rate"] <= high
    assert low <= np.mean([row["label"] != "xy"[true[int(row["id"][1:])]] for row in rows_of(out)]) <= high
    assert counts == {
        "expected": round(200 * record["rate"]), "low": int(200 * low), "high": int(np.ceil(200 * high))
    }  # fmt: skip
    assert f"about {counts['expected']} wrong labels ({counts['low']} to {counts['high']})" in " ".join(
        said.split()
    )
    saved = json.loads((tmp_path / "l.noise.json").read_text())
    assert saved["rate_interval"] == record["rate_interval"]
    assert NoiseMatrix.load(tmp_path / "l.noise.json").k == 2

"""Feature vectors as data: files and objects, the head trained on them, and noise matrices as objects."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torch.utils.data import TensorDataset

import hesstune as ht
from hesstune.data.formats import listing
from hesstune.data.load import load_task
from hesstune.data.near_duplicates import near_duplicates
from hesstune.data.reading import Columns, Reading
from hesstune.errors import ConfigError, DataError, ModelError, NoiseMatrixError

RNG = np.random.default_rng(0)
Y = np.arange(120) % 3
X = (np.eye(3)[Y] + 0.2 * RNG.normal(size=(120, 3))) @ RNG.normal(size=(3, 6))
NAMES = [("ant", "bee", "cat")[k] for k in Y]


def write(folder, form):
    """Write the same examples in one form of `features:`; return its path."""
    path = folder / f"x.{form}"
    if form == "npz":
        np.savez_compressed(path, Embeddings=X, labels=np.array(NAMES), other=1)
    elif form == "npy":
        np.save(path, X)
        pd.DataFrame({"Label": NAMES, "text": "t", "image": "i.png"}).to_csv(folder / "x.csv", index=False)
    else:
        pd.DataFrame({"text": "t", "vec": list(X), "label": NAMES}).to_parquet(path)
    return path


@pytest.mark.parametrize("form", ["npz", "npy", "parquet"])
def test_files_give_what_objects_give(form, tmp_path):
    path = write(tmp_path, form)
    found, wanted = listing(f"features:{path}", 8), listing((X, NAMES), 8)
    np.testing.assert_array_equal(found.vectors.values(), wanted.vectors.values())
    assert (found.classes, found.ids) == (wanted.classes, wanted.ids)
    assert found.labels.tolist() == Y.tolist()
    assert isinstance(found.vectors.array, np.memmap) == (form == "npy")
    alone = listing(f"features:{path}", 8, labelled=False)
    assert alone.given == NAMES


@pytest.mark.parametrize(
    "data",
    [
        (torch.from_numpy(X).bfloat16(), Y),
        (X.tolist(), Y.tolist()),
        (list(torch.from_numpy(X)), torch.from_numpy(Y)),
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        (pd.DataFrame(X), pd.Series(Y)),
        pd.DataFrame({"x": list(X), "label": Y, "tags": [[0.5, 1.0]] * 120}),
        (X, np.eye(3)[Y]),
        (X, Y[:, None]),
    ],
    ids=["bfloat16", "lists", "tensors", "data set", "frame", "column", "one-hot", "one column"],
)
def test_objects_of_vectors(data):
    found = listing(data, 8)
    assert found.labels.tolist() == Y.tolist()
    np.testing.assert_allclose(found.vectors.values(), X, rtol=1e-2)


def test_soft_labels_name_the_most_probable_class_and_are_kept():
    soft = RNG.dirichlet(np.ones(3), 120)
    found = load_task((X, soft), size=8, val_fraction=0, test_fraction=0).train
    assert found.labels.tolist() == soft.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.soft, soft)
    # A class that is nowhere the most probable one is left out.
    rare = np.concatenate([0.9 * soft, np.full((120, 1), 0.1)], axis=1)
    found = load_task((X, rare), size=8, val_fraction=0, test_fraction=0)
    assert found.classes == ["0", "1", "2"]
    np.testing.assert_allclose(found.train.soft, soft)


def objects(**changes):
    return pd.DataFrame({"vec": list(X), "label": Y, **changes})


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ((X[:, :0], Y), r"\(120, 0\)"),
        ((np.where(X > 1, np.inf, X), Y), "finite"),
        ((X * 1e300, Y), "finite"),
        (([*X[1:], X[0, :2]], Y), "row 119 holds 2 numbers"),
        (objects(vec=[*X[1:], None]), "row 119 holds None"),
        (objects(other=list(X)), "several columns of vectors"),
        ((X, Y + 0.5), "regression"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(data, error):
    with pytest.raises(DataError, match=error):
        listing(data, 8)


def test_files_that_cannot_be_used_are_refused(tmp_path):
    path = write(tmp_path, "npy")
    with pytest.raises(DataError, match="no texts or images"):
        listing(f"features:{path}", 8, how=Reading(Columns(text="text")))
    with pytest.raises(DataError, match="unknown column"):
        listing(f"features:{path}", 8, how=Reading(Columns(label="lable")))
    (tmp_path / "x.csv").write_text("label\na\nb\n")
    with pytest.raises(DataError, match=r"2 .*120"):
        listing(f"features:{path}", 8)
    (tmp_path / "x.csv").unlink()
    assert listing(f"features:{path}", 8, labelled=False).given is None
    with pytest.raises(DataError, match=r"x\.csv with a column 'label'"):
        listing(f"features:{path}", 8)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="cannot be read"):
        listing(f"features:{path}", 8, labelled=False)
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(DataError, match="pickled"):
        listing(f"features:{path}", 8, labelled=False)
    np.savez(tmp_path / "a.npz", images=X)
    with pytest.raises(DataError, match="got images"):
        listing(f"features:{tmp_path / 'a.npz'}", 8)
    pd.DataFrame({"label": NAMES}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column of vectors"):
        listing(f"features:{tmp_path / 'b.parquet'}", 8)


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    for start in (0, 4, 8):
        labels = [None] * 4 if start == 4 else list("abab")
        table = {"id": range(start, start + 4), "label": labels, "features": list(rows[start : start + 4])}
        parquet.write_table(pa.table(table), tmp_path / f"part-{start}.parquet")
    (tmp_path / "_SUCCESS").touch()
    found = listing(f"features:{tmp_path}", 8, labelled=False)
    np.testing.assert_array_equal(found.vectors.values(), rows)
    assert found.given == [*"abab", "", "", "", "", *"abab"]
    assert listing(f"features:{tmp_path}/part-[08].parquet", 8).ids == [
        str(i) for i in (0, 1, 2, 3, 8, 9, 10, 11)
    ]
    with pytest.raises(DataError, match="no texts or images"):
        listing(f"features:{tmp_path}", 8, how=Reading(Columns(text="text")))
    pd.DataFrame({"id": [1], "features": [[1.0]]}).to_parquet(tmp_path / "part-9.parquet")
    with pytest.raises(DataError, match="features"):
        listing(f"features:{tmp_path}", 8)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="folder without a table"):
        listing(f"features:{tmp_path}", 8)


def test_a_head_on_vectors_is_a_run_like_others(tmp_path):
    path = write(tmp_path, "npz")
    out = tmp_path / "run"
    run = ht.finetune(f"features:{path}", out=out)
    assert (run.config.model, run.config.train, run.facts.kind) == ("linear:6", "head", "features")
    assert run.outcome.test_accuracy > 0.9
    assert run.predict((X, NAMES)).accuracy > 0.9
    layer = run.model().head
    logits = X.astype(np.float32) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        run.predict(X).probabilities, found / found.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    assert run.measure().names == ["head.weight"]
    assert 0 < run.certify(noise_is="none", draws=20, diagnostic=True).risk <= 1
    assert len(run.label_issues()) == run.facts.examples.train
    assert run.report().is_file()
    written = (out / "run.json").stat().st_mtime_ns
    again = ht.finetune(f"features:{path}", out=out, resume=True)  # the same options, as they were given
    assert (out / "run.json").stat().st_mtime_ns >= written
    assert torch.equal(again.model().head.weight, layer.weight)
    with pytest.raises(DataError, match=r"2 .*6"):
        run.predict(X[:, :2])
    with pytest.raises(DataError, match="holds texts"):
        run.predict(["a text"])
    for wrong, error in (({"train": "all"}, ConfigError), ({"model": torch.nn.Linear(6, 3)}, ConfigError)):
        with pytest.raises(error):
            ht.finetune((X, Y), **wrong)
    with pytest.raises(ModelError, match="linear"):
        ht.finetune("digits", model="linear:6")
    ignored = ht.finetune((X, Y), model="minilm", method="vanilla", epochs=1)
    assert any("no effect of --model minilm" in note for note in ignored.facts.notes)


def test_equal_vectors_are_one_group_for_certificates():
    whole = load_task((np.repeat(X[:10], 3, axis=0), np.repeat(Y[:10], 3)), size=8, val_fraction=0)
    train, test = near_duplicates([whole.train, whole.test])
    wanted = {}
    for row, group in zip([*whole.train.rows, *whole.test.rows], [*train, *test], strict=True):
        assert wanted.setdefault(row // 3, group) == group
    assert len(set(wanted.values())) == 10


@pytest.mark.parametrize("method", ["vanilla", "auto"])
def test_a_comparison_takes_objects(method):
    found = ht.compare((X, Y), methods=[method], seeds=1, epochs=1, measure_examples=0)
    assert [cell.status for cell in found.results.cells] == ["done"]
    several = {"a": {"data": (X, Y)}, "b": {"data": (X[:90], NAMES[:90])}}
    found = ht.compare({"epochs": 1}, tasks=several, methods=[method], seeds=1, measure_examples=0)
    assert [cell.status for cell in found.results.cells] == ["done"] * 2
    with pytest.raises(ConfigError, match="jobs=1"):
        ht.compare((X, Y), methods=[method], jobs=2)


@pytest.mark.parametrize("kind", [lambda F: F, lambda F: F.array, lambda F: F.array.tolist()])
def test_noise_matrices_are_options_as_objects(kind, tmp_path):
    F = ht.NoiseMatrix(np.array([[0.8, 0.2, 0], [0, 1, 0], [0.1, 0, 0.9]]), "estimated")
    run = ht.finetune((X, Y), method="forward", epochs=1, noise_matrix=kind(F), out=tmp_path / "a")
    again = ht.Run.load(tmp_path / "a", data=(X, Y))
    for one in (run, again):
        assert one.noise_matrix == F
        assert one.noise_matrix.origin == ("estimated" if kind(F) is F else "stated")
    assert "[" not in run.facts.noise.loss_matrix
    noisy = ht.finetune((X, Y), method="vanilla", epochs=1, inject_noise=kind(F)).task().train
    assert 0 < (noisy.labels != noisy.true).mean() < 0.5
    assert (noisy.labels == noisy.true)[noisy.true == 1].all()
    loss, same = ht.ConsistentLoss(kind(F)), ht.ConsistentLoss(F)
    logits = torch.randn(4, 3)
    assert torch.equal(loss(logits, torch.tensor([0, 1, 2, 0])), same(logits, torch.tensor([0, 1, 2, 0])))


def test_matrices_of_other_classes_are_refused():
    for wrong in (np.eye(2), np.ones((3, 3))):
        with pytest.raises((NoiseMatrixError, ConfigError)):
            ht.finetune((X, Y), method="forward", noise_matrix=wrong)

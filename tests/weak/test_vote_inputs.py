"""Votes as they arrive: spellings, matrices, folders, confidences, time stamps, and Python objects."""

import contextlib
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix, save_npz
from test_annotation_exports import CASES, DATUMARO, DOCCANO

import hesstune as ht
from fuzz import mutated
from hesstune.errors import DataError, HesstuneError
from hesstune.storage.tables import read_table
from hesstune.weak.annotation_exports import read_export, read_records
from hesstune.weak.export_answers import seconds_of
from hesstune.weak.vote_files import abstains

rng = np.random.default_rng(0)
TRUE = rng.integers(0, 2, 60)
L = np.where(rng.random((60, 4)) < 0.8, TRUE[:, None], 1 - TRUE[:, None])
L[rng.random(L.shape) < 0.2] = -1
L[:4] = [[0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [0, 1, 0, -1]]
MAJORITY = {"label_model": "majority", "noise_from": "dawid_skene"}


def labelled(**options):
    return ht.label_data(**MAJORITY, **options)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize(
    "spelling",
    ["-1", "-1.0", "-1.", " -1 ", "", " ", "ABSTAIN", "NaN", "<NA>", "no_label", "?", "\u22121", "None"],
)
def test_abstentions_in_every_spelling(spelling):
    assert abstains(spelling)
    assert not abstains(
        spelling, [spelling.strip().replace("\u2212", "-").removesuffix(".0").removesuffix(".")]
    )


def test_columns_of_integers_and_floats_are_the_same_classes(tmp_path):
    frame = pd.DataFrame({f"vote_{j}": L[:, j] for j in range(4)})
    frame["vote_1"] = frame["vote_1"].astype(float)  # 1.0, -1.0
    frame["vote_2"] = frame["vote_2"].astype(float).where(frame["vote_2"] >= 0)  # 1.0 and empty
    frame.insert(0, "id", range(60))
    frame["true_label"] = TRUE.astype(float)
    frame.to_csv(tmp_path / "v.csv", index=False)
    found = labelled(votes=str(tmp_path / "v.csv"))
    assert found.classes == ["0", "1"]
    assert np.array_equal(found.votes.table, L)
    kept = found.labels >= 0
    assert found.accuracy(found.labels) == pytest.approx((found.labels == TRUE)[kept].mean())
    signs = pd.DataFrame({"id": range(4), "a": ["-1.0", "1.0", "0", ""], "b": [-1, 1, -1, 1]})
    signs.to_csv(tmp_path / "s.csv", index=False)
    two = labelled(votes=str(tmp_path / "s.csv"), classes="-1,1,0", vote_columns="a,b")
    assert two.votes.table[:2].tolist() == [[0, 0], [1, 1]]


def test_matrices_frames_arrays_and_files_say_the_same(tmp_path):
    np.save(tmp_path / "L.npy", L)
    np.savez(tmp_path / "L.npz", L=L, Y=TRUE)
    save_npz(tmp_path / "S.npz", csr_matrix(L + 1))
    wide = pd.DataFrame(L, columns=list("abcd"))
    rows = [(n, j, L[n, j]) for n in range(60) for j in range(4)]
    long = pd.DataFrame(rows, columns=["task", "worker", "label"])
    texts = [f"t{n}" for n in range(60)]
    for votes in (
        str(tmp_path / "L.npy"), str(tmp_path / "L.npz"), L, L.astype(float), L.tolist(), wide,
        wide.astype(float), wide.replace(-1, np.nan), wide.astype("Int64"), long,
        dict(zip("abcd", L.T, strict=True)), np.where(L < 0, np.nan, L),
    ):  # fmt: skip
        assert np.array_equal(labelled(votes=votes).votes.table, L)
        if votes is not long:
            assert labelled(target=texts, votes=votes, image_size=8).ids == [str(n) for n in range(60)]
    assert labelled(votes=str(tmp_path / "L.npz")).accuracy(TRUE) is not None
    # In a sparse matrix, classes begin at 1 and what is not stored is an abstention.
    sparse = labelled(votes=str(tmp_path / "S.npz"))
    assert (sparse.classes, np.array_equal(sparse.votes.table, L)) == (["1", "2"], True)


@pytest.mark.parametrize(
    "votes",
    [L[:, :, None], np.array([0.5, 1.0]), np.array(["a", object()], dtype=object)[None, :0], [[1], [1, 2]]],
)
def test_objects_that_are_no_votes_are_refused(votes):
    with pytest.raises(HesstuneError):
        ht.label_data(votes=votes)


def test_matrices_that_are_unsafe_or_unclear_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[print]], dtype=object), allow_pickle=True)
    save_npz(tmp_path / "s.npz", csr_matrix(L))  # -1 is stored, 0 is not
    np.savez(tmp_path / "two.npz", a=L, b=L)
    torch.save({"a": print}, tmp_path / "f.pt")
    for name in ("o.npy", "s.npz", "two.npz", "f.pt"):
        with pytest.raises(DataError, match=name):
            ht.label_data(votes=str(tmp_path / name))


def test_cifar_n(tmp_path):
    arrays = {f"random_label{j + 1}": np.abs(L[:, j]) for j in range(3)}
    arrays |= {"clean_label": TRUE, "aggre_label": TRUE, "worse_label": 1 - TRUE}
    torch.save(arrays, tmp_path / "c.pt")
    np.savez(tmp_path / "c.npz", **arrays)
    for name in ("c.pt", "c.npz"):
        found = labelled(votes=str(tmp_path / name))
        assert found.votes.names == ["random_label1", "random_label2", "random_label3"]
        assert np.array_equal(found.votes.table, np.abs(L[:, :3]))
        assert found.accuracy(TRUE) == 1


def test_functions_and_frames_as_target():
    frame = pd.DataFrame(
        {"text": ["good", "bad", "so so", "fine"], "stars": [5, 1, 3, 4]}, index=list("abcd")
    )

    def stars(row):
        return "pos" if row["stars"] > 3 else "neg"

    def words(row):
        return {"good": "pos", "bad": "neg"}.get(row["text"])

    found = labelled(target=frame, functions=[stars, words])
    assert (found.ids, found.votes.names) == (list("abcd"), ["stars", "words"])
    assert found.votes.table.tolist() == [[1, 1], [0, 0], [0, -1], [1, -1]]
    alone = labelled(target=(["good", "bad"], ["pos", "neg"]), functions=words)
    assert alone.accuracy(alone.labels) == 1
    with pytest.raises(HesstuneError, match="functions"):
        ht.label_data(target=frame, functions=[3])


def test_embeddings_as_target():
    x = np.eye(2)[TRUE] * 3 + rng.normal(size=(60, 2))
    found = ht.label_data(target=x, votes=L)
    assert found.model == "auto: latent"
    assert found.labels[2] == -1


def test_the_newest_answer_counts_and_rejected_ones_do_not(tmp_path):
    rows = """item,WorkerId,answer,submitted_at,status
a,w,pos,2026-01-02T00:00:00+00:00,approved
a,w,neg,2026-01-02T01:00:00+05:00,approved
a,v,neg,2026-01-03T00:00:00Z,Rejected
b,v,neg,2026-01-03T00:00:00Z,approved
b,w,pos,2026-01-03T00:00:00Z,approved
"""
    found = ht.label_data(votes=text(tmp_path / "v.csv", rows))
    assert found.votes.names == ["w", "v"]
    assert found.votes.table.tolist() == [[1, -1], [1, 0]]
    assert any("Rejected" in note for note in found.notes)
    assert any("submitted_at" in note for note in found.notes)
    assert seconds_of("2026-01-02T01:00:00+05:00") < seconds_of("Fri Jan 02 00:00:00 GMT 2026")


def test_a_label_with_a_confidence_is_a_soft_vote(tmp_path):
    path = text(tmp_path / "v.csv", "text,label,sure\nx,a,.9\ny,b,60%\nz,c,\nw,a,.2\n")
    found = ht.label_data(votes=path, confidence_column="sure", label_model="soft")
    assert found.votes.soft[:2, 0] == pytest.approx(np.array([[0.9, 0.05, 0.05], [0.2, 0.6, 0.2]]))
    assert found.votes.soft[2, 0].tolist() == [0, 0, 1]
    assert found.votes.table[:, 0].tolist() == [0, 1, 2, -1]  # .2 is below guessing
    assert found.target.texts[0] == ("x", None)
    with pytest.raises(DataError, match=r"row 2.*90"):
        ht.label_data(
            votes=text(tmp_path / "p.csv", "task,worker,label,c\nx,v,a,90\nx,w,b,1\n"), confidence_column="c"
        )


def test_where_votes_cannot_be_told_one_line_names_columns_and_options(tmp_path):
    path = text(tmp_path / "v.csv", "unit,worker_id,mood\n1,ann,pos\n1,bob,neg\n2,ann,neg\n")
    with pytest.raises(DataError, match="--label-column") as error:
        ht.label_data(votes=path)
    for word in ("unit", "worker_id", "mood", "--task-column", "--worker-column"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cell", ["['pos']", "pos|neg", "pos;neg", '{"choices": ["pos"]}'])
def test_a_cell_with_several_classes_is_no_class(tmp_path, cell):
    frame = pd.DataFrame({"id": [0, 1, 2], "vote_a": ["pos", "neg", cell], "vote_b": ["pos", "neg", "pos"]})
    with pytest.raises(DataError, match="row 2, column vote_a"):
        ht.label_data(votes=frame)


@pytest.mark.parametrize("k", [2, 3])
def test_the_matrix_of_one_annotator_is_never_of_rate_0(tmp_path, k):
    found = ht.label_data(votes=np.arange(30) % k)
    assert found.noise.matrix.rate == pytest.approx((1 - 1 / k) / 2)
    assert found.rate_interval[0] <= found.rate <= found.rate_interval[1]
    assert json.loads(found.save(tmp_path / "l.csv").read_text())["rate"] > 0


def test_parts_of_roboflow_and_users_of_doccano(tmp_path):
    for part, rows in (("train", "a.jpg,1,0\nb.jpg,0,1\n"), ("valid", "a.jpg, 0, 1\nc.jpg,0,0\n")):
        text(tmp_path / "robo" / part / "_classes.csv", "filename, cat, dog\n" + rows)
    found = read_export(tmp_path / "robo")
    assert {(a.example, a.label) for a in found.answers} == {
        ("train/a.jpg", "cat"), ("train/b.jpg", "dog"), ("valid/a.jpg", "dog")
    }  # fmt: skip
    assert found.parts == {f"{part}/{name}.jpg": part for part, name in
                           (("train", "a"), ("train", "b"), ("valid", "a"), ("valid", "c"))}  # fmt: skip
    assert found.left_out["examples have no answer"] == 1
    many = text(tmp_path / "one" / "_classes.csv", "filename,cat,dog\na.jpg,1,1\n")
    with pytest.raises(DataError, match="multiple"):
        read_export(many)
    for user, label in (("ann", "pos"), ("bob", "neg")):
        text(tmp_path / "doc" / f"{user}.jsonl", json.dumps({"id": 1, "text": "t", "label": [label]}))
    assert {(a.example, a.annotator, a.label) for a in read_export(tmp_path / "doc").answers} == {
        ("1", "ann", "pos"), ("1", "bob", "neg")
    }  # fmt: skip


def test_cvat_xml(tmp_path):
    xml = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <image id="0" name="a.jpg"><tag label="dog" source="manual"></tag></image>
  <image id="1" name="b.jpg"><box label="cat" xtl="0"></box></image>
  <image id="2" name="c.jpg"></image>
</annotations>"""
    found = read_export(text(tmp_path / "a.xml", xml))
    assert [(a.example, a.label) for a in found.answers] == [("a.jpg", "dog")]
    assert (found.left_out["examples have no answer"], len(found.images)) == (2, 3)
    with pytest.raises(DataError, match="entities"):
        read_export(text(tmp_path / "e.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>'))


def test_responses_without_a_status_count_and_this_is_said(tmp_path):
    nested = [
        {"id": "a", "fields": {}, "responses": {"q": [{"value": "x", "user_id": "u"}]}, "status": "pending"}
    ]
    found = read_records(nested, "the file")
    assert [a.label for a in found.answers] == ["x"]
    assert any("1 responses were submitted" in note for note in found.notes)


def test_one_class_of_yes_and_no_is_two_classes(tmp_path):
    lines = [
        {"text": f"t{n}", "label": "spam", "answer": a} for n, a in enumerate(("accept", "reject", "ignore"))
    ]
    found = read_export(text(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines))))
    assert {a.example: a.label for a in found.answers} == {"t0": "spam", "t1": "not spam"}


def test_task_answers_of_mechanical_turk_and_quoted_tables_with_tabs(tmp_path):
    frame = pd.DataFrame({
        "HITId": ["h", "i"], "WorkerId": "w", "AssignmentStatus": "Approved",
        "Answer.taskAnswers": ['[{"tone":{"label":"pos"}}]', '[{"tone":{"label":"neg"}}]'],
    })  # fmt: skip
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert [a.label for a in read_export(tmp_path / "t.csv").answers] == ["pos", "neg"]
    path = text(tmp_path / "q.tsv", '"id"\t"text"\n1\t"a ""b"""\n')
    assert read_table(path).cells("text") == ['a "b"']
    assert read_table(text(tmp_path / "p.tsv", 'id\ttext\n1\t"a"\n')).cells("text") == ['"a"']


def test_class_names_beside_wrench_and_lists_in_parquet(tmp_path):
    wrench = {str(n): {"label": n % 2, "weak_labels": [n % 2, -1], "data": {"text": "t"}} for n in range(4)}
    text(tmp_path / "label.json", '{"0": "ham", "1": "spam"}')
    found = read_export(text(tmp_path / "train.json", json.dumps(wrench)))
    assert [a.label for a in found.answers] == ["ham", "spam", "ham", "spam"]
    pd.DataFrame(DOCCANO).to_parquet(tmp_path / "d.parquet")
    assert [a.label for a in read_export(tmp_path / "d.parquet").answers] == ["pos"]


@pytest.mark.parametrize("name", [*CASES, "matrix"])
def test_damaged_exports_are_refused_and_never_fail(name, tmp_path):
    draw = random.Random(name)
    if name == "matrix":
        np.savez(tmp_path / "e.npz", L=L, Y=TRUE)
        path, content = tmp_path / "e.npz", (tmp_path / "e.npz").read_bytes()
    else:
        own = CASES[name][0]
        path = tmp_path / ("e.json" if not isinstance(own, str) else "e.tsv" if "\t" in own else "e.csv")
        content = (own if isinstance(own, str) else json.dumps(own)).encode()
    for _ in range(12):
        path.write_bytes(mutated(content, draw))
        with contextlib.suppress(HesstuneError):
            ht.label_data(votes=str(path), **MAJORITY)


def test_damaged_values_anywhere_in_an_export_are_refused(tmp_path):
    """Replace every value of every export by values of other types."""

    def variants(node):
        yield from (None, 7, "x", [], {}, [None], True)
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            for other in variants(node[key]):
                copy = dict(node) if isinstance(node, dict) else list(node)
                copy[key] = other
                yield copy

    for content, _, _ in [*CASES.values(), (DATUMARO, 0, 0)]:
        for other in variants(content) if not isinstance(content, str) else ():
            with contextlib.suppress(DataError):
                export = read_records(other, "the file")
                _ = export and export.sentences() and export.examples_table("v.json")

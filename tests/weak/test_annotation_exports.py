"""Exports of annotation tools: the votes computed by hand from what each tool writes."""

import json
import re
from pathlib import Path

import pytest

import hesstune as ht
from hesstune.errors import DataError
from hesstune.labeling.options import LabelOptions
from hesstune.labeling.sources import read_sources
from hesstune.storage.tables import read_table
from hesstune.weak.annotation_exports import read_export, read_records
from hesstune.weak.tool_exports import CVAT, DOCUMENTS, TOOLS


def choice(*labels, control="sentiment", kind="choices"):
    return {"from_name": control, "to_name": "text", "type": kind, "value": {kind: list(labels)}}


def annotation(by, *labels, **more):
    result = [choice(*labels)] if labels else []
    return {"completed_by": by, "result": result, "was_cancelled": False, **more}


LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"text": "good"},
        "annotations": [
            annotation({"id": 3, "email": "ann@example.com"}, "pos", updated_at="2026-01-02"),
            annotation({"id": 3, "email": "ann@example.com"}, "neg", updated_at="2026-01-01"),
            annotation(4, "pos", ground_truth=True),
        ],
        "predictions": [{"model_version": "m1", "score": 0.7, "result": [choice("neg")]}],
    },
    {"id": 2, "data": {"text": "bad"}, "annotations": [annotation(4, "neg") | {"was_cancelled": True}]},
    {"id": 3, "data": {"text": "odd"}, "annotations": [annotation(4)]},
    {"id": 4, "data": {"text": "new"}, "annotations": []},
]
LABEL_STUDIO_MIN = [
    {"text": "good", "id": 1, "sentiment": "pos", "annotator": "ann", "annotation_id": 11, "lead_time": 4.2},
    {"text": "bad", "id": 2, "sentiment": "neg", "annotator": "bob", "annotation_id": 12, "lead_time": 3.0},
    {"text": "worse", "id": 3, "sentiment": "neg", "annotator": "ann", "annotation_id": 13, "lead_time": 3.0},
    {"text": "none", "id": 4, "annotator": None, "annotation_id": None, "lead_time": None},
]
ARGILLA = [
    {
        "id": "a",
        "fields": {"text": "good"},
        "suggestions": {"label": {"value": "neg", "score": 0.6, "agent": "gpt"}},
        "responses": {
            "label": [
                {"user_id": "u1", "value": "pos", "status": "submitted"},
                {"user_id": "u2", "value": "neg", "status": "discarded"},
            ]
        },
    },
    {
        "id": "b",
        "fields": {"text": "bad"},
        "suggestions": {},
        "responses": {"label": [{"user_id": "u1", "value": "neg", "status": "draft"}]},
    },
]
ARGILLA_FLAT = [
    {
        "id": "a", "text": "good", "label.responses": ["pos", "neg"], "label.responses.users": ["u1", "u2"],
        "label.responses.status": ["submitted", "discarded"], "label.suggestion": "neg",
        "label.suggestion.score": 0.6, "label.suggestion.agent": "gpt",
    },
    {
        "id": "b", "text": "bad", "label.responses": ["neg"], "label.responses.users": ["u1"],
        "label.responses.status": ["draft"], "label.suggestion": None,
    },
]  # fmt: skip
ARGILLA_COLUMNS = [
    {
        "external_id": "a",
        "text": "good",
        "label": {"user_id": ["u1", "u2"], "value": ["pos", "neg"], "status": ["submitted", "discarded"]},
        "label-suggestion": "neg",
        "label-suggestion-metadata": {"agent": "gpt", "score": 0.6},
    },
    {"external_id": "b", "text": "bad", "label": {"user_id": ["u1"], "value": ["neg"], "status": ["draft"]}},
]
ARGILLA_0 = [
    {
        "id": "a", "text": "good",
        "prediction": [{"label": "pos", "score": 0.4}, {"label": "neg", "score": 0.6}],
        "prediction_agent": "gpt", "annotation": "pos", "annotation_agent": "u1", "status": "Validated",
    },
    {
        "id": "b", "text": "bad", "prediction": None, "prediction_agent": None, "annotation": "neg",
        "annotation_agent": "u1", "status": "Discarded",
    },
]  # fmt: skip
PRODIGY = [
    {"text": "good", "_input_hash": 7, "label": "pos", "answer": "accept", "_annotator_id": "d-ann"},
    {"text": "bad", "_input_hash": 8, "label": "pos", "answer": "reject", "_annotator_id": "d-ann"},
    {"text": "bad", "_input_hash": 8, "label": "neg", "answer": "accept", "_annotator_id": "d-bob"},
    {"text": "odd", "_input_hash": 9, "label": "neg", "answer": "ignore", "_annotator_id": "d-ann"},
]
OPTIONS = [{"id": "pos", "text": "Good"}, {"id": "neg", "text": "Bad"}]
PRODIGY_CHOICE = [
    {"text": "good", "_input_hash": 7, "options": OPTIONS, "accept": ["pos"], "answer": "accept"},
    {"text": "bad", "_input_hash": 8, "options": OPTIONS, "accept": [], "answer": "accept"},
    {"text": "odd", "_input_hash": 9, "options": OPTIONS, "accept": ["neg"], "answer": "reject"},
]
DOCCANO = [{"id": 1, "text": "good", "label": ["pos"]}, {"id": 2, "text": "bad", "label": []}]
DATUMARO = {
    "categories": {"label": {"labels": [{"name": "cat"}, {"name": "dog"}]}},
    "items": [
        {"id": "a", "annotations": [{"type": "label", "label_id": 1}], "image": {"path": "a.jpg"}},
        {"id": "b", "annotations": [{"type": "bbox", "label_id": 0, "bbox": [0, 0, 1, 1]}]},
    ],
}
WRENCH = {
    "0": {"label": 1, "weak_labels": [-1, 1], "data": {"text": "good"}},
    "1": {"label": 0, "weak_labels": [0, 1], "data": {"text": "bad"}},
}
PEERANNOT = {"0": {"12": 1, "15": 0}, "1": {"12": 2}}
TURK = """HITId,WorkerId,AssignmentStatus,SubmitTime,Input.text,Answer.comment,Answer.tone.pos,Answer.tone.neg
h1,w1,Approved,1,good,nice one,true,false
h1,w2,Rejected,2,good,,false,true
h2,w1,Submitted,3,bad,hm,false,true
h3,w1,Approved,4,odd,well,false,false
"""
TURK_PLAIN = """HITId,WorkerId,AssignmentStatus,Input.id,Input.image_url,Answer.label
h1,w1,Approved,a,a.jpg,cat
h2,w2,Approved,a,a.jpg,dog
h3,w1,Rejected,b,b.jpg,dog
"""
ASSIGNMENT = [f"ASSIGNMENT:{name}" for name in ("worker_id", "task_id", "status")]
TOLOKA = (
    "\t".join(["INPUT:image", "OUTPUT:result", "GOLDEN:result", *ASSIGNMENT])
    + """
a.jpg\tcat\t\tw1\tt1\tAPPROVED
a.jpg\tdog\t\tw2\tt2\tREJECTED
b.jpg\tdog\tcat\tw1\tt3\tAPPROVED
"""
)
OPEN_IMAGES = """ImageID,Source,LabelName,Confidence
a,verification,/m/cat,1
a,verification,/m/dog,0
a,machine,/m/dog,0.8
b,verification,/m/cat,0
c,verification,/m/cat,1
c,verification,/m/dog,1
"""
GPT = ("a", "gpt", "neg", 0.6)
CASES = {
    "Label Studio, JSON": (
        LABEL_STUDIO,
        {("1", "ann@example.com", "pos"), ("1", "4", "pos"), ("1", "m1", "neg", 0.7)},
        {"cancelled": 1, "replaced": 1, "empty": 1, "no answer": 3},
    ),
    "Label Studio, JSON-MIN": (
        LABEL_STUDIO_MIN,
        {("1", "ann", "pos"), ("2", "bob", "neg"), ("3", "ann", "neg")},
        {"no answer": 1},
    ),
    **{
        name: (content, {("a", "u1", "pos"), GPT}, {"discarded": 1, "draft": 1, "no answer": 1})
        for name, content in (
            ("Argilla 2, nested", ARGILLA),
            ("Argilla 2, flat", ARGILLA_FLAT),
            ("Argilla 1", ARGILLA_COLUMNS),
        )
    },
    "Argilla 0": (ARGILLA_0, {("a", "u1", "pos"), GPT}, {"discarded": 1, "no answer": 1}),
    "Prodigy, binary": (
        PRODIGY,
        {("7", "d-ann", "pos"), ("8", "d-ann", "neg"), ("8", "d-bob", "neg")},
        {"ignore": 1, "no answer": 1},
    ),
    "Prodigy, choice": (
        PRODIGY_CHOICE,
        {("7", "annotator", "pos")},
        {"empty": 1, "reject": 1, "no answer": 2},
    ),
    "doccano": (DOCCANO, {("1", "annotator", "pos")}, {"empty": 1, "no answer": 1}),
    "datumaro": (DATUMARO, {("a", "annotator", "dog")}, {"shapes": 1, "no answer": 1}),
    "WRENCH": (WRENCH, {("0", "function1", "1"), ("1", "function0", "0"), ("1", "function1", "1")}, {}),
    "peerannot": (PEERANNOT, {("0", "12", "1"), ("0", "15", "0"), ("1", "12", "2")}, {}),
    "Mechanical Turk, radio buttons": (
        TURK,
        {("h1", "w1", "pos"), ("h2", "w1", "neg")},
        {"rejected": 1, "empty": 1, "no answer": 1},
    ),
    "Mechanical Turk": (
        TURK_PLAIN,
        {("a", "w1", "cat"), ("a", "w2", "dog")},
        {"rejected": 1, "no answer": 1},
    ),
    "Toloka": (TOLOKA, {("t1", "w1", "cat"), ("t3", "w1", "dog")}, {"rejected": 1}),
    "Open Images": (
        OPEN_IMAGES,
        {("a", "verification", "/m/cat"), ("a", "machine", "/m/dog", 0.8), ("b", "verification", "/m/dog")},
        {"several classes": 1, "no answer": 1},
    ),
}


def written(tmp_path, content):
    """Write an export as its tool does, and read it."""
    if isinstance(content, str):
        path = tmp_path / ("export.tsv" if "\t" in content else "export.csv")
        path.write_text(content)
        return read_export(path, table=read_table(path))
    path = tmp_path / "export.json"
    path.write_text(json.dumps(content))
    if isinstance(content, list):
        lines = tmp_path / "export.jsonl"
        lines.write_text("\n".join(map(json.dumps, content)))
        assert read_export(lines) == read_export(path)
    return read_export(path)


@pytest.mark.parametrize("name", CASES)
def test_votes_are_those_that_count_and_all_others_are_counted(name, tmp_path):
    content, votes, left_out = CASES[name]
    export = written(tmp_path, content)
    tool = name.split(",")[0].rstrip(" 012").replace("Mechanical Turk", "Amazon Mechanical Turk")
    assert export.tool == tool
    found = {
        (a.example, a.annotator, a.label, *([a.confidence] if a.confidence else [])) for a in export.answers
    }
    assert found == votes
    assert sum(export.left_out.values()) == sum(left_out.values())
    for reason, count in left_out.items():
        assert [n for why, n in export.left_out.items() if reason in why] == [count]
    said = " ".join(export.sentences())
    assert all(str(count) in said for count in export.left_out.values())


def test_inputs_checked_and_true_labels_travel_along(tmp_path):
    studio = written(tmp_path, LABEL_STUDIO)
    assert studio.checked == {"1": "pos"}
    assert studio.texts == {"1": "good", "2": "bad", "3": "odd", "4": "new"}
    toloka = written(tmp_path, TOLOKA)
    assert toloka.checked == {"t3": "cat"}
    assert toloka.images == {"t1": "a.jpg", "t3": "b.jpg"}
    assert written(tmp_path, WRENCH).true == {"0": "1", "1": "0"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"id": 1, "data": {}, "annotations": [annotation(1, "pos", "neg")]}], "pos"),
        ([{"id": 1, "text": "x", "label": ["pos", "neg"]}], "pos"),
        ([{"id": "1", "data": "x", "label": "pos#neg"}], "pos"),
        ([PRODIGY_CHOICE[0] | {"accept": ["pos", "neg"]}], "neg"),
        ([ARGILLA[0] | {"responses": {"label": [{"user_id": "u", "value": ["pos", "neg"]}]}}], "pos"),
    ],
)
def test_several_classes_of_one_example_are_refused(content, named):
    with pytest.raises(DataError, match=named):
        read_records(content, "the file")


def test_several_questions_are_named_and_one_can_be_chosen():
    two = annotation(1)
    two["result"] = [choice("pos"), choice("long", control="length")]
    tasks = [{"id": 1, "data": {"text": "x"}, "annotations": [two]}]
    with pytest.raises(DataError, match=r"sentiment.*length"):
        read_records(tasks, "the file")
    assert [a.label for a in read_records(tasks, "the file", "length").answers] == ["long"]
    with pytest.raises(DataError, match="tone"):
        read_records(tasks, "the file", "tone")


@pytest.mark.parametrize("content", [[{"id": 1, "text": "x", "label": "pos"}], {"a": 1}, [], [1], "x", {}])
def test_plain_tables_are_no_exports(content):
    assert read_records(content, "the file") is None


def test_damaged_exports_are_refused_by_name(tmp_path):
    for content in (
        [{"id": 1, "data": {}, "annotations": [{"result": [{"value": []}]}, 3]}],
        {"items": 1, "categories": []},
    ):
        with pytest.raises(DataError, match="the file"):
            read_records(content, "the file")
    path = tmp_path / "export.json"
    path.write_text('{"a": ')
    with pytest.raises(DataError, match=r"export\.json"):
        read_export(path)


def test_an_export_is_labelled_with_its_texts_checked_labels_and_notes(tmp_path):
    tasks = []
    for n, label in enumerate(["neg", "pos"] * 6):
        other = annotation("bob", label if n % 4 else "pos", ground_truth=n == 0)
        tasks.append({"id": n, "data": {"text": f"t{n}"}, "annotations": [annotation("ann", label), other]})
    path = tmp_path / "export.json"
    path.write_text(json.dumps([*tasks, {"id": 99, "data": {"text": "new"}, "annotations": []}]))
    found = ht.label_data(votes=str(path), label_model="dawid_skene", noise_from="dawid_skene")
    assert found.classes == ["neg", "pos"]
    assert found.ids == [*(str(n) for n in range(12)), "99"]
    assert found.labels[0] == 1  # checked: pos, although ann says neg
    assert found.labels[1:12:2].tolist() == [1] * 6
    assert found.labels[12] == -1
    assert any("Label Studio" in note for note in found.notes)
    found.save(tmp_path / "labels.csv")
    assert read_table(tmp_path / "labels.csv").cells("text")[:2] == ["t0", "t1"]


def test_every_tool_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "weak-labels.md").read_text(encoding="utf-8")
    for name in (*(tool.name for tool in (*TOOLS, *DOCUMENTS, CVAT)), "CIFAR-N", "Snorkel", "crowd-kit"):
        assert re.search(rf"^\| {name}\b", page, re.MULTILINE), name


@pytest.mark.parametrize("place", ["a.png", "../a.png"])
def test_images_beside_an_export_are_its_examples_and_others_are_not_read(tmp_path, place):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / place).write_bytes(b"")
    tasks = [
        {
            "id": n,
            "data": {"image": place},
            "annotations": [annotation("ann", label), annotation("bob", label)],
        }
        for n, label in enumerate(["neg", "pos"])
    ]
    path = tmp_path / "export" / "export.json"
    path.write_text(json.dumps(tasks))
    asked = LabelOptions(votes=str(path))
    if ".." in place:
        with pytest.raises(DataError, match="outside"):
            read_sources(asked)
    else:
        assert read_sources(asked)[0].paths == 2 * [tmp_path / "export" / place]


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.csv"])
def test_files_that_hold_no_votes_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text({"p.json": '{"a": 1}', "p.jsonl": '{"a": ', "p.csv": "a,b\n"}[name])
    with pytest.raises(DataError, match=name):
        ht.label_data(votes=str(tmp_path / name))

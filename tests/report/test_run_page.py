"""The report: one file, nothing from elsewhere, names shown as text, small, and complete without scripts."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_runs import EVIL, run_folder

import hesstune as ht
from hesstune.analysis.label_issues import label_posterior
from hesstune.errors import RunError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.report.layers import layer_table, layer_words
from hesstune.report.narrative import onset, provenance
from hesstune.report.run_page import render_run
from hesstune.report.write import write_report
from hesstune.runs.run import Run


class Page(HTMLParser):
    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.scripts, self.links, self.words = [], [], 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.scripts += tag == "script"
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[a] for a in ("src", "href", "xlink:href") if a in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def edited(path, name, **changes):
    """Change keys of a JSON file of a run."""
    record = json.loads((path / name).read_text())
    for key, value in changes.items():
        record[key] = record[key] | value if isinstance(record.get(key), dict) else value
    (path / name).write_text(json.dumps(record))


def test_page_is_one_file_with_names_as_text(tmp_path):
    text = render_run(run_folder(tmp_path))
    page = Page(text)
    assert page.open == []
    assert page.scripts == 1
    assert EVIL in " ".join(page.words)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,", "data:text/csv")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#" and "-" not in link} <= set(page.ids)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "has learnt most of the wrong labels: it agrees with 95.0% of the 20 wrong labels" in text
    assert "starts to fit the noise in epoch 3" in text
    assert "class 1</b> (90%)" in text
    assert text.index("80.0 %</strong>") < text.index("<h2")
    assert text.count("<svg") == text.count("<figcaption>") == text.count("<figure role") == 5
    found = re.search(r"data:text/csv;charset=utf-8;base64,([^\"]*)", text)
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))
    assert (len(rows), rows[0]["given_label"]) == (30, EVIL)


def test_layers_at_their_radius_are_marked(tmp_path):
    records = Run.load(run_folder(tmp_path)).records
    rows = {row[0]: row for row in layer_table(records)}
    assert [rows[f"_layer{i}.weight"][4] for i in range(4)] == ["● yes", "no", "–", "–"]
    assert rows["_layer1.weight"][2].tick == 100
    assert rows["_layer0.weight"][2].bar == 20
    assert layer_words(records) == "4 layers. At the constraint radius: 1 of 2 constrained layers."


def test_layers_of_a_large_network_come_by_block_first(tmp_path):
    names = [f"encoder.layer.{i}.{part}.weight" for i in range(12) for part in ("query", "key", "value")]
    text = render_run(run_folder(tmp_path, names=names))
    table = re.search(r'aria-label="Blocks".*?</table>', text, flags=re.S)[0]
    assert table.count('<th scope="row">encoder.layer.') == 12
    assert "0.173" in table  # √(3 · 0.1²)
    assert text.index('aria-label="Blocks"') < text.index('aria-label="Layers"')
    assert all(name in text for name in names)
    assert "of 12 blocks" in text


def test_spectra_have_a_figure_its_words_and_its_numbers(tmp_path):
    path = run_folder(tmp_path)
    layers = json.loads((path / "measure.json").read_text())["layers"]
    for layer in layers[:3]:
        layer["spectrum"] = {"mean": [3.0, 0.5, 0.0], "stderr": [0.1, None, 0.0]}
    edited(path, "measure.json", layers=layers)
    text = render_run(path)
    assert Page(text).open == []
    figure = re.search(r'<figure[^>]*aria-label="Largest eigenvalues.*?</figure>', text, flags=re.S)[0]
    assert all(f">layer _layer{i}.weight" in figure for i in range(3))
    assert "the largest is 3 ± 0.1" in figure
    assert "86% of the sum of the first 3" in figure
    assert "No eigenvalues of 1 layer:" in figure
    assert "0.5</td>" in text[text.index("Numbers: Largest eigenvalues") :]


def test_the_curve_of_the_measure_stands_beside_the_gap_if_there_is_one(tmp_path):
    path = run_folder(tmp_path)
    assert "Gap and measure by epoch" not in render_run(path)
    losses = {"train_accuracy": 0.9, "val_accuracy": 0.5}
    rows = [{"epoch": i, "train_loss": 1 / i, "val_loss": 1.0 + i / 4, **losses} for i in (1, 2, 3, 4)]
    for at, value in ((1, 0.125), (3, 0.375)):
        rows[at] |= {"measure": value, "measure_stderr": None, "measure_examples": 12}
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = render_run(path)
    assert Page(text).open == []
    figure = re.search(r'<figure[^>]*aria-label="Gap and measure by epoch".*?</figure>', text, flags=re.S)[0]
    assert "of 12 validation examples goes from 0.125 in epoch 2 to 0.375 in epoch 4" in figure
    assert "from 1 to 1.75" in figure  # 1.5 - 1/2, 2 - 1/4
    table = text[text.index("Numbers: Gap and measure by epoch") :]
    row = re.search(r'<th scope="row">2</th>.*?</tr>', table)[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == ["1", "0.4", "0.125", "–"]


@pytest.mark.parametrize(
    ("train", "true", "epoch"),
    [
        ([0.5, 0.6, 0.7, 0.9], [0.5, 0.8, 0.7, 0.5], 2),  # rises while validation falls
        ([0.5, 0.6, 0.65, 0.68], [0.5, 0.8, 0.79, 0.8], None),
        ([0.5, 0.6, 0.75, 0.8], [0.5, 0.8, 0.8, 0.8], 3),  # more labels than are right
        ([0.6, 0.6, 0.6, 0.6], [0.5, 0.8, 0.7, 0.5], None),  # falls, but fits nothing more
    ],
)
def test_the_epoch_at_which_it_starts_to_fit_the_noise(tmp_path, train, true, epoch):
    path = run_folder(tmp_path)
    rows = [
        {"epoch": i + 1, "train_accuracy": a, "val_accuracy": 0.5, "val_accuracy_true_labels": b,
         "train_loss": 1.0, "distance": 0.1}
        for i, (a, b) in enumerate(zip(train, true, strict=True))
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    edited(path, "run.json", examples={"train": 1000, "val": 1000})
    found = onset(Run.load(path).records)
    assert (found and found[0]) == epoch


def test_it_says_how_the_noise_is_known(tmp_path):
    path = run_folder(tmp_path)
    assert "noise is known: symmetric:0.3 was injected" in provenance(Run.load(path).records)
    edited(path, "run.json", noise={"injected": None, "realised_rate": None})
    assert "noise is assumed" in provenance(Run.load(path).records)
    edited(path, "noise_matrix.json", method="confident", examples=90)
    assert "noise is estimated: by the method confident from 90 examples" in provenance(
        Run.load(path).records
    )
    (path / "noise_matrix.json").unlink()
    assert "assumed labels without noise" in provenance(Run.load(path).records)


def test_a_diagnostic_is_not_shown_as_a_certificate(tmp_path):
    path = run_folder(tmp_path)
    record = {
        "kind": "certificate", "risk": 0.31, "delta": 0.05, "vacuous": False, "failures": [],
        "assumptions": ["independent draws"], "empirical": 0.2, "empirical_bound": 0.25, "kl": 3.0, "n": 100,
        "held_out": {"errors": 9, "n": 90, "error": 0.1, "bound": 0.2, "delta": 0.05}, "classes": 3,
        "shares": {"pac_bayes": 0.05}, "sigma": {"a": 0.1}, "prior_sigma": {"a": 0.1}, "family": 10,
        "distance": {"a": 0.2}, "kl_terms": {"a": 3.0}, "draws": 200, "draw_size": 1, "loss": "zero_one",
        "noise": "clean",
    }  # fmt: skip
    (path / "certificate.json").write_text(json.dumps(record))
    text = render_run(path)
    assert "≤ 31.0 % error</strong>" in text
    assert "at most 20.0 % (Clopper–Pearson)" in text
    assert "independent draws" in text
    edited(path, "certificate.json", kind="diagnostic", failures=["the split is stratified"])
    text = render_run(path)
    assert "31.0 % is not guaranteed" in text
    assert "≤ 31.0" not in text
    assert "the split is stratified" in text


def test_absent_records_name_what_makes_them(tmp_path):
    text = render_run(run_folder(tmp_path, measured=False))
    for command in ("hesstune measure", "hesstune certify", "hesstune report"):
        assert command in text


def test_large_runs_stay_small(tmp_path):
    text = render_run(run_folder(tmp_path, k=50, n=10_000, layers=200))
    assert len(text.encode()) < 5e6
    assert "layer199.weight" in text
    assert text.count(">layer _layer") == 3  # each line has its name in the legend


def test_posterior_is_bayes_rule():
    noise = NoiseMatrix.from_array([[0.8, 0.2], [0.5, 0.5]])
    p = np.array([[0.6, 0.4]])
    np.testing.assert_allclose(label_posterior(p, np.array([1]), noise), [[0.12 / 0.32, 0.2 / 0.32]])
    assert label_posterior(p, np.array([1]), None) is p


def test_suspected_label_errors_of_a_real_run(tmp_path):
    run = ht.finetune(
        data="digits", inject_noise="symmetric:0.3", train="head", epochs=1, limit=100, image_size=32,
        out=str(tmp_path / "a"),
    )  # fmt: skip
    page, note = write_report(run)
    assert note is None
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= 48
    assert "by probes that did not see the example" in text
    rows = run.records.label_issues
    given = [float(row["p_given_label"]) for row in rows]
    assert given == sorted(given)
    assert len(rows) == 100
    wrong = [row["given_label"] != row["true_label"] for row in rows]
    assert sum(wrong[:30]) > sum(wrong[70:])
    # The ranking does not depend on the network, which may have fitted its labels.
    (run.path / "label_issues.csv").unlink()
    before = (run.path / "model.safetensors").read_bytes()
    again = {row["id"]: row["confidence"] for row in Run.load(run.path).label_issues()}
    assert again == {row["id"]: row["confidence"] for row in rows}
    assert (run.path / "model.safetensors").read_bytes() == before


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        render_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no run folder"):
        render_run(tmp_path)
    (run_folder(tmp_path) / "measure.json").write_text("{")
    with pytest.raises(RunError, match=r"measure\.json"):
        render_run(tmp_path)

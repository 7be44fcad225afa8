"""The report: one file, nothing from elsewhere, names shown as text, small, and complete without scripts."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from hesstune.errors import RunError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.report.run_page import render_run
from hesstune.training.doubts import label_posterior

EVIL = "<script>alert(1)</script>"


def run_folder(path, k=3, n=30, layers=4, measured=True):
    rng = np.random.default_rng(0)
    classes = [EVIL, *(f"class {i}" for i in range(1, k))]
    names = [f"layer{i}.weight" for i in range(layers)]
    result = {
        "test_accuracy": 0.8, "test_accuracy_interval": [0.7, 0.9], "train_accuracy": 0.9, "gap": 0.5,
        "distances": dict.fromkeys(names, 0.1), "distance": 0.2,
    }  # fmt: skip
    noise = {"injected": "symmetric:0.3", "realised_rate": 0.3, "told": "rate 0.3", "told_rate": 0.3}
    versions = {"hesstune": "0.1.0"}
    sizes = {"train": n, "val": 5, "test": 5}
    record = {"classes": classes, "examples": sizes, "split": "uniform", "noise": noise, "versions": versions}
    (path / "run.json").write_text(json.dumps({**record, "result": result}))
    (path / "config.yaml").write_text(yaml.safe_dump({"model": "m", "data": "d", "method": "robust"}))
    if not measured:
        return path
    epoch = {"train_loss": 1.0, "val_accuracy": 0.5, "val_accuracy_true_labels": 0.6, "distance": 0.1}
    lines = [json.dumps({"epoch": i, "train_accuracy": 0.3 * i, **epoch}) for i in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    NoiseMatrix.symmetric(k, 0.3).save(path / "noise_matrix.json")
    rows = [f'{i},train,"{classes[i % k]}","{classes[(i + i // 9) % k]}"' for i in range(n)]
    (path / "labels.csv").write_text("id,part,label,true_label\n" + "\n".join(rows) + "\n")
    doubts = [f'{i},"{classes[0]}",class 1,0.9,0.1,class 1' for i in range(n)]
    header = "id,given_label,likely_label,confidence,p_given_label,true_label\n"
    (path / "doubtful.csv").write_text(header + "\n".join(doubts) + "\n")
    quadratic = rng.random((n, layers)).astype(np.float32)
    save_file({"quadratic": quadratic}, str(path / "measure.safetensors"))
    layer = {
        "mean": 0.1,
        "mean_stderr": 0.01,
        "distance": 0.1,
        "trace_mean": 2.0,
        "exact": True,
        "method": "exact",
    }
    measured = [
        {"name": a, "maximum": float(m), **layer} for a, m in zip(names, quadratic.max(0), strict=True)
    ]
    whole = {
        "measure": {"value": 0.4, "n": n, "C": 2.0},
        "layers": measured,
        "notes": [],
        "statement": "No guarantee.",
    }
    (path / "measure.json").write_text(json.dumps(whole))
    return path


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


def test_page_is_one_file_with_names_as_text(tmp_path):
    text = render_run(run_folder(tmp_path))
    page = Page(text)
    assert page.open == []
    assert page.scripts == 1
    assert EVIL in " ".join(page.words)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "has learnt wrong labels" in text
    assert "From epoch 3 on" in text
    assert "class 1</b> (90 %)" in text


def test_absent_records_name_what_makes_them(tmp_path):
    text = render_run(run_folder(tmp_path, measured=False))
    for command in ("hesstune measure", "hesstune certify", "hesstune report"):
        assert command in text


def test_large_runs_stay_small(tmp_path):
    text = render_run(run_folder(tmp_path, k=50, n=10_000, layers=200))
    assert len(text.encode()) < 5e6
    assert "layer199.weight" in text


def test_wrong_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        render_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no run folder"):
        render_run(tmp_path)
    (run_folder(tmp_path) / "measure.json").write_text("{")
    with pytest.raises(RunError, match=r"measure\.json cannot be read"):
        render_run(tmp_path)


def test_posterior_is_bayes_rule():
    noise = NoiseMatrix.from_array([[0.8, 0.2], [0.5, 0.5]])
    p = np.array([[0.6, 0.4]])
    found = label_posterior(p, np.array([1]), noise)
    np.testing.assert_allclose(found, [[0.12 / 0.32, 0.2 / 0.32]])
    assert label_posterior(p, np.array([1]), None) is p

"""The report: one file, nothing from elsewhere, names shown as text, small, and complete without scripts."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_runs import EVIL, run_folder

from hesstune.errors import RunError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.report.run_page import render_run
from hesstune.training.doubts import label_posterior


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
    assert text.count(">layer _layer") == 3  # each line has its name in the legend


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


def test_pages_open_only_for_a_person_at_a_desktop(tmp_path, monkeypatch):
    import sys
    import webbrowser

    from hesstune.cli.report import open_on_desktop

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("CI", raising=False)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        open_on_desktop(tmp_path / "report.html")
        assert len(opened) == terminal
    monkeypatch.setenv("CI", "1")
    open_on_desktop(tmp_path / "report.html")
    assert len(opened) == 1


def test_doubtful_labels_of_a_real_run_and_the_command(tmp_path):
    import hesstune as ht
    from hesstune.cli.report import write_report

    run = ht.finetune(
        data="digits", noise="symmetric:0.3", train="head", epochs=3, limit=100, image_size=32,
        out=str(tmp_path / "a"),
    )  # fmt: skip
    page, note = write_report(run)
    assert note is None
    assert page.read_text().count("data:image/png;base64,") >= 48
    rows = [line.split(",") for line in (run.path / "doubtful.csv").read_text().splitlines()[1:]]
    assert len(rows) == 100
    given = [float(row[4]) for row in rows]
    assert given == sorted(given)
    wrong = [row[1] != row[5] for row in rows]
    assert sum(wrong[:30]) > sum(wrong[70:])

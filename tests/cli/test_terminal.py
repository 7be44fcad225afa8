"""Tables on wide and narrow terminals, in pipes, without colours and without Unicode."""

import io
import sys
from types import SimpleNamespace

import pytest

from hesstune.cli.render import Output, results_table

RESULT = {"test_accuracy": 0.5, "train_accuracy": 0.75, "gap": 1.25, "distance": 0.5}


def shown(monkeypatch, encoding="utf-8", **environment):
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding=encoding))
    run = SimpleNamespace(result=RESULT, record={"noise": {"injected": None}})
    Output(quiet=False, as_json=False).say(results_table({"vanilla": run, "robust": run}), "vᵀH⁺v")
    sys.stdout.flush()
    return file.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [36, 80, 200])
def test_tables_fit_and_keep_every_figure(monkeypatch, width):
    text = shown(monkeypatch, COLUMNS=width)
    assert max(map(len, text.splitlines())) <= width
    for figure in ("50.0 %", "75.0 %", "+1.25", "0.50", "vanilla", "robust"):
        assert figure in text
    assert "…" not in text


def test_pipes_and_no_color_have_no_escapes(monkeypatch):
    assert "\x1b" not in shown(monkeypatch)
    assert "\x1b" in shown(monkeypatch, FORCE_COLOR=1)  # the header is bold
    assert "\x1b[3" not in shown(monkeypatch, FORCE_COLOR=1, NO_COLOR=1)


def test_terminals_without_unicode_still_get_the_table(monkeypatch):
    text = shown(monkeypatch, encoding="ascii")
    assert "50.0 %" in text
    assert "v?H?v" in text

"""Tables on wide and narrow terminals, in pipes, without colours and without Unicode."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress

import hesstune as ht
from hesstune.cli import run_commands, training_commands
from hesstune.cli.render import Output, progress_bars, results_table
from hesstune.curvature.declared import FORMS
from hesstune.report.layers import blocks_of, layer_shares
from hesstune.runs.records import LayerMeasure, MeasureRecord
from hesstune.study.options import CellRecord, StudyResults
from hesstune.study.results import differences, means, ranks

RESULT = SimpleNamespace(test_accuracy=0.5, train_accuracy=0.75, gap=1.25, distance=0.5)


def shown(monkeypatch, *items, encoding="utf-8", **environment):
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding=encoding))
    run = SimpleNamespace(
        outcome=RESULT, facts=SimpleNamespace(result=None, noise=SimpleNamespace(injected=None))
    )
    items = items or (results_table({"vanilla": run, "robust": run}), "vᵀH⁺v")
    Output(quiet=False, as_json=False).say(*items)
    sys.stdout.flush()
    return file.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [36, 80, 200])
def test_tables_fit_and_keep_every_figure(monkeypatch, width):
    text = shown(monkeypatch, COLUMNS=width)
    assert max(map(len, text.splitlines())) <= width
    for figure in ("50.0 %", "75.0 %", "+1.25", "0.50", "vanilla", "robust"):
        assert figure in text
    assert "…" not in text


def test_pipes_have_no_escapes_and_terminals_without_unicode_get_the_table(monkeypatch):
    assert "\x1b" not in shown(monkeypatch)
    assert "\x1b" in shown(monkeypatch, FORCE_COLOR=1)  # the header is bold
    assert "\x1b[3" not in shown(monkeypatch, FORCE_COLOR=1, NO_COLOR=1)
    text = shown(monkeypatch, encoding="ascii")
    assert "50.0 %" in text
    assert "v?H?v" in text


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(4, 5)
        self.classifier_of_a_very_long_name = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.classifier_of_a_very_long_name(self.encoder(x).relu())


@pytest.fixture(scope="module")
def tables():
    """The tables of measure, certify and compare, and every figure of each."""
    torch.manual_seed(0)
    net = Net()
    ref = ht.Reference.of(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    found = ht.measure(net, ref, [(x, y)], trace=True)
    bound = ht.certify(net, ref, [(a, int(b)) for a, b in zip(x, y, strict=True)], draws=32)
    metrics = {"gap": 1.25, "measure": 3.5, "distance": 0.4, "seconds": 77.0}
    bonuses = {"vanilla": 0.5, "gradual_unfreezing": 0.7}
    cells = [
        CellRecord(task=task, method=method, seed=seed, status="done",
                   metrics={**metrics, "test_accuracy": bonus + 0.1 * seed})
        for task in "ab" for method, bonus in bonuses.items() for seed in (0, 1)
    ]  # fmt: skip
    summary = {
        "means": means(cells), "differences": differences(cells, "vanilla"), "ranks": ranks(cells),
    }  # fmt: skip
    results = StudyResults(tasks=["a", "b"], methods=list(bonuses), baseline="vanilla", **summary)
    digits = [f"{100 * float(s) / float(found.shares(12).sum()):.1f} %" for s in found.shares(12)]
    digits += [f"{float(v):.3g}" for v in found.maximum] + [f"{float(v):.3f}" for v in found.distances]
    rows = layer_shares(MeasureRecord(**found.to_dict(12), part="train"))
    nats = [f"{v:.3g}" for part in (bound.kl_terms, bound.sigma) for v in part.values()]
    return [
        (run_commands.layer_table(rows, found.form), [*digits, "exact"]),
        (run_commands.stability_table([ht.noise_stability(net, [(x, y)], 0.01, samples=4)]), ["0.01", "±"]),
        (run_commands.kl_table(bound), nats),
        (
            training_commands.comparison_table(results, None),
            ["75.0 ±", "1.25", "3.5", "77", "+20.0 [+20.0, +20.0]", "1.0"],
        ),
    ]


def test_tables_of_every_command_fit_and_keep_every_figure(monkeypatch, tables):
    for table, figures in tables:
        for width in (40, 60, 120, None):
            text = shown(monkeypatch, table, **({"COLUMNS": width} if width else {}))
            assert max(map(len, text.splitlines())) <= (width or 1000)
            assert all(figure in text for figure in figures)
            assert "\x1b" not in text
            assert width or "…" not in text  # no terminal cuts what goes to a pipe
    assert "classifier_of_a_very_long_name.weight" in shown(monkeypatch, tables[0][0])


def test_of_a_large_network_blocks_are_shown_too(monkeypatch):
    layers = [
        LayerMeasure(name=f"blocks.{i}.{part}.weight", mean=1.0, maximum=2.0, distance=0.5)
        for i in range(15) for part in ("a", "b")
    ]  # fmt: skip
    rows = [(layer, 1 / 30) for layer in layers]
    assert shown(monkeypatch, run_commands.layer_table(rows, FORMS["positive_form"])).count("blocks.") == 30
    blocks = shown(monkeypatch, run_commands.block_table(blocks_of(rows)))
    assert blocks.count("blocks.") == 15
    assert "0.707" in blocks


def test_bars_tell_the_time_left_after_the_first_step_however_long_it_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    seen, stop = [], Progress.stop

    def stopped(progress):
        seen.append(progress.make_tasks_table(progress.tasks))
        stop(progress)

    monkeypatch.setattr(Progress, "stop", stopped)
    with progress_bars(quiet=False) as bars:
        step = bars("measure")
        now[0] = 60.0
        step(1, 5, "examples")
    assert "0:04:00" in str(list(seen[0].columns[-1].cells))

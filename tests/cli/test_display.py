"""Results are shown in notebooks with every text escaped, and as data frames."""

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.study.compare import compare

EVIL = "<img src=x onerror=1>"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One result of each kind, by its class."""
    folder = tmp_path_factory.mktemp("display")
    options = {"train": "head", "limit": 60, "epochs": 2, "image_size": 32, "inject_noise": "pair:0.3"}
    run = ht.finetune("digits", method="robust", out=folder / EVIL.replace("/", ""), **options)
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    noisy = np.where(np.arange(60) < 6, 1 - y, y)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    ref = ht.Reference.of(net)
    with torch.no_grad():
        net[0].weight.add_(0.1 * torch.randn(2, 3))
    x, labels = torch.randn(12, 3), torch.randint(2, (12,))
    return {
        "run": run,
        "predictions": run.predict("digits"),
        "issues": ht.clean(
            features=np.eye(2)[y] + 0.1 * rng.normal(size=(60, 2)), labels=np.array(["a", EVIL])[noisy]
        ),
        "measure": ht.measure(net, ref, [(x, labels)], trace=True),
        "certificate": ht.certify(net, ref, list(zip(x, labels.tolist(), strict=True)), draws=16),
        "comparison": compare({"data": "digits", **options}, methods=["vanilla"], seeds=1),
    }


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("run", 2, ["epoch", "train_loss", "train_accuracy", "lr", "val_loss", "val_accuracy",
                    "val_accuracy_true_labels", "distance", "seconds", "measure", "measure_stderr",
                    "measure_examples"]),
        ("predictions", 1797, ["id", "prediction", "label", *(f"p_{n}" for n in range(10))]),
        ("issues", 60, ["id", "label", "likely_label", "wrong_probability", "suspected", "checked",
                        f"p_{EVIL}", "p_a"]),
        ("measure", 1, ["layer", "share", "maximum", "mean", "mean_stderr", "distance", "trace_mean",
                        "method", "exact"]),
        ("certificate", 1, ["kind", "vacuous", "bound", "risk", "empirical", "empirical_bound", "kl", "n",
                            "delta", "draws", "loss", "noise"]),
    ],
)  # fmt: skip
def test_frames_have_the_documented_columns(results, name, rows, columns):
    frame = results[name].to_frame()
    assert list(frame.columns) == columns
    assert len(frame) == rows


def test_a_comparison_has_a_row_for_each_cell(results):
    frame = results["comparison"].to_frame()
    assert list(frame.columns[:4]) == ["task", "method", "seed", "status"]
    assert frame[["method", "status"]].to_numpy().tolist() == [["vanilla", "done"]]
    assert 0 <= frame["test_accuracy"][0] <= 1


def test_html_is_escaped_and_short(results):
    for result in results.values():
        shown = result._repr_html_()
        assert shown.startswith("<div>")
        assert "<img" not in shown
        assert len(shown) < 20_000
    assert "&lt;img" in results["run"]._repr_html_()
    assert "&lt;img" in results["issues"]._repr_html_()


def test_shares_of_a_measure_add_up(results):
    assert results["measure"].to_frame()["share"].sum() == pytest.approx(1)

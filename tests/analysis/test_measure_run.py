"""A run measured from its folder: the same numbers as measuring its parts by hand."""

import json

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.analysis import measure as measuring
from hesstune.analysis.export import export_run
from hesstune.analysis.measure import measure_run, stability_of_run
from hesstune.cli.main import run as cli
from hesstune.errors import LayerError, RunError
from hesstune.inputs.batches import ImageInputs
from hesstune.runs.loading import run_task


@pytest.mark.parametrize("part", ["val", "train"])
def test_a_run_is_measured_on_the_part_that_is_asked_for(tiny, tmp_path, part):
    run = ht.finetune(tiny, out=str(tmp_path / "a"))
    found = measure_run(run) if part == "val" else measure_run(run, part="train")
    task = run_task(run.config, run.config.seed)
    examples = getattr(task, part)
    feed = ImageInputs(examples, run.loaded(), torch.device("cpu"))
    batch = (feed.inputs(np.arange(len(examples))), torch.from_numpy(examples.labels))
    by_hand = ht.measure(run.model(), run.reference(), [batch])
    torch.testing.assert_close(found.quadratic, by_hand.quadratic, rtol=1e-3, atol=1e-9)
    assert found.names == run.reference().layers()
    assert all(found.exact)
    record = json.loads((run.path / "measure.json").read_text())
    assert record["measure"]["n"] == len(task.train)
    assert record["measure"]["value"] == pytest.approx(by_hand.hessian_distance(len(task.train)), rel=1e-3)
    assert record["part"] == part
    mean = by_hand.losses.max() * by_hand.quadratic.mean(0) / len(task.train)
    assert record["mean_measure"]["value"] == pytest.approx(float(mean.sqrt().sum()), rel=1e-3)
    assert ht.Measure.load(run.path).quadratic.shape == (len(examples), 3)


def test_a_run_without_validation_examples_is_measured_on_its_training_examples(tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "a"), val_fraction=0)
    found = measure_run(run)
    record = json.loads((run.path / "measure.json").read_text())
    assert record["part"] == "train"
    assert len(found.losses) == record["measure"]["n"]
    assert any("no validation examples" in note for note in found.notes)


def test_gauss_newton_values_of_a_run_have_their_own_name_everywhere(tiny, tmp_path, capsys):
    run = ht.finetune(tiny, out=str(tmp_path / "a"))
    by_default = run.measure(skip_classes=0.0)
    with pytest.raises(SystemExit, match="0"):
        cli(["measure", str(run.path), "--method=gauss_newton", "--skip-classes=0", "--spectrum", "--more"])
    said = " ".join(capsys.readouterr().out.split())
    found = ht.Measure.load(run.path)
    # The network is piecewise linear, so the values are the same.
    torch.testing.assert_close(found.quadratic, by_default.quadratic, rtol=1e-5, atol=1e-12)
    record = ht.Run.load(run.path).records.measure
    assert record.quantity == found.quantity == "gauss_newton"
    assert {layer.how for layer in record.layers} == {"gauss_newton"}
    assert found.spectrum is not None
    page = ht.Run.load(run.path).report().read_text(encoding="utf-8")
    export_run(ht.Run.load(run.path), tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    for text in (said, page, card):
        assert "Gauss–Newton distance measure" in text
        assert "Mean Hessian distance measure" not in text
        assert "## Hessian distance measure" not in text
    for title in ("max vᵀGv", "Tr G", "eigenvalues of G"):
        assert title in said
        assert title in page
        assert title.replace("G", "H⁺") not in said
    run.measure()
    assert ht.Run.load(run.path).records.measure.quantity == "positive_form"


def test_processes_join_the_rows_of_the_joint_form(monkeypatch):
    one = torch.ones(2, 3, dtype=torch.float64)
    joint = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    methods, more = ["gauss_newton"] * 3, {"joint": joint}
    own = ht.Measure(
        ["a", "b", "c"], one, one, one, torch.ones(2), torch.ones(3), methods, [""] * 3, more=more
    )
    monkeypatch.setattr(measuring, "world", lambda: 2)
    monkeypatch.setattr(measuring, "all_gather", lambda rows: [rows, 10 * rows])
    monkeypatch.setattr(measuring, "all_reduce_sum", lambda tensor: tensor)
    rows = [np.array([2, 0]), np.array([1, 3])]
    found = measuring.gathered_measure(own, rows)
    assert found.more["joint"].flatten().tolist() == [2.0, 10.0, 1.0, 20.0]
    assert found.quantity == "gauss_newton"
    assert sum("uᵀΛu" in note for note in found.notes) == 1


def test_the_error_of_the_mean_measure_covers_what_other_samples_give():
    # Layers share their examples, so the errors of their means are added, not their squares.
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 3.0, 0.2])

    def drawn():
        values = torch.from_numpy(rng.exponential(1.0, (200, 1)) * scale)
        ones = torch.ones(200, dtype=torch.float64)
        return ht.Measure(
            ["a", "b", "c"], values, values, values, ones, torch.ones(3), ["exact"] * 3, [""] * 3
        )

    found = [drawn().to_dict(50)["mean_measure"] for _ in range(150)]
    spread = np.std([one["value"] for one in found])
    assert np.mean([one["stderr"] for one in found]) == pytest.approx(spread, rel=0.2)


def test_a_sample_keeps_the_size_of_the_training_set_and_says_so(tiny, tmp_path):
    run = ht.finetune(tiny, out=str(tmp_path / "a"))
    assert run.measure().spectrum is None
    found = run.measure(spectrum=True)
    record = json.loads((run.path / "measure.json").read_text())
    for i, layer in enumerate(record["layers"]):
        assert layer["spectrum"]["mean"] == pytest.approx(found.spectrum[:, i].mean(0).tolist())
    found = measure_run(run, part="train", max_examples=5, layers=["8.*"], trace=False)
    assert found.quadratic.shape == (5, 1)
    assert found.trace is None
    assert "5 of 14 training examples" in found.notes[-1]
    assert json.loads((run.path / "measure.json").read_text())["measure"]["n"] == 14
    with pytest.raises(LayerError, match=r"9\.\*"):
        measure_run(run, layers=["9.*"])


def test_stability_of_a_run_is_that_of_its_network_and_is_kept(tiny, tmp_path, image_folder):
    run = ht.finetune(tiny, out=str(tmp_path / "a"), epochs=1)
    table = stability_of_run(run, [0.01, 0.05], samples=4)
    task = run_task(run.config, run.config.seed)
    feed = ImageInputs(task.train, run.loaded(), torch.device("cpu"))
    batch = (feed.inputs(np.arange(len(task.train))), torch.from_numpy(task.train.labels))
    by_hand = ht.noise_stability(run.model(), [batch], 0.05, samples=4, seed=run.config.seed)
    assert table[1].value == pytest.approx(by_hand.value, rel=1e-3)
    record = json.loads((run.path / "noise_stability.json").read_text())
    assert [row["sigma"] for row in record["rows"]] == [0.01, 0.05]
    (image_folder / "dark" / "00.png").rename(image_folder / "dark" / "99.png")
    with pytest.raises(RunError, match="no longer what"):
        measure_run(run)


def test_the_method_of_a_layer_is_that_of_the_process_that_moved_it_to_weight_space(monkeypatch):
    one = torch.ones(2, 3, dtype=torch.float64)
    names, methods = ["a", "b", "c"], ["exact", "unused", "weight_space"]
    own = ht.Measure(names, one, one, one, torch.ones(2), torch.ones(3), methods, ["why"] * 3)
    elsewhere = torch.tensor([0, 1, 1])  # the other process met an example that reaches b
    monkeypatch.setattr(measuring, "world", lambda: 2)
    monkeypatch.setattr(measuring, "all_gather", lambda rows: [rows, rows])
    monkeypatch.setattr(measuring, "all_reduce_sum", lambda tensor: tensor + elsewhere)
    rows = [torch.arange(2).numpy(), torch.arange(2, 4).numpy()]
    found = measuring.gathered_measure(own, rows)
    assert found.methods == ["exact", "weight_space", "weight_space"]
    assert found.exact == [True, False, False]
    assert [reason == "why" for reason in found.reasons] == [True, False, True]

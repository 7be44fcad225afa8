"""Radii are chosen from noisy validation alone, kept with their curve, and used."""

import json

import numpy as np
import pytest
import torch

import hesstune as ht
from hesstune.errors import ConfigError
from hesstune.selection import first_within_errors
from hesstune.training.finetune import FACTORS


@pytest.fixture
def few(tiny):
    return {**tiny, "train": "head", "epochs": 3, "warmup_epochs": 1, "method": "robust", "radius": "auto"}


def test_choice_and_curve_are_in_the_folder_and_the_run_obeys(few, tmp_path):
    run = ht.finetune(few, out=str(tmp_path / "a"))
    record = json.loads((run.path / "radius.json").read_text())
    assert [row["factor"] for row in record["curve"]] == list(FACTORS)
    radius = record["radius"]["head"]
    own = ht.finetune({**few, "radius": None}, keep_weights=False).outcome.radii
    assert [radius] == pytest.approx([record["chosen"] * value for value in own.values()])
    by_hand = ht.finetune({**few, "radius": record["radius"]}, out=str(tmp_path / "b"))
    one, two = (dict(r.model().named_parameters()) for r in (run, by_hand))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert run.config.radius == "auto"
    assert not (run.path / ".radius").exists()
    before = (run.path / "radius.json").stat().st_mtime_ns
    ht.finetune(few, out=str(tmp_path / "a"), overwrite=True)
    assert (run.path / "radius.json").stat().st_mtime_ns > before


def test_risk_is_how_badly_noisy_validation_labels_are_foretold(few, tmp_path):
    run = ht.finetune(few, out=str(tmp_path / "a"))
    record = json.loads((run.path / "radius.json").read_text())
    factor = FACTORS[-1]
    seen = []

    def observe(trained):
        from hesstune.inputs.batches import predict_logits

        seen.append((predict_logits(trained.net, trained.feeds["val"]), trained.task.val.labels))

    ht.finetune({**few, "radius": {"head": 2.0 * factor}}, observe=observe)
    logits, labels = seen[0]
    assert record["curve"][-1]["risk"] == pytest.approx(
        foretold(logits, np.eye(2)[labels], ht.NoiseMatrix.symmetric(2, 0.2).array), rel=1e-6
    )


def foretold(logits, targets, matrix):
    """The mean of −ln p·F at the best of many temperatures, by hand."""
    logits = logits.double().numpy()
    found = []
    for temperature in np.geomspace(0.1, 10, 25):
        p = np.exp(temperature * logits)
        p /= p.sum(axis=1, keepdims=True)
        found.append(-(targets * np.log(p @ matrix)).sum(axis=1).mean())
    return min(found)


def test_risk_of_soft_labels_is_what_they_expect(few, voted, tmp_path):
    options = {
        **few,
        "data": f"csv:{voted}",
        "inject_noise": None,
        "noise_matrix": "0.1",
        "soft_labels": True,
        "epochs": 1,
        "warmup_epochs": 0,
    }
    run = ht.finetune(options, out=str(tmp_path / "a"))
    record = json.loads((run.path / "radius.json").read_text())
    seen = []

    def observe(trained):
        from hesstune.inputs.batches import predict_logits

        seen.append((predict_logits(trained.net, trained.feeds["val"]), trained.task.val.soft))

    ht.finetune({**options, "radius": {"head": 2.0 * FACTORS[-1]}}, observe=observe)
    logits, soft = seen[0]
    assert ((soft > 0) & (soft < 1)).any()
    matrix = np.eye(2) if run.noise_matrix is None else run.noise_matrix.array
    assert record["curve"][-1]["risk"] == pytest.approx(foretold(logits, soft, matrix), rel=1e-6)


def test_a_resumed_run_keeps_its_radii(few, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(done, total, text):
        raise Stop

    with pytest.raises(Stop):
        ht.finetune(few, out=str(tmp_path / "a"), progress=stop)
    chosen = json.loads((tmp_path / "a" / "radius.json").read_text())
    monkeypatch.setattr("hesstune.training.finetune._trial_losses", None)  # no second search
    run = ht.finetune(few, out=str(tmp_path / "a"), resume=True)
    assert run.result["distance"] <= chosen["radius"]["head"] * (1 + 1e-5) + 1


def test_the_smallest_radius_within_one_standard_error_is_picked():
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.3).astype(float)
    close, far = base.copy(), base.copy()
    close[:2] = 1 - close[:2]
    far[:60] = 1
    assert first_within_errors([-far, -close, -base], ddof=1) in (1, 2)
    assert first_within_errors([-far, -base.copy(), -base], ddof=1) == 1
    assert first_within_errors([-base, -far, -far], ddof=1) == 0


def test_what_cannot_be_chosen_is_told(few, tiny):
    with pytest.raises(ConfigError, match="needs validation examples"):
        ht.finetune({**few, "val_fraction": 0})
    with pytest.raises(ConfigError, match="write a number, auto"):
        ht.finetune({**few, "radius": "automatic"})
    assert ht.finetune({**tiny, "method": "vanilla", "radius": "auto", "epochs": 1}).config.radius is None


def test_a_kill_while_the_radii_are_chosen_does_not_bar_the_folder(few, tmp_path):
    clean = ht.finetune(few, out=str(tmp_path / "clean"))
    out = tmp_path / "killed"
    (out / ".radius").mkdir(parents=True)
    (out / ".radius" / "config.yaml").write_text("seed: 0\n")
    (out / "radius.json").write_text('{"radius": {"head": 1e-9}}')  # of nobody knows which options
    run = ht.finetune(few, out=str(out), resume=True)
    assert not (out / ".radius").exists()
    chosen = [json.loads((r.path / "radius.json").read_text())["radius"] for r in (clean, run)]
    assert chosen[0] == chosen[1]

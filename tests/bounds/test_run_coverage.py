"""Runs certified as users do it, with a known true error: a few trials of the benchmark's scenes."""

import numpy as np
import pytest
import torch

import coverage_worlds as worlds
import run_coverage
from hesstune.errors import DataError
from records import rows


def test_a_replaced_run_is_certified_soundly_and_a_prior_that_outlives_its_data_fails():
    found = run_coverage.played("replaced", range(3))
    (sound,), (broken,) = found["sound"].values(), found["broken"].values()
    assert sound["given"] == 3
    assert sound["failures"] <= run_coverage.most(sound)
    assert broken["failures"] == 3 > run_coverage.most(broken)


def test_refusals_are_counted_with_what_would_have_failed():
    found = run_coverage.played("copies", range(2))
    for way in found["broken"].values():
        assert way["refused"] == way["failures"] == 2
    (sound,) = found["sound"].values()
    assert sound["given"] + sound["refused"] == 2
    assert not sound["failures"]


def test_a_start_that_has_seen_the_examples_fails_and_the_certificate_states_the_assumption(tmp_path):
    t = run_coverage.Trial("seen", 0, tmp_path)
    x, y = worlds.guessed(t.rng, 60, 4)
    start = worlds.fitted(x, y, 4)
    drawn = t.run((x, y), start, head_init="keep", epochs=1, lr=1e-9).certify(draws=64)
    picked = t.run((x, y), start, head_init="keep", method="pick_to_learn").certify(bound="compression")
    assert max(drawn.risk, picked.risk) < 0.3 < 0.75
    assert any("did not use these examples" in text for text in drawn.assumptions)
    assert any("were fixed without these examples" in text for text in picked.assumptions)


def test_a_true_error_is_that_of_weights_drawn_at_random():
    """The closed form of a randomised head against draws, and a fixed network against its errors."""
    model = worlds.fitted(*worlds.ruled(np.random.default_rng(0), 60)[:2], 2)
    sigma = {"head.weight": 0.05, "head.bias": 0.3}
    x, z = worlds.fresh()
    side = torch.from_numpy(z[:, 0] > 0)
    wrong = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = model.head.weight + 0.05 * torch.randn(model.head.weight.shape, generator=g)
            bias = model.head.bias + 0.3 * torch.randn(2, generator=g)
            logits = x[:2000].flatten(1) @ weight.T + bias
        wrong.append(float(((logits[:, 1] > logits[:, 0]) != side[:2000]).float().mean()))
    missed = float(np.mean(wrong))
    assert worlds.true_error(model, sigma) == pytest.approx(missed * 0.9 + (1 - missed) * 0.1, abs=0.02)
    labels = (side.numpy() ^ (np.random.default_rng(5).random(len(z)) < worlds.FLIP)).astype(int)
    seen = float((model(x).argmax(1).numpy() != labels).mean())
    assert worlds.true_error(model) == pytest.approx(seen, abs=0.01)


def test_labels_of_a_model_are_refused(tmp_path):
    t = run_coverage.Trial("soft", 0, tmp_path)
    x = worlds.noise_images(t.rng, 40)
    up = t.rng.random(40)
    table = worlds.frame(x, p_0=1 - up, p_1=up, label=(up > 0.5).astype(int))
    run = t.run(table, worlds.Flat(2), soft_labels=True, test_fraction=0.5)
    with pytest.raises(DataError, match="test labels"):
        run.certify(bound="holdout")


def test_in_the_record_sound_ways_hold_and_broken_ones_fail():
    scenes = {row["scene"]: row["ways"] for row in rows("run_coverage")}
    assert set(scenes) == set(run_coverage.SCENES)
    assert not [name for ways in scenes.values() for name in run_coverage.unexpected(ways)]

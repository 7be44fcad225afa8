"""The two paths of `robust` after its warm-up: what is kept, what it costs, and resuming."""

import pytest

import hesstune as ht
from hesstune.methods.constrained import Robust
from hesstune.training.trainer import SECOND_PATH


@pytest.fixture
def options(tiny):
    return {**tiny, "epochs": 6, "warmup_epochs": 2, "patience": None, "select": "best"}


def losses(run):
    return [epoch["val_loss"] for epoch in run.metrics]


def counted(stop_after=None):
    """A list that grows with every optimizer step, and the function that lets it grow."""
    seen = []

    def step(done, total, text):
        seen.append(text)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    return seen, step


def test_the_best_epoch_of_both_paths_is_kept(options, monkeypatch, same_weights):
    run = ht.finetune(options)
    fixed = {**options, "radius": run.outcome.radii}
    plain = ht.finetune({**fixed, "method": "constraint", "noise_matrix": "true"})
    monkeypatch.setattr(Robust, "forks_after", None)
    corrected = ht.finetune(fixed)
    assert losses(plain)[:2] == losses(corrected)[:2]
    last = 2 + int(SECOND_PATH * 6)
    first, second = min(losses(corrected)), min(losses(plain)[:last])
    assert first != second
    kept, other = (corrected, plain) if first <= second else (plain, corrected)
    assert min(losses(run)) == min(first, second)
    assert losses(run) == losses(kept)[: len(run.metrics)]
    assert losses(run) != losses(other)[: len(run.metrics)]
    if min(first, second) == min(losses(kept)):  # else its best epoch lies beyond the second path's end
        same_weights(run, kept)
    if run.outcome.kept_epoch > 2:
        word = "plain cross-entropy" if kept is plain else "the consistent loss"
        assert any(f"was trained by {word}" in note for note in run.facts.notes)


def test_plain_cross_entropy_is_kept_if_the_corrected_loss_teaches_nothing(options, monkeypatch):
    monkeypatch.setattr(
        "hesstune.methods.constrained.consistent", lambda setup: lambda logits, _: 0 * logits.sum()
    )
    options |= {"warmup_epochs": 0, "lr": 1e-3}
    run = ht.finetune(options)
    fixed = {**options, "radius": run.outcome.radii, "method": "constraint", "noise_matrix": "true"}
    assert losses(run) == losses(ht.finetune(fixed))[: int(SECOND_PATH * 6)]
    assert any("was trained by plain cross-entropy" in note for note in run.facts.notes)


def test_the_second_path_costs_at_most_four_fifths_of_a_run_and_none_without_noise(options):
    seen, step = counted()
    ht.finetune(options, progress=step)
    one, step = counted()
    run = ht.finetune({**options, "inject_noise": None, "noise_matrix": "0"}, progress=step)
    assert len(run.metrics) == 6
    assert len(one) < len(seen) <= 1.8 * len(one)


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6, 0.9])
def test_a_run_resumed_on_either_path_ends_with_the_same_weights(options, share, tmp_path, same_weights):
    seen, step = counted()
    whole = ht.finetune(options, progress=step)
    _, stop = counted(stop_after=int(share * len(seen)))
    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, out=tmp_path / "a", progress=stop)
    again = ht.finetune(options, out=tmp_path / "a", resume=True)
    same_weights(again, whole)
    assert losses(again) == losses(whole)
    assert again.facts.notes == whole.facts.notes


def test_defaults_stop_early_inside_wider_constraints(tiny):
    run = ht.finetune({**tiny, "epochs": 2}, keep_weights=False)
    assert (run.config.select, run.config.patience) == ("best", 3)
    assert not any("patience" in note for note in run.facts.notes)
    last = ht.finetune({**tiny, "epochs": 2, "select": "last"}, keep_weights=False)
    assert last.config.patience is None
    wide = {name: 16 * radius for name, radius in last.outcome.radii.items()}
    assert run.outcome.radii == pytest.approx(wide)
    head = ht.finetune({**tiny, "epochs": 2, "train": "head"}, keep_weights=False)
    assert (head.config.select, head.config.patience) == ("last", None)


def test_without_validation_examples_the_last_epoch_is_kept(tiny, tmp_path, interrupt, same_weights):
    options = {**tiny, "val_fraction": 0}
    run = ht.finetune(options)
    assert (run.config.select, run.config.patience) == ("last", None)
    same_weights(run, ht.finetune({**options, "select": "last"}))
    interrupt(options, out=tmp_path / "a")
    same_weights(ht.finetune(options, out=tmp_path / "a", resume=True), run)
    with pytest.raises(ht.HesstuneError, match="need validation examples"):
        ht.finetune({**options, "select": "best"})

"""A search continues where it stopped, and the loss that is reported is that of the weights kept."""

import pytest

import hesstune as ht
from hesstune.errors import ConfigError, RunError
from hesstune.runs.records import Epoch
from hesstune.study import cell as search
from hesstune.study.compare import compare

pytest.importorskip("optuna")


@pytest.fixture
def few(tiny):
    shared = {name: value for name, value in tiny.items() if name != "method"}
    return {**shared, "train": "head", "epochs": 2, "warmup_epochs": 1, "inject_noise": None}


def counted(monkeypatch, fail_at=None, error=KeyboardInterrupt):
    """Count the runs of trials; let one fail."""
    calls, plain = [], search.finetune

    def finetune(options, **more):
        calls.append(options["out"])
        if len(calls) - 1 == fail_at:
            raise error
        return plain(options, **more)

    monkeypatch.setattr(search, "finetune", finetune)
    return calls


def cell_of(found):
    (cell,) = found.results.cells
    return cell


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_resumed_search_runs_what_is_missing(few, tmp_path, monkeypatch, stopped):
    whole = cell_of(compare(few, methods=["gce"], seeds=1, out=tmp_path / "a", search=3))
    with monkeypatch.context() as patch:
        calls = counted(patch, fail_at=stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(few, methods=["gce"], seeds=1, out=tmp_path / "b", search=3, jobs=1)
    assert len(calls) == stopped + 1
    calls = counted(monkeypatch)
    again = cell_of(compare(few, methods=["gce"], seeds=1, out=tmp_path / "b", search=3, jobs=1))
    assert len(calls) == 3 - stopped + 1  # and the run of the cell
    assert again.search == whole.search
    assert again.metrics["test_accuracy"] == whole.metrics["test_accuracy"]
    assert not list((tmp_path / "b").rglob("search"))


def test_a_search_that_ended_is_not_run_again_for_its_cell(few, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counted(patch, fail_at=2)  # the run of the cell, after its two trials
        with pytest.raises(KeyboardInterrupt):
            compare(few, methods=["gce"], seeds=1, out=tmp_path / "a", search=2, jobs=1)
    calls = counted(monkeypatch)
    assert compare(few, methods=["gce"], seeds=1, out=tmp_path / "a", search=2, jobs=1).finished
    assert len(calls) == 1


def test_a_trial_that_failed_is_kept_and_all_that_fail_are_told(few, tmp_path, monkeypatch):
    from hesstune.runs.config import make_config

    config = make_config({**few, "method": "gce"}).resolved()
    calls = counted(monkeypatch, fail_at=0, error=RunError("no"))
    _, found = search.search_cell(config, 2, tmp_path / "s")
    assert [row.error for row in found.trials] == ["no", None]
    assert search.search_cell(config, 2, tmp_path / "s")[1] == found
    assert len(calls) == 2

    def never(*_, **__):
        raise ConfigError("never")

    monkeypatch.setattr(search, "finetune", never)
    with pytest.raises(RunError, match="never"):
        search.search_cell(config, 2, tmp_path / "t")


# Losses of epochs 0 to 3, and the epoch kept, which need not be that of the least loss.
LOSSES = [0.6, 0.5126, 0.5026, 0.55]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_the_loss_is_of_the_epoch_kept(few, tmp_path, monkeypatch, kept):
    from hesstune.runs.read_records import Records

    run = ht.finetune(few, method="vanilla", select="best")
    epochs = [Epoch(epoch=e, train_loss=1.0, train_accuracy=0.5, val_loss=v) for e, v in enumerate(LOSSES)]
    outcome = run.outcome.model_copy(update={"kept_epoch": kept})
    monkeypatch.setattr(Records, "epochs", epochs)
    monkeypatch.setattr(Records, "outcome", outcome)
    assert search.run_validation_loss(run) == LOSSES[kept]


@pytest.mark.parametrize("method", ["vanilla", "auto", "wise_ft"])
@pytest.mark.parametrize("select", ["best", "last"])
def test_the_epoch_kept_has_the_loss_of_the_weights(tiny, method, select):
    options = {**tiny, "method": method, "select": select, "epochs": 4, "lr": 0.05}
    seen = {}

    def observe(trained):
        from hesstune.inputs.batches import predict_logits
        from hesstune.training.metrics import Validation

        judge = Validation(None, tempered=method == "auto")
        part = trained.task.val
        logits = predict_logits(trained.net, trained.feeds["val"])
        seen["loss"] = float(judge.losses(logits, part.labels, part.clean).mean())

    found = ht.finetune({**options, "inject_noise": None}, observe=observe)
    kept = found.records.kept_epoch
    assert kept.epoch == found.outcome.kept_epoch
    if found.noise_matrix is None and method != "wise_ft":
        assert kept.val_loss == pytest.approx(seen["loss"], rel=1e-6)
    if select == "last" and method != "auto":
        assert kept.epoch == 4
    assert search.run_validation_loss(found) == kept.val_loss

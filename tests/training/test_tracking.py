"""What trackers hold is what metrics.jsonl holds."""

import importlib.util

import pytest

import hesstune as ht
from hesstune.errors import MissingExtraError

SMALL = {
    "data": "digits", "method": "robust", "inject_noise": "symmetric:0.3", "train": "head", "limit": 60,
    "image_size": 32,
}  # fmt: skip


def test_tensorboard_holds_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = ht.finetune(SMALL, epochs=3, track="tensorboard", out=str(tmp_path / "a"))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("train_loss")]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([m["train_loss"] for m in run.metrics])


def test_mlflow_holds_every_epoch(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = ht.finetune(SMALL, epochs=2, track="mlflow", out=str(tmp_path / "a"))
    client = MlflowClient((run.path / "mlruns").resolve().as_uri())
    kept = (run.path / "mlflow_run").read_text().strip()
    found = client.get_metric_history(kept, "val_accuracy")
    assert [(m.step, m.value) for m in found] == [(m["epoch"], m["val_accuracy"]) for m in run.metrics]
    assert client.get_run(kept).data.params["method"] == "robust"


def test_a_missing_tracker_is_told_before_anything_is_written(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"pip install .*\[tracking\]"):
        ht.finetune(SMALL, epochs=1, track="mlflow", out=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_resumed_run_has_every_epoch_once(tracker, tmp_path, monkeypatch):
    pytest.importorskip(tracker)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = {**SMALL, "epochs": 4, "track": tracker, "out": str(tmp_path / "a")}

    def stop(done, total, text):
        if text == "epoch 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ht.finetune(options, progress=stop)
    before = tracked_epochs(tracker, tmp_path / "a")
    assert len(before) == 2  # two epochs were sent before the interrupt
    run = ht.finetune(options, resume=True)
    wanted = [(m["epoch"], pytest.approx(m["val_accuracy"])) for m in run.metrics]
    assert [epoch for epoch, _ in wanted] == [1, 2, 3, 4]
    assert tracked_epochs(tracker, tmp_path / "a") == wanted


def tracked_epochs(tracker, path):
    """(epoch, validation accuracy) as a tracker holds them, repeats included."""
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path / "tensorboard"))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars("val_accuracy")]
    from mlflow.tracking import MlflowClient

    client = MlflowClient((path / "mlruns").resolve().as_uri())
    kept = (path / "mlflow_run").read_text().strip()
    return [(m.step, m.value) for m in client.get_metric_history(kept, "val_accuracy")]

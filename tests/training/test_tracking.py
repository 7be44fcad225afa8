"""What trackers hold is what metrics.jsonl holds."""

import importlib.util

import pytest

import hesstune as ht
from hesstune.errors import MissingExtraError

SMALL = {
    "data": "digits", "method": "robust", "inject_noise": "symmetric:0.3", "train": "head", "limit": 60,
    "image_size": 32,
}  # fmt: skip


def tracked(tracker, path, name):
    """(epoch, value) as a tracker holds them, repeats included."""
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path / "tensorboard"))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars(name)]
    from mlflow.tracking import MlflowClient

    client = MlflowClient((path / "mlruns").resolve().as_uri())
    kept = (path / "mlflow_run").read_text().strip()
    assert client.get_run(kept).data.params["method"] == "robust"
    return [(m.step, m.value) for m in client.get_metric_history(kept, name)]


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_holds_every_epoch_once_also_of_a_resumed_run(tracker, tmp_path, interrupt, monkeypatch):
    pytest.importorskip(tracker)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = {**SMALL, "epochs": 4, "track": tracker, "out": tmp_path / "a"}
    interrupt(options)
    assert (
        len(tracked(tracker, tmp_path / "a", "train_loss")) == 2
    )  # two epochs were sent before the interrupt
    run = ht.finetune(options, resume=True)
    for name in ("train_loss", "val_accuracy"):
        wanted = [(m["epoch"], pytest.approx(m[name])) for m in run.metrics]
        assert [epoch for epoch, _ in wanted] == [1, 2, 3, 4]
        assert tracked(tracker, tmp_path / "a", name) == wanted


def test_a_missing_tracker_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"pip install .*\[tracking\]"):
        ht.finetune(SMALL, epochs=1, track="mlflow", out=tmp_path / "a")
    assert not (tmp_path / "a").exists()

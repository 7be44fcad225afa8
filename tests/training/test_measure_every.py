"""The measure by epoch in `finetune`: its values, and that training is the same without it."""

import pytest
import torch

import hesstune as ht
from hesstune.errors import ConfigError

OWN = ("measure", "measure_stderr", "measure_examples")


@pytest.fixture(autouse=True)
def ample(monkeypatch):
    """Measure every epoch, however few passes training takes, and write every checkpoint."""
    monkeypatch.setattr("hesstune.training.trainer.MEASURE_SHARE", 1000.0)
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)


def without_curve(run):
    return [{k: v for k, v in m.items() if k not in (*OWN, "seconds")} for m in run.metrics]


@pytest.mark.parametrize("options", [{}, {"method": "elr"}, {"train": "head"}, {"batch_norm": "adapt"}])
def test_it_leaves_training_as_it_is(tiny, same_weights, options):
    plain = ht.finetune(tiny, **options)
    state = torch.get_rng_state()
    run = ht.finetune(tiny, **options, measure_every=2)
    assert torch.equal(torch.get_rng_state(), state)
    same_weights(plain, run)
    assert without_curve(run) == without_curve(plain)
    assert ["measure" in m for m in run.metrics] == [False, True, False, True]
    assert all(name not in m for m in plain.metrics for name in OWN)


@pytest.mark.parametrize("train", ["all", "head", "last:2"])
def test_the_last_point_is_the_measure_of_the_validation_examples(tiny, train):
    run = ht.finetune(tiny, train=train, augment="none", measure_every=4, select="last")
    mean = run.measure(part="val", method="gauss_newton", trace=False).to_dict(run.facts.examples.train)
    assert run.metrics[-1]["measure_examples"] == run.facts.examples.val
    assert run.metrics[-1]["measure"] == pytest.approx(mean["mean_measure"]["value"], rel=1e-4)


def test_a_resumed_run_keeps_its_points(tiny, tmp_path, interrupt, same_weights):
    whole = ht.finetune(tiny, measure_every=1)
    interrupt(tiny, share=0.6, out=tmp_path / "a", measure_every=1)
    assert "measure" in ht.Run.load(tmp_path / "a").metrics[0]
    resumed = ht.finetune(tiny, out=tmp_path / "a", measure_every=1, resume=True)
    same_weights(whole, resumed)
    assert [m | {"seconds": 0} for m in resumed.metrics] == [m | {"seconds": 0} for m in whole.metrics]
    # It changes nothing of the training, so that a run may go on without it.
    interrupt(tiny, share=0.6, out=tmp_path / "b", measure_every=1)
    on = ht.finetune(tiny, out=tmp_path / "b", resume=True)
    same_weights(whole, on)
    assert ["measure" in m for m in on.metrics] == [True, True, False, False]


def test_texts_are_measured_too(tiny_bert, tmp_path):
    rows = [f"{'good' if i % 2 else 'bad'} text {i},{i % 2}" for i in range(24)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    options = {"model": f"hf:{tiny_bert}", "method": "vanilla", "epochs": 2, "measure_every": 1}
    run = ht.finetune(f"csv:{tmp_path / 'texts.csv'}", **options)
    assert all(m["measure"] > 0 for m in run.metrics)


def test_it_is_refused_where_nothing_can_be_measured(tiny):
    with pytest.raises(ConfigError, match="--measure-every"):
        ht.finetune(tiny, measure_every=1, val_fraction=0.0)
    with pytest.raises(ConfigError, match="--shard"):
        ht.finetune(tiny, method="vanilla", measure_every=1, shard=True)

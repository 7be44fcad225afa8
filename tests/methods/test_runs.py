"""Every method trains a head and a whole network, resumes where it was stopped, and can be measured."""

import pytest
import torch

import hesstune as ht
from hesstune.errors import ConfigError
from hesstune.methods import method_class, method_names

STEPS = {"epochs": 3, "warmup_epochs": 1}


class Stop(Exception):
    pass


def stop(done, total, text):
    if done > total * 0.6:
        raise Stop


def run(tiny, tmp_path, method, train, name, **more):
    if method == "lora":
        pytest.importorskip("peft")
    options = {**tiny, **STEPS, "train": train, "method": method, "out": str(tmp_path / name)}
    return ht.finetune(options, **more)


# What a head adds to training does not depend on the method.
CASES = [(method, "all") for method in method_names()]
CASES += [(m, "head") for m in method_names() if method_class(m).head_alone or method_class(m).solves_head]
CASES += [(method, "head") for method in ("robust", "elr", "divide_mix", "gradual_unfreezing")]


@pytest.mark.parametrize(("method", "train"), CASES)
def test_resumed_equals_uninterrupted_and_is_measured(tiny, tmp_path, monkeypatch, method, train):
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)
    if method == "lora":  # the tiny network's body has nothing for adapters
        with pytest.raises(ConfigError, match="none of them trains here"):
            run(tiny, tmp_path, method, train, "whole")
        return
    kind = method_class(method)
    if kind.head_alone and train == "all":
        with pytest.raises(ConfigError, match="--train head"):
            run(tiny, tmp_path, method, train, "whole")
        return
    whole = run(tiny, tmp_path, method, train, "whole")
    if kind.head_alone or (kind.solves_head and train == "head"):
        return  # no batches: there is no step to stop at
    with pytest.raises(Stop):
        run(tiny, tmp_path, method, train, "parts", progress=stop)
    resumed = run(tiny, tmp_path, method, train, "parts", resume=True)
    one, two = (dict(r.model().named_parameters()) for r in (whole, resumed))
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
    assert whole.result["distance"] > 0
    if train == "head":
        assert torch.isfinite(whole.measure(trace=False).maximum).all()


def test_early_stopping_keeps_the_best_epoch(tiny, tmp_path):
    found = run(tiny, tmp_path, "early_stopping", "head", "a", epochs=40)
    assert found.config.select == "best"
    assert found.result["epochs"] < 40
    kept = run(tiny, tmp_path, "early_stopping", "head", "b", patience=5, select="last")
    assert (kept.config.patience, kept.config.select) == (5, "last")


def test_weight_decay_is_decoupled(tiny, tmp_path):
    found = run(tiny, tmp_path, "weight_decay", "head", "a")
    assert (found.config.optimizer, found.config.weight_decay) == ("adamw", 0.01)


def test_class_weights_are_refused_where_they_have_no_meaning(tiny, tmp_path):
    with pytest.raises(ConfigError, match="use --sampler balanced"):
        run(tiny, tmp_path, "co_teaching", "head", "a", class_weights="balanced")
    for method in ("gce", "elr", "gjs", "sat", "regsl"):
        run(tiny, tmp_path, method, "head", method, class_weights="balanced")

"""transformers' Trainer: the constraint holds, resuming keeps the true reference, penalties add up."""

from __future__ import annotations

import pytest
import torch

from sentences import sentences

transformers = pytest.importorskip("transformers")

from hesstune.errors import ConfigError, DivergedError, HesstuneWarning, RunError  # noqa: E402
from hesstune.integrations.transformers import (  # noqa: E402
    PretrainedDecayCallback,
    RobustTrainerCallback,
    consistent_loss,
)
from hesstune.losses.consistent import ConsistentLoss  # noqa: E402
from hesstune.noise.matrix import NoiseMatrix  # noqa: E402
from hesstune.reference import Reference  # noqa: E402

RADIUS = {"classifier.*": 0.3, "*": 0.05}


def load(tiny_bert):
    return transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)


@pytest.fixture(scope="session")
def dataset(tiny_bert):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    rows = []
    for text, label in sentences(32):
        encoded = tokenizer(text, padding="max_length", max_length=16)
        rows.append({**encoded, "labels": int(label == "yes")})
    return rows


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return transformers.TrainingArguments(**{**defaults, **changes})


def trainer(tiny_bert, dataset, folder, callback, **changes):
    return transformers.Trainer(
        load(tiny_bert),
        arguments(folder, **changes),
        train_dataset=dataset,
        callbacks=[callback],
        compute_loss_func=consistent_loss(NoiseMatrix.symmetric(2, 0.2)),
    )


def test_layers_stay_within_their_radius_also_if_training_is_resumed(tiny_bert, dataset, tmp_path):
    whole = trainer(tiny_bert, dataset, tmp_path / "whole", RobustTrainerCallback(RADIUS))
    whole.train()
    found = Reference.of(load(tiny_bert)).distances(whole.model, warn=False)
    for name, distance in found.items():
        assert distance <= (0.3 if name.startswith("classifier") else 0.05) * (1 + 1e-5)
    assert max(found.values()) > 0.0499
    logged = [row["distance"] for row in whole.state.log_history if "distance" in row]
    assert logged[-1] == pytest.approx(sum(d * d for d in found.values()) ** 0.5, rel=1e-4)
    first = trainer(tiny_bert, dataset, tmp_path / "parts", RobustTrainerCallback(RADIUS))
    first.add_callback(_StopAt(3))
    first.train()
    callback = RobustTrainerCallback(RADIUS)
    resumed = trainer(tiny_bert, dataset, tmp_path / "parts", callback)
    resumed.train(resume_from_checkpoint=True)
    same_weights(resumed.model, whole.model)
    pretrained = dict(load(tiny_bert).named_parameters())
    for name in callback.reference.layers():
        torch.testing.assert_close(callback.reference[name], pretrained[name].data)


def same_weights(found, expected):
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


class _StopAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_resuming_without_a_reference_or_with_another_is_refused(tiny_bert, dataset, tmp_path):
    trainer(tiny_bert, dataset, tmp_path, RobustTrainerCallback(RADIUS), max_steps=3).train()
    other = load(tiny_bert)
    with torch.no_grad():
        other.classifier.weight.add_(1.0)
    wrong = RobustTrainerCallback(RADIUS, reference=Reference.of(other))
    with pytest.raises(RunError, match="differs from"):
        trainer(tiny_bert, dataset, tmp_path, wrong).train(resume_from_checkpoint=True)
    (tmp_path / "reference.safetensors").unlink()
    with pytest.raises(RunError, match="holds a checkpoint, not the pretrained weights"):
        trainer(tiny_bert, dataset, tmp_path, RobustTrainerCallback(RADIUS)).train(
            resume_from_checkpoint=True
        )


def test_the_loss_is_the_consistent_loss_and_counts_accumulated_examples():
    noise = NoiseMatrix.pair(3, 0.2)
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    loss = consistent_loss(noise)
    whole = ConsistentLoss(noise)(logits, labels)
    torch.testing.assert_close(loss({"logits": logits}, labels), whole)
    parts = [loss({"logits": logits[i : i + 4]}, labels[i : i + 4], num_items_in_batch=8) for i in (0, 4)]
    torch.testing.assert_close(sum(parts), whole)


def decayed(tiny_bert, dataset, folder, callbacks, own=0.0, stop=None, resume=False):
    model = load(tiny_bert)
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=own)
    schedule = torch.optim.lr_scheduler.LambdaLR(steps, lambda step: 1.0 / (1 + step))
    callbacks = [*callbacks, *([_StopAt(stop)] if stop else [])]
    made = transformers.Trainer(
        model, arguments(folder), train_dataset=dataset, callbacks=callbacks, optimizers=(steps, schedule)
    )
    made.train(resume_from_checkpoint=resume)
    return made.model


def test_towards_zero_the_decay_is_that_of_adamw(tiny_bert, dataset, tmp_path):
    start = Reference.of(load(tiny_bert))
    zero = Reference({name: torch.zeros_like(start[name]) for name in start.names()}, start.layers())
    callback = PretrainedDecayCallback(0.5, reference=zero)
    truth = decayed(tiny_bert, dataset, tmp_path / "b", [], own=0.5)
    same_weights(decayed(tiny_bert, dataset, tmp_path / "a", [callback]), truth)
    plain = decayed(tiny_bert, dataset, tmp_path / "c", [])
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(plain.get_parameter(query), truth.get_parameter(query), rtol=1e-3)
    # Towards the pretrained weights it makes the distance smaller, also if training is resumed.
    whole = decayed(tiny_bert, dataset, tmp_path / "whole", [PretrainedDecayCallback(20.0)])
    far, near = (sum(start.distances(model, warn=False).values()) for model in (plain, whole))
    assert near < 0.9 * far
    decayed(tiny_bert, dataset, tmp_path / "parts", [PretrainedDecayCallback(20.0)], stop=3)
    callback = PretrainedDecayCallback(20.0)
    same_weights(decayed(tiny_bert, dataset, tmp_path / "parts", [callback], resume=True), whole)
    for name in start.names():
        assert torch.equal(callback.reference[name], start[name]), name


def test_two_decays_against_each_other_are_refused(tiny_bert, dataset, tmp_path):
    made = transformers.Trainer(
        load(tiny_bert),
        arguments(tmp_path, weight_decay=0.01),
        train_dataset=dataset,
        callbacks=[PretrainedDecayCallback(0.1)],
    )
    with pytest.raises(ConfigError, match="weight_decay=0"):
        made.train()
    with pytest.raises(ConfigError, match="above 0"):
        PretrainedDecayCallback(0.0)


KINDS = [lambda: RobustTrainerCallback(RADIUS), lambda: PretrainedDecayCallback(0.5)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_in_several_trainings_has_a_reference_for_each(tiny_bert, dataset, tmp_path, kind):
    callback = kind()
    for fold in range(2):
        own = trainer(tiny_bert, dataset, tmp_path / str(fold), callback, max_steps=2)
        with torch.no_grad():
            for p in own.model.parameters():
                p.add_(0.1 * fold)
        start = Reference.of(own.model)
        own.train()
        for name in start.names():
            torch.testing.assert_close(callback.reference[name], start[name], rtol=0, atol=0)
    given = Reference.of(load(tiny_bert))
    callback = RobustTrainerCallback(RADIUS, reference=given)
    trainer(tiny_bert, dataset, tmp_path / "given", callback, max_steps=1).train()
    assert callback.reference["classifier.weight"].equal(given["classifier.weight"])


class _Breaking(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            for p in model.parameters():
                p.grad = p.grad * float("nan")


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_end_training(tiny_bert, dataset, tmp_path, kind):
    own = trainer(tiny_bert, dataset, tmp_path, kind())
    own.add_callback(_Breaking())
    with pytest.raises(DivergedError, match="became nan in"):
        own.train()
    assert own.state.global_step <= 3
    for value in (float("nan"), float("inf")):
        with pytest.raises(DivergedError, match="loss became"):
            own.log({"loss": value})


class _Average(transformers.TrainerCallback):
    """An exponential average of the weights, put into the model at the end."""

    def __init__(self, event, shift=0.0):
        self.shift = shift
        setattr(self, event, self.update)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, args, state, control, model=None, **kwargs):
        for name, p in model.named_parameters():
            self.kept[name].lerp_(p.detach(), 0.5)

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        for name, p in model.named_parameters():
            p.copy_(self.kept[name] + self.shift)


@pytest.mark.parametrize("event", ["on_optimizer_step", "on_step_end"])
@pytest.mark.parametrize("first", [True, False])
def test_averages_of_other_callbacks_lie_inside_in_any_order(
    tiny_bert, dataset, tmp_path, event, first, recwarn
):
    made = trainer(tiny_bert, dataset, tmp_path, _Average(event) if first else RobustTrainerCallback(RADIUS))
    made.add_callback(RobustTrainerCallback(RADIUS) if first else _Average(event))
    made.train()
    found = Reference.of(load(tiny_bert)).distances(made.model, warn=False)
    assert all(d <= (0.3 if n.startswith("classifier") else 0.05) * (1 + 1e-6) for n, d in found.items())
    assert max(found.values()) > 0.01
    assert not any(issubclass(w.category, HesstuneWarning) for w in recwarn)


def test_weights_that_a_callback_moves_outside_at_the_end_are_named(tiny_bert, dataset, tmp_path):
    made = trainer(tiny_bert, dataset, tmp_path, _Average("on_step_end", shift=0.1), max_steps=1)
    made.add_callback(RobustTrainerCallback(RADIUS))
    with pytest.warns(HesstuneWarning, match=r"outside.*weight at .*radius 0\.05"):
        made.train()

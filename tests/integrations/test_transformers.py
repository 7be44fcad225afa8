"""transformers' Trainer: the constraint holds, resuming keeps the true reference, penalties add up."""

from __future__ import annotations

import pytest
import torch

from sentences import sentences

transformers = pytest.importorskip("transformers")

from hesstune.errors import ConfigError, DivergedError, RunError  # noqa: E402
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


def test_every_layer_stays_inside_its_ball_and_the_distance_is_logged(tiny_bert, dataset, tmp_path):
    made = trainer(tiny_bert, dataset, tmp_path, RobustTrainerCallback(RADIUS))
    made.train()
    found = Reference.of(load(tiny_bert)).distances(made.model, warn=False)
    for name, distance in found.items():
        assert distance <= (0.3 if name.startswith("classifier") else 0.05) * (1 + 1e-5)
    assert max(found.values()) > 0.0499
    logged = [row["distance"] for row in made.state.log_history if "distance" in row]
    assert logged[-1] == pytest.approx(sum(d * d for d in found.values()) ** 0.5, rel=1e-4)


def test_a_resumed_training_keeps_the_pretrained_reference(tiny_bert, dataset, tmp_path):
    whole = trainer(tiny_bert, dataset, tmp_path / "whole", RobustTrainerCallback(RADIUS))
    whole.train()
    first = trainer(tiny_bert, dataset, tmp_path / "parts", RobustTrainerCallback(RADIUS))
    first.add_callback(_StopAt(3))
    first.train()
    callback = RobustTrainerCallback(RADIUS)
    resumed = trainer(tiny_bert, dataset, tmp_path / "parts", callback)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)
    pretrained = dict(load(tiny_bert).named_parameters())
    for name in callback.reference.layers():
        torch.testing.assert_close(callback.reference[name], pretrained[name].data)


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
    made = transformers.Trainer(
        model,
        arguments(folder),
        train_dataset=dataset,
        callbacks=callbacks,
        optimizers=(steps, schedule),
    )
    if stop:
        made.add_callback(_StopAt(stop))
    made.train(resume_from_checkpoint=resume)
    return made.model


def test_towards_zero_the_decay_is_adamws_own(tiny_bert, dataset, tmp_path):
    start = Reference.of(load(tiny_bert))
    zero = Reference({name: torch.zeros_like(start[name]) for name in start.names()}, start.layers())
    found = decayed(
        tiny_bert, dataset, tmp_path / "a", [PretrainedDecayCallback(0.5, reference=zero)]
    ).named_parameters()
    truth = decayed(tiny_bert, dataset, tmp_path / "b", [], own=0.5)
    plain = dict(decayed(tiny_bert, dataset, tmp_path / "c", []).named_parameters())
    for (name, a), b in zip(found, truth.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(plain[query], dict(truth.named_parameters())[query], rtol=1e-3)


def test_the_decay_pulls_to_the_pretrained_weights_through_a_resume(tiny_bert, dataset, tmp_path):
    start = Reference.of(load(tiny_bert))

    def total(model):
        return sum(d * d for d in start.distances(model, warn=False).values()) ** 0.5

    whole = decayed(tiny_bert, dataset, tmp_path / "a", [PretrainedDecayCallback(20.0)])
    assert total(whole) < 0.9 * total(decayed(tiny_bert, dataset, tmp_path / "b", []))
    decayed(tiny_bert, dataset, tmp_path / "c", [PretrainedDecayCallback(20.0)], stop=3)
    callback = PretrainedDecayCallback(20.0)
    resumed = decayed(tiny_bert, dataset, tmp_path / "c", [callback], resume=True)
    for name in start.names():
        assert torch.equal(callback.reference[name], start[name]), name
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)


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


@pytest.mark.parametrize(
    "kind", [lambda: RobustTrainerCallback(RADIUS), lambda: PretrainedDecayCallback(0.5)]
)
def test_a_callback_in_several_trainings_takes_a_reference_for_each(tiny_bert, dataset, tmp_path, kind):
    callback = kind()
    seen = []
    for fold in range(2):
        own = trainer(tiny_bert, dataset, tmp_path / str(fold), callback)
        with torch.no_grad():
            for p in own.model.parameters():
                p.add_(0.1 * fold)
        start = Reference.of(own.model)
        own.train()
        for name in start.names():
            torch.testing.assert_close(callback.reference[name], start[name], rtol=0, atol=0)
        seen.append(callback.reference)
    assert seen[0] is not seen[1]


def test_a_reference_that_is_given_is_that_of_every_training(tiny_bert, dataset, tmp_path):
    given = Reference.of(load(tiny_bert))
    callback = RobustTrainerCallback(RADIUS, reference=given)
    for fold in range(2):
        trainer(tiny_bert, dataset, tmp_path / str(fold), callback).train()
        assert all(torch.equal(callback.reference[name], given[name]) for name in given.names())


@pytest.mark.parametrize(
    "kind", [lambda: RobustTrainerCallback(RADIUS), lambda: PretrainedDecayCallback(0.5)]
)
def test_weights_that_are_no_numbers_end_training(tiny_bert, dataset, tmp_path, kind):
    class Breaking(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                for p in model.parameters():
                    p.grad = p.grad * float("nan")

    own = trainer(tiny_bert, dataset, tmp_path, kind())
    own.add_callback(Breaking())
    with pytest.raises(DivergedError, match="became nan in"):
        own.train()
    assert own.state.global_step <= 3


def test_a_logged_loss_that_is_no_number_ends_training(tiny_bert, dataset, tmp_path):
    for kind in (RobustTrainerCallback(RADIUS), PretrainedDecayCallback(0.5)):
        own = trainer(tiny_bert, dataset, tmp_path, kind)
        own.train()
        for value in (float("nan"), float("inf")):
            with pytest.raises(DivergedError, match="the Trainer's loss became"):
                own.log({"loss": value})

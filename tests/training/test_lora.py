"""Runs that train adapters: what moves, what is kept, and what is refused."""

import csv

import pytest
import torch

import hesstune as ht
from hesstune.cli.main import run as cli
from hesstune.errors import ConfigError, MissingExtraError
from hesstune.methods import method_class, method_names
from hesstune.runs.config import make_config
from sentences import sentences

pytest.importorskip("peft")

ENCODER = "bert.encoder.layer.0."
ADAPTED = [
    f"{ENCODER}{name}.weight"
    for name in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense",
    )
]  # fmt: skip
HEAD = "classifier.weight"


@pytest.fixture
def texts(tiny_bert, tmp_path):
    """Options of a run of a tiny BERT with adapters."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *sentences(80)])
    return {
        "data": f"csv:{path}", "model": f"hf:{tiny_bert}", "inject_noise": "symmetric:0.2", "lora": 2,
        "epochs": 3, "batch_size": 8, "lr": 1e-2, "select": "last",
    }  # fmt: skip


@pytest.fixture
def every_epoch(monkeypatch):
    """Write a checkpoint after every epoch."""
    monkeypatch.setattr("hesstune.training.trainer.CHECKPOINT_SECONDS", 0)


def changes(run):
    """The change of every weight that training moved, by name."""
    weights, reference = dict(run.model().named_parameters()), run.reference()
    found = {name: p.detach() - reference[name] for name, p in weights.items()}
    return {name: change for name, change in found.items() if change.any()}


def test_auto_moves_the_adapted_layers_and_the_head_alone(texts):
    run = ht.finetune(texts)
    assert (run.config.method, run.config.lora) == ("auto", 2)
    moved = changes(run)
    assert {*ADAPTED, HEAD, "classifier.bias"} == set(moved) - {"bert.pooler.dense.weight"}
    assert all(torch.linalg.matrix_rank(moved[name], rtol=1e-3) <= 2 for name in ADAPTED)
    assert run.facts.recipe is not None
    assert any(note.startswith("adapters of rank 2 in 7 layers: ") for note in run.facts.notes)
    radii, distances = run.outcome.radii, run.outcome.distances
    assert {*ADAPTED, HEAD} <= set(radii)
    assert all(distances[name] <= radii[name] * (1 + 1e-5) for name in radii)
    assert run.metrics[-1]["distance"] == pytest.approx(run.outcome.distance, rel=1e-4)


def test_auto_starts_with_the_head_of_whole_layers(texts):
    """Without a gain of deeper layers, both keep the head that was solved."""
    options = {**texts, "lr": 1e-12, "select": "best"}
    one, other = ht.finetune(options), ht.finetune(options, lora=None)
    assert one.facts.recipe.chosen == other.facts.recipe.chosen
    assert one.outcome.test_accuracy == other.outcome.test_accuracy
    assert one.metrics[0]["val_loss"] == pytest.approx(other.metrics[0]["val_loss"])
    assert one.metrics[1]["train_loss"] == pytest.approx(other.metrics[1]["train_loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["auto", "vanilla", "robust", "co_teaching", "lp_ft"])
def test_a_resumed_run_is_the_uninterrupted_one(
    texts, tmp_path, every_epoch, interrupt, same_weights, method
):
    options = {**texts, "method": method}
    if method == "robust":
        options["radius"] = 0.02
    interrupt(options, share=0.6, out=tmp_path / "run")
    resumed = ht.finetune(options, out=tmp_path / "run", resume=True)
    whole = ht.finetune(options)
    same_weights(resumed, whole)
    assert set(ADAPTED) <= set(changes(whole))
    if method == "robust":
        assert whole.outcome.distances[ADAPTED[0]] == pytest.approx(0.02, rel=1e-4)
    assert ht.finetune(options, out=tmp_path / "run", resume=True).outcome == resumed.outcome
    with pytest.raises(ConfigError, match="--lora 2, not 3"):
        ht.finetune(options, lora=3, out=tmp_path / "run", resume=True)


def test_commands_on_a_finished_run_take_the_merged_weights(texts, tmp_path):
    out = tmp_path / "run"
    ht.finetune(texts, method="vanilla", inject_noise=None, out=out)
    again = ht.Run.load(out)
    assert again.config.lora == 2
    found = again.predict(["a good film", "a bad film"])
    assert found.probabilities.shape == (2, 2)
    measured = again.measure(trace=False, method="gauss_newton")
    moved = changes(again)
    for name, column in zip(measured.names, measured.quadratic.T, strict=True):
        assert bool(column.any()) == (name in moved), name
    assert again.certify(diagnostic=True, noise_is="none", draws=8).risk > 0
    assert again.report().is_file()
    with pytest.raises(SystemExit) as ended:
        cli(["export", str(out), str(tmp_path / "exported")])
    assert ended.value.code == 0


def test_the_curve_of_the_measure_ends_at_the_measure_of_the_run(texts, monkeypatch):
    monkeypatch.setattr("hesstune.training.trainer.MEASURE_SHARE", 1000.0)
    plain = ht.finetune(texts, method="vanilla")
    run = ht.finetune(texts, method="vanilla", measure_every=3)
    mean = run.measure(part="val", method="gauss_newton", trace=False).to_dict(run.facts.examples.train)
    assert run.metrics[-1]["measure"] == pytest.approx(mean["mean_measure"]["value"], rel=1e-3)
    one, other = (dict(r.model().named_parameters()) for r in (plain, run))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_radius_is_chosen_and_a_part_of_the_layers_adapted(texts):
    run = ht.finetune(texts, method="robust", radius="auto", epochs=2)
    assert set(ADAPTED) <= set(changes(run))
    last = ht.finetune(texts, method="vanilla", train="last:3", epochs=2)
    assert ADAPTED[0] not in changes(last)


def test_a_configuration_file_and_the_command_line_take_it(texts, tmp_path, capsys):
    import yaml

    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump({**texts, "method": "vanilla", "epochs": 1}))
    with pytest.raises(SystemExit) as ended:
        cli(["finetune", "--config", str(path), "--lora", "3", "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    assert ht.Run.load(tmp_path / "run").config.lora == 3
    assert "adapters of rank 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": 0}, "lora must be above 0; got 0"),
        ({"lora": "many"}, "lora must be an integer"),
        ({"lora": 17}, "rank 17 is larger than the layers themselves, of rank 16 at most"),
        ({"train": "head"}, "--train head trains the head alone"),
        ({"train": "last:1"}, "--train head trains the head alone"),
        ({"train": "*.bias"}, "none of them trains here"),
        ({"method": "lora"}, "has adapters of its own"),
        ({"method": "pick_to_learn"}, "--train head trains the head alone"),
        ({"method": "certified"}, "'certified' cannot train adapters"),
        ({"method": "l2_sp"}, "'l2_sp' cannot train adapters"),
        ({"method": "vanilla", "shard": True}, "--lora trains adapters"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(texts, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        ht.finetune({**texts, **options}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_and_data_without_layers_to_adapt_are_refused(tiny):
    with pytest.raises(ConfigError, match="none of them trains here"):
        ht.finetune(tiny, lora=2)
    with pytest.raises(ConfigError, match="--lora: the data holds feature vectors"):
        ht.finetune((torch.rand(40, 4).numpy(), ["x", "y"] * 20), lora=2)


def test_a_head_that_is_all_there_is_has_no_use_for_adapters(texts):
    run = ht.finetune(texts, budget="fast")
    assert any("takes no steps" in note and "--lora" in note for note in run.facts.notes)
    assert set(changes(run)) == {HEAD, "classifier.bias"}


def test_without_peft_the_install_command_is_named(texts, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"LoRA needs the package peft: .*pip install"):
        ht.finetune(texts)


@pytest.mark.parametrize("method", [m for m in method_names() if not method_class(m).head_alone])
def test_every_method_trains_adapters_or_refuses_them(texts, method):
    kind, options = method_class(method), {**texts, "method": method, "epochs": 2, "warmup_epochs": 1}
    if not kind.adapts or kind.mixes_inputs:
        with pytest.raises(ConfigError):
            ht.finetune(options)
        return
    assert make_config(options).resolved().lora == 2
    assert set(ADAPTED[:1]) <= set(changes(ht.finetune(options)))

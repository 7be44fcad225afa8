"""Radii: the default ones, and those chosen from noisy validation alone, with their curve."""

import json
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hesstune as ht
from hesstune.errors import ConfigError
from hesstune.inputs.features import frozen_features
from hesstune.methods import method_name
from hesstune.methods.constrained import Constraint
from hesstune.selection import first_within_errors
from hesstune.training.estimates import penalised_head
from hesstune.training.finetune import FACTORS
from hesstune.training.prepare import Prepared, choose_from_examples


@pytest.fixture
def radii(tiny):
    """Train one epoch by a constraint; return the radii of the run."""

    def train(**options):
        options = {**tiny, "method": "constraint", "epochs": 1, **options}
        return ht.finetune(options, keep_weights=False).outcome.radii

    return train


def test_a_head_alone_has_twice_the_norm_of_the_fitted_head(tiny, radii):
    seen = []
    options = {**tiny, "method": "vanilla", "epochs": 1, "train": "head"}
    penalty = ht.finetune(options, observe=seen.append).config.weight_decay
    part, loaded = seen[0].task.train, seen[0].loaded
    x = frozen_features(loaded, part, next(loaded.model.parameters()).device)
    # Two classes as a softmax of two rows: scikit-learn's binary model has one row, of twice the length.
    model = LogisticRegression(C=2 / (penalty * len(x)), max_iter=5000, tol=1e-8).fit(x, part.labels)
    fitted = float(np.linalg.norm(model.coef_[0]) / np.sqrt(2))
    assert radii(train="head") == pytest.approx({"8.weight": 2 * fitted}, rel=0.02)
    half = radii(train="head", method_options={"head_share": 1.0})
    assert half == pytest.approx({"8.weight": fitted}, rel=0.02)


def test_with_other_layers_the_head_has_a_quarter_and_they_a_share_of_their_norms(tiny, radii):
    run = ht.finetune({**tiny, "method": "constraint", "epochs": 1})
    alone = radii(train="head")["8.weight"]
    norms = {name: float(run.reference()[name].norm()) for name in run.outcome.radii}
    assert len(norms) > 1
    expected = {name: alone / 4 if name == "8.weight" else 0.003 * norm for name, norm in norms.items()}
    assert run.outcome.radii == pytest.approx(expected, rel=1e-5)
    assert run.config.radius is None
    assert all(d <= run.outcome.radii[n] * (1 + 1e-5) for n, d in run.outcome.distances.items())
    half = {n: r if n == "8.weight" else r / 2 for n, r in expected.items()}
    assert radii(method_options={"layer_share": 0.0015}) == pytest.approx(half, rel=1e-5)
    assert radii(train="0.*")["0.weight"] == pytest.approx(0.003 * norms["0.weight"])


def test_a_method_of_ones_own_has_default_radii_without_declaring_their_options(radii):
    class Held(Constraint):
        own_options = {}

    assert radii(method=method_name(Held)) == radii()


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"radius": 0.5, "method_options": {"head_share": 1.0}}, "radii are given: .*head_share"),
        ({"train": "head", "method_options": {"layer_share": 0.1}}, "head alone is trained: .*layer_share"),
    ],
)
def test_a_share_without_effect_is_noted(tiny, options, note):
    run = ht.finetune({**tiny, "method": "constraint", "epochs": 1, **options}, keep_weights=False)
    assert any(re.search(note, each) for each in run.facts.notes)


def test_the_fitted_head_follows_the_scale_of_the_features():
    """Labels alone decide how sure a head may be: features ten times smaller need a head ten times longer."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.eye(3)[y] + rng.normal(size=(300, 3))
    noisy = np.where(rng.random(300) < 0.5, rng.integers(0, 3, 300), y)
    size = [np.linalg.norm(penalised_head(scale * x, np.eye(3)[y])[1]) for scale in (1.0, 0.1)]
    assert size[1] == pytest.approx(10 * size[0], rel=1e-2)
    assert np.linalg.norm(penalised_head(x, np.eye(3)[noisy])[1]) < size[0]


def test_radii_of_some_examples_do_not_depend_on_the_others(tiny):
    seen = []
    options = {**tiny, "method": "constraint", "epochs": 1, "train": "head"}
    run = ht.finetune(options, observe=seen.append)
    task = seen[0].task
    few = type(task)(**{**vars(task), "train": task.train.take(np.arange(len(task.train) // 2))})
    device = next(seen[0].loaded.model.parameters()).device
    again = [choose_from_examples(Prepared.of(run, part, device)).radius for part in (task, few)]
    assert again[0] == pytest.approx(run.outcome.radii)
    assert again[1] != pytest.approx(run.outcome.radii)


# -- --radius auto -----------------------------------------------------------------------------


@pytest.fixture
def few(tiny):
    return {**tiny, "train": "head", "epochs": 2, "warmup_epochs": 1, "method": "robust", "radius": "auto"}


def record_of(run):
    return json.loads((run.path / "radius.json").read_text())


def test_choice_and_curve_are_in_the_folder_and_the_run_obeys(few, tmp_path, same_weights):
    run = ht.finetune(few, out=tmp_path / "a")
    record = record_of(run)
    assert [row["factor"] for row in record["curve"]] == list(FACTORS)
    own = ht.finetune({**few, "radius": None}, keep_weights=False).outcome.radii
    assert [record["radius"]["head"]] == pytest.approx([record["chosen"] * value for value in own.values()])
    same_weights(run, ht.finetune({**few, "radius": record["radius"]}))
    assert run.config.radius == "auto"
    assert not (run.path / ".radius").exists()
    before = (run.path / "radius.json").stat().st_mtime_ns
    ht.finetune(few, out=tmp_path / "a", overwrite=True)
    assert (run.path / "radius.json").stat().st_mtime_ns > before


def test_a_resumed_run_keeps_its_radii(few, tmp_path, interrupt, monkeypatch):
    interrupt(few, share=0, out=tmp_path / "a")
    chosen = json.loads((tmp_path / "a" / "radius.json").read_text())["radius"]["head"]
    monkeypatch.setattr("hesstune.training.finetune._trial_losses", None)  # no second search
    run = ht.finetune(few, out=tmp_path / "a", resume=True)
    assert run.outcome.radii == {"8.weight": chosen}


def test_the_smallest_radius_within_one_standard_error_is_picked():
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.3).astype(float)
    close, far = base.copy(), base.copy()
    close[:2] = 1 - close[:2]
    far[:60] = 1
    assert first_within_errors([-far, -close, -base], ddof=1) in (1, 2)
    assert first_within_errors([-far, -base.copy(), -base], ddof=1) == 1
    assert first_within_errors([-base, -far, -far], ddof=1) == 0


def test_radii_that_cannot_be_chosen_are_an_error(few, tiny):
    with pytest.raises(ConfigError, match="needs validation examples"):
        ht.finetune({**few, "val_fraction": 0})
    with pytest.raises(ConfigError, match="write a number, auto"):
        ht.finetune({**few, "radius": "automatic"})
    assert ht.finetune({**tiny, "method": "vanilla", "radius": "auto", "epochs": 1}).config.radius is None


def test_a_kill_while_the_radii_are_chosen_does_not_bar_the_folder(few, tmp_path):
    clean = ht.finetune(few)
    out = tmp_path / "killed"
    (out / ".radius").mkdir(parents=True)
    (out / ".radius" / "config.yaml").write_text("seed: 0\n")
    (out / "radius.json").write_text('{"radius": {"head": 1e-9}}')  # of unknown options
    run = ht.finetune(few, out=out, resume=True)
    assert not (out / ".radius").exists()
    assert record_of(run)["radius"] == record_of(clean)["radius"]

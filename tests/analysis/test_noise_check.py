"""`hesstune noise RUN`: estimates beside the assumed matrix, the cost of an error, and the assumption."""

import json
from itertools import product

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune import NoiseMatrix
from hesstune.analysis.noise import OFF, RADIUS, check_noise, linear_heads, perturbed, predicted, sensitivity
from hesstune.cli.main import run as command_line
from hesstune.errors import DataError, RunError
from hesstune.noise.instance import class_conditional, sure_half
from hesstune.runs.run import Run


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
    """Three classes of 60 colours, 30 % of the labels changed; a head on frozen features."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for at, name in enumerate(("blue", "green", "red")):
        (root / "images" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 60, (32, 32, 3))
            pixels[:, :, 2 - at] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name / f"{i:02d}.png")
    return ht.finetune(
        data=f"folder:{root / 'images'}",
        inject_noise="symmetric:0.3",
        method="robust",
        train="head",
        epochs=1,
        image_size=32,
        out=str(root / "run"),
    )


def test_the_command_compares_costs_and_tests(noisy_run, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(["noise", str(noisy_run.path), "--json"])
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    record = json.loads(said.out.splitlines()[-1])
    kept = noisy_run.records.noise_check.to_dict()
    assert record == {"path": str(noisy_run.path), **kept}
    methods = {row["method"]: row for row in record["estimates"]}
    assert {"auto", "em", "confident"} <= set(methods)
    assert {"labelmodel", "holdout"}.isdisjoint(methods)
    assert record["assumed"]["rate"] == pytest.approx(0.3)
    labels = [r for r in noisy_run.labels() if r["part"] == "train"]
    wrong = np.mean([r["label"] != r["true_label"] for r in labels])
    assert record["counted"]["rate"] == pytest.approx(wrong, abs=0.05)
    for row in methods.values():
        if "failed" not in row:
            gap = np.abs(np.array(row["matrix"]) - np.array(record["assumed"]["matrix"]))
            assert row["total_variation"] == pytest.approx(gap.sum(axis=1).mean() / 2)
    assert {row["off"] for row in record["cost_of_an_error"]} == set(OFF)
    assert not record["class_conditional"]["depends"]
    # Again, the run and the random state are left as they were.
    before = {p.name: p.read_bytes() for p in noisy_run.path.iterdir() if p.name != "noise_estimate.json"}
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert check_noise(noisy_run).to_dict() == kept
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    after = {p.name: p.read_bytes() for p in noisy_run.path.iterdir() if p.name != "noise_estimate.json"}
    assert after == before


def test_wrong_runs_are_refused(noisy_run, tmp_path, tiny):
    with pytest.raises(RunError, match="has not finished"):
        check_noise(Run(noisy_run.path, noisy_run.config, noisy_run.facts.replaced(result=None)))
    few = ht.finetune(tiny, limit=6, epochs=1, train="head", out=str(tmp_path / "few"))
    with pytest.raises(DataError, match="6 training examples are too few"):
        check_noise(few)


def test_a_perturbed_matrix_is_off_by_as_much_as_asked():
    F = NoiseMatrix.symmetric(4, 0.4)
    for off, direction in product(OFF, ("too little", "too much", "misplaced")):
        moved = perturbed(F, off, direction, seed=1)
        assert np.abs(moved.array - F.array).sum(axis=1).mean() / 2 == pytest.approx(off)
        if direction != "misplaced":
            assert (moved.rate < F.rate) == (direction == "too little")
    assert perturbed(NoiseMatrix.symmetric(4, 0.04), 0.2, "too little") is None


def test_heads_reach_the_constrained_optimum():
    # Two classes and one feature of mean square 10: the ball binds, and symmetry fixes the bias.
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = ((2 * y - 1) + 0.8 * rng.normal(size=300))[:, None]
    x *= np.sqrt(10 / (x**2).mean())
    F = NoiseMatrix([[0.8, 0.2], [0.3, 0.7]])
    noisy = F.corrupt(y)

    def loss(v):
        logits = np.outer(x[:, 0], [-v[0], v[0]]) + np.array([-v[1], v[1]])
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -(F.inverse[noisy] * logs).sum(axis=1).mean()

    edge = RADIUS / np.sqrt(2)
    best = minimize(loss, [0.1, 0], bounds=[(-edge, edge), (None, None)])
    heads = linear_heads(x, noisy, [F, NoiseMatrix.identity(2)])
    found = (heads[:, 0, 1] - heads[:, 0, 0]) / 2
    assert loss(found) == pytest.approx(best.fun, abs=0.02)
    assert np.linalg.norm(heads[:-1], axis=(0, 2)).max() <= RADIUS + 1e-9
    assert (predicted(x, heads)[:, 0] == y).mean() > 0.85


def test_a_larger_error_in_f_costs_more():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 1500)
    x = 1.2 * np.eye(3)[y] @ rng.normal(size=(3, 12)) + rng.normal(size=(1500, 12))
    F = NoiseMatrix([[0.55, 0.45, 0], [0, 0.55, 0.45], [0.45, 0, 0.55]])
    rows = sensitivity(x, F.corrupt(y), F)
    cost = {(row.off, row.direction): row.accuracy_lost for row in rows}
    directions = ("too little", "too much", "misplaced")
    worst = [max(cost[off, d] for d in directions) for off in OFF]
    assert worst[2] > worst[0] + 0.01
    assert all(row.stderr > 0 for row in rows)


def test_the_test_of_dependence_holds_its_level_and_finds_dependence():
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 3, 300)
        x = rng.normal(size=(300, 5))
        noisy = NoiseMatrix.symmetric(3, 0.4).corrupt(y, seed=seed)
        alarms += class_conditional(x, noisy, y, 3, draws=99, seed=seed).p_value <= 0.05
    assert alarms <= 1 + 5 * np.sqrt(20 * 0.05 * 0.95)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 5))
    noisy = np.where(x[:, 0] > 0.3, (y + 1) % 3, y)  # wrong on one side only
    found = class_conditional(x, noisy, y, 3)
    assert found.depends
    assert found.agreement > found.expected + 0.1
    with pytest.raises(DataError, match="no class has 20 examples"):
        class_conditional(x[:30], noisy[:30], y[:30], 3)


def test_the_sure_half_of_each_class():
    posterior = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    assert sure_half(posterior).tolist() == [0, 2, 3]

"""Compare a run's noise matrix with estimates, and simulate the cost of an error in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.analysis.label_provenance import dependence_on_input
from hesstune.analysis.measure import start_network
from hesstune.errors import DataError, NoiseMatrixError
from hesstune.noise.estimate import ESTIMATORS, from_posterior, log_likelihoods, well_conditioned
from hesstune.noise.matrix import NoiseMatrix
from hesstune.noise.probes import reduced_features
from hesstune.options import make_options
from hesstune.runs.options import NoiseCheckOptions
from hesstune.runs.records import (
    NOISE_CHECK,
    CostOfError,
    Counted,
    Dependence,
    Estimated,
    Failed,
    MatrixFacts,
    NoiseCheck,
)
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.storage.stored import write_record
from hesstune.training.estimates import Material, estimated, gather

STEPS, RATE, RADIUS = 150, 0.02, 16.0


def linear_heads(
    features: NDArray[np.float64], labels: NDArray[np.int64], noises: Sequence[NoiseMatrix]
) -> NDArray[np.float64]:
    """Minimise the consistent loss of each of J noise matrices over a linear head of norm at most RADIUS.

    The loss is convex; full-batch Adam from zero, the same steps for all, so that heads differ by their
    matrix alone. Features (N, D) have a mean squared norm of about 10; the result are weights and, last,
    biases, (D + 1, J, K).
    """
    import torch

    x = torch.from_numpy(np.append(features, np.ones((len(features), 1)), axis=1))
    aims = torch.from_numpy(np.stack([noise.inverse[labels] for noise in noises], axis=1))
    w = torch.zeros(x.shape[1], *aims.shape[1:], dtype=torch.float64)
    optimizer = torch.optim.Adam([w], betas=(0.9, 0.99))
    for step in range(1, STEPS + 1):
        # Rows of F⁻¹ sum to 1, so the gradient in the logits is softmax less the row.
        logits = (x @ w.flatten(1)).reshape(aims.shape)
        error = (torch.softmax(logits, dim=2) - aims) / len(x)
        w.grad = (x.T @ error.flatten(1)).reshape(w.shape)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / (STEPS + 1)))
        optimizer.step()
        norm = w[:-1].square().sum(dim=(0, 2), keepdim=True).sqrt()
        w[:-1] *= (RADIUS / norm.clamp_min(1e-12)).clamp_max(1)
    return np.asarray(w.numpy())


def predicted(features: NDArray[np.float64], heads: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each head's class of each example, (N, J)."""
    x = np.append(features, np.ones((len(features), 1)), axis=1)
    logits = (x @ heads.reshape(len(heads), -1)).reshape(len(x), *heads.shape[1:])
    return np.asarray(logits.argmax(axis=2), dtype=np.int64)


OFF, DRAWS = (0.05, 0.1, 0.2), 5
DIRECTIONS = ("too little", "too much", "misplaced")


def check_noise(run: Run, seed: int = 0, device: str = "auto") -> NoiseCheck:
    """Compare a finished run's noise matrix with estimates from its labels; write `noise_estimate.json`.

    Only probes on the reference's features are trained; the run's weights are not used.

    Args:
        run: A finished run.
        seed: Seed of what is drawn.
        device: Where to compute: cpu, cuda, mps or auto.

    Returns:
        The matrix that the loss used, a row for each estimator, the cost of an error in F, the test of
        whether noise depends on the example, and sentences about them.

    Raises:
        HesstuneError: If an option is wrong, the run has not finished, or there are too few examples.
    """
    asked = make_options(NoiseCheckOptions, {"seed": seed, "device": device})
    _ = run.outcome
    config, task = run.config, run.task()
    if len(task.train) < 4 * task.k:
        raise DataError(
            f"{len(task.train)} training examples are too few to estimate the noise of {task.k} classes"
        )
    target = pick_device(config.device if asked.device == "auto" else asked.device)
    material = gather(
        task.train,
        task.k,
        start_network(run, target),
        target,
        max_length=config.max_length,
        soft_labels=config.soft_labels,
        seed=config.seed,
    )
    given = run.noise_matrix
    compared = NoiseMatrix.identity(task.k) if given is None else given
    estimates, best = _estimates(material, compared)
    base = given if given is not None and np.isfinite(given.condition) else best
    features = reduced_features(material.features, len(material.labels))
    costs = sensitivity(features, material.labels, base, seed=asked.seed)
    true, counted = task.train.true if task.train.clean is None else None, None
    test = dependence_on_input(features, material.labels, material.probs, base, true, asked.seed)
    if true is not None and task.train.labels is not None:
        matrix = from_posterior(np.eye(task.k)[true], task.train.labels, "counted").matrix
        counted = Counted(matrix=matrix.array.tolist(), rate=matrix.rate, **_distance(matrix, compared))
    check = NoiseCheck(
        run=str(run.path),
        classes=task.classes,
        examples=len(task.train),
        matrix_given=given is not None,
        assumed=MatrixFacts(**_matrix_facts(compared, material)),
        counted=counted,
        estimates=estimates,
        cost_of_an_error=costs,
        class_conditional=None if test is None else Dependence(**asdict(test), depends=test.depends),
    )
    check = check.replaced(statements=_statements(check))
    write_record(run.path / NOISE_CHECK, check)
    return check


def _matrix_facts(noise_matrix: NoiseMatrix, material: Material) -> dict[str, Any]:
    finite = bool(np.isfinite(noise_matrix.condition))
    fit = log_likelihoods(noise_matrix, material.probs, material.labels) if finite else None
    return {
        "matrix": noise_matrix.array.tolist(),
        "rate": noise_matrix.rate,
        "condition": noise_matrix.condition if finite else None,
        "log_likelihood": None if fit is None else float(fit.mean()),
    }


def _distance(a: NoiseMatrix, b: NoiseMatrix) -> dict[str, Any]:
    """Return the mean total variation of the rows, and the entry that differs most."""
    gap = np.abs(a.array - b.array)
    i, j = np.unravel_index(int(gap.argmax()), gap.shape)
    return {"total_variation": float(gap.sum(axis=1).mean() / 2), "largest_at": [int(i), int(j)]}


def _estimates(material: Material, given: NoiseMatrix) -> tuple[list[Estimated | Failed], NoiseMatrix]:
    """Return a row for each estimator, and the matrix that `auto` would use."""
    rows: list[Estimated | Failed] = []
    best: NoiseMatrix | None = None
    for method in ESTIMATORS:
        needed = {"labelmodel": material.posterior, "holdout": material.clean}
        if needed.get(method, True) is None:
            continue
        try:
            estimate = estimated(method, material)
        except (NoiseMatrixError, DataError, ImportError) as error:
            rows.append(Failed(method=method, failed=str(error)))
            continue
        facts = {**_matrix_facts(estimate.matrix, material), **_distance(estimate.matrix, given)}
        facts |= {"chose": estimate.method} if method == "auto" else {}
        rows.append(Estimated(method=method, **facts))
        best = best or estimate.matrix  # `auto` comes first
    if best is None:
        reason = next(row.failed for row in rows if isinstance(row, Failed))
        raise NoiseMatrixError(f"no estimator could be used: {reason}")
    return rows, best


def perturbed(noise_matrix: NoiseMatrix, off: float, direction: str, seed: int = 0) -> NoiseMatrix | None:
    """Return F moved by `off` in total variation, row by row on average; None if that is impossible.

    Towards the identity (`too little`), uniform rows (`too much`) or random ones (`misplaced`).
    """
    k = noise_matrix.k
    ends = {
        "too little": np.eye(k),
        "too much": np.full((k, k), 1 / k),
        "misplaced": np.random.default_rng([seed, 0x0FF]).dirichlet(np.full(k, 0.5), size=k),
    }
    end = ends[direction]
    length = float(np.abs(end - noise_matrix.array).sum(axis=1).mean() / 2)
    if length < off:
        return None
    share = off / length
    return NoiseMatrix((1 - share) * noise_matrix.array + share * end)


def sensitivity(
    features: NDArray[np.float64], labels: NDArray[np.int64], noise_matrix: NoiseMatrix, *, seed: int = 0
) -> list[CostOfError]:
    """Estimate the accuracy lost if F is wrong by 5, 10 and 20 %, by simulation.

    A linear head trained with F gives each example a class; noise drawn by F gives it a label; heads
    trained on half of these labels with F and with a changed F are compared on the other half. The classes
    there are known because they were simulated. No true label is used.
    """
    x = features * np.sqrt(10 / max(float((features**2).sum(axis=1).mean()), 1e-12))
    used = well_conditioned(noise_matrix)[0]
    made = predicted(x, linear_heads(x, labels, [used]))[:, 0]
    losses: dict[tuple[float, str], list[float]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng([seed, draw, 0x5E5])
        order = rng.permutation(len(x))
        fit, test = order[: len(x) // 2], order[len(x) // 2 :]
        noisy = used.corrupt(made[fit], seed=int(rng.integers(2**31)))
        moved = {(o, d): perturbed(used, o, d, seed=draw) for o in OFF for d in DIRECTIONS}
        tried = {key: well_conditioned(m)[0] for key, m in moved.items() if m is not None}
        heads = linear_heads(x[fit], noisy, [used, *tried.values()])
        hits = (predicted(x[test], heads) == made[test, None]).mean(axis=0)
        for at, key in enumerate(tried, start=1):
            losses.setdefault(key, []).append(float(hits[0] - hits[at]))
    return [
        CostOfError(
            off=off,
            direction=direction,
            accuracy_lost=float(np.mean(lost)),
            stderr=float(np.std(lost, ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else None,
        )
        for (off, direction), lost in losses.items()
    ]


def _statements(check: NoiseCheck) -> list[str]:
    """Describe the figures in sentences."""
    texts = []
    usable = [row for row in check.estimates if isinstance(row, Estimated)]
    near = [row.total_variation for row in usable]
    if not check.matrix_given:
        texts.append("The loss used no noise information; estimates are compared with the identity.")
    rates = [row.rate for row in usable]
    texts.append(
        f"The loss assumes that {check.assumed.rate:.0%} of the labels are wrong. Estimates: "
        f"{min(rates):.0%} to {max(rates):.0%}; their rows differ from the assumed ones by {min(near):.2f} "
        f"to {max(near):.2f} in total variation."
    )
    if (counted := check.counted) is not None:
        texts.append(
            f"Counted, since true labels are known: {counted.rate:.0%} wrong, rows "
            f"{counted.total_variation:.2f} from the assumed ones."
        )
    costs = [row for row in check.cost_of_an_error if row.off == OFF[-1]]
    if costs:
        worst = max(costs, key=lambda row: row.accuracy_lost)
        lost = 100 * worst.accuracy_lost
        effect = (
            f"would fall by {lost:.1f} points at worst ({worst.direction})" if lost > 0 else "would not fall"
        )
        texts.append(
            f"If F were wrong by {OFF[-1]:.0%}, accuracy {effect}, by simulation; an estimate, no guarantee."
        )
    test = check.class_conditional
    if test is None:
        texts.append("Too few examples per class to test whether the noise depends on the example.")
        return texts
    figures = (
        f"within a class, neighbours in the features have the same label {test.agreement:.1%} of the "
        f"time, {test.expected:.1%} expected if only the class counted (p = {test.p_value:.2g}, "
        f"{test.examples} examples)"
    )
    if test.depends:
        texts.append(
            f"The noise depends on the example: {figures}. No F describes it, and a certificate that "
            "uses F is not valid. Classes that the features do not separate give the same result."
        )
    else:
        texts.append(f"No sign that the noise depends on the example: {figures}.")
    return texts

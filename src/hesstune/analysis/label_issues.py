"""Suspected label errors of a finished run, the fit to them, and thumbnails for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.measure import start_network
from hesstune.data.examples import Examples, Task
from hesstune.errors import HesstuneError, ModelError
from hesstune.inputs.batches import ModelInputs, make_inputs, predict_logits, to_channels_last
from hesstune.inputs.features import frozen_features, sharing
from hesstune.noise.confidence import confidence_interval
from hesstune.noise.estimate import estimate_noise
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.copies import example_groups
from hesstune.noise.latent.head import FAST_CANDIDATES, GIVEN_MATRIX, MIN_EXAMPLES, robust_head
from hesstune.noise.matrix import NoiseMatrix
from hesstune.noise.probes import cross_fit
from hesstune.runs.read_records import ISSUE_COLUMNS
from hesstune.runs.records import (
    EXAMPLES,
    LABEL_ISSUES,
    LABEL_ISSUES_RECORD,
    Agreement,
    ExampleImage,
    ExampleImages,
    LabelIssuesRecord,
    MatrixCheck,
    NoiseFit,
    NoiseMatrixRecord,
)
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.storage.stored import write_record
from hesstune.storage.tables import write_csv

# Error probabilities of the intervals: of an agreement, and of a test of the given matrix.
DELTA, TEST_DELTA = 0.05, 0.01
# Fewer labels that are suspected to be wrong show nothing about the network.
MIN_SUSPECTED = 10
# Shares of the wrong labels: from MOST on "most" are learnt; up to FEW "not" at all.
MOST, FEW = 0.5, 0.2

Kind = Literal["most", "some", "not", "unknown"]


class FitVerdict(NamedTuple):
    """Whether a network has learnt wrong labels."""

    kind: Kind  # `most` or `some` of the wrong labels are learnt, they are `not`, or that is `unknown`
    low: float  # Lower end of the 95 % interval of the share of wrong labels that the network agrees with
    high: float  # Its upper end
    reason: str = ""  # Why it is unknown; empty otherwise


def compare_agreement(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    posterior: NDArray[np.float64] | None,
    true: NDArray[np.int64] | None = None,
) -> NoiseFit | None:
    """Count how often a network agrees with wrong labels, and how often with right ones.

    Without true labels, a label is suspected to be wrong if its own probability in the posterior, (N, K), of
    probes that did not see it is below 1/2. Return None if there is neither.
    """
    if true is not None:
        wrong, expected = labels != true, 0.0
    elif posterior is not None:
        own = posterior[np.arange(len(labels)), labels]
        wrong = own < 0.5
        expected = float(own[wrong].mean()) if wrong.any() else 0.0
    else:
        return None
    agrees = predicted == labels
    return NoiseFit(
        wrong=Agreement(agreed=int(agrees[wrong].sum()), examples=int(wrong.sum())),
        right=Agreement(agreed=int(agrees[~wrong].sum()), examples=int((~wrong).sum())),
        expected_right=expected,
        known=true is not None,
    )


def judge_fit(fit: NoiseFit | None) -> FitVerdict:
    """Decide from counts of agreement whether a network has learnt wrong labels.

    With A the agreement on suspected labels and e the share of them that are right by their posterior, the
    network agrees with a share (A − e)/(1 − e) of the wrong labels, if it agrees with all right ones. Wrong
    labels are learnt if the lower end of that share's interval is above the network's error rate on the other
    labels: errors alone give the wrong label at most that often.
    """
    if fit is None:
        why = "no label has a probability that is independent of the network"
        return FitVerdict("unknown", 0.0, 1.0, why)
    wrong, right = fit.wrong, fit.right
    low, high = (
        min(1.0, max(0.0, (end - fit.expected_right) / (1 - fit.expected_right)))
        for end in confidence_interval(wrong.agreed, wrong.examples, DELTA)
    )
    errors = confidence_interval(right.examples - right.agreed, right.examples, DELTA)[1]
    kind: Kind = "unknown"
    if wrong.examples < MIN_SUSPECTED:
        total, how = wrong.examples + right.examples, "known" if fit.known else "suspected"
        why = f"only {wrong.examples} of {total} labels are {how} to be wrong"
    elif low > errors:
        kind, why = "most" if low > MOST else "some", ""
    elif high <= FEW:
        kind, why = "not", ""
    else:
        why = (
            f"it agrees with {low:.1%} to {high:.1%} of the wrong labels (95 % interval) and may be wrong on "
            f"up to {errors:.1%} of the right ones, so its errors may explain the agreement"
        )
    return FitVerdict(kind, low, high, why)


def check_matrix(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], noise_matrix: NoiseMatrix
) -> MatrixCheck:
    """Test a noise matrix F on the half of the examples whose out-of-sample prediction is most confident.

    If prediction c is right, the given label differs from it with probability 1 − F[c, c]. Whatever the true
    class, it differs with probability 1 − max_i F[i, c] at least.
    """
    confident = np.argsort(-probabilities.max(axis=1), kind="stable")[: max(1, len(labels) // 2)]
    predicted = probabilities[confident].argmax(axis=1)
    differing = int((predicted != labels[confident]).sum())
    low, high = confidence_interval(differing, len(confident), TEST_DELTA)
    rows = noise_matrix.array
    return MatrixCheck(
        differing=differing,
        examples=len(confident),
        low=low,
        high=high,
        implied=float((1 - rows.diagonal()[predicted]).mean()),
        least=float((1 - rows.max(axis=0)[predicted]).mean()),
    )


SIDE, LETTERS = 48, 400


def label_posterior(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], noise_matrix: NoiseMatrix | None
) -> NDArray[np.float64]:
    """Return P(true = k | x, given label), (N, K), of p, the network's prediction of the true label.

    With a noise matrix F it is p_k(x)·F[k, given] / Σ_j p_j(x)·F[j, given]; without one, p itself.
    """
    if noise_matrix is None:
        return probabilities
    joint = probabilities * noise_matrix.array[:, labels].T
    total = joint.sum(axis=1, keepdims=True)
    return np.where(total > 0, joint / np.where(total > 0, total, 1), probabilities)


def label_issues(run: Run, device: str = "auto") -> None:
    """Write label_issues.csv, every training example, the least probable label first, and label_issues.json.

    As in `hesstune.clean`, probes on features of the network before its training give each label's
    probability, and they did not see the example. If the head is not the network's last operation on
    features, or there are few examples, the run's own network is used. It was trained on the labels, so it
    finds too few errors. The noise matrix is estimated by the confident joint of the validation examples and
    kept in label_issues.json, if there are enough. That file also holds the network's
    agreement with suspected label errors and with the other labels, and the test of a given noise matrix.

    Args:
        run: A finished run.
        device: Where to compute: cpu, cuda, mps or auto.

    Raises:
        ConfigError: If there is no such device.
        RunError: If the run has not finished, or its data has changed since.
    """
    _ = run.outcome
    task = run.task()
    labels = task.train.labels
    assert labels is not None
    target, loaded = pick_device(device), run.loaded()
    to_channels_last(loaded.model, target)
    feed = make_inputs(task.train, loaded, target, max_length=run.config.max_length)
    logits = predict_logits(loaded.model, feed)
    probed = _probed(run, task, target)
    judged_by: Literal["probes", "network"] = "network" if probed is None else "probes"
    if probed is None:
        posterior = label_posterior(torch.softmax(logits.double(), 1).numpy(), labels, run.noise_matrix)
    else:
        posterior = probed.posterior
    true = task.train.true
    all_true = true if task.train.clean is None else None
    fit = compare_agreement(logits.argmax(1).numpy(), labels, probed and probed.independent, all_true)
    given = posterior[np.arange(len(labels)), labels]
    predicted = posterior.argmax(axis=1)
    order = np.argsort(given, kind="stable")
    rows = [
        (
            task.train.ids[i],
            task.classes[labels[i]],
            task.classes[predicted[i]],
            f"{posterior[i, predicted[i]]:.6g}",
            f"{given[i]:.6g}",
            "" if true is None else task.classes[true[i]],
        )
        for i in order
    ]
    held = make_inputs(task.val, loaded, target, max_length=run.config.max_length)
    estimate = _noise_of_validation_labels(run, task, held, loaded.model)
    record = LabelIssuesRecord(
        examples=len(labels),
        noise_matrix=estimate,
        judged_by=judged_by,
        fit=fit,
        matrix_check=probed and probed.check,
    )
    write_record(run.path / LABEL_ISSUES_RECORD, record)
    write_csv(run.path / LABEL_ISSUES, ISSUE_COLUMNS, rows)


class Probed(NamedTuple):
    """Posteriors of the training labels from probes on features of the network before its training."""

    # P(true class | features, given label), (N, K), under the given noise matrix, if any.
    posterior: NDArray[np.float64]
    independent: NDArray[np.float64]  # The same without a given matrix that the labels contradict
    check: MatrixCheck | None  # The test of the given matrix; None if there is none


def _probed(run: Run, task: Task, device: torch.device) -> Probed | None:
    """Fit probes that did not see the training labels they predict; return None if probes are impossible."""
    part, config = task.train, run.config
    if len(part) < MIN_EXAMPLES or part.labels is None or len(np.unique(part.labels)) < 2:
        return None
    try:
        with sharing():
            features = frozen_features(start_network(run, device), part, device, config.max_length)
    except ModelError:  # the head is not the last operation
        return None
    checked = None
    if part.clean is not None and part.clean.any():
        rows = np.flatnonzero(part.clean)
        checked = (rows, part.labels[rows])
    stated = None
    if config.noise_matrix is not None and run.noise_matrix is not None:
        stated = run.noise_matrix.array if not config.noise_matrix.startswith("estimate") else None

    given, groups = part.labels, example_groups(features, part.copies)

    def fitted(matrix: NDArray[np.float64] | None) -> NDArray[np.float64]:
        observed = Observed.of(given, task.k, matrix, checked, copies=groups)
        tried = (
            FAST_CANDIDATES
            if matrix is None
            else [one for one in GIVEN_MATRIX if one.shape in ("none", "given")]
        )
        return robust_head(
            features, observed, candidates=tried, held_out=2, find_errors=matrix is None, seed=config.seed
        ).truth.posterior

    posterior = fitted(stated)
    if stated is None:
        return Probed(posterior, posterior, None)
    probabilities = cross_fit(features, part.labels, task.k, seed=config.seed, groups=groups)
    rows = np.arange(len(part)) if part.clean is None else np.flatnonzero(~part.clean)
    check = check_matrix(probabilities[rows], part.labels[rows], NoiseMatrix(stated)) if len(rows) else None
    contradicted = check is not None and check.contradiction is not None
    return Probed(posterior, fitted(None) if contradicted else posterior, check)


def _noise_of_validation_labels(
    run: Run, task: Task, feed: ModelInputs, model: nn.Module
) -> NoiseMatrixRecord | None:
    if task.val.labels is None or not len(task.val) or run.config.clean_val:
        return None
    probs = torch.softmax(predict_logits(model, feed).double(), 1).numpy()
    try:
        return NoiseMatrixRecord(**estimate_noise(probs, task.val.labels, "confident").to_dict())
    except HesstuneError:  # too few validation examples of some class
        return None


def save_thumbnails(run: Run, ids: Sequence[str]) -> None:
    """Write examples.json: thumbnails, or texts, of some training or validation examples."""
    task, wanted = run.task(), set(ids)
    shown: dict[str, ExampleImage] = {}
    for part in (task.train, task.val):  # measured examples are held out by default
        rows = [at for at, example in enumerate(part.ids) if example in wanted - set(shown)]
        if rows:
            shown |= thumbnails_of(part, np.array(rows, dtype=np.int64))
    write_record(run.path / EXAMPLES, ExampleImages.model_validate(shown))


def thumbnails_of(part: Examples, rows: NDArray[np.int64]) -> dict[str, ExampleImage]:
    """Return thumbnails, or texts, of some examples by their ids."""
    if (texts := part.texts) is not None:
        return {
            part.ids[i]: ExampleImage(text=" / ".join(t for t in texts[i] if t is not None)[:LETTERS])
            for i in rows
        }
    if (vectors := part.vectors) is not None:
        return {
            part.ids[i]: ExampleImage(text=f"{part.ids[i]}: a vector of {vectors.width} numbers")
            for i in rows
        }
    from PIL import Image

    shown = {}
    for i, pixels in zip(rows, part.images(rows), strict=True):
        file = io.BytesIO()
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((SIDE, SIDE))
        image.quantize(64).save(file, "PNG", optimize=True)
        shown[part.ids[i]] = ExampleImage(png=base64.b64encode(file.getvalue()).decode("ascii"))
    return shown

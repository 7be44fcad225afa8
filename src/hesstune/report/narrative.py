"""Sentences about a run: the verdict, how the noise is known, and the assumptions of each number."""

from __future__ import annotations

import math

from hesstune.analysis.label_issues import DELTA, judge_fit
from hesstune.bounds.record import dependence_text
from hesstune.curvature.result import HELD_OUT_EVIDENCE, TRAINING_EVIDENCE
from hesstune.errors import counted
from hesstune.noise.confidence import confidence_interval
from hesstune.runs.model_card import test_labels
from hesstune.runs.read_records import Records
from hesstune.runs.records import MatrixCheck
from hesstune.training.metrics import wilson_interval


def verdict(records: Records) -> str:
    """Return whether the network has learnt wrong labels, and the counts that show it."""
    kept = records.label_issues_record
    fit = None if kept is None else kept.fit
    found = judge_fit(fit)
    if fit is None:
        why = "its training labels have not been compared yet" if kept is None else found.reason
        return f"Whether the network has learnt wrong labels cannot be decided: {why}."
    which = "wrong label" if fit.known else "suspected label error"
    low, high = confidence_interval(fit.wrong.agreed, fit.wrong.examples, DELTA)
    counts = (
        f"it agrees with {fit.wrong.share:.1%} of the {counted(fit.wrong.examples, which)} (95 % interval "
        f"{low:.1%} to {high:.1%}), and with {fit.right.share:.1%} of the "
        f"{counted(fit.right.examples, 'other label')}"
    )
    if found.kind == "unknown":
        return f"Whether the network has learnt wrong labels cannot be decided: {found.reason}."
    said = {"most": "has learnt most of the", "some": "has learnt some of the", "not": "has not learnt the"}
    known = " Here the true labels are known." if fit.known else ""
    return f"The network {said[found.kind]} wrong labels: {counts}.{known}"


def provenance(records: Records) -> str:
    """Say how the noise matrix of the loss is known, and whether the labels contradict it."""
    noise, matrix = records.facts.noise, records.noise_matrix
    contradiction = _contradiction(records)
    if noise.injected:
        used = (
            f"the loss used a noise matrix: {noise.loss_matrix}"
            if matrix
            else "the loss used no noise matrix"
        )
        return f"The label noise is known: {noise.injected} was injected; {used}. {contradiction}".strip()
    if matrix and matrix.method:
        return (
            f"The label noise is estimated: by the method {matrix.method} from "
            f"{counted(matrix.examples, 'example') if matrix.examples else 'the examples'}. "
            f"{' '.join(matrix.notes)}"
        ).strip()
    if matrix:
        checked = contradiction or "No test has contradicted it."
        if _matrix_check(records) is None:
            checked = "It has not been tested."
        return (
            f"The label noise is assumed: the loss used a given noise matrix, {noise.loss_matrix}. {checked}"
        )
    return "The loss assumed labels without noise."


def _matrix_check(records: Records) -> MatrixCheck | None:
    kept = records.label_issues_record
    return None if kept is None else kept.matrix_check


def _contradiction(records: Records) -> str:
    """Return how the labels contradict the given noise matrix; empty if they do not."""
    check = _matrix_check(records)
    if check is None or check.contradiction is None:
        return ""
    implied = check.least if check.contradiction == "too much noise" else check.implied
    return (
        f"The labels contradict this matrix: on the {counted(check.examples, 'example')} that probes on the "
        f"pretrained features are surest of, {check.differing / check.examples:.1%} of the given labels "
        f"differ from the out-of-sample prediction (99 % interval {check.low:.1%} to {check.high:.1%}), but "
        f"the matrix implies {implied:.1%}. It assumes {check.contradiction}."
    )


def uncontradicted_rate(records: Records) -> float | None:
    """Return the share of wrong training labels if it is known, or assumed and not contradicted."""
    return None if not records.facts.noise.injected and _contradiction(records) else records.facts.noise.rate


def onset(records: Records) -> tuple[int, str] | None:
    """Return the epoch at which the network starts to fit the noise, and the sign it is read from.

    The sign is validation: the best of the last quarter of the epochs is more than two standard errors below
    the best of all, and agreement with the training labels still rises. Otherwise it is the first epoch
    whose agreement with the training labels is above the share of right labels by more than its 95 %
    interval. Epoch 0 fits nothing.
    """
    epochs = records.epochs
    trained = [e for e in epochs if e.epoch > 0]
    if not trained:
        return None
    for curve, name in (
        ([e.val_accuracy_true_labels for e in epochs], "true"),
        ([e.val_accuracy for e in epochs], "given"),
    ):
        values = [value for value in curve if value is not None]
        if not values or len(values) < len(curve):
            continue
        best = max(range(len(values)), key=lambda i: values[i])
        n = max(1, records.facts.examples.val)
        error = math.sqrt(values[best] * (1 - values[best]) / n)
        rises = epochs[-1].train_accuracy > epochs[best].train_accuracy + 0.02
        late = max(values[-max(1, len(values) // 4) :])  # one bad last epoch is no fall
        if rises and values[best] - late > 2 * error:
            fall = f"from {values[best]:.1%} to {values[-1]:.1%}"
            sign = f"accuracy on the validation examples' {name} labels falls {fall} from there on"
            start = max(epochs[best].epoch, trained[0].epoch)
            return start, f"{sign}, while agreement with the training labels still rises"
        break
    rate, n = uncontradicted_rate(records), records.facts.examples.train
    for epoch in trained:
        if rate is not None and n and wilson_interval(epoch.train_accuracy, n)[0] > 1 - rate:
            return epoch.epoch, "from there on it agrees with more training labels than are right"
    return None


def training_words(records: Records) -> str:
    """Return what the training curves show, for a reader who does not see them."""
    first, last = records.epochs[0], records.epochs[-1]
    if last.epoch == 0:
        return (
            "There were no epochs of training: the head was solved in closed form on frozen features. It "
            f"agrees with {last.train_accuracy:.1%} of the training labels."
        )
    text = (
        f"Agreement with the training labels goes from {first.train_accuracy:.1%} in epoch "
        f"{first.epoch} to {last.train_accuracy:.1%} in epoch {last.epoch}"
    )
    if (true := last.val_accuracy_true_labels) is not None:
        text += f"; accuracy on true validation labels ends at {true:.1%}"
    if (start := onset(records)) is not None:
        return f"{text}. The network starts to fit the noise in epoch {start[0]}: {start[1]}."
    return f"{text}. The curves alone show no epoch in which it starts to fit noise."


def assumptions(records: Records) -> list[tuple[str, str, str, str]]:
    """Return for every number what it assumes, what would break it, and whether that holds here."""
    drawn = {
        "uniform": "Test examples were drawn uniformly at random from the data.",
        "stratified": "Test examples were drawn at random, class by class.",
        "group": "Test examples are those of groups drawn at random; none of them was trained on.",
        "time": "Test examples are the latest of the data.",
        "given": "The data came with its split; how it was drawn is not known here.",
    }
    split, labels = records.facts.split, test_labels(records.facts)
    rows = [
        (
            "Test accuracy, gap",
            "Test examples drawn as future examples will be, with right labels, not used for any choice.",
            "Data that drifts; copies of a test example among the training examples; wrong test labels.",
            f"{drawn.get(split, split)} Test accuracy is measured against: {labels}.",
        ),
        (
            "Noise matrix",
            "Which wrong label is given depends on the true class alone.",
            "Noise that depends on the example, such as hard examples mislabelled more often, or a matrix "
            "that is wrong: the consistent loss is then biased.",
            _noise_here(records),
        ),
    ]
    if (measure := records.measure) is not None:
        kind = "held-out" if measure.part == "val" else "training"
        rows.append(
            (
                measure.form.measure,
                f"The mean and the maximum over {measure.examples or 'the'} {kind} examples and the largest "
                f"observed loss ({measure.measure.C:.3g}) stand in for the theorem's suprema.",
                "It bounds nothing: unseen examples can exceed the maximum, ReLU networks lie outside the "
                f"theorem, and its O(n^(-3/4)) term is unknown. {TRAINING_EVIDENCE}. {HELD_OUT_EVIDENCE}.",
                " ".join(measure.notes) or "All layers and examples are in the table of layers.",
            )
        )
    if (certificate := records.certificate) is not None:
        here = "Assumed; the other conditions were checked."
        rows += [("Certificate", text, "That it does not hold.", here) for text in certificate.assumptions]
        if certificate.noise_dependence:
            text = dependence_text(certificate.noise_dependence)
            rows.append(("Certificate", text, "A dependence that the test does not find.", "Tested."))
        fails, here = "A condition that fails here.", "Broken: the number is no certificate."
        rows += [("Certificate", fails, text, here) for text in certificate.failures]
    if records.stability:
        rows.append(
            (
                "Noise stability",
                "The Taylor line needs a loss that is twice differentiable, and small noise.",
                "Kinks (ReLU) that the noise crosses: the measured rise then lies off the line at any σ.",
                "Measured with standard errors; see the ratio.",
            )
        )
    if records.label_issues:
        rows.append(
            (
                "Suspected label errors",
                "The network's probabilities, and the noise matrix of the loss, if it has one.",
                "A network that has fitted the noise: it then agrees with wrong labels.",
                "The network was trained on these examples; a second opinion is needed for each.",
            )
        )
    return rows


def _noise_here(records: Records) -> str:
    injected, check = records.facts.noise.injected, _matrix_check(records)
    if injected and injected.startswith("instance:"):
        return "Does not hold: the noise was injected so that it depends on the example."
    if injected:
        return "Holds by construction: the noise was injected class by class."
    if records.noise_matrix is None:
        return "The loss used no noise matrix."
    if check is None:
        return "Not checked: it was estimated or assumed."
    return _contradiction(records) or (
        f"Not contradicted: {check.differing / check.examples:.1%} of the labels of "
        f"{counted(check.examples, 'example')} differ from the surest out-of-sample predictions (99 % "
        f"interval {check.low:.1%} to {check.high:.1%}); the matrix implies {check.implied:.1%}."
    )

"""A run in words: the verdict, how the noise is known, and what every number rests on."""

from __future__ import annotations

import math

from hesstune.bounds.record import Certificate
from hesstune.curvature.result import FOUND, HELD_OUT
from hesstune.runs.measure_records import MeasureRecord
from hesstune.runs.model_card import test_labels
from hesstune.runs.read_records import Records

__all__ = ["assumptions", "onset", "provenance", "training_words", "verdict"]


def verdict(records: Records) -> str:
    """Return the run in words: whether it learnt wrong labels, as far as the records tell."""
    rate = records.facts.noise.rate
    if rate is None:
        return "Nothing is known about the labels' noise, so whether wrong labels were learnt cannot be told."
    agrees = records.outcome.train_accuracy
    if agrees > 1 - rate + 0.02:
        return (
            f"The network has learnt wrong labels: it agrees with {agrees:.1%} of the labels it was trained "
            f"on, though only about {1 - rate:.1%} of them are right."
        )
    return (
        f"The network agrees with {agrees:.1%} of the labels it was trained on, of which about "
        f"{1 - rate:.1%} are right: so looks a network that has not fitted the noise, though agreement "
        "alone cannot exclude that some wrong labels were learnt."
    )


def provenance(records: Records) -> str:
    """Say whether the labels' noise was known, estimated, or assumed by whoever started the run."""
    noise, believed = records.facts.noise, records.noise_matrix
    if noise.injected:
        told = "and the loss was not told"
        if believed:
            told = f"and the loss was told: {noise.told}"
        return f"The labels' noise is known: {noise.injected} was injected, {told}."
    if believed and believed.method:
        return (
            f"The labels' noise is estimated: by the method {believed.method} from "
            f"{believed.examples or 'the'} examples. {' '.join(believed.notes)}".strip()
        )
    if believed:
        return f"The labels' noise is assumed: the loss was told {noise.told}; nothing here checks it."
    return "The loss assumed labels without noise."


def onset(records: Records) -> tuple[int, str] | None:
    """Return the epoch at which the network starts to fit the noise, and the sign it is read from.

    The sign is validation: even the best of the last quarter of the epochs lies more than two standard
    errors below the best of all, while agreement with the training labels still rises. Where validation
    shows nothing, it is the first epoch that agrees with more training labels than are right.
    """
    epochs = records.epochs
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
            return epochs[best].epoch, f"{sign}, while agreement with the training labels still rises"
        break
    rate = records.facts.noise.rate
    for epoch in epochs:
        if rate is not None and epoch.train_accuracy > 1 - rate:
            return epoch.epoch, "from there on it agrees with more training labels than are right"
    return None


def training_words(records: Records) -> str:
    """Return what the training curves show, for a reader who does not see them."""
    first, last = records.epochs[0], records.epochs[-1]
    text = (
        f"Agreement with the training labels goes from {first.train_accuracy:.1%} in epoch "
        f"{first.epoch} to {last.train_accuracy:.1%} in epoch {last.epoch}"
    )
    if (true := last.val_accuracy_true_labels) is not None:
        text += f"; accuracy on true validation labels ends at {true:.1%}"
    if (start := onset(records)) is not None:
        return f"{text}. The network starts to fit the noise in epoch {start[0]}: {start[1]}."
    if records.facts.noise.rate is None:
        return f"{text}. Whether it fits noise cannot be told: nothing is known about the noise."
    return f"{text}. It shows no sign of fitting the noise."


def assumptions(records: Records) -> list[dict[str, str]]:
    """Return, for every number on the page: what it rests on, what would break it, and how it stands here."""
    found = [_split(records), _noise(records)]
    if records.measure:
        found.append(_measure(records.measure))
    if records.certificate:
        found += _certificate(records.certificate)
    if records.stability:
        found.append(
            _row(
                "Noise stability",
                "The Taylor line needs a loss that is twice differentiable, and small noise.",
                "Kinks (ReLU) that the noise crosses: the measured rise then lies off the line at any σ.",
                "Measured with standard errors; see the ratio.",
            )
        )
    if records.label_issues:
        found.append(
            _row(
                "Doubtful labels",
                "The network's probabilities, and the noise matrix where the loss was told one.",
                "A network that has fitted the noise: it believes the labels it was trained on.",
                "The network was trained on these examples; a second opinion is needed for each.",
            )
        )
    return found


def _row(number: str, rests: str, breaks: str, here: str) -> dict[str, str]:
    return {"number": number, "rests": rests, "breaks": breaks, "here": here}


def _split(records: Records) -> dict[str, str]:
    drawn = {
        "uniform": "Test examples were drawn uniformly at random from the data.",
        "stratified": "Test examples were drawn at random, class by class.",
        "group": "Test examples are those of groups drawn at random, none of which was trained on.",
        "time": "Test examples are the latest of the data.",
        "given": "The data came with its split; how it was drawn is not known here.",
    }
    split = records.facts.split
    labels = f"Test accuracy is measured against: {test_labels(records.facts)}."
    return _row(
        "Test accuracy, gap",
        "Test examples drawn as the examples to come, with right labels, not used for any choice.",
        "Data that drifts; copies of a test example among the training examples; wrong test labels.",
        f"{drawn.get(split, split)} {labels}",
    )


def _noise(records: Records) -> dict[str, str]:
    injected = records.facts.noise.injected
    if injected and injected.startswith("instance:"):
        here = "Does not hold: the noise was injected so that it depends on the example."
    elif injected:
        here = "Holds by construction: the noise was injected class by class."
    elif records.noise_matrix is None:
        here = "The loss was told of no noise."
    else:
        here = "Not checked: it was estimated or assumed."
    return _row(
        "Noise matrix",
        "Which wrong label is given depends on the true class alone.",
        "Noise that depends on the example, such as hard examples mislabelled more often, or a matrix "
        "that is wrong: the consistent loss is then biased.",
        here,
    )


def _measure(measure: MeasureRecord) -> dict[str, str]:
    kind = "held-out" if measure.part == "val" else "training"
    return _row(
        "Hessian distance measure",
        f"The mean and the maximum over {measure.examples or 'the'} {kind} examples and the largest observed "
        f"loss ({measure.measure.C:.3g}) stand in for the theorem's suprema.",
        "It bounds nothing: unseen examples can exceed the maximum, ReLU networks lie outside the theorem, "
        f"and its O(n^(-3/4)) term is unknown. {FOUND}. {HELD_OUT}.",
        " ".join(measure.notes) or "All layers and examples as the table of layers tells.",
    )


def _certificate(certificate: Certificate) -> list[dict[str, str]]:
    rows = [
        _row("Certificate", text, "That it does not hold.", "Assumed; the rest was checked.")
        for text in certificate.assumptions
    ]
    return rows + [
        _row("Certificate", "A condition that fails here.", text, "Broken: the number is no certificate.")
        for text in certificate.failures
    ]

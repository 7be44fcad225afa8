"""The model card that goes with a run."""

from __future__ import annotations

from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import RunRecord


def model_card(config: FinetuneConfig, facts: RunRecord) -> str:
    """Return the run's README.md: what was trained, on which labels, and with what result."""
    result, noise, sizes = facts.result, facts.noise, facts.examples
    assert result is not None
    counts = {
        "Labels a person has checked, trained on as clean": facts.checked_labels,
        "Examples left out, with neither label nor vote": facts.unlabelled,
        "Damaged images left out": facts.skipped_images,
        f"Texts cut to {config.max_length} tokens": facts.texts_cut,
    }
    validation = "without the injected noise" if config.clean_val else "noisy, too"
    if config.inject_noise is None:
        validation = "as given"

    def shown(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    lines = [
        f"# {config.model}, fine-tuned on {config.data}",
        "",
        f"Fine-tuned by hesstune {facts.versions['hesstune']} with the method `{config.method}` on "
        f"{sizes.train} training examples ({sizes.val} for validation, {sizes.test} for the test).",
        "",
        "## Labels",
        "",
        f"- Classes: {', '.join(facts.classes)}",
        f"- Noise injected: {noise.injected or 'none'}"
        + (f" ({noise.realised_rate:.1%} of the training labels changed)" if noise.injected else ""),
        f"- Noise matrix of the loss: {noise.loss_matrix}",
        *(f"- {what}: {count}" for what, count in counts.items() if count),
        *(f"- Data: {note}" for note in facts.data_notes),
        f"- Validation labels: {validation}",
        f"- Split: {facts.split}",
        *[f"- Note: {note}" for note in facts.notes],
        "",
        "## Results",
        "",
        "| | |",
        "|---|---|",
        f"| test accuracy ({test_labels(facts)}) | {shown(result.test_accuracy, '.1%')} |",
        f"| training accuracy (labels as trained on) | {shown(result.train_accuracy, '.1%')} |",
        f"| generalization gap (cross-entropy, test − training) | {shown(result.gap, '.3f')} |",
        f"| distance from the reference | {result.distance:.3f} |",
        "",
        "These are measurements on this data, not guarantees.",
        "",
    ]
    return "\n".join(lines)


def test_labels(facts: RunRecord) -> str:
    """Return what test accuracy is measured against: true labels are known only if noise was injected.

    Labels that `hesstune clean` rewrote or selected are neither.
    """
    result = facts.result
    if result is not None and result.test_labels_rewritten:
        return f"{result.test_labels_rewritten} of {facts.examples.test} labels rewritten"
    if result is not None and result.test_labels_kept:
        return "without suspected label errors"
    return "true labels" if facts.noise.injected else "labels as given"

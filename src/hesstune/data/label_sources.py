"""Where labels come from: the column that `clean`, `label` and `predict` write, and its reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hesstune.data.examples import KEPT, MODEL_LABEL, MODEL_SOURCES, PREDICTED, REWRITTEN, Examples
from hesstune.storage.tables import is_missing
from hesstune.weak.vote_files import LABEL_SOURCE

# Columns: labels before `hesstune clean` rewrote them, and where each label comes from.
GIVEN_LABEL, SOURCE = "given_label", LABEL_SOURCE
# Sources of labels that no model made or chose: the data itself, and a person who checked the label.
GIVEN, CHECKED = "given", "checked"
# What made the labels of a source, for sentences about "N of M labels".
MADE = {
    REWRITTEN: "are not as given: hesstune clean rewrote them",
    MODEL_LABEL: "are not as given: a label model made them from votes (hesstune label)",
    PREDICTED: "are not as given: they are predictions of a model (hesstune predict)",
}


def column_named(columns: Iterable[str], name: str) -> str | None:
    """Return the column of a name, whatever its case and the spaces around it; None if there is none.

    Example:
        >>> column_named(["text", "Label_Source "], "label_source")
        'Label_Source '
    """
    return next((column for column in columns if column.strip().casefold() == name), None)


def read_sources(
    labels: Sequence[str], given: Sequence[str] | None, sources: Sequence[str] | None
) -> list[str] | None:
    """Return the source of each label, in lower case; None if neither column is there.

    A label that differs from the given label is REWRITTEN, whatever the source says.

    Args:
        labels: Labels as written.
        given: Cells of the column GIVEN_LABEL, or None.
        sources: Cells of the column SOURCE, or None.

    Example:
        >>> read_sources(["a", "b"], ["a", "a"], ["Kept ", "given"])
        ['kept', 'corrected']
    """
    if given is None and sources is None:
        return None
    before = labels if given is None else given
    said = [""] * len(labels) if sources is None else sources
    return [
        REWRITTEN if own.strip() != old.strip() and not is_missing(old) else source.strip().lower()
        for own, old, source in zip(labels, before, said, strict=True)
    ]


def source_notes(part: Examples, name: str) -> list[str]:
    """Say how many labels of a part a model made, and whether `hesstune clean` left out other examples."""
    notes = [
        f"{count} of {len(part)} {name} labels {MADE[source]}"
        for source in MODEL_SOURCES
        if source != KEPT and (count := part.count_source(source))
    ]
    if part.count_source(KEPT):
        notes.append(
            f"hesstune clean left suspected label errors out of the {name} examples, so accuracy on them is "
            "higher than on all"
        )
    return notes

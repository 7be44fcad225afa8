"""What data holds, said before anything is computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hesstune.data.examples import PARTS
from hesstune.data.formats import WITHOUT_PATH, listing
from hesstune.data.labels import alike
from hesstune.data.reading import Reading
from hesstune.data.tables import group_notes
from hesstune.errors import counted, listed

# Classes that a line names.
MOST_NAMED = 12


@dataclass(frozen=True)
class DataFacts:
    """What data holds."""

    data: str  # the data as it was named
    kind: str  # `image`, `text` or `features`
    examples: int  # number of examples with a label, or of all if none is needed
    classes: dict[str, int]  # {class: number of examples}
    # {part: number of examples}; empty if the data has no parts
    parts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was guessed, changed or left out, in sentences

    def lines(self) -> list[str]:
        """Return sentences for people."""
        nouns = {"image": "image", "text": "text", "features": "feature vector"}
        common = sorted(self.classes.items(), key=lambda pair: -pair[1])
        shown = listed((f"{name} ({count})" for name, count in common), MOST_NAMED)
        labels = f"labels of {len(self.classes)} classes: {shown}" if self.classes else "no labels"
        parts = ", ".join(f"{name} {count}" for name, count in self.parts.items())
        lines = [f"{self.data}: {counted(self.examples, nouns[self.kind])}, {labels}"]
        lines += [f"parts: {parts}"] if parts else []
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return asdict(self)


def describe(data: str, how: Reading, labelled: bool = True) -> DataFacts | None:
    """Read data, without decoding files of images, and say what it holds; None for built-in data."""
    if data in WITHOUT_PATH:
        return None
    found = listing(data, 8, labelled, how)
    if found.labels is not None:
        counts = np.bincount(found.labels, minlength=len(found.classes)).tolist()
        classes = dict(zip(found.classes, counts, strict=True))
    else:
        classes = dict(Counter(name for name in found.given or () if name))
    named = Counter(found.parts or ())
    kind = "text" if found.texts is not None else "image"
    if getattr(found, "vectors", None) is not None:
        kind = "features"
    notes = [*found.notes, *alike(found.classes), *group_notes(found.groups, len(found))]
    if found.votes is not None:
        notes.append(f"votes of {counted(found.votes.m, 'annotator')}")
    if found.soft is not None:
        notes.append("soft labels")
    if found.unlabelled:
        notes.append(f"{len(found.unlabelled)} examples with neither label nor vote left out")
    parts = {name: named[name] for name in PARTS if named[name]}
    return DataFacts(data, kind, len(found), classes, parts, notes)

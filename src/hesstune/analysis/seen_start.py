"""Compare the examples that the weights before fine-tuning have seen with those that a bound counts on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import Examples
from hesstune.errors import listed
from hesstune.runs.integrity import content_digests
from hesstune.runs.run import Run
from hesstune.storage.seen_examples import SeenExamples


@dataclass(frozen=True)
class SeenStart:
    """The weights before fine-tuning, and the examples that they have seen.

    The bounds need examples that are independent of these weights. Examples that the weights have seen are
    not left out instead: the data of the earlier run may have been chosen by its labels, and the examples
    that remain would then be chosen by theirs.

    Attributes:
        name: The weights, for messages.
        seen: The examples.
    """

    name: str = ""
    seen: SeenExamples = field(default_factory=SeenExamples)

    @classmethod
    def of(cls, run: Run) -> SeenStart:
        """Return the initial weights of a run."""
        return cls(run.config.weights or run.config.model, run.seen_by_start())

    def shared(self, part: Examples, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of the examples of a part that the weights have seen."""
        if not self.seen.count:
            return []
        examples = part.take(rows)
        shared = self.seen.contain(content_digests(examples, anew=False))
        return [examples.ids[row] for row in np.flatnonzero(shared)]

    def refusal(self, part: Examples, rows: NDArray[np.int64]) -> str:
        """Return why examples of a part may not be counted on; empty if the weights have seen none."""
        if not (ids := self.shared(part, rows)):
            return ""
        return (
            f"the weights {self.name} that the run started from have seen {len(ids)} of the {len(rows)} "
            f"examples that the bound counts on (such as {listed(ids, 3)}); start a run from weights that "
            "have not seen them, or give examples that they have not seen"
        )

    @property
    def assumptions(self) -> list[str]:
        """The assumptions on the weights if no example of the bound was refused."""
        texts = [f"the weights in {name} were trained on other examples" for name in self.seen.unrecorded]
        if self.seen.count:
            texts.append(
                f"the {self.seen.count} examples that the weights {self.name} have seen are other ones: "
                "checked by digests; near-copies are not"
            )
        return texts

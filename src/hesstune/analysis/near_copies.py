"""Near-duplicates in a run's examples: kept from both sides of a certificate, counted and said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hesstune.analysis.seen_start import SeenStart
from hesstune.data.examples import Examples, Task
from hesstune.data.near_duplicates import near_duplicates
from hesstune.errors import DataError, listed

Rows = NDArray[np.int64]
# Which of several copies is counted is drawn, so that no class is preferred by its place in a folder.
KEPT_KEY = 0xC0B1E5
NOT_FOUND = (
    "the examples hold no copies that the search cannot find: images cropped to less than 80 %, rotated by "
    "other angles than quarter turns and up to 10 degrees, or distorted; altered copies in data whose images "
    "are all alike and have little detail, such as handwritten digits; other photos of the same object; "
    "translations and paraphrases of texts"
)


@dataclass(frozen=True)
class Found:
    """What was found, for a certificate to say.

    Attributes:
        counts: {what: number of examples}.
        assumptions: What was done about them, and what must hold for it.
        failures: What is refused, where a diagnostic is asked for.
    """

    counts: dict[str, float] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Found) -> Found:
        return Found(
            {**self.counts, **other.counts},
            [*self.assumptions, *other.assumptions],
            [*self.failures, *other.failures],
        )


@dataclass(frozen=True)
class NearCopies:
    """The near-duplicates among a task's examples, and what is to be done about them.

    A certificate needs examples that are drawn one by one, and a prior or a network that is independent of
    them. Where a collection holds copies, what is drawn one by one are its groups of copies. Let a group
    that the drawn parts divide be wholly the bound's: its members in the prior's part are *left out of the
    prior's training*. Then prior and bound see disjoint groups, and are independent given where each group
    went, which its own members' places decide. Leaving them out of the bound instead would make its sample
    a choice, of groups that luck did not divide: the certificate would be for a distribution with fewer
    copies. The choice is made by the inputs alone, so the bound's labels never reach the prior.

    Attributes:
        task: The examples.
        groups: The group of each training, validation and test example, by part.
        repeats: `refuse`, `drop` or `allow`, for copies that cannot be left out so.
        seed: Draws which of several copies is counted.
        diagnostic: Whether what is refused is noted, not raised.
        start: The weights before fine-tuning: examples that they have seen are never counted.
    """

    task: Task
    groups: dict[str, Rows]
    repeats: str = "refuse"
    seed: int = 0
    diagnostic: bool = False
    start: SeenStart = field(default_factory=SeenStart)

    @classmethod
    def of(
        cls,
        task: Task,
        repeats: str = "refuse",
        seed: int = 0,
        diagnostic: bool = False,
        start: SeenStart | None = None,
    ) -> NearCopies:
        """Look for near-duplicates in all of a task's examples."""
        found = near_duplicates([task.train, task.val, task.test])
        groups = dict(zip(("train", "val", "test"), found, strict=True))
        return cls(task, groups, repeats, seed, diagnostic, start or SeenStart())

    def apart(self, first: Rows, rest: Rows) -> tuple[Rows, Rows, Found]:
        """Leave out of a prior's examples what has a near-duplicate among those of the bound.

        Args:
            first: Training examples of the prior's part.
            rest: Those of the bound's part.

        Returns:
            Training and validation examples that may train and select the prior; and what was left out.

        Raises:
            DataError: If none is left to train it.
        """
        train, val = self.groups["train"], self.groups["val"]
        kept = first[~np.isin(train[first], train[rest])]
        selecting = np.flatnonzero(~np.isin(val, train[rest]))
        if not len(kept):
            raise DataError(
                f"all {len(first)} examples of the prior's part are near-duplicates of examples that the "
                "bound counts on, so none is left to train it; remove copies from the data, or leave "
                "--prior-fraction out"
            )
        trained, selected = len(first) - len(kept), len(val) - len(selecting)
        counts = {"left_out_of_prior": float(trained), "left_out_of_selection": float(selected)}
        if not trained and not selected:
            return kept, selecting, Found(counts)
        told = (
            f"near-duplicates of examples that the bound counts on were left out of the prior's training "
            f"({trained}) and selection ({selected}), by their inputs alone; groups of near-duplicates are "
            "independent draws"
        )
        return kept, selecting, Found(counts, [told])

    def counted(self, part: str, rows: Rows, seen: bool = False) -> tuple[Rows, Found]:
        """Return the examples that a bound counts on, and what was found among them.

        Args:
            part: `train` or `test`.
            rows: Examples of this part.
            seen: Whether what is certified has learnt from the training and validation examples.

        Raises:
            DataError: If near-duplicates are refused, none is left, or the weights before fine-tuning have
                seen some.
        """
        every = rows
        found = self._unseen_by_start(part, rows)
        if seen:
            rows, more = self._unseen(part, rows)
            found += more
        groups = self.groups[part][rows]
        again = len(rows) - len(np.unique(groups))
        found += Found({"repeated": float(again)})
        if again and self.repeats == "refuse":
            shown = _pairs(self._part(part).ids, rows, groups)
            found += self._refused(
                f"{again} of the {len(rows)} examples that the bound counts on are repeated or "
                f"near-duplicates of others (such as {shown}), so they are no independent sample"
            )
        elif again and self.repeats == "drop":
            rows = self._one_each(rows, groups)
            told = f"of near-duplicates one each is counted ({again} left out), so the bound is for inputs "
            found += Found({}, [f"{told}that are drawn without regard to how often they are repeated"])
        elif again:
            told = f"{again} examples counted are near-duplicates of others: they are independent draws"
            found += Found({}, [f"{told} of a distribution that has such repeats"])
        if not len(rows):
            raise DataError(
                f"all {len(every)} examples of the bound are near-duplicates of those of training"
            )
        return rows, found

    def held_out(self) -> tuple[Rows, Found]:
        """Return the test examples that are no near-duplicates, for the bound beside a certificate."""
        every = np.arange(len(self.task.test))
        if met := self.start.shared(self.task.test, every):
            told = (
                f"no bound by the held-out examples: the weights {self.start.name} have seen {len(met)} of "
            )
            return every[:0], Found({}, [f"{told}the {len(every)}"])
        rows = every[~self._shared("test", every)]
        if self.repeats != "allow":
            rows = self._one_each(rows, self.groups["test"][rows])
        left = len(every) - len(rows)
        if not left:
            return rows, Found({"left_out_of_held_out": 0.0})
        told = (
            f"{left} held-out examples that are near-duplicates of training's or of one another were left out"
        )
        return rows, Found({"left_out_of_held_out": float(left)}, [told])

    def _unseen_by_start(self, part: str, rows: Rows) -> Found:
        """Refuse examples that the weights before fine-tuning have seen."""
        if not (why := self.start.refusal(self._part(part), rows)):
            return Found({}, self.start.assumptions)
        if not self.diagnostic:
            raise DataError(why)
        return Found({}, [], [why])

    def _unseen(self, part: str, rows: Rows) -> tuple[Rows, Found]:
        """Treat examples that are near-duplicates of what has trained or selected the network already."""
        shared = self._shared(part, rows)
        count = int(shared.sum())
        found = Found({"near_training": float(count)})
        if not count:
            return rows, found
        if self.repeats == "refuse":
            ids = [self._part(part).ids[row] for row in rows[shared]]
            return rows, found + self._refused(
                f"{count} of the {len(rows)} examples that the bound counts on are near-duplicates of "
                f"examples that trained or selected the network (such as {listed(ids, 3)})"
            )
        if self.repeats == "drop":
            told = (
                f"{count} examples that are near-duplicates of those of training were left out, so the bound "
            )
            return rows[~shared], found + Found({}, [f"{told}is for inputs that are no such copies"])
        told = (
            f"{count} examples counted are near-duplicates of those of training: they are independent draws"
        )
        return rows, found + Found({}, [f"{told} of a distribution that has such repeats"])

    def _shared(self, part: str, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows are near-duplicates of training or validation examples."""
        seen = np.concatenate([self.groups["train"], self.groups["val"]])
        return np.isin(self.groups[part][rows], seen)

    def _one_each(self, rows: Rows, groups: Rows) -> Rows:
        order = np.random.default_rng([self.seed, KEPT_KEY]).permutation(len(rows))
        _, first = np.unique(groups[order], return_index=True)
        return np.sort(rows[order[first]])

    def _refused(self, why: str) -> Found:
        told = (
            f"{why}; remove copies before splitting, or give --repeats drop, which counts no copy, or "
            "--repeats allow if the examples were drawn independently from a distribution "
            "that has such repeats"
        )
        if not self.diagnostic:
            raise DataError(told)
        return Found({}, [], [told])

    def _part(self, part: str) -> Examples:
        return self.task.train if part == "train" else self.task.test


def _pairs(ids: list[str], rows: Iterable[int], groups: Iterable[int]) -> str:
    """Name some examples and the ones they repeat."""
    first: dict[int, str] = {}
    pairs = []
    for row, group in zip(rows, groups, strict=True):
        if group in first:
            pairs.append(f"{first[group]} and {ids[row]}")
        first.setdefault(group, ids[row])
    return listed(pairs, 3)

"""Examples that a bound may not count: near-duplicates, and those that the initial weights have seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import Examples, Task
from hesstune.data.near_duplicates import near_duplicates
from hesstune.errors import DataError, listed
from hesstune.runs.integrity import content_digests
from hesstune.runs.run import Run
from hesstune.storage.seen_examples import SeenExamples

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
class SeenStart:
    """The weights before fine-tuning, and the examples that they have seen.

    The bounds need examples that are independent of these weights. Examples that the weights have seen are
    not left out instead: the data of the earlier run may have been chosen by its labels, and the examples
    that remain would then be chosen by theirs.
    """

    name: str = ""  # The weights, for messages
    seen: SeenExamples = field(default_factory=SeenExamples)  # The examples

    @classmethod
    def of(cls, run: Run) -> SeenStart:
        """Return the initial weights of a run."""
        return cls(run.config.weights or run.config.model, run.seen_by_start())

    def shared(self, part: Examples, rows: Rows) -> list[str]:
        """Return the ids of the examples of a part that the weights have seen."""
        if not self.seen.count:
            return []
        examples = part.take(rows)
        shared = self.seen.contain(content_digests(examples, anew=False))
        return [examples.ids[row] for row in np.flatnonzero(shared)]

    def refusal(self, part: Examples, rows: Rows) -> str:
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


@dataclass(frozen=True)
class Found:
    """What was found among examples, for the certificate."""

    counts: dict[str, float] = field(default_factory=dict)  # {what: number of examples}
    assumptions: list[str] = field(default_factory=list)  # What was done about them, and what must hold
    failures: list[str] = field(default_factory=list)  # What is refused, for a diagnostic

    def __add__(self, other: Found) -> Found:
        return Found(
            {**self.counts, **other.counts},
            [*self.assumptions, *other.assumptions],
            [*self.failures, *other.failures],
        )


@dataclass(frozen=True)
class NearCopies:
    """The near-duplicates among a task's examples, and how they are treated.

    A certificate needs examples that are independent draws, and a prior or a network that is independent of
    them. In a collection with copies, the independent draws are its groups of copies. Of a group that the
    drawn parts divide, the members in the prior's part are *left out of the prior's training*: the whole
    group then belongs to the bound. Prior and bound see disjoint groups, and they are independent given the
    part that each group belongs to, which depends on the places of its own members. Leaving such groups out
    of the bound instead would select groups by the division: the certificate would be for a distribution with
    fewer copies. The choice depends on the inputs alone, so the bound's labels never reach the prior.
    """

    task: Task  # The examples
    groups: dict[str, Rows]  # The group of each training, validation and test example, by part
    # `refuse`, `drop` or `allow`, for copies that cannot be left out of a prior's training.
    repeats: str = "refuse"
    seed: int = 0  # Draws which of several copies is counted
    diagnostic: bool = False  # Whether what is refused is recorded, not raised
    # The weights before fine-tuning: examples that they have seen are never counted.
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
        """Find near-duplicates among all of a task's examples."""
        found = near_duplicates([task.train, task.val, task.test])
        groups = dict(zip(("train", "val", "test"), found, strict=True))
        return cls(task, groups, repeats, seed, diagnostic, start or SeenStart())

    def apart(self, first: Rows, rest: Rows) -> tuple[Rows, Rows, Found]:
        """Return the rows of `first`, and validation rows, without near-duplicates of the bound's; and what
        was found.
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
        found = Found({"left_out_of_prior": float(trained), "left_out_of_selection": float(selected)})
        if trained or selected:
            found.assumptions.append(
                f"near-duplicates of examples that the bound counts on were left out of the prior's training "
                f"({trained}) and selection ({selected}), by their inputs alone; groups of near-duplicates "
                "are independent draws"
            )
        return kept, selecting, found

    def counted(self, part: str, rows: Rows, seen: bool = False) -> tuple[Rows, Found]:
        """Return the rows that a bound counts on, and what was found; `seen`: the network learnt from
        training's.
        """
        count, examples = len(rows), self.task.train if part == "train" else self.task.test
        found = Found()
        if why := self.start.refusal(examples, rows):
            self._refuse_or_note(found, why)
        else:
            found.assumptions.extend(self.start.assumptions)
        if seen:
            near = self._near_training(part, rows)
            found.counts["near_training"] = float(near.sum())
            if near.any():
                ids = listed([examples.ids[row] for row in rows[near]], 3)
                rows = self._treated(
                    found,
                    rows,
                    rows[~near],
                    f"{near.sum()} of the {count} examples that the bound counts on are near-duplicates of "
                    f"examples that trained or selected the network (such as {ids})",
                    f"{near.sum()} examples that are near-duplicates of those of training were left out, so "
                    "the bound is for inputs that are no such copies",
                    f"{near.sum()} examples counted are near-duplicates of those of training",
                )
        groups = self.groups[part][rows]
        again = len(rows) - len(np.unique(groups))
        found.counts["repeated"] = float(again)
        if again:
            first: dict[int, str] = {}
            pairs = []
            for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
                if group in first:
                    pairs.append(f"{first[group]} and {examples.ids[row]}")
                first.setdefault(group, examples.ids[row])
            rows = self._treated(
                found,
                rows,
                self._one_of_each_group(rows, groups),
                f"{again} of the {len(rows)} examples that the bound counts on are repeated or "
                f"near-duplicates of others (such as {listed(pairs, 3)}), so they are no independent sample",
                f"of near-duplicates one each is counted ({again} left out), so the bound is for inputs that "
                "are drawn without regard to how often they are repeated",
                f"{again} examples counted are near-duplicates of others",
            )
        if not len(rows):
            raise DataError(f"all {count} examples of the bound are near-duplicates of those of training")
        return rows, found

    def held_out(self) -> tuple[Rows, Found]:
        """Return the test examples that are no near-duplicates, for the bound beside a certificate."""
        every = np.arange(len(self.task.test))
        if met := self.start.shared(self.task.test, every):
            text = (
                f"no bound by the held-out examples: the weights {self.start.name} have seen {len(met)} of "
                f"the {len(every)}"
            )
            return every[:0], Found(assumptions=[text])
        rows = every[~self._near_training("test", every)]
        if self.repeats != "allow":
            rows = self._one_of_each_group(rows, self.groups["test"][rows])
        left = len(every) - len(rows)
        found = Found({"left_out_of_held_out": float(left)})
        if left:
            found.assumptions.append(
                f"{left} held-out examples that are near-duplicates of training's or of one another were "
                "left out"
            )
        return rows, found

    def _near_training(self, part: str, rows: Rows) -> NDArray[np.bool_]:
        """Return which rows are near-duplicates of training or validation examples."""
        seen = np.concatenate([self.groups["train"], self.groups["val"]])
        return np.isin(self.groups[part][rows], seen)

    def _one_of_each_group(self, rows: Rows, groups: Rows) -> Rows:
        """Return one random row of each group, sorted."""
        order = np.random.default_rng([self.seed, KEPT_KEY]).permutation(len(rows))
        _, first = np.unique(groups[order], return_index=True)
        return np.sort(rows[order[first]])

    def _treated(
        self, found: Found, rows: Rows, without: Rows, refusal: str, dropped: str, allowed: str
    ) -> Rows:
        """Refuse, drop or allow copies, and add to `found` which; return the rows that are counted."""
        if self.repeats == "drop":
            found.assumptions.append(dropped)
            return without
        if self.repeats == "allow":
            found.assumptions.append(
                f"{allowed}: they are independent draws of a distribution that has such repeats"
            )
        else:
            self._refuse_or_note(
                found,
                f"{refusal}; remove copies before splitting, or give --repeats drop, which counts no copy, "
                "or --repeats allow if the examples were drawn independently from a distribution that has "
                "such repeats",
            )
        return rows

    def _refuse_or_note(self, found: Found, why: str) -> None:
        """Raise DataError, or with `diagnostic` note the failure."""
        if not self.diagnostic:
            raise DataError(why)
        found.failures.append(why)

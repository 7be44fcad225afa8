"""Digests of the examples that a run was made from, and what differs from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.contents import Digests, as_digests, digest_bytes, image_digests
from hesstune.data.examples import PARTS, Examples, Task
from hesstune.errors import RunError, listed
from hesstune.runs.config import FinetuneConfig
from hesstune.storage.tensors import digest, digest_of_texts, load_tree, save_tree
from hesstune.weak.votes import Votes

__all__ = ["DataRecord", "PartRecord", "content_digests", "label_digests"]

# Ids that a message names at most.
NAMED = 3
# Images that are read together from a source without digests of its own.
BATCH = 256
# The step, and a shift that keeps simple fractions away from the borders of steps.
SOFT_STEP, SHIFT = 1e-3, 0.318


@dataclass(frozen=True)
class PartRecord:
    """The examples of a part, in their order.

    Attributes:
        ids: One id an example.
        contents: (N, 16) digests of the images or texts, alike for equal contents in any run and part.
        labels: (N, 16) digests of all that the data says of the class.
        trained: (N,) int64 labels to train on: those of the data, or noisy ones if noise is injected.
    """

    ids: list[str]
    contents: Digests
    labels: Digests
    trained: NDArray[np.int64]

    @classmethod
    def of(cls, part: Examples, classes: list[str], injected: bool, anew: bool) -> PartRecord:
        """Record a part; see `label_digests` and `content_digests`."""
        trained = np.full(len(part), -1) if part.labels is None else part.labels
        return cls(part.ids, content_digests(part, anew), label_digests(part, classes, injected), trained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the record as tensors; the ids are JSON, in bytes."""
        ids = np.frombuffer(json.dumps(self.ids).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "ids": ids,
            "contents": self.contents,
            "labels": self.labels,
            "trained": self.trained,
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> PartRecord:
        """Return the record that `tensors` gave; raise ValueError where they are no such record."""
        ids = json.loads(tensors["ids"].numpy().tobytes())
        contents, labels, trained = (tensors[name].numpy() for name in ("contents", "labels", "trained"))
        if not len(ids) == len(contents) == len(labels) == len(trained) or not all(
            isinstance(one, str) for one in ids
        ):
            raise ValueError("one id, two digests and one label an example are needed")
        return cls(ids, contents, labels, trained)


@dataclass(frozen=True)
class DataRecord:
    """The examples of a run by part, as digests.

    Attributes:
        classes: Class names.
        parts: A record for each of `PARTS`.
    """

    classes: list[str]
    parts: dict[str, PartRecord]

    @classmethod
    def of(cls, task: Task, config: FinetuneConfig, data: Any) -> DataRecord:
        """Record the examples of a run.

        Args:
            task: The examples, labelled as they are trained on.
            config: The run's configuration.
            data: What was given in place of the data that the configuration names. A task that was made
                earlier may have been changed since it was read, so its contents are digested anew.
        """
        how = bool(config.inject_noise), isinstance(data, Task)
        return cls(task.classes, {n: PartRecord.of(getattr(task, n), task.classes, *how) for n in PARTS})

    def checksums(self) -> dict[str, str]:
        """Return one checksum for the classes and one for each part."""
        found = {name: digest(part.tensors()) for name, part in self.parts.items()}
        return {"classes": digest({}, json.dumps(self.classes)), **found}

    def save(self, path: Path) -> None:
        """Write the record as safetensors, whole or not at all.

        Raises:
            RunError: If it cannot be written.
        """
        parts = {name: part.tensors() for name, part in self.parts.items()}
        save_tree(path, {"classes": self.classes, "parts": parts})

    @classmethod
    def load(cls, path: Path) -> DataRecord:
        """Read what `save` wrote.

        Raises:
            RunError: If the file is missing or damaged.
        """
        tree = load_tree(path)
        try:
            parts = {name: PartRecord.of_tensors(tree["parts"][name]) for name in PARTS}
            return cls([str(name) for name in tree["classes"]], parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is no record of a run's examples") from error

    def difference(self, now: DataRecord) -> str:
        """Say what is different now: which examples, and how many of them."""
        then_ids = [name for part in self.parts.values() for name in part.ids]
        now_ids = [name for part in now.parts.values() for name in part.ids]
        gone = sorted((Counter(then_ids) - Counter(now_ids)).elements())
        new = sorted((Counter(now_ids) - Counter(then_ids)).elements())
        told = []
        if gone:
            told.append(f"{len(gone)} of {len(then_ids)} examples missing ({listed(gone, NAMED)})")
        if new:
            told.append(f"{len(new)} new ({listed(new, NAMED)})")
        if self.classes != now.classes:
            told.append(f"the classes were {listed(self.classes)} and are {listed(now.classes)}")
        for what in ("contents", "labels"):
            if changed := self._changed(now, what):
                told.append(
                    f"{what} of {len(changed)} of {len(then_ids)} examples changed ({listed(changed, NAMED)})"
                )
        if told or (moved := self._moved(now)):
            return "; ".join(told or [moved])
        changed = self._changed(now, "trained")
        return (
            f"the noise injected into the labels of {len(changed)} of {len(then_ids)} examples changed "
            f"({listed(changed, NAMED)}), so the matrix that --inject-noise names is another one"
        )

    def _changed(self, now: DataRecord, what: str) -> list[str]:
        """Return the ids of examples that are there still, and differ in a field."""
        then, after = self._by_id(what), now._by_id(what)
        return sorted(name for name, rows in then.items() if after.get(name, rows) != rows)

    def _by_id(self, what: str) -> dict[str, list[bytes]]:
        """Return each id's digests; several where an id is not unique."""
        found: dict[str, list[bytes]] = {}
        for part in self.parts.values():
            for name, row in zip(part.ids, getattr(part, what), strict=True):
                found.setdefault(name, []).append(row.tobytes())
        return {name: sorted(rows) for name, rows in found.items()}

    def _moved(self, now: DataRecord) -> str:
        """Name the first example that has another place, of the same examples."""
        for part, before in self.parts.items():
            after = now.parts[part].ids
            for at in range(max(len(before.ids), len(after))):
                pair = [ids[at] if at < len(ids) else "none" for ids in (before.ids, after)]
                if pair[0] != pair[1]:
                    return (
                        f"the examples have another order or other parts (example {at} of the part {part} "
                        f"was {pair[0]} and is {pair[1]})"
                    )
        return ""


def content_digests(part: Examples, anew: bool) -> Digests:
    """Return the digest of every example's image or text, (N, 16), in the order of the part.

    Image files are known by their bytes, whatever their names, and other images by their pixels as given.
    A source that keeps no digests is read once, in batches, and its decoded pixels are digested. With `anew`
    this counts as it is now: files are read again, and decoded images are known by their pixels.
    """
    own: Callable[[NDArray[np.int64], bool], Digests] | None = getattr(part.source, "digests", None)
    if own is not None:
        return own(part.rows, anew)
    batches = [part.rows[at : at + BATCH] for at in range(0, len(part), BATCH)]
    found = [image_digests(part.source.batch(rows).permute(0, 2, 3, 1).numpy()) for rows in batches]  # type: ignore[union-attr]
    return np.concatenate([as_digests([]), *found])


def label_digests(part: Examples, classes: Sequence[str], injected: bool) -> Digests:
    """Return the digest of what the data says of every example's class, (N, 16), in the order of the part.

    With injected noise it is the true label, or the one that a person gave to a checked example: noisy labels
    depend on the order of the examples. Otherwise it is the label to train on, the true label, and the label
    before a person checked it. Votes and soft labels count, too. Beside votes a label model may have made
    the soft labels, whose last digits then differ between machines: there they count in steps of 0.001.
    """
    labels, true, given = part.labels, part.true, part.given
    if injected:
        if labels is not None and true is not None:
            labels = true if part.clean is None else np.where(part.clean, labels, true)
        true = given = None
    columns = [
        [classes[label] for label in values.tolist()] if values is not None else [None] * len(part)
        for values in (labels, true, given)
    ]
    columns.append([None] * len(part) if part.clean is None else [str(sure) for sure in part.clean])
    votes, soft = part.votes, part.soft if part.given_soft is None else part.given_soft
    if soft is not None and votes is not None:
        soft = np.floor(soft / SOFT_STEP + SHIFT)
    cast = [b""] * len(part) if votes is None else _vote_bytes(votes)
    probable = [b""] * len(part) if soft is None else [np.ascontiguousarray(row).tobytes() for row in soft]
    return as_digests(
        digest_bytes(digest_of_texts(names).encode(), *numbers)
        for *numbers, names in zip(cast, probable, zip(*columns, strict=True), strict=True)
    )


def _vote_bytes(votes: Votes) -> list[bytes]:
    """Return each example's votes, with the names of those who vote, as bytes."""
    if votes.is_table:
        names = digest_of_texts(votes.names).encode()
        soft = [b""] * len(votes) if votes.soft is None else [row.tobytes() for row in votes.soft]
        return [names + row.tobytes() + more for row, more in zip(votes.table, soft, strict=True)]
    ballots = votes.ballots
    ends = np.searchsorted(ballots.example, np.arange(len(votes) + 1))
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        given = sorted(
            (votes.names[who], str(vote))
            for who, vote in zip(ballots.labeler[start:end], ballots.vote[start:end], strict=True)
        )
        found.append(digest_of_texts(text for pair in given for text in pair).encode())
    return found

"""Checksums of a run's examples, weights and files, and the checks that nothing has changed."""

from __future__ import annotations

import bisect
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import PARTS, Digests, Examples, Task, as_digests, digest_bytes, image_digests
from hesstune.errors import ChangedDataError, HesstuneWarning, RunError, listed
from hesstune.reference import Reference
from hesstune.runs.read_records import Records
from hesstune.runs.records import CONFIG, DATA, LABELS, MODEL, NOISE_MATRIX, REFERENCE
from hesstune.storage.files import reading
from hesstune.storage.seen_examples import SeenExamples
from hesstune.storage.tensors import digest, digest_of_texts, load_tree, save_tree
from hesstune.weak.votes import Votes

# Ids that a message names at most.
NAMED = 3
# Images that are read together from a source without digests of its own.
BATCH = 256
# The step of soft labels, and a shift that keeps simple fractions away from the borders of steps.
SOFT_STEP, SHIFT = 1e-3, 0.318


@dataclass(frozen=True)
class PartRecord:
    """The examples of a part, in their order."""

    ids: list[str]
    contents: Digests  # (N, 16) of images or texts, alike for equal contents in any run and part
    labels: Digests  # (N, 16) of all that the data says of the class
    trained: NDArray[np.int64]  # (N,) labels to train on: of the data, or noisy ones if noise is injected

    @classmethod
    def of(cls, part: Examples, classes: list[str], injected: bool, anew: bool) -> PartRecord:
        """Record a part; see `label_digests` and `content_digests`."""
        trained = np.full(len(part), -1) if part.labels is None else part.labels
        return cls(part.ids, content_digests(part, anew), label_digests(part, classes, injected), trained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the record as tensors; the ids are JSON, in bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.frombuffer(json.dumps(self.ids).encode(), np.uint8),
            "contents": self.contents,
            "labels": self.labels,
            "trained": self.trained,
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> PartRecord:
        """Return the record that `tensors` gave; raise ValueError if they are no such record."""
        ids = json.loads(tensors["ids"].numpy().tobytes())
        contents, labels, trained = (tensors[name].numpy() for name in ("contents", "labels", "trained"))
        if not len(ids) == len(contents) == len(labels) == len(trained) or not all(
            isinstance(one, str) for one in ids
        ):
            raise ValueError("one id, two digests and one label an example are needed")
        return cls(ids, contents, labels, trained)


@dataclass(frozen=True)
class DataRecord:
    """The examples of a run as digests, a record for each of `PARTS`."""

    classes: list[str]
    parts: dict[str, PartRecord]

    @classmethod
    def of(cls, task: Task, injected: bool, data: Any) -> DataRecord:
        """Record the examples of a run, which have the labels that they are trained on.

        If the `data` that was given is a task, it may have been changed since it was read, so its contents
        are digested anew. `injected` says whether noise is injected into the labels.
        """
        how = injected, isinstance(data, Task)
        return cls(task.classes, {n: PartRecord.of(getattr(task, n), task.classes, *how) for n in PARTS})

    def checksums(self) -> dict[str, str]:
        """Return one checksum for the classes and one for each part."""
        found = {name: digest(part.tensors()) for name, part in self.parts.items()}
        return {"classes": digest({}, json.dumps(self.classes)), **found}

    def save(self, path: Path) -> None:
        """Write the record as safetensors, whole or not at all; RunError if it cannot be written."""
        parts = {name: part.tensors() for name, part in self.parts.items()}
        save_tree(path, {"classes": self.classes, "parts": parts})

    @classmethod
    def load(cls, path: Path) -> DataRecord:
        """Read what `save` wrote; RunError if the file is missing or damaged."""
        tree = load_tree(path)
        try:
            parts = {name: PartRecord.of_tensors(tree["parts"][name]) for name in PARTS}
            return cls([str(name) for name in tree["classes"]], parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is no record of a run's examples") from error

    def difference(self, now: DataRecord) -> str:
        """Say what is different now: which examples, and how many of them."""
        before, after = ([name for part in one.parts.values() for name in part.ids] for one in (self, now))
        gone = sorted((Counter(before) - Counter(after)).elements())
        new = sorted((Counter(after) - Counter(before)).elements())
        messages = []
        if gone:
            messages.append(f"{len(gone)} of {len(before)} examples missing ({listed(gone, NAMED)})")
        if new:
            messages.append(f"{len(new)} new ({listed(new, NAMED)})")
        if self.classes != now.classes:
            messages.append(f"the classes were {listed(self.classes)} and are {listed(now.classes)}")
        changed = {what: self._changed(now, what) for what in ("contents", "labels", "trained")}
        noise = changed.pop("trained")
        messages += [
            f"{what} of {len(names)} of {len(before)} examples changed ({listed(names, NAMED)})"
            for what, names in changed.items()
            if names
        ]
        if messages:
            return "; ".join(messages)
        for name, part in self.parts.items():
            for at, pair in enumerate(zip_longest(part.ids, now.parts[name].ids, fillvalue="none")):
                if pair[0] != pair[1]:
                    return (
                        f"the examples have another order or other parts (example {at} of the part {name} "
                        f"was {pair[0]} and is {pair[1]})"
                    )
        return (
            f"the noise injected into the labels of {len(noise)} of {len(before)} examples changed "
            f"({listed(noise, NAMED)}), so the matrix that --inject-noise names is another one"
        )

    def _changed(self, now: DataRecord, what: str) -> list[str]:
        """Return the ids of examples that are there still, and differ in a field; an id may not be unique."""
        found: list[dict[str, list[bytes]]] = [{}, {}]
        for rows, record in zip(found, (self, now), strict=True):
            for part in record.parts.values():
                for name, row in zip(part.ids, getattr(part, what), strict=True):
                    bisect.insort(rows.setdefault(name, []), row.tobytes())
        return sorted(name for name, own in found[0].items() if found[1].get(name, own) != own)


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
    before a person checked it. Votes and soft labels count, too. A label model may have made soft labels from
    votes, with last digits that differ between machines: these are rounded to steps of 0.001.
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
    ends = np.searchsorted(votes.example, np.arange(len(votes) + 1))
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        given = sorted(
            (votes.names[who], str(vote))
            for who, vote in zip(votes.annotator[start:end], votes.vote[start:end], strict=True)
        )
        found.append(digest_of_texts(text for pair in given for text in pair).encode())
    return found


def check_data(run: Records, now: DataRecord) -> None:
    """Check that examples are those that a run was made from: ids, contents and labels of every part.

    Raises:
        ChangedDataError: If an example differs, naming the first ones.
        RunError: If the run's folder does not say what it was made from.
    """
    then, found = run.facts.checksums, now.checksums()
    if missing := [name for name in found if name not in then]:
        raise RunError(
            f"run.json in {run.path} has no checksum of its {missing[0]} examples, so whether its data has "
            "changed cannot be checked; train again with --overwrite"
        )
    if all(then[name] == value for name, value in found.items()):
        return
    try:
        before = DataRecord.load(run.path / DATA)
        why = "" if before.checksums() == {name: then[name] for name in found} else "is of another run"
    except RunError:
        why = "is missing or damaged"
    if why:
        parts = ", ".join(name for name in (*PARTS, "classes") if then[name] != found[name])
        differs = f"{parts} differ ({DATA}, which would name the examples, {why})"
    else:
        differs = before.difference(now)
    raise ChangedDataError(
        f"the data {run.config.data} is no longer what the run in {run.path} was made from: {differs}; "
        "restore the data, or train again with --overwrite"
    )


def check_labels_file(run: Records, task: Task) -> None:
    """Check that labels.csv, which reports are made from, has the labels that the run was trained on.

    Raises:
        ChangedDataError: If it was changed.
    """
    now = []
    for name in PARTS:
        part = getattr(task, name)
        labels = [""] * len(part) if part.labels is None else [task.classes[at] for at in part.labels]
        now += [(example, name, label) for example, label in zip(part.ids, labels, strict=True)]
    if [(row["id"], row["part"], row["label"]) for row in run.labels] != now:
        raise ChangedDataError(
            f"{run.path / LABELS} is not as training wrote it; restore it, or train again with --overwrite"
        )


# What a certificate computes with and training wrote; run.json has their checksums.
FILES = (CONFIG, MODEL, REFERENCE, NOISE_MATRIX)


def fingerprints(record: DataRecord, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a run's classes, of its examples by part, and of its starting weights."""
    return {**record.checksums(), "weights": digest(start)}


def of_files(folder: Path) -> dict[str, str]:
    """Return checksums of the files of FILES by name; empty if there is no such file."""
    found = dict.fromkeys(FILES, "")
    for path in (folder / name for name in FILES):
        if path.is_file():
            with reading(path, "a file of a run"), path.open("rb") as file:
                made = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            found[path.name] = made.hexdigest()
    return found


def changed_files(run: Records) -> list[str]:
    """Return the names of files in FILES that were changed, removed or added since training wrote them."""
    then = run.facts.checksums
    return [name for name, now in of_files(run.path).items() if then.get(name) != now]


def check_files(run: Records) -> None:
    """Check that the files a certificate computes with are as training wrote them.

    Raises:
        RunError: If one is not, naming it.
    """
    if changed := changed_files(run):
        raise RunError(
            f"{run.path / changed[0]} is not as training wrote it, so it may depend on the examples that are "
            "counted; restore it, or train again with --overwrite"
        )


def check_weights(run: Records, start: Mapping[str, torch.Tensor]) -> None:
    """Check that weights are those that a run's training started from; RunError if they are not."""
    if run.facts.checksums.get("weights") != digest(start):
        raise RunError(
            f"cannot resume the run in {run.path}: the weights that training starts from of --model "
            f"{run.config.model} changed since it was started; restore them, or start over with --overwrite"
        )


def check_start(before: Records, now: DataRecord, reference: Reference, seen: SeenExamples) -> None:
    """Check that a run is resumed from the same data and weights; restore a damaged reference file.

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    check_data(before, now)
    check_weights(before, {name: reference[name] for name in reference.names()})
    try:
        kept = Reference.load(before.path / REFERENCE)
        same = digest({name: kept[name] for name in kept.names()}) == before.facts.checksums["weights"]
    except RunError:
        same = False
    if not same:
        path = before.path / REFERENCE
        warnings.warn(f"{path} was damaged; it is written anew", HesstuneWarning, stacklevel=2)
        reference.save(path, seen.metadata())

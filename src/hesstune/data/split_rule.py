"""How examples are drawn into training, validation and test parts, and into folds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_number
from hesstune.data.examples import PARTS, Listing
from hesstune.data.parts import each_part
from hesstune.data.reading import SplitRule
from hesstune.errors import DataError, cut, listed
from hesstune.storage.tables import is_missing, read_table

Rows = NDArray[np.int64]


def parts_of_listing(
    found: Listing,
    rule: SplitRule,
    rng: np.random.Generator,
    val_fraction: float,
    test_fraction: float,
    fold: tuple[int, int] | None = None,
    folds_rng: np.random.Generator | None = None,
) -> tuple[dict[str, Rows], str, list[str]]:
    """Draw the parts of a data set that is listed.

    Args:
        found: Its examples; those with parts of their own keep them, and a missing validation part is
            drawn of the training part.
        rule: How.
        rng: Draws the parts.
        val_fraction: Share of all examples for validation, where the data names none.
        test_fraction: Share for the test, where the data names no parts and there are no folds.
        fold: (i, K): the test part is the i-th of K folds. Of `time` the fold comes after all that is
            trained on: K + 1 stretches of time, of which the first i are for training.
        folds_rng: Draws the folds, the same for each of them.

    Returns:
        The rows of each part; how they were drawn, `given` where the data says so; what was done, in
        sentences.

    Raises:
        DataError: If the rule cannot be followed on this data, or contradicts its own parts.
    """
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"the validation and test fractions sum to {val_fraction + test_fraction:g}; it must be below 1"
        )
    draw, parts = _drawer(found, rule, rng)
    drawn = draw.kind if parts is None else "given"
    if parts is not None and fold is not None:
        raise DataError("the data names its parts already, so there are no folds to draw; leave folds out")
    given = np.array(parts if parts is not None else ["train"] * len(found))
    made = {name: np.flatnonzero(given == name) for name in PARTS}
    total = len(made["train"])
    if fold is not None:
        assert folds_rng is not None
        made["train"], made["test"] = draw.fold(made["train"], fold, folds_rng)
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        # A test part is never carved out of data that comes with parts of its own.
        if len(made[name]) or fraction == 0 or (name == "test" and parts is not None):
            continue
        taken = draw.some(made["train"], round(fraction * total))
        made[name], made["train"] = np.sort(taken), np.setdiff1d(made["train"], taken)
    return made, drawn, draw.notes(made)


def _drawer(found: Listing, rule: SplitRule, rng: np.random.Generator) -> tuple[_Draw, list[str] | None]:
    """Return what draws, and the parts that are named, or None."""
    assert found.labels is not None
    kind, told = rule.kind, found.told
    if kind == "file":
        column, told = _of_file(rule.argument, found.ids)
        if column == "split":
            if found.parts is not None:
                raise DataError(f"the data names its parts itself; {rule.argument} may not name others")
            return _Draw("uniform", found.labels, None, rng), told
        kind = "group"
    if kind in ("group", "time"):
        if told is None:
            raise DataError(
                f"the data has no columns, so none is called '{rule.argument}'; give --split FILE, a CSV "
                "file with the columns id and group (or split)"
            )
        if found.parts is not None and kind == "time":
            raise DataError("the data names its parts already; leave --split out")
        keys = _groups(told, found) if kind == "group" else _times(told, found)
        if found.parts is not None:
            _check_apart(keys, found)
        return _Draw(kind, found.labels, keys, rng), found.parts
    return _Draw(kind, found.labels, None, rng), found.parts


class _Draw:
    """Draws rows by one rule."""

    def __init__(
        self, kind: str, labels: Rows, keys: NDArray[np.float64] | Rows | None, rng: np.random.Generator
    ) -> None:
        self.kind, self.labels, self.keys, self.rng = kind, labels, keys, rng

    def some(self, rows: Rows, count: int) -> Rows:
        """Return so many of the rows, or of whole groups or stretches of time nearly so many."""
        if self.keys is None:
            return rows[self._order(rows)[:count]]
        own = self.keys[rows]
        if self.kind == "time":
            return self._latest(rows, count)
        groups = self.rng.permutation(np.unique(own))
        if len(groups) < 2:
            raise DataError("a split by groups needs two groups or more to draw from; there is one")
        chosen: list[int] = []
        taken = 0
        for group in groups:
            size = int((own == group).sum())
            if abs(taken + size - count) < abs(taken - count) and len(chosen) < len(groups) - 1:
                chosen.append(int(group))
                taken += size
        if not chosen:
            sizes = [int((own == group).sum()) for group in groups]
            chosen = [int(groups[int(np.argmin(sizes))])]
        return rows[np.isin(own, chosen)]

    def _latest(self, rows: Rows, count: int) -> Rows:
        """Return about so many of the latest rows; those of one moment stay together."""
        assert self.keys is not None
        order = rows[np.argsort(self.keys[rows], kind="stable")]
        times = self.keys[order]
        changes = np.flatnonzero(np.diff(times)) + 1
        if not len(changes):
            raise DataError("a split by time needs two moments or more to tell apart; there is one")
        at = int(changes[np.abs(changes - (len(order) - count)).argmin()])
        return order[at:]

    def fold(self, rows: Rows, fold: tuple[int, int], rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Return the rows outside, and of, one of K folds; of time, those before it and of it."""
        i, k = fold
        if self.kind == "time":
            return self._stretch(rows, i, k)
        if self.keys is None:
            order = rows[rng.permutation(len(rows))]
            if self.kind == "stratified":  # class by class, dealt in turn: each fold has a share of each
                order = order[np.argsort(self.labels[order], kind="stable")]
            if len(order) < k:
                raise DataError(f"{k} folds need {k} examples or more; there are {len(order)}")
            number = np.arange(len(order)) % k
        else:
            order = rows
            number = self._dealt(rows, k, rng)
        return np.sort(order[number != i - 1]), np.sort(order[number == i - 1])

    def _dealt(self, rows: Rows, k: int, rng: np.random.Generator) -> Rows:
        """Deal groups to folds, the largest first, each to the smallest fold so far."""
        assert self.keys is not None
        groups, at = np.unique(self.keys[rows], return_inverse=True)
        if len(groups) < k:
            raise DataError(f"{k} folds need {k} groups or more; there are {len(groups)}")
        sizes = np.bincount(at)
        shuffled = rng.permutation(len(groups))
        home, filled = np.zeros(len(groups), dtype=np.int64), np.zeros(k)
        for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            home[group] = int(filled.argmin())
            filled[home[group]] += sizes[group]
        return np.asarray(home[at], dtype=np.int64)

    def _stretch(self, rows: Rows, i: int, k: int) -> tuple[Rows, Rows]:
        assert self.keys is not None
        order = rows[np.argsort(self.keys[rows], kind="stable")]
        times = self.keys[order]
        moments = np.unique(times)
        if len(moments) < k + 1:
            raise DataError(f"{k} folds by time need {k + 1} moments or more; there are {len(moments)}")
        # Every stretch has a moment of its own at least, and about as many examples as the others.
        starts = np.searchsorted(times, moments)
        cuts = [0]
        for number in range(1, k + 1):
            free = starts[(starts > cuts[-1]) & (np.arange(len(starts)) <= len(moments) - (k + 1 - number))]
            cuts.append(int(free[np.abs(free - number * len(order) / (k + 1)).argmin()]))
        cuts.append(len(order))
        return np.sort(order[: cuts[i]]), np.sort(order[cuts[i] : cuts[i + 1]])

    def _order(self, rows: Rows) -> Rows:
        """Return positions in a random order; stratified, every start of it has each class's share."""
        shuffled = self.rng.permutation(len(rows))
        if self.kind != "stratified":
            return shuffled
        labels = self.labels[rows]
        rank = np.empty(len(rows))
        for label in np.unique(labels):
            members = shuffled[labels[shuffled] == label]
            rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        return np.argsort(rank, kind="stable")

    def notes(self, made: dict[str, Rows]) -> list[str]:
        """Say how many groups each part has."""
        if self.keys is None or self.kind != "group":
            return []
        counts = {name: len(np.unique(self.keys[rows])) for name, rows in made.items() if len(rows)}
        told = ", ".join(f"{count} for {name}" for name, count in counts.items())
        return [f"no group is in two parts: {told}"]


def _groups(told: Sequence[str], found: Listing) -> Rows:
    if empty := [example for example, value in zip(found.ids, told, strict=True) if is_missing(value)]:
        raise DataError(
            f"{len(empty)} examples name no group: {listed(empty, 4)}; give each a group, or one of its own"
        )
    return np.unique([value.strip() for value in told], return_inverse=True)[1].astype(np.int64)


def _check_apart(keys: NDArray[np.float64] | Rows, found: Listing) -> None:
    """Raise DataError where the parts that the data names share a group."""
    parts = np.array(found.parts)
    for name in PARTS[1:]:
        both = np.intersect1d(keys[parts == "train"], keys[parts == name])
        if len(both):
            at = np.flatnonzero((keys == both[0]) & (parts == name))[0]
            raise DataError(
                f"the data names its parts itself, and {len(both)} groups are in train and {name} alike: "
                f"that of '{cut(found.ids[at])}' is one; take the parts out of the data, and --split draws "
                "them"
            )


def _times(told: Sequence[str], found: Listing) -> NDArray[np.float64]:
    """Read numbers or dates and times of ISO 8601 as numbers; all of one kind."""
    numbers = [parse_number(value) for value in told]
    if None not in numbers:
        return np.array(numbers, dtype=np.float64)
    moments: list[datetime] = []
    for example, value in zip(found.ids, told, strict=True):
        try:
            moments.append(datetime.fromisoformat(value.strip()))
        except ValueError:
            raise DataError(
                f"'{cut(value)}', the time of the example '{cut(example)}', is no number and no date such as "
                "2024-05-31 or 2024-05-31T14:00"
            ) from None
    if len({moment.tzinfo is None for moment in moments}) > 1:
        raise DataError("some times name a time zone and some do not; write all of them alike")
    first = min(moments)
    return np.array([(moment - first).total_seconds() for moment in moments])


def _of_file(path: str, ids: Sequence[str]) -> tuple[str, list[str]]:
    """Read each example's part or group from a CSV file with the columns id and split or group."""
    table = read_table(path, "the file of the split")
    column = next((name for name in ("group", "split") if name in table), None)
    if "id" not in table or column is None or ("group" in table and "split" in table):
        raise DataError(
            f"{path} needs a column 'id' and either 'split' (train, val, test) or 'group'; got "
            f"{listed(table.columns)}"
        )
    named = table.cells("id")
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise DataError(f"{path} names the id '{cut(twice)}' twice; name each example once")
    cells = table.cells(column)
    if column == "split":
        cells = each_part(table.columns["split"], f"the column 'split' of {path}")[0]
    known = dict(zip(named, cells, strict=True))
    if missing := [example for example in ids if example not in known]:
        raise DataError(
            f"{path} does not name {len(missing)} of the {len(ids)} examples: {listed(missing, 4)}; its ids "
            "are those of the data (its column id, the images' paths, or row numbers from 0)"
        )
    if extra := sorted(set(named) - set(ids)):
        raise DataError(f"{path} names examples that the data has not: {listed(extra, 4)}")
    return column, [known[example] for example in ids]

"""How examples are drawn into training, validation and test parts, and into folds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_number
from hesstune.data.examples import PARTS, Listing
from hesstune.data.reading import SplitRule
from hesstune.data.tables import each_part
from hesstune.errors import DataError, cut, listed
from hesstune.noise.latent.copies import has_copies, joined
from hesstune.storage.columns import is_missing
from hesstune.storage.tables import read_table

Rows = NDArray[np.int64]


def draw_parts(
    found: Listing,
    rule: SplitRule,
    rng: np.random.Generator,
    val_fraction: float,
    test_fraction: float,
    fold: tuple[int, int] | None = None,
    folds_rng: np.random.Generator | None = None,
) -> tuple[dict[str, Rows], str, list[str]]:
    """Return the rows of each part; how they were drawn, `given` if the data names them; and notes.

    Parts that the data names are kept; a missing validation part is drawn from the training part. With a fold
    (i, K) the test part is fold i of K, drawn by `folds_rng`, the same for all folds. By time there are K + 1
    stretches of time: the first i are for training and the next is the fold. Copies of an example are drawn
    into one part, as one; only by time and between parts that the data names they may be in two. DataError is
    raised if the rule cannot be followed on this data, or contradicts its own parts.
    """
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"the validation and test fractions sum to {val_fraction + test_fraction:g}; it must be below 1"
        )
    draw, parts = _drawer(found, rule, rng)
    if parts is not None and fold is not None:
        raise DataError("the data names its parts already, so there are no folds to draw; leave folds out")
    named = np.array(["train"] * len(found) if parts is None else parts)
    made = {name: np.flatnonzero(named == name) for name in PARTS}
    copies = np.arange(len(found)) if found.copies is None else found.copies
    home, drawn = made["train"], {"train"}
    alone = draw.keys is not None or not has_copies(copies[home])
    if not alone:  # the first of each group is drawn, and the others go with it
        made["train"] = np.sort(home[np.unique(copies[home], return_index=True)[1]])
    total = len(made["train"])
    if fold is not None:
        assert folds_rng is not None
        made["train"], made["test"] = draw.fold(made["train"], fold, folds_rng)
        drawn.add("test")
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        # Data with parts of its own keeps its training part: no test part is drawn from it.
        if len(made[name]) or fraction == 0 or (name == "test" and parts is not None):
            continue
        taken = draw.some(made["train"], round(fraction * total))
        made[name], made["train"] = np.sort(taken), np.setdiff1d(made["train"], taken)
        drawn.add(name)
    if not alone:
        whole = {name: home[np.isin(copies[home], copies[made[name]])] for name in drawn}
        made.update(whole)
    notes = _copy_notes(made, copies)
    if draw.kind == "group":
        assert draw.keys is not None
        counts = {name: len(np.unique(draw.keys[rows])) for name, rows in made.items() if len(rows)}
        shown = ", ".join(f"{count} for {name}" for name, count in counts.items())
        notes.append(f"no group is in two parts: {shown}")
    return made, draw.kind if parts is None else "given", notes


def _drawer(found: Listing, rule: SplitRule, rng: np.random.Generator) -> tuple[_Draw, list[str] | None]:
    """Return the draw, and the parts that the data or a file names, or None."""
    assert found.labels is not None
    kind, values = rule.kind, found.split_values
    if kind == "file":
        column, values = _read_split_file(rule.argument, found.ids)
        if column == "split":
            if found.parts is not None:
                raise DataError(f"the data names its parts itself; {rule.argument} may not name others")
            return _Draw("uniform", found.labels, None, rng), values
        kind = "group"
    if kind not in ("group", "time"):
        return _Draw(kind, found.labels, None, rng), found.parts
    if values is None:
        raise DataError(
            f"the data has no columns, so none is called '{rule.argument}'; give --split FILE, a CSV file "
            "with the columns id and group (or split)"
        )
    if found.parts is not None and kind == "time":
        raise DataError("the data names its parts already; leave --split out")
    keys: NDArray[np.float64] | Rows = _times(values, found) if kind == "time" else _groups(values, found)
    if kind == "group" and found.copies is not None and found.parts is None:
        keys = joined(keys.astype(np.int64), found.copies)
    return _Draw(kind, found.labels, keys, rng), found.parts


def _copy_notes(made: dict[str, Rows], copies: Rows) -> list[str]:
    """Return how many examples are copies, and how many of other parts are copies of training examples."""
    sizes = np.bincount(copies)
    notes = []
    if count := int((sizes > 1).sum()):
        many = int(sizes[sizes > 1].sum())
        notes.append(f"{many} of {len(copies)} examples are copies of one another, in {count} groups")
    for name in PARTS[1:]:
        others = [made[other] for other in ("train", "val") if other != name]
        if shared := int(np.isin(copies[made[name]], copies[np.concatenate(others)]).sum()):
            notes.append(
                f"{shared} of the {len(made[name])} {name} examples are copies of others to learn from: "
                f"{name} accuracy is too high; take them out, or the parts out of the data"
            )
    return notes


class _Draw:
    """Draws rows by one rule; keys are the examples' groups or times, (N,)."""

    def __init__(
        self, kind: str, labels: Rows, keys: NDArray[np.float64] | Rows | None, rng: np.random.Generator
    ) -> None:
        self.kind, self.labels, self.keys, self.rng = kind, labels, keys, rng

    def some(self, rows: Rows, count: int) -> Rows:
        """Return `count` of the rows, or nearly so many in whole groups or stretches of time."""
        if self.keys is None:
            return rows[self._order(rows)[:count]]
        if self.kind == "time":
            order, times = self._by_time(rows)
            changes = np.flatnonzero(np.diff(times)) + 1  # examples of one moment stay together
            if not len(changes):
                raise DataError("a split by time needs two moments or more to tell apart; there is one")
            return order[int(changes[np.abs(changes - (len(order) - count)).argmin()]) :]
        own = self.keys[rows]
        groups, sizes = np.unique(own, return_counts=True)
        if len(groups) < 2:
            raise DataError("a split by groups needs two groups or more to draw from; there is one")
        order = self.rng.permutation(len(groups))
        chosen: list[int] = []
        taken = 0
        for at in order:
            if abs(taken + sizes[at] - count) < abs(taken - count) and len(chosen) < len(groups) - 1:
                chosen.append(at)
                taken += sizes[at]
        chosen = chosen or [order[int(np.argmin(sizes[order]))]]
        return rows[np.isin(own, groups[chosen])]

    def fold(self, rows: Rows, fold: tuple[int, int], rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Return the rows outside and of one of K folds; by time, the rows before it and of it."""
        i, k = fold
        if self.kind == "time":
            return self._stretch(rows, i, k)
        if self.keys is not None:
            order, number = rows, self._deal_groups(rows, k, rng)
        else:
            order = rows[rng.permutation(len(rows))]
            if self.kind == "stratified":  # class by class, in turn: each fold has a share of each class
                order = order[np.argsort(self.labels[order], kind="stable")]
            if len(order) < k:
                raise DataError(f"{k} folds need {k} examples or more; there are {len(order)}")
            number = np.arange(len(order)) % k
        return np.sort(order[number != i - 1]), np.sort(order[number == i - 1])

    def _deal_groups(self, rows: Rows, k: int, rng: np.random.Generator) -> Rows:
        """Return the fold of each row: groups, the largest first, each go to the smallest fold so far."""
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
        """Return what lies before stretch i + 1 of k + 1 stretches of time, and that stretch."""
        order, times = self._by_time(rows)
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

    def _by_time(self, rows: Rows) -> tuple[Rows, NDArray[np.float64] | Rows]:
        assert self.keys is not None
        order = rows[np.argsort(self.keys[rows], kind="stable")]
        return order, self.keys[order]

    def _order(self, rows: Rows) -> Rows:
        """Return positions in a random order; if stratified, every start of it has each class's share."""
        shuffled = self.rng.permutation(len(rows))
        if self.kind != "stratified":
            return shuffled
        labels = self.labels[rows]
        rank = np.empty(len(rows))
        for label in np.unique(labels):
            members = shuffled[labels[shuffled] == label]
            rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        return np.argsort(rank, kind="stable")


def _groups(values: Sequence[str], found: Listing) -> Rows:
    """Return group numbers, (N,); raise DataError if one is missing, or in two parts that the data names."""
    if empty := [example for example, value in zip(found.ids, values, strict=True) if is_missing(value)]:
        raise DataError(
            f"{len(empty)} examples name no group: {listed(empty, 4)}; give each a group, or one of its own"
        )
    keys = np.unique([value.strip() for value in values], return_inverse=True)[1].astype(np.int64)
    parts = np.array(found.parts or ["train"] * len(found))
    for name in PARTS[1:]:
        both = np.intersect1d(keys[parts == "train"], keys[parts == name])
        if len(both):
            at = np.flatnonzero((keys == both[0]) & (parts == name))[0]
            raise DataError(
                f"the data names its parts itself, and {len(both)} groups are in train and {name} alike: "
                f"that of '{cut(found.ids[at])}' is one; take the parts out of the data, and --split draws "
                "them"
            )
    return keys


def _times(values: Sequence[str], found: Listing) -> NDArray[np.float64]:
    """Read numbers, or dates and times of ISO 8601, as numbers."""
    numbers = [parse_number(value) for value in values]
    if None not in numbers:
        return np.array(numbers, dtype=np.float64)
    moments: list[datetime] = []
    for example, value in zip(found.ids, values, strict=True):
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


def _read_split_file(path: str, ids: Sequence[str]) -> tuple[str, list[str]]:
    """Read each example's part or group from a CSV file with the columns id and split or group."""
    table = read_table(path, "the file of the split")
    columns = [name for name in ("group", "split") if name in table]
    if "id" not in table or len(columns) != 1:
        raise DataError(
            f"{path} needs a column 'id' and either 'split' (train, val, test) or 'group'; got "
            f"{listed(table.columns)}"
        )
    named, cells = table.cells("id"), table.cells(columns[0])
    if columns == ["split"]:
        cells = each_part(table.columns["split"], f"the column 'split' of {path}")[0]
    known = dict(zip(named, cells, strict=True))
    if len(known) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise DataError(f"{path} names the id '{cut(twice)}' twice; name each example once")
    if missing := [example for example in ids if example not in known]:
        raise DataError(
            f"{path} does not name {len(missing)} of the {len(ids)} examples: {listed(missing, 4)}; its ids "
            "are those of the data (its column id, the images' paths, or row numbers from 0)"
        )
    if extra := sorted(set(named) - set(ids)):
        raise DataError(f"{path} names examples that the data has not: {listed(extra, 4)}")
    return columns[0], [known[example] for example in ids]

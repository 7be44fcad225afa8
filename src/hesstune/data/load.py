"""From a data specification to a task: decode, split, limit."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hesstune.data.class_labels import alike, labels_among
from hesstune.data.examples import (
    PARTS,
    REWRITTEN,
    Examples,
    ImageSource,
    Listing,
    Task,
    Texts,
)
from hesstune.data.groups import group_notes
from hesstune.data.images import DecodedImages, FileImages, decode_all
from hesstune.data.label_sources import source_notes
from hesstune.data.objects import listing_of_object
from hesstune.data.reading import WHITE, Reading, SplitRule, fold_of
from hesstune.data.rgb import Oddities
from hesstune.data.sources import listing
from hesstune.data.split_rule import parts_of_listing
from hesstune.errors import DataError, cut, listed
from hesstune.storage.tables import is_missing

# Two examples of a class are the least that a split can share between training and test.
FEWEST_A_CLASS = 2
# Data sets kept decoded while `reusing_decoded` lasts.
MOST_DECODED = 4


def load_task(
    spec: Any,
    *,
    size: int,
    seed: int = 0,
    split: str = "uniform",
    fold: str | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    limit: int | None = None,
    skip_bad: bool = False,
    cache_mib: int = 4096,
    how: Reading | None = None,
    corrected_test: bool = False,
) -> Task:
    """Load a labelled data set and split it.

    Args:
        spec: See `hesstune.data.sources.listing`; or an object, see `hesstune.data.objects`.
        size: Side of the images in pixels; texts ignore it.
        seed: Seed of the split and the limit.
        split: `uniform` draws the parts uniformly at random, as certificates need; `stratified`
            keeps the class proportions, `group:COLUMN` keeps the examples of a group in one part,
            `time:COLUMN` tests on the latest: these are no i.i.d. samples. Or the path of a CSV file with
            the columns id and split, or id and group. Parts the data gives are kept.
        fold: `I/K`: the test part is the I-th of K folds drawn by `split`. The folds are the same for all
            seeds from sK to sK + K − 1.
        val_fraction: Share of the examples for validation, where the data names none.
        test_fraction: Share of the examples for the test, where the data names none.
        limit: At most so many training examples, drawn uniformly.
        skip_bad: Leave out images that cannot be decoded instead of raising.
        cache_mib: Memory for decoded images.
        how: Which columns hold what, how votes become labels, and what lies behind transparent images.
        corrected_test: Keep test labels that `hesstune clean` rewrote; else they are as they were given.

    Raises:
        DataError: If an image is damaged, or a class has too few images.
    """
    rule = SplitRule.parse(split)
    how = replace(how or Reading(), told=rule.column)
    found, source, skipped = _labelled(spec, size, skip_bad, cache_mib, how)
    assert found.labels is not None
    if found.votes is None:  # a label model may well leave a class without an example
        _check_counts(found.labels, found.classes, found.parts)
    rng = np.random.default_rng([seed, 0x5117])
    at = None if fold is None else fold_of(fold)
    folds_rng = None if at is None else np.random.default_rng([seed // at[1], 0xF01D])
    parts, drawn, told = parts_of_listing(found, rule, rng, val_fraction, test_fraction, at, folds_rng)
    if limit is not None and limit < len(parts["train"]):
        parts["train"] = np.sort(rng.permutation(parts["train"])[:limit])
    if not len(parts["train"]):
        raise DataError("no training example is left; lower the validation and test fractions")
    made, more = _divided(found, source, parts, corrected_test)
    unseen = _unseen(found.labels[parts["train"]], found.classes)
    groups = {name: n for name, n in found.groups.items() if drawn != "group" or name != rule.column}
    notes = [*told, *more, *found.notes, *alike(found.classes), *unseen, *group_notes(groups, len(found))]
    return Task(
        found.classes,
        made["train"],
        made["val"],
        made["test"],
        drawn,
        found.flip,
        skipped,
        found.unlabelled,
        notes,
        groups,
    )


def _divided(
    found: Listing, source: ImageSource | Texts, parts: dict[str, NDArray[np.int64]], corrected_test: bool
) -> tuple[dict[str, Examples], list[str]]:
    """Return the examples of each part, and what should be known of where their labels come from."""
    whole = Examples(
        source,
        np.arange(len(found)),
        found.ids,
        found.labels,
        votes=found.votes,
        soft=found.soft,
        label_sources=found.label_sources,
    )
    made, notes = {name: whole.take(rows) for name, rows in parts.items()}, list[str]()
    if not corrected_test:
        made["test"], notes = _as_given(made["test"], found, parts["test"])
    return made, [*notes, *(note for name in PARTS for note in source_notes(made[name], name))]


def _as_given(test: Examples, found: Listing, rows: NDArray[np.int64]) -> tuple[Examples, list[str]]:
    """Return the test part with its labels as they were before `hesstune clean` rewrote them."""
    changed = test.count_source(REWRITTEN)
    if not changed or found.before is None or test.label_sources is None:
        return test, []
    before = found.before[rows]
    sources = ["" if source == REWRITTEN else source for source in test.label_sources]
    kept = np.flatnonzero(before >= 0)
    notes = [
        f"{changed} of {len(test)} test labels had been rewritten by hesstune clean and are as given again "
        "(--corrected-test-labels tests on the rewritten ones)"
    ]
    if len(kept) < len(test):
        lost = [test.ids[at] for at in np.flatnonzero(before < 0)]
        notes.append(f"test examples of classes that no other label has are left out: {listed(lost, 4)}")
    return replace(test, labels=before, label_sources=sources).take(kept), notes


@dataclass(frozen=True)
class NewExamples:
    """Examples to be predicted.

    Attributes:
        examples: All of them; their labels are −1 where they have none of the run's classes, and None
            where none has.
        skipped: (id, reason) of those left out because they could not be decoded.
        notes: What was left out, changed or guessed, and what has no label, in sentences.
    """

    examples: Examples
    skipped: list[tuple[str, str]]
    notes: list[str]


def load_examples(
    spec: Any,
    *,
    size: int,
    classes: list[str],
    skip_bad: bool = False,
    cache_mib: int = 4096,
    how: Reading | None = None,
    skip_blank: bool = False,
) -> NewExamples:
    """Load all examples of a data set for prediction, with those labels that are among `classes`.

    Texts that hold nothing are kept, or, with `skip_blank`, left out.
    """
    how = how or Reading()
    found, source, skipped = _decoded(_listed(spec, size, False, how), size, skip_bad, cache_mib, how)
    labels, notes = (None, []) if found.given is None else labels_among(found.given, classes)
    examples = Examples(source, np.arange(len(found)), found.ids, labels, label_sources=found.label_sources)
    notes += [] if labels is None else source_notes(examples, "new")
    blank = [at for at, (text, _) in enumerate(found.texts or ()) if not text.strip()]
    if blank and skip_blank:
        skipped = [*skipped, *((found.ids[at], "the text is blank") for at in blank)]
        examples = examples.take(np.setdiff1d(np.arange(len(found)), blank))
        if not len(examples):
            raise DataError("all texts are blank; --blank-texts predict predicts them all the same")
    elif blank:
        shown = listed((found.ids[at] for at in blank), 4)
        notes.append(f"{len(blank)} of {len(found)} texts are blank, and predicted all the same: {shown}")
    return NewExamples(examples, skipped, [*found.notes, *notes])


def _listed(spec: Any, size: int, labelled: bool, how: Reading) -> Listing:
    make = listing if isinstance(spec, str) else listing_of_object
    return make(spec, size, labelled, how)


_Decoded = tuple[Listing, ImageSource | Texts, list[tuple[str, str]]]
_Images = tuple[DecodedImages | FileImages, dict[int, str], list[str]]
T = TypeVar("T")


class _Held:
    """What is kept: data sets by how they are read, and images by their files, whatever their labels."""

    def __init__(self) -> None:
        self.sets: OrderedDict[tuple[object, ...], _Decoded] = OrderedDict()
        self.images: OrderedDict[tuple[object, ...], _Images] = OrderedDict()

    @staticmethod
    def get(kept: OrderedDict[tuple[object, ...], T], key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what is kept under a key, made now if need be; the oldest gives way."""
        if key not in kept:
            while len(kept) >= MOST_DECODED:
                kept.popitem(last=False)
            kept[key] = make()
        return kept[key]


_REUSED: ContextVar[_Held | None] = ContextVar("decoded", default=None)


@contextlib.contextmanager
def reusing_decoded() -> Iterator[None]:
    """Decode each data set once while this lasts; changes of its files meanwhile are not seen."""
    token = _REUSED.set(_Held() if _REUSED.get() is None else _REUSED.get())
    try:
        yield
    finally:
        _REUSED.reset(token)


def _labelled(spec: Any, size: int, skip_bad: bool, cache_mib: int, how: Reading) -> _Decoded:
    def make() -> _Decoded:
        return _decoded(_listed(spec, size, True, how), size, skip_bad, cache_mib, how)

    held = _REUSED.get()
    if held is None or not isinstance(spec, str):  # an object has no name to be known by
        return make()
    return held.get(held.sets, (spec, size, skip_bad, cache_mib, how), make)


def _images(paths: list[Path], size: int, cache_mib: int, background: tuple[int, int, int]) -> _Images:
    """Decode images, or return those decoded before: another seed's labels change none."""

    def make() -> _Images:
        odd = Oddities()
        source, bad = decode_all(paths, size, cache_mib, background=background, oddities=odd)
        return source, bad, odd.notes(len(paths), background)

    held = _REUSED.get()
    return make() if held is None else held.get(held.images, (size, cache_mib, background, *paths), make)


def _decoded(found: Listing, size: int, skip_bad: bool, cache_mib: int, how: Reading) -> _Decoded:
    """Decode what a listing names; leave out what is damaged, where that is asked for."""
    if found.texts is not None:
        if how.background != WHITE:
            raise DataError("--background is what lies behind images, and the data holds texts; leave it out")
        return replace(found, notes=[*found.notes, *_odd_texts(found)]), Texts(found.texts), []
    source: DecodedImages | FileImages
    if found.paths is not None:
        source, bad, notes = _images(found.paths, size, cache_mib, how.background)
        found = replace(found, notes=[*found.notes, *notes])
    else:
        assert found.array is not None
        source, bad = DecodedImages(found.array, found.digests), found.bad
    if not bad:
        return found, source, []
    if not skip_bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(f"{next(iter(bad.values()))}{more}; --skip-bad-images leaves such files out")
    good = [i for i in range(len(found)) if i not in bad]
    if not good:
        raise DataError("none of the images can be decoded")
    skipped = [(found.ids[i], reason) for i, reason in bad.items()]
    return found.take(good), source.take(good), skipped


def _check_counts(labels: NDArray[np.int64], classes: list[str], parts: list[str] | None) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    few = int(counts.argmin())
    if counts[few] < FEWEST_A_CLASS:
        held = "no example" if counts[few] == 0 else "one example"
        raise DataError(
            f"class '{cut(classes[few])}' has {held}; at least {FEWEST_A_CLASS} are needed to train and test "
            "on it: add some, or take it out"
        )
    if parts is None:
        return
    given = np.array(parts)
    trained = np.bincount(labels[given == "train"], minlength=len(classes))
    if len(absent := np.flatnonzero(trained == 0)):
        held = listed(sorted(set(given[labels == absent[0]])))
        raise DataError(
            f"class '{cut(classes[absent[0]])}' has no training example: all of its {counts[absent[0]]} are "
            f"in the part {held}; move some to train, or take them out"
        )


def _odd_texts(found: Listing) -> list[str]:
    """Say, in sentences or none, which texts look as if they were missing."""
    rows = list(zip(found.ids, found.texts or (), strict=False))
    words = {name: text.strip() for name, (text, _) in rows if text.strip() and is_missing(text)}
    blank = [name for name, (_, other) in rows if other is not None and not other.strip()]
    notes = []
    if words:
        written = listed(sorted(set(words.values())))
        notes.append(f"{len(words)} texts are the mere words {written}, and read so: {listed(words, 3)}")
    if blank:
        notes.append(f"{len(blank)} second texts are blank: {listed(blank, 3)}")
    return notes


def _unseen(trained: NDArray[np.int64], classes: list[str]) -> list[str]:
    """Say, in a sentence or none, which classes the training part has no example of."""
    absent = np.flatnonzero(np.bincount(trained, minlength=len(classes)) == 0)
    told = "classes without a training example in this split, which cannot be learned"
    return [f"{told}: {listed(classes[i] for i in absent)}"] if len(absent) else []

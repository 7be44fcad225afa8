"""From a data string or object to a task: list, decode, split, limit."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import PARTS, REWRITTEN, Examples, ImageSource, Listing, Task, Texts, Vectors
from hesstune.data.formats import listing
from hesstune.data.images import DecodedImages, FileImages, decode_all
from hesstune.data.labels import alike, labels_among, source_notes
from hesstune.data.near_duplicates import copies_in
from hesstune.data.reading import WHITE, Reading, SplitRule, fold_of
from hesstune.data.splits import draw_parts
from hesstune.data.tables import group_notes
from hesstune.errors import DataError, cut, listed
from hesstune.resizing import Size
from hesstune.storage.columns import is_missing

# A split needs two examples of a class, one for training and one for the test.
FEWEST_A_CLASS = 2
# Data sets, and their images, that `reusing_decoded` keeps at most.
MOST_KEPT = 8


def load_task(  # noqa: PLR0913
    spec: Any,
    *,
    size: Size,
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
        spec: A data string or an object; see `hesstune.data.formats`.
        size: Side of the images in pixels, or the rule by which they are resized and cropped.
        seed: Seed of the split and the limit.
        split: `uniform` draws the parts uniformly at random, as certificates need; `stratified` keeps the
            class proportions, `group:COLUMN` keeps the examples of a group in one part, `time:COLUMN` tests
            on the latest. Or the path of a CSV file with the columns id and split, or id and group. Parts
            that the data names are kept.
        fold: `I/K`: the test part is fold I of K, drawn by `split`. The folds are the same for all seeds from
            sK to sK + K − 1.
        val_fraction: Share of the examples for validation, if the data names no such part.
        test_fraction: Share of the examples for the test, if the data names no such part.
        limit: Largest number of training examples; they are drawn uniformly.
        skip_bad: Leave out images that cannot be decoded instead of raising.
        cache_mib: Memory for decoded images; if they do not fit, each batch is decoded anew.
        how: Named columns, how votes become labels, and the background of transparent images.
        corrected_test: Keep test labels that `hesstune clean` replaced; otherwise they are as given.

    Raises:
        DataError: If the data cannot be read, an image is damaged, or a class has too few examples.
    """
    rule = SplitRule.parse(split)
    how = replace(how or Reading(), split_column=rule.column)

    def make() -> _Decoded:
        return _decoded(listing(spec, size, True, how), size, skip_bad, cache_mib, how)

    # Objects have no name to be kept under.
    key = ("data", spec, size, skip_bad, cache_mib, how)
    found, source, skipped = _reused(key, make) if isinstance(spec, str) else make()
    assert found.labels is not None
    labels = found.labels
    if found.votes is None:  # a label model may leave a class without an example
        _check_counts(found.labels, found.classes, found.parts)
    whole = Examples(
        source,
        np.arange(len(found)),
        found.ids,
        found.labels,
        votes=found.votes,
        soft=found.soft,
        label_sources=found.label_sources,
    )
    whole = replace(whole, copies=copies_in([whole])[0])
    found = replace(found, copies=whole.copies)
    rng = np.random.default_rng([seed, 0x5117])
    at = None if fold is None else fold_of(fold)
    folds_rng = None if at is None else np.random.default_rng([seed // at[1], 0xF01D])
    parts, drawn, notes = draw_parts(found, rule, rng, val_fraction, test_fraction, at, folds_rng)
    if limit is not None and limit < len(parts["train"]):
        parts["train"] = np.sort(rng.permutation(parts["train"])[:limit])
    if not len(parts["train"]):
        raise DataError("no training example is left; lower the validation and test fractions")
    made = {name: whole.take(rows) for name, rows in parts.items()}
    if not corrected_test:
        made["test"], more = _with_given_labels(made["test"], found, parts["test"])
        notes = [*notes, *more]
    groups = {name: n for name, n in found.groups.items() if drawn != "group" or name != rule.column}
    notes = [
        *notes,
        *(note for name in PARTS for note in source_notes(made[name], name)),
        *found.notes,
        *alike(found.classes),
        *_classes_without_training(labels[parts["train"]], found.classes),
        *group_notes(groups, len(found)),
    ]
    return Task(
        classes=found.classes,
        **made,
        split=drawn,
        flip=found.flip,
        skipped=skipped,
        unlabelled=found.unlabelled,
        notes=notes,
        possible_groups=groups,
    )


def _with_given_labels(test: Examples, found: Listing, rows: NDArray[np.int64]) -> tuple[Examples, list[str]]:
    """Return the test part with its labels as they were before `hesstune clean` replaced them, and notes."""
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
    """Examples to be predicted."""

    # All of them; a label is −1 if it is missing or none of the run's classes, and labels are None if all
    # are.
    examples: Examples
    skipped: list[tuple[str, str]]  # (id, reason) of examples left out because they could not be decoded
    notes: list[str]  # what was left out, changed or guessed, and what has no label, in sentences


def load_examples(
    spec: Any,
    *,
    size: Size,
    classes: list[str],
    skip_bad: bool = False,
    cache_mib: int = 4096,
    how: Reading | None = None,
    skip_blank: bool = False,
    may_be_empty: bool = False,
) -> NewExamples:
    """Load all examples of a data set for prediction, with the labels that are among `classes`.

    Blank texts are kept, or left out with `skip_blank`. DataError is raised if no image can be decoded,
    unless the result `may_be_empty`. Other arguments: see `load_task`.
    """
    how = how or Reading()
    read = listing(spec, size, False, how)
    found, source, skipped = _decoded(read, size, skip_bad, cache_mib, how, may_be_empty)
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


_Decoded = tuple[Listing, ImageSource | Texts | Vectors, list[tuple[str, str]]]
T = TypeVar("T")
_KEPT: ContextVar[OrderedDict[tuple[object, ...], Any] | None] = ContextVar("decoded", default=None)


@contextlib.contextmanager
def reusing_decoded() -> Iterator[None]:
    """Decode each data set once within this block; later changes of its files are not seen."""
    token = _KEPT.set(OrderedDict() if _KEPT.get() is None else _KEPT.get())
    try:
        yield
    finally:
        _KEPT.reset(token)


def _reused(key: tuple[object, ...], make: Callable[[], T]) -> T:
    """Return what `reusing_decoded` keeps under a key, made now if it is not there."""
    kept = _KEPT.get()
    if kept is None:
        return make()
    if key not in kept:
        made = make()
        while len(kept) >= MOST_KEPT:
            kept.popitem(last=False)
        kept[key] = made
    found: T = kept[key]
    return found


def _decoded(
    found: Listing, size: Size, skip_bad: bool, cache_mib: int, how: Reading, may_be_empty: bool = False
) -> _Decoded:
    """Decode the images of a listing; leave out damaged ones if that is asked for."""
    if how.background != WHITE and (found.texts is not None or found.vectors is not None):
        kind = "feature vectors" if found.texts is None else "texts"
        raise DataError(f"--background is for images, and the data holds {kind}; leave it out")
    if found.vectors is not None:
        return found, found.vectors, []
    if found.texts is not None:
        return replace(found, notes=[*found.notes, *_odd_texts(found)]), Texts(found.texts), []
    source: DecodedImages | FileImages
    if found.paths is not None:
        # Under the paths: the labels of another seed change no image.
        key = ("images", size, cache_mib, how.background, *found.paths)
        paths, colour = found.paths, how.background
        source, bad, notes = _reused(key, lambda: decode_all(paths, size, cache_mib, colour))
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
    if not good and not may_be_empty:
        raise DataError("none of the images can be decoded")
    skipped = [(found.ids[i], reason) for i, reason in bad.items()]
    return found.take(good), source.take(good), skipped


def _check_counts(labels: NDArray[np.int64], classes: list[str], parts: list[str] | None) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    few = int(counts.argmin())
    if counts[few] < FEWEST_A_CLASS:
        held = "no example" if counts[few] == 0 else "one example"
        hint = "".join(f"; {note}" for note in alike(classes, classes[few]))
        raise DataError(
            f"class '{cut(classes[few])}' has {held}; at least {FEWEST_A_CLASS} are needed to train and test "
            f"on it: add some, or take it out{hint}"
        )
    named = np.array(parts or ["train"] * len(labels))
    trained = np.bincount(labels[named == "train"], minlength=len(classes))
    if len(absent := np.flatnonzero(trained == 0)):
        held = listed(sorted(set(named[labels == absent[0]])))
        raise DataError(
            f"class '{cut(classes[absent[0]])}' has no training example: all of its {counts[absent[0]]} are "
            f"in the part {held}; move some to train, or take them out"
        )


def _odd_texts(found: Listing) -> list[str]:
    """Say, in sentences or none, which texts may be missing values."""
    rows = list(zip(found.ids, found.texts or (), strict=True))
    words = {name: text.strip() for name, (text, _) in rows if text.strip() and is_missing(text)}
    blank = [name for name, (_, other) in rows if other is not None and not other.strip()]
    notes = []
    if words:
        written = listed(sorted(set(words.values())))
        notes.append(f"{len(words)} texts are the mere words {written}, and read so: {listed(words, 3)}")
    if blank:
        notes.append(f"{len(blank)} second texts are blank: {listed(blank, 3)}")
    return notes


def _classes_without_training(trained: NDArray[np.int64], classes: list[str]) -> list[str]:
    absent = np.flatnonzero(np.bincount(trained, minlength=len(classes)) == 0)
    start = "classes without a training example in this split, which cannot be learned"
    return [f"{start}: {listed(classes[i] for i in absent)}"] if len(absent) else []

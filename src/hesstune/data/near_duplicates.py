"""Near-duplicates: altered copies of an image, and texts that differ in case, punctuation or a few words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from hesstune.data.examples import Examples, Text
from hesstune.data.image_copies import group_image_copies

# Texts are near-duplicates if the words that they share have this part of the weight of all their words, and
# words in the same order are this part of all. Texts of fewer words must have equal normal forms.
SHARED_WEIGHT, SHARED_ORDER, FEWEST_WORDS = 0.7, 0.8, 8
ROWS = 512

Rows = NDArray[np.int64]


def near_duplicates(parts: Sequence[Examples]) -> list[NDArray[np.int64]]:
    """Group near-duplicates, within parts and between them, by their inputs alone.

    Images: see `hesstune.data.image_copies`. Texts are near-duplicates if `plain_text` makes them equal. They
    are, too, if both have at least 8 different words, the weighted Jaccard similarity of their word sets is
    at least 0.7 (a word's weight is its inverse document frequency), at least 0.8 of their words are the same
    in the same order, and they hold the same numbers. Pairs are near-duplicates if both of their texts are.
    Groups are transitive: a near-duplicate of one example of a group belongs to it.

    Args:
        parts: Examples of one task, images decoded to squares of one size, or texts.

    Returns:
        For each part (N,) int64: the number of each example's group, the same for near-duplicates.

    Example:
        >>> from hesstune.data.examples import Texts
        >>> texts = Texts([("Good .", None), ("good!", None), ("Not good.", None)])
        >>> rows, ids = np.arange(3), ["a", "b", "c"]
        >>> near_duplicates([Examples(texts, rows, ids, None)])
        [array([0, 0, 1])]
    """
    if any(part.texts is not None for part in parts):
        groups = _group_texts([text for part in parts for text in part.texts or []])
    else:
        groups = group_image_copies(parts)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(groups, ends)


_MARKS = str.maketrans("‘’‚‛“”„‟«»‐‑‒–—―", '\'\'\'\'""""""------')
# Punctuation without the signs %, @, #, &, and without what stands before or within numbers.
_PUNCTUATION = re.compile(
    r"(?<!\d)[.,:/](?!\d)|(?<=\d)[.,:/](?!\d)|-(?!\d)|(?<=\w)-|[^\w\s.,:/%@#&+$<>=^~|-]|_"
)


def plain_text(text: str) -> str:
    r"""Return a text's normal form: NFKC, case folded, without punctuation.

    Words, their order, numbers with their signs, and symbols stay.

    Example:
        >>> plain_text("  It ’s “GOOD” ,  isn't it ? "), plain_text("-3.5 % off!")
        ('its good isnt it', '-3.5 % off')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(c for c in folded.translate(_MARKS) if c.isspace() or unicodedata.category(c) != "Cf")
    joined = re.sub(r"(?<=\w)\s*'\s*(?=\w)", "", seen)
    plain = " ".join(_PUNCTUATION.sub(" ", joined).split())
    return plain or " ".join(seen.split())


def _group_texts(texts: Sequence[Text]) -> NDArray[np.int64]:
    keys = [(plain_text(one), None if two is None else plain_text(two)) for one, two in texts]
    found: dict[object, int] = {}
    same = np.array([found.setdefault(key, len(found)) for key in keys], np.int64)
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        return same
    near = _alike([one for one, _ in different])
    if any(two is not None for _, two in different):
        # A second text that is missing is like a missing one only.
        near = near * _alike([two if two is not None else "\0" for _, two in different])
    groups = connected_components(near, directed=False)[1][same]
    _, first, numbered = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbered].astype(np.int64)


def _alike(texts: Sequence[str]) -> sparse.csr_array:
    """Return which of N texts are near-duplicates, (N, N) sparse: equal, or of similar sets of words.

    Texts of enough similarity share one of their rarest words: of those that remain, the weight is too small
    (prefix filtering; Chaudhuri et al. 2006). So only few pairs are compared.
    """
    numbers: dict[str, int] = {}
    of = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    if len(numbers) < len(texts):
        whole: sparse.csr_array = _alike(list(numbers))[of][:, of]
        return whole
    words: dict[str, int] = {}
    rows = [np.array(sorted({words.setdefault(w, len(words)) for w in text.split()}), int) for text in texts]
    frequency = np.bincount(np.concatenate(rows), minlength=len(words))
    weight = np.log((len(texts) + 1) / frequency)
    prefixes = [_prefix(row, weight) for row in rows]
    long = [row if len(row) >= FEWEST_WORDS else row[:0] for row in rows]
    shares = _matrix(long, weight, len(words))
    starts = _matrix(prefixes, np.ones(len(words)), len(words))
    total = shares.sum(axis=1)
    found: tuple[list[Rows], list[Rows]] = [np.arange(len(texts))], [np.arange(len(texts))]
    indicator = _matrix(long, np.ones(len(words)), len(words))
    for at in range(0, len(texts), ROWS):
        near = (starts[at : at + ROWS] @ starts.T).tocoo()
        a, b = near.row + at, near.col
        a, b = a[a < b], b[a < b]
        for part in range(0, len(a), 1 << 16):
            one, two = a[part : part + (1 << 16)], b[part : part + (1 << 16)]
            shared = shares[one].multiply(indicator[two]).sum(axis=1)
            keep = shared >= SHARED_WEIGHT * (total[one] + total[two] - shared)
            keep[keep] = [_same_order(texts[a], texts[b]) for a, b in zip(one[keep], two[keep], strict=True)]
            found[0].extend([one[keep], two[keep]])
            found[1].extend([two[keep], one[keep]])
    a, b = (np.concatenate(ends) for ends in found)
    return sparse.csr_array((np.ones(len(a)), (a, b)), (len(texts), len(texts)))


def _same_order(one: str, two: str) -> bool:
    """Tell whether two texts have most words in the same order, and the same words with digits."""
    words = one.split(), two.split()
    numbers = [[word for word in some if re.search(r"\d", word)] for some in words]
    return numbers[0] == numbers[1] and SequenceMatcher(None, *words, autojunk=False).ratio() >= SHARED_ORDER


def _prefix(row: Rows, weight: NDArray[np.float64]) -> Rows:
    """Return a text's rarest words, without those that alone cannot make two texts similar enough."""
    if len(row) < FEWEST_WORDS:
        return row[:0]
    order = row[np.argsort(-weight[row], kind="stable")]
    rest = weight[order].sum() - np.concatenate([[0.0], np.cumsum(weight[order])[:-1]])
    kept: Rows = order[rest >= SHARED_WEIGHT * weight[order].sum() - 1e-9]
    return kept


def _matrix(rows: Sequence[Rows], weight: NDArray[np.float64], words: int) -> sparse.csr_array:
    """Return an (N, V) matrix that holds the weights of each text's words."""
    columns = np.concatenate(rows)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return sparse.csr_array((weight[columns], columns, starts), (len(rows), words))

"""Copies among examples: groups by equal and nearly equal features, and one row for each group."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from hesstune.noise.latent.channel import Observed
from hesstune.runtime.device import one_thread
from hesstune.storage.remembered import remembered

Rows = NDArray[np.int64]

# Equal rows are copies if fewer equal pairs than this are expected of different examples.
EXPECTED_EQUAL = 0.01
# Neighbours of each row that are compared, and the largest number of near copies of one example.
NEIGHBOURS, MOST_COPIES = 20, 10
# Near copies are closer than the next neighbour by a factor that different examples reach with this
# probability in the whole data, and by MIN_RATIO; their distance is at most a share of that of random pairs.
FALSE_GAPS, MIN_RATIO, MAX_SHARE = 0.05, 1.5, 0.5
# Nearly equal rows are not joined if fewer groups would remain: small classes of similar examples look so.
MIN_GROUPS = 20
# Rows whose distances are computed at once; above MAX_EXACT rows, distances are those of random projections.
BLOCK, MAX_EXACT, PROJECTED = 512, 6000, 64
SAMPLE = 2000
# Among more rows only equal ones are copies: distances take time that grows with the square of their number.
MAX_NEAR = 30_000


def joined(*groups: Rows) -> Rows:
    """Return groups, (N,), that join the examples which any of several groupings joins, by first appearance.

    Example:
        >>> joined(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2])).tolist()
        [0, 0, 1, 1]
    """
    n = len(groups[0])
    own, at = np.tile(np.arange(n), len(groups)), np.zeros(0, np.int64)
    for one in groups:
        numbered = np.unique(one, return_inverse=True)[1]
        at = np.append(at, numbered + (at.max() + 1 if len(at) else 0))
    if not n:
        return at
    links = sparse.coo_array((np.ones(len(own)), (own, n + at)), (n + at.max() + 1,) * 2)
    return by_first_appearance(connected_components(links, directed=False)[1][:n])


def by_first_appearance(groups: NDArray[np.integer]) -> Rows:
    """Return the same groups, numbered from 0 in the order of their first examples."""
    _, first, numbered = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbered].astype(np.int64)


@one_thread()
def feature_groups(features: ArrayLike) -> Rows:
    """Return the group of each row, (N,): the same for equal and for nearly equal rows.

    Equal rows are copies unless different examples are expected to have equal rows: with p_jv the share of
    rows with the value v in column j, N²/2 · Π_j Σ_v p_jv² pairs would be equal by chance.

    Nearly equal rows: r_j is the distance to a row's j-th neighbour. If examples lie in d dimensions and none
    is a copy, P(r_{j+1}/r_j > t) = t^(−jd) (Facco et al. 2017). The j nearest rows are copies if the ratio is
    larger than (N/FALSE_GAPS)^(1/d) and MIN_RATIO, r_j is at most MAX_SHARE of the distance of random
    pairs, and this holds from both sides. Among more than MAX_NEAR rows only equal ones are looked for.

    Args:
        features: (N, D), finite.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> bool((feature_groups(np.concatenate([x, x + 1e-3])) == np.tile(np.arange(50), 2)).all())
        True
    """
    x = np.asarray(features, dtype=np.float32)
    n = len(x)
    if n < 2 or x.ndim != 2 or not x.shape[1] or not np.isfinite(x).all():
        return np.arange(n)

    def make() -> dict[str, torch.Tensor]:
        return {"groups": torch.from_numpy(_feature_groups(x))}

    return np.asarray(remembered("groups of equal features", {"x": x}, make)["groups"].numpy())


def _feature_groups(x: NDArray[np.float32]) -> Rows:
    keys = [hashlib.blake2b(row + np.float32(0), digest_size=8).digest() for row in x]  # −0 is 0
    _, first, same = np.unique(np.frombuffer(b"".join(keys), "<u8"), return_index=True, return_inverse=True)
    if len(first) < len(x) and _expected_equal(x) > EXPECTED_EQUAL:
        return np.arange(len(x))
    if len(x) > MAX_NEAR:
        return by_first_appearance(same)
    own = x[first]
    near = _near_groups(own) if len(own) > MIN_GROUPS else np.arange(len(own))
    if near.max() + 1 < MIN_GROUPS:
        near = np.arange(len(own))
    return by_first_appearance(near[same])


def _expected_equal(x: NDArray[np.float32]) -> float:
    """Return how many pairs of rows are expected to be equal if columns were independent."""
    some = x[:: max(1, len(x) // SAMPLE)]
    logs = 0.0
    for column in some.T:
        shares = np.unique(column, return_counts=True)[1] / len(some)
        logs += float(np.log((shares**2).sum()))
    return float(np.exp(logs + 2 * np.log(len(x)) - np.log(2)))


def _near_groups(x: NDArray[np.float32]) -> Rows:
    """Return the groups of nearly equal rows among different ones."""
    n = len(x)
    centred = torch.from_numpy(x - x.mean(axis=0))
    apart = float(np.sqrt(2 * float(centred.double().square().sum()) / n))
    if n > MAX_EXACT and x.shape[1] > PROJECTED:
        generator = torch.Generator().manual_seed(0)
        axes = torch.randn((x.shape[1], PROJECTED), generator=generator) / PROJECTED**0.5
        centred = centred @ axes
    kept = min(NEIGHBOURS, n - 1)
    distance, nearest = _nearest(centred, kept)
    middle = max(kept // 2, 1)
    far, near = distance[:, 2 * middle - 1], distance[:, middle - 1]
    spread = float(np.median(np.log(np.maximum(far, 1e-30) / np.maximum(near, 1e-30))))
    dimension = np.log(2) / max(spread, 1e-3)
    least = max((n / FALSE_GAPS) ** (1 / dimension), MIN_RATIO)
    most = min(MOST_COPIES, kept - 1)
    ratio = distance[:, 1 : most + 1] / np.maximum(distance[:, :most], 1e-30)
    ratio[distance[:, :most] > MAX_SHARE * apart] = 0.0
    count = np.where(ratio.max(axis=1) > least, ratio.argmax(axis=1) + 1, 0)
    a = np.repeat(np.arange(n), count)
    b = nearest[:, :most][np.arange(most)[None] < count[:, None]]
    links = sparse.csr_array((np.ones(len(a)), (a, b)), (n, n))
    return np.asarray(connected_components(links.multiply(links.T), directed=False)[1], dtype=np.int64)


def _nearest(x: torch.Tensor, kept: int) -> tuple[NDArray[np.float64], Rows]:
    """Return distances to, and rows of, the nearest other rows, (N, kept), by distance."""
    squares, distances, rows = x.square().sum(dim=1), [], []
    for at in range(0, len(x), BLOCK):
        some = x[at : at + BLOCK]
        gap = squares[at : at + BLOCK, None] + squares - 2 * some @ x.T
        gap[torch.arange(len(some)), torch.arange(at, at + len(some))] = torch.inf
        near = gap.topk(kept, largest=False)[1]
        # Differences of single rows: the squares above cancel for nearly equal rows.
        exact = torch.linalg.vector_norm(some[:, None] - x[near], dim=2, dtype=torch.float64)
        order = exact.argsort(dim=1)
        distances.append(exact.gather(1, order))
        rows.append(near.gather(1, order))
    return torch.cat(distances).numpy(), torch.cat(rows).numpy()


def example_groups(features: ArrayLike, copies: Rows | None = None) -> Rows:
    """Return the groups of examples, (N,): copies by content, if known, or by features.

    Args:
        features: (N, D).
        copies: (N,) groups of copies by content; None if unknown.
    """
    by_features = feature_groups(features)
    return by_features if copies is None else joined(by_features, copies)


def group_means(features: NDArray[np.float64], groups: Rows) -> NDArray[np.float64]:
    """Return features, (N, D), as they are, or as the mean of their group in groups of several."""
    mean, row = _averaging(groups)
    return features if mean.shape[0] == len(row) else np.asarray((mean @ features)[row])


def _averaging(groups: Rows) -> tuple[sparse.csr_array, Rows]:
    """Return the matrix (G, N) of means over each group, and each example's group by first appearance."""
    row = by_first_appearance(groups)
    sizes = np.bincount(row)
    entries = 1.0 / sizes[row], (row, np.arange(len(row)))
    return sparse.csr_array(entries, (len(sizes), len(row))), row


def has_copies(groups: Rows | None) -> bool:
    """Tell whether two examples are in one group."""
    return groups is not None and len(groups) > 0 and len(np.unique(groups)) < len(groups)


def copies_note(groups: Rows, labels: NDArray[np.int64] | None = None) -> list[str]:
    """Return sentences on the copies among examples, or none if there are no copies.

    Args:
        groups: (N,) group of each example.
        labels: (N,) labels as given; None: not compared.

    Example:
        >>> copies_note(np.array([0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 0]))
        ['4 of 5 examples are copies of one another, in 2 groups; a group counts as one example; the copies \
of 1 group have different labels']
    """
    at = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(at)
    unseen = f"among more than {MAX_NEAR} examples, near copies are not looked for"
    if not (sizes > 1).any():
        return [unseen] if len(at) > MAX_NEAR else []
    count = int((sizes > 1).sum())
    text = (
        f"{int(sizes[sizes > 1].sum())} of {len(at)} examples are copies of one another, in {count} "
        f"group{'s' * (count > 1)}; a group counts as one example"
    )
    if labels is not None:
        differ = conflicting(groups, labels)
        noun = "group has" if differ == 1 else "groups have"
        text += "; copies have the same labels" if not differ else ""
        text += f"; the copies of {differ} {noun.replace('has', 'have')} different labels" if differ else ""
    return [text, unseen] if len(at) > MAX_NEAR else [text]


def conflicting(groups: Rows, labels: NDArray[np.int64]) -> int:
    """Return how many groups have different labels."""
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


@dataclass(frozen=True)
class Merged:
    """Examples with one row for each group of copies.

    Attributes:
        features: (G, D) mean features of each group.
        labels: What is known of each group: its mean label, one weight.
        row: (N,) each example's row.
    """

    features: NDArray[np.float64]
    labels: Observed
    row: Rows


def merge_copies(features: ArrayLike, labels: Observed) -> Merged:
    """Return one row for each group of copies, so that a group counts as one example.

    Copies are not independent evidence: often their labels were copied, too. A group has the mean of its
    features and of its labels; different labels of a group make a soft label. `labels.copies` are the groups;
    if it is None, they are those of `feature_groups`.

    Args:
        features: (N, D).
        labels: What is known of the N examples.

    Example:
        >>> found = merge_copies([[0.0], [0.0], [1.0]], Observed.of([0, 1, 1], 2, copies=[0, 0, 1]))
        >>> found.features.tolist(), found.labels.given.tolist(), found.row.tolist()
        ([[0.0], [1.0]], [[0.5, 0.5], [0.0, 1.0]], [0, 0, 1])
    """
    x = np.asarray(features)
    mean, groups = _averaging(feature_groups(x) if labels.copies is None else labels.copies)
    every = np.arange(mean.shape[0])
    if len(every) == len(groups):
        return Merged(x, replace(labels, copies=every), every)
    checked = None
    if labels.checked is not None:
        rows, first = np.unique(groups[labels.checked[0]], return_index=True)
        checked = rows, labels.checked[1][first]
    weight = None if labels.weight is None else mean @ labels.weight
    merged = Observed(mean @ labels.given, labels.noise_matrix, checked, weight, every)
    if len(x) > MAX_NEAR:  # copies by features are equal
        return Merged(x[np.unique(groups, return_index=True)[1]], merged, groups)
    return Merged(mean @ x.astype(np.float64), merged, groups)

"""Labels given in Python: names or numbers, one-hot and soft labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import DataError, cut, listed
from hesstune.storage.columns import as_cell
from hesstune.weak.vote_files import ROW_SUM_TOLERANCE, SOFT_PREFIX


def label_columns(labels: Any) -> tuple[dict[str, list[str]], list[str]]:
    """Return labels given in Python as columns of cells, and notes: `label`, and p_CLASS of soft labels.

    Args:
        labels: (N,) or (N, 1) names or numbers; or (N, K) one-hot or soft labels, whose rows are not negative
            and sum to 1. Rows of zeros or with NaN are missing labels. A DataFrame's columns name the
            classes.

    Raises:
        DataError: If they are neither, such as the targets of several classes at once.

    Example:
        >>> label_columns([[1, 0], [0, 1], [0, 0]])[0]
        {'label': ['0', '1', '']}
        >>> label_columns([[0.9, 0.1], [0.3, 0.7]])[0]
        {'label': ['0', '1'], 'p_0': ['0.9', '0.3'], 'p_1': ['0.1', '0.7']}
    """
    names = [str(name) for name in labels.columns] if hasattr(labels, "columns") else None
    if hasattr(labels, "toarray"):
        labels = labels.toarray()
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu()
    if not hasattr(labels, "ndim"):
        labels = list(labels)
    depth = getattr(labels, "ndim", 1 + any(np.ndim(row) for row in labels[:1]))
    if depth == 1:
        return {"label": [as_cell(value) for value in getattr(labels, "tolist", lambda: labels)()]}, []
    try:
        table = np.asarray(labels)
        if table.ndim == 2 and table.shape[1] == 1:
            return {"label": [as_cell(value) for value in table[:, 0].tolist()]}, []
        soft = table.astype(np.float64)
    except (TypeError, ValueError):
        soft = np.zeros(0)
    if soft.ndim != 2:
        raise DataError(
            "y must be (N,), one label per example, or (N, K), numbers that are one-hot or soft labels (no "
            "multi-label targets)"
        )
    return _soft_columns(soft, names)


def _soft_columns(
    soft: NDArray[np.float64], names: list[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns of one-hot or soft labels, (N, K), and notes; see `label_columns`."""
    names = [str(k) for k in range(soft.shape[1])] if names is None else names
    missing = ~np.isfinite(soft).all(axis=1) | (soft == 0).all(axis=1)
    sums = soft.sum(axis=1)
    wrong = np.flatnonzero(~missing & ((soft < 0).any(axis=1) | (abs(sums - 1) > ROW_SUM_TOLERANCE)))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"y is {soft.shape}: each row must be one-hot, or probabilities that sum to 1 (no multi-label "
            f"targets); row {row} is {cut(soft[row].tolist(), 60)}"
        )
    most = np.where(missing, 0, soft.argmax(axis=1))
    cells = {"label": ["" if gone else names[k] for gone, k in zip(missing, most, strict=True)]}
    if np.isin(soft[~missing], (0, 1)).all():
        return cells, []
    notes = ["y holds soft labels: the label of an example is its most probable class"]
    kept = np.isin(np.arange(len(names)), most[~missing])
    if not kept.all():
        absent = [name for name, is_kept in zip(names, kept, strict=True) if not is_kept]
        notes.append(
            f"classes that are most probable in no example left out, their probability shared by the others: "
            f"{listed(absent)}"
        )
    soft = np.where(missing[:, None], 1.0, soft)[:, kept]
    soft /= soft.sum(axis=1, keepdims=True)
    shown = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    own = zip(shown, soft.T.tolist(), strict=True)
    return {**cells, **{f"{SOFT_PREFIX}{name}": [repr(p) for p in column] for name, column in own}}, notes

"""A comparison's certificates: each by itself, and the smallest of them with the union paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hesstune.bounds.record import Certificate
from hesstune.study.records import CellRecord, HeadCertificate

__all__ = ["Smallest", "certificates_of", "smallest_of"]


@dataclass(frozen=True)
class Smallest:
    """The smallest of J certificates, paid for.

    Attributes:
        cell: The cell that has it.
        risk: What it gives at delta/J: it holds with probability 1 − delta for whichever is the smallest.
        alone: What it gives by itself.
        count: J.
        delta: The largest delta of the J.
        sure: The probability with which `risk` holds: 1 − delta; where a record is too old to be taken at
            delta/J, `risk` is `alone` and this is 1 − J·delta.
    """

    cell: CellRecord
    risk: float
    alone: float
    count: int
    delta: float
    sure: float


def certificates_of(cells: Sequence[CellRecord], task: str) -> list[tuple[CellRecord, HeadCertificate]]:
    """Return the certificates of a task's cells, each with its cell."""
    found = [(cell, cell.metrics.get("certificate")) for cell in cells if cell.task == task]
    return [(c, v) for c, v in found if isinstance(v, HeadCertificate) and v.risk is not None]


def smallest_of(cells: Sequence[CellRecord], task: str) -> Smallest | None:
    """Return the smallest certificate of a task over its methods and seeds, the union paid; None without any.

    Whoever picks the smallest of J certificates, each of which fails with probability δ, has one that fails
    with probability up to J·δ; taken at δ/J each, it is δ again.
    """
    found = certificates_of(cells, task)
    if not found:
        return None
    count = len(found)
    delta = max(value.delta or 0.0 for _, value in found)
    facts = [value.facts for _, value in found]
    if any(fact is None for fact in facts):
        cell, value = min(found, key=lambda pair: float(pair[1].risk or 1.0))
        alone = float(value.risk or 1.0)
        return Smallest(cell, alone, alone, count, delta, max(0.0, 1 - count * delta))
    risks = [Certificate.of_facts(fact).at(delta / count) for fact in facts if fact is not None]
    best = min(range(count), key=risks.__getitem__)
    cell, value = found[best]
    return Smallest(cell, risks[best], float(value.risk or 1.0), count, delta, 1 - delta)

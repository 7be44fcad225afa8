"""Pick-to-Learn: a linear head trained on as few of its examples as classify all the others right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.errors import DataError

__all__ = ["Picker", "Picks"]

# A logit that leads by less, on features of length 1, counts as an error: features computed again in other
# batches differ in their last digits.
LEAD = 1e-5
HISTORY = 10


@dataclass
class Picks:
    """How far Pick-to-Learn has come.

    Attributes:
        kept: The examples picked so far, in their order.
        weight: (K, D) what was added to the start's weight, fitted to them.
        done: Whether every other example is classified right.
    """

    kept: list[int]
    weight: torch.Tensor
    done: bool = False


@dataclass(frozen=True)
class Picker:
    """Picks the worst examples, fits the head to all picked so far, and again, until no error is left.

    The head is W = W₀ + V, V the minimiser of Σ cross-entropy(s_i + V u_i) + penalty/2·‖V‖² over the picked,
    with u_i = x_i/‖x_i‖ and s_i the start's logits over ‖x_i‖: dividing an example's logits by its length
    changes no prediction. Picked next are the ⌊grow·|T|⌋ (at least one) of the other examples that are
    misclassified by the most, ties by a digest of features and label. That is preferent: leaving out
    examples that were not picked changes neither the picks nor the head, and an example that the head gets
    wrong would have been picked. Paccagnan, Campi & Garatti, The Pick-to-Learn algorithm (NeurIPS 2023).

    Args:
        features: x, (N, D).
        labels: (N,) in [0, K).
        start: (N, K) logits of the start on them.
        penalty: λ; like `grow` and `steps` fixed before the examples are seen.
        grow: Share of |T| that is added at a time.
        steps: Iterations of L-BFGS at most for each fit, from the one before.

    Raises:
        DataError: If a feature is not finite or an example's features are all zero.

    Example:
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long().numpy()
        >>> found = Picker(x, y, torch.zeros(200, 2)).run()
        >>> found.done, len(found.kept) < 30
        (True, True)
    """

    features: torch.Tensor
    labels: NDArray[np.int64]
    start: torch.Tensor
    penalty: float = 0.1
    grow: float = 0.01
    steps: int = 20
    unit: torch.Tensor = field(init=False)
    offset: torch.Tensor = field(init=False)
    order: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        x = self.features.double()
        length = x.norm(dim=1, keepdim=True)
        if not bool(torch.isfinite(x).all()) or not bool((length > 0).all()):
            raise DataError("Pick-to-Learn needs finite features, none of them all zero")
        object.__setattr__(self, "unit", x / length)
        object.__setattr__(self, "offset", self.start.double() / length)
        object.__setattr__(self, "order", _order(self.features, self.labels))

    def begin(self) -> Picks:
        """Return the state before anything is picked."""
        return Picks([], torch.zeros(self.offset.shape[1], self.unit.shape[1], dtype=torch.float64))

    def run(self, most: int | None = None) -> Picks:
        """Pick until every other example is right; at most so many examples where given."""
        picks = start = self.begin()
        for picks in self.going_on(start):
            if most is not None and len(picks.kept) >= most:
                break
        return picks

    def going_on(self, picks: Picks) -> Iterator[Picks]:
        """Yield the state after every step from one that an earlier call reached, to the end."""
        free = np.ones(len(self.labels), bool)
        free[picks.kept] = False
        while not picks.done:
            worst = self._worst(picks, free)
            if not len(worst):
                picks = Picks(picks.kept, picks.weight, True)
            else:
                free[worst] = False
                kept = [*picks.kept, *worst.tolist()]
                picks = Picks(kept, self._fitted(kept, picks.weight))
            yield picks

    def lead(self, weight: torch.Tensor) -> NDArray[np.float64]:
        """Return by how much each example's own logit, of features of length 1, leads the others, (N,)."""
        logits = (self.offset + self.unit @ weight.T).numpy()
        rows = np.arange(len(self.labels))
        own = logits[rows, self.labels].copy()
        logits[rows, self.labels] = -np.inf
        found: NDArray[np.float64] = own - logits.max(axis=1)
        return found

    def _worst(self, picks: Picks, free: NDArray[np.bool_]) -> NDArray[np.int64]:
        lead = self.lead(picks.weight)
        wrong = np.flatnonzero(free & (lead < LEAD))
        # By nothing but what the picked examples determine: their number, never that of the errors left.
        count = max(1, int(self.grow * len(picks.kept)))
        return wrong[np.lexsort((self.order[wrong], lead[wrong]))[:count]]

    def _fitted(self, kept: list[int], weight: torch.Tensor) -> torch.Tensor:
        """Return V fitted to the examples kept, from the V before."""
        x, offset = self.unit[kept], self.offset[kept]
        targets = torch.from_numpy(self.labels[kept])
        found = weight.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [found],
            max_iter=self.steps,
            tolerance_grad=1e-6,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            logits = offset + x @ found.T
            value = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            value = value + self.penalty / 2 * found.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return found.detach()


def _order(features: torch.Tensor, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each example's place by a digest of features and label: no matter how they are listed."""
    rows = features.detach().cpu().contiguous().numpy()
    keys = [
        hashlib.blake2b(row.tobytes() + int(label).to_bytes(8, "little"), digest_size=16).digest()
        for row, label in zip(rows, labels, strict=True)
    ]
    place = np.empty(len(keys), np.int64)
    place[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return place

"""Pick-to-Learn: a linear head trained on as few of its examples as classify all the others right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.errors import DataError

# A logit that leads by less, on features of length 1, counts as an error: features computed again in other
# batches differ in their last digits.
LEAD = 1e-5
HISTORY = 10


@dataclass
class Picks:
    """How far Pick-to-Learn has come."""

    kept: list[int]  # The examples picked so far, in their order
    weight: torch.Tensor  # (K, D) V, what is added to the start's weight: the running average of the fits
    fitted: torch.Tensor  # (K, D) the last fit to the picked examples, from which the next fit starts
    done: bool = False  # Whether every other example is classified correctly


@dataclass(frozen=True)
class Picker:
    """Pick misclassified examples, fit the head to all picked examples, and repeat until no error is left.

    Each fit minimises Σ cross-entropy(s_i + A u_i) + penalty/2·‖A‖² over the picked examples. Here
    u_i = c_i/‖c_i‖, c_i is the feature vector (minus its own mean under `center`), and s_i are the start's
    logits divided by ‖c_i‖. This changes no prediction: the division scales all logits of an example, and the
    rows of A sum to 0 under `center`. The head is W = W₀ + V, V ← average·V + (1 − average)·A after each fit.
    The next picks are the ⌊grow·|T|⌋ (at least one) misclassified examples with the smallest lead; ties are
    broken by a digest of features and label. V depends on the picked examples and their order alone, u_i and
    s_i on example i alone. So the scheme is preferent: leaving out examples that are not picked changes
    neither the picks nor the head, and an example that the head misclassifies would have been picked.
    Paccagnan, Campi & Garatti, The Pick-to-Learn algorithm (NeurIPS 2023).
    """

    features: torch.Tensor  # x, (N, D)
    labels: NDArray[np.int64]  # (N,) in [0, K)
    start: torch.Tensor  # (N, K) logits of the start on them
    penalty: float = 0.1  # λ; like all that follow fixed before the examples are seen
    grow: float = 0.01  # Share of |T| that is added at a time
    steps: int = 20  # Iterations of L-BFGS at most for each fit, from the last fit
    average: float = 0.95  # Weight of the earlier fits in V, in [0, 1); 0 takes the last fit
    # Subtract from each feature vector the mean of its own D entries; no other example enters.
    center: bool = False
    unit: torch.Tensor = field(init=False)
    offset: torch.Tensor = field(init=False)
    order: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        x = self.features.double()
        if self.center:
            x = x - x.mean(dim=1, keepdim=True)
        length = x.norm(dim=1, keepdim=True)
        # The mean of equal numbers is rounded, so that their differences from it may not be exactly 0.
        least = 1e-9 * self.features.double().norm(dim=1, keepdim=True) if self.center else 0.0
        if not bool(torch.isfinite(x).all()) or not bool((length > least).all()):
            how = "equal; give the method option center=0" if self.center else "zero"
            raise DataError(f"Pick-to-Learn needs finite features, those of no example all {how}")
        object.__setattr__(self, "unit", x / length)
        object.__setattr__(self, "offset", self.start.double() / length)
        object.__setattr__(self, "order", _order(self.features, self.labels))

    def begin(self) -> Picks:
        """Return the state before anything is picked."""
        zero = torch.zeros(self.offset.shape[1], self.unit.shape[1], dtype=torch.float64)
        return Picks([], zero, zero)

    def run(self, most: int | None = None) -> Picks:
        """Pick until every other example is right; at most so many examples if given."""
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
            lead = self.lead(picks.weight)
            wrong = np.flatnonzero(free & (lead < LEAD))
            if not len(wrong):
                picks = replace(picks, done=True)
            else:
                # The number depends on the picked examples only, never on how many errors are left.
                count = max(1, int(self.grow * len(picks.kept)))
                chosen = wrong[np.lexsort((self.order[wrong], lead[wrong]))[:count]]
                free[chosen] = False
                kept = [*picks.kept, *chosen.tolist()]
                fitted = self._fitted(kept, picks.fitted)
                picks = Picks(kept, torch.lerp(fitted, picks.weight, self.average), fitted)
            yield picks

    def lead(self, weight: torch.Tensor) -> NDArray[np.float64]:
        """Return by how much each example's own logit, of features of length 1, leads the others, (N,)."""
        logits = (self.offset + self.unit @ weight.T).numpy()
        rows = np.arange(len(self.labels))
        own = logits[rows, self.labels].copy()
        logits[rows, self.labels] = -np.inf
        found: NDArray[np.float64] = own - logits.max(axis=1)
        return found

    def _fitted(self, kept: list[int], weight: torch.Tensor) -> torch.Tensor:
        """Return A fitted to the picked examples, starting at the last fit."""
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

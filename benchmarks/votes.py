"""Labels from votes: `label` with its defaults, compared with the majority vote, crowd-kit and snorkel.

Training examples that have a vote; true labels are read only for accuracy. The label models were
developed while the five real sets were seen. The sets with simulated annotators were drawn and run once
afterwards. `auto` uses frozen features of the texts or images, `auto, votes` does not.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sources import source

from hesstune.labeling.label_data import label_rate_interval
from hesstune.weak import Votes, apply_functions, label
from peers import crowd_kit, mace, snorkel
from records import Run

SIMULATED = ("photo annotators", "art_painting crowd", "sketch functions", "art_painting models")
PEERS = {"dawid_skene": crowd_kit, "mace": mace, "snorkel": snorkel}
MOST = 4000


def _rules(texts: list[str]) -> Votes:
    from sentiment_rules import RULES

    functions = [(rule.__name__, rule) for rule in RULES]
    return apply_functions(functions, [{"text": text} for text in texts], ["negative", "positive"])


def _drawn(kind: str, y: NDArray[np.int64], k: int) -> Votes:
    """Return simulated annotators of one kind.

    `annotators`: three, who each take one class for another in half of the cases; `crowd`: thirty of accuracy
    0.5 to 0.9, three of whom answer each time; `functions`: two a class, right in 0.7 of their votes, on half
    of the class; `models`: three of accuracy 0.7, each sure of what it says by 0.9 to 0.99.
    """
    rng, n = np.random.default_rng(len(kind)), len(y)

    def answers(accuracy: float) -> NDArray[np.int64]:
        return np.where(rng.random(n) < accuracy, y, (y + rng.integers(1, k, n)) % k)

    if kind == "annotators":
        said = [answers(0.85) for _ in range(3)]
        for j, own in enumerate(said):
            taken = (y == j) & (rng.random(n) < 0.5)
            own[taken] = (j + 1) % k
        return Votes(np.stack(said, axis=1), k)
    if kind == "crowd":
        table = np.stack([answers(a) for a in rng.uniform(0.5, 0.9, 30)], axis=1)
        silent = rng.random(table.shape).argsort(axis=1) >= 3
        return Votes(np.where(silent, -1, table), k)
    if kind == "functions":
        rate = [0.5 * 0.3 / 0.7 * (y == c).sum() / (y != c).sum() for c in range(k)]
        fires = [rng.random(n) < np.where(y == c, 0.5, rate[c]) for c in range(k) for _ in range(2)]
        return Votes(np.stack([np.where(own, j // 2, -1) for j, own in enumerate(fires)], axis=1), k)
    soft = np.empty((n, 3, k))
    for j in range(3):
        sure = rng.uniform(0.9, 0.99, n)
        soft[:, j] = ((1 - sure) / (k - 1))[:, None]
        soft[np.arange(n), j, answers(0.7)] = sure
    return Votes.of_probabilities(soft)


def _set(name: str, data: Path) -> tuple[NDArray[np.float32], Votes, NDArray[np.int64]]:
    """Return features, votes and true labels of the training examples that have a vote."""
    found = source(name.split()[0], data)
    rows = np.flatnonzero(found.part == "train") if (found.part != "").any() else np.arange(len(found.true))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST])
    if name in SIMULATED:
        votes = _drawn(name.split()[1], found.true[rows], found.k)
    elif found.votes is None:
        assert found.texts is not None
        votes = _rules([found.texts[i] for i in rows])
    else:
        votes = found.votes.take(rows)
    voted = np.flatnonzero(votes.per_example > 0)
    return found.features[rows][voted], votes.take(voted), found.true[rows][voted]


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the share of right labels of each way."""
    warnings.simplefilter("ignore")
    x, votes, y = _set(case["set"], run.data)

    def right(made: NDArray[np.int64]) -> float:
        return round(float((made == y).mean()), 4)

    ties = [right(label(votes, "majority", seed=seed).labels) for seed in range(5)]
    made = label(votes, "auto", features=x)
    rate = float(1 - made.posterior.max(axis=1).mean())
    return {
        "examples": len(y),
        "annotators": votes.m,
        "classes": votes.k,
        "majority": round(float(np.mean(ties)), 4),
        "auto, votes": right(label(votes, "auto").labels),
        "auto": right(made.labels),
        "chosen": made.details["chosen"],
        "rate said": round(rate, 4),
        "interval": [round(end, 4) for end in label_rate_interval(votes, x, rate)],
        **{name: right(peer(votes)) for name, peer in PEERS.items()},
    }

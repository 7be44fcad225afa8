"""Is `--label-model auto` ever worse than the majority vote? Simulated labelers, and real ones where given.

Looked at while the rule was made: all of the real sets, and seeds 0 to 59 and 1000 to 3159 of a sketch of
this simulation, with 5000 to 5159 and 6000 to 6083. Not looked at: seeds 7000 to 7159, this record's. True
labels are read for accuracy alone.

    python benchmarks/label_choice.py [--real DATA]      DATA holds wrench/, amazon_isbook/, cifar10n/, sst2/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.labeling.sources import read_target
from hesstune.storage.csv_table import read_table
from hesstune.weak import Votes, apply_functions, label
from hesstune.weak.vote_files import long_columns, long_votes, vote_columns, votes_in
from records import ROOT, arguments, write_record

SEEDS = range(7000, 7160)
KINDS = ("crowd", "one class each", "mixed", "copies")
Labelled = tuple[Votes, NDArray[np.int64]]


def simulated(kind: str, seed: int) -> Labelled:
    """Return labelers of one kind and the truth: 2 to 8 classes, 300 to 3,000 examples, perhaps uneven."""
    rng = np.random.default_rng(seed)
    k, n, m = (int(rng.choice(among)) for among in ([2, 2, 3, 5, 8], [300, 1000, 3000], [3, 5, 10, 30]))
    prior = np.full(k, 1 / k) if rng.random() < 0.5 else rng.dirichlet(np.full(k, 2.0))
    if rng.random() < 0.3:
        prior = np.append(0.03, np.full(k - 1, 0.97 / (k - 1)))
    y = rng.choice(k, n, p=prior)
    table = np.full((n, m), -1)
    for j in range(m):
        right, cover = rng.uniform(0.55 if k == 2 else 1.3 / k, 0.95), rng.uniform(0.05, 0.9)
        if kind == "one class each" or (kind == "mixed" and rng.random() < 0.5):
            c = int(rng.integers(k))
            false = cover * (1 - right) / right * prior[c] / (1 - prior[c] + 1e-9)
            given = rng.random(n) < np.where(y == c, cover, min(1.0, false))
            table[given, j] = c
        else:
            voted = np.where(rng.random(n) < right, y, (y + rng.integers(1, k, n)) % k)
            given = rng.random(n) < cover
            table[given, j] = voted[given]
    if kind == "copies":  # every other labeler repeats the one before on most examples
        for j in range(1, m, 2):
            same = rng.random(n) < 0.7
            table[same, j] = table[same, j - 1]
    return Votes(table, k), y


def accuracies(votes: Votes, y: NDArray[np.int64]) -> tuple[float, float, str]:
    """Return the accuracy of the majority vote and of auto over draws of ties, and what auto chose."""
    heard = votes.ballots.each > 0
    found = label(votes, "auto")

    def right(scores: NDArray[np.float64]) -> float:
        draws = [scores + 1e-9 * np.random.default_rng(s).random(scores.shape) for s in range(5)]
        return float(np.mean([(drawn.argmax(axis=1) == y)[heard].mean() for drawn in draws]))

    return right(votes.counts), right(found.posterior), str(found.details["chosen"])


def real(data: Path) -> Iterator[tuple[str, Labelled]]:
    """Yield the real sets: labeling functions, crowds, annotators, rules beside a lexicon."""
    for name, path in (
        ("youtube", data / "wrench" / "youtube.csv"),
        ("trec", data / "wrench" / "trec.csv"),
        ("cifar10n", data / "cifar10n" / "labels.csv"),
    ):
        table = read_table(path)
        truth = table.cells("label" if "label" in table else "true_label")
        classes = sorted(set(truth))
        columns = vote_columns(table) or ["random1", "random2", "random3"]
        train = np.flatnonzero([part == "train" for part in table.cells("split")])
        y = np.array([classes.index(name) for name in truth])
        yield name, (votes_in(table, columns, classes).take(train), y[train])
    table = read_table(data / "amazon_isbook" / "votes_long.csv")
    columns_of = long_columns(table)
    assert columns_of is not None
    ids, votes, _ = long_votes(table, columns_of, ["book", "other"])
    target = read_target(f"csv:{data / 'amazon_isbook' / 'texts.csv'}")
    true = dict(zip(target.ids, target.true or [], strict=True))
    yield "amazon_isbook", (votes, np.array([["book", "other"].index(true[i]) for i in ids]))
    sys.path.insert(0, str(ROOT / "examples"))
    from sentiment_rules import RULES

    lines = (data / "sst2" / "train.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    functions = [(rule.__name__, rule) for rule in RULES]
    made = apply_functions(functions, [{"text": text} for text, _ in rows], ["negative", "positive"])
    yield "sst2 rules", (made, np.array([int(given) for _, given in rows]))


def simulation() -> list[dict[str, Any]]:
    """Return a row a kind of labelers: auto minus the majority vote over the test seeds."""
    rows = []
    for at, kind in enumerate(KINDS):
        found = [accuracies(*simulated(kind, seed)) for seed in SEEDS[at :: len(KINDS)]]
        gains = np.array([auto - majority for majority, auto, _ in found])
        rows.append(
            {
                "labelers": kind,
                "sets": len(gains),
                "mean_gain": round(float(gains.mean()), 4),
                "worst": round(float(gains.min()), 4),
                "lose_half_a_point": int((gains < -0.005).sum()),
                "weighted": sum(chosen != "majority" for _, _, chosen in found),
            }
        )
    return rows


def main() -> None:
    """Simulate, read the real sets where given, and write the record."""
    parser = arguments(__doc__)
    parser.add_argument("--real", type=Path, help="folder with wrench/, amazon_isbook/, cifar10n/, sst2/")
    given = parser.parse_args()
    sets = []
    for name, made in real(given.real) if given.real else ():
        majority, auto, chosen = accuracies(*made)
        sets.append({"set": name, "majority": round(majority, 4), "auto": round(auto, 4), "chosen": chosen})
    command = "python benchmarks/label_choice.py --real DATA"
    record = {
        "command": command,
        "seeds": [SEEDS.start, SEEDS.stop - 1],
        "simulated": simulation(),
        "real": sets,
    }
    write_record("label_choice", record)
    print(*record["simulated"], *record["real"], sep="\n")


if __name__ == "__main__":
    main()

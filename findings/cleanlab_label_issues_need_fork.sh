#!/usr/bin/env bash
# cleanlab's find_label_issues raises NameError on Linux if processes are not started by fork.
#
# Packages: cleanlab 2.9.0, numpy 2.2.6, on Linux with Python 3.11.
#
# With several jobs, the default, find_label_issues shares its arrays with its worker processes through global
# variables if the system is Linux and Python is older than 3.14. That holds only for processes started by
# fork, and the start method in use is not asked for. Seen: after multiprocessing.set_start_method("spawn"),
# which programs that use CUDA set, a call with two jobs raises a NameError that names `pred_probs_by_class`,
# of which the caller knows nothing; n_jobs=1 returns the same issues as fork does. CleanLearning takes n_jobs
# in find_label_issues_kwargs.
#
# Exits with 0 if this is still so, and with 1 otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet cleanlab==2.9.0 numpy==2.2.6
cat > "$folder/issues.py" <<'PYTHON'
import multiprocessing
import sys

import numpy as np
from cleanlab.filter import find_label_issues


def found(jobs):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    logits = 2.0 * np.eye(3)[labels] + rng.normal(size=(600, 3))
    given = np.where(rng.random(600) < 0.2, (labels + 1) % 3, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return int(find_label_issues(given, probabilities, n_jobs=jobs).sum())


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    try:
        print(found(int(sys.argv[2])))
    except NameError as error:
        print(error)
PYTHON
run() { "$folder/venv/bin/python" "$folder/issues.py" "$@" 2> "$folder/errors" | tail -n 1; }
forked=$(run fork 2)
alone=$(run spawn 1)
spawned=$(run spawn 2)
echo "issues found: fork, two jobs: $forked; spawn, one job: $alone; spawn, two jobs: $spawned"
[ "$forked" = "$alone" ] && [ "$forked" -gt 0 ] && [[ "$spawned" == *pred_probs_by_class* ]]

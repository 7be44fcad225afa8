"""The benchmark of suspected label errors: which labels are wrong, how many, how probably.

For each task and seed: total variation between rows of the estimated F and of the realised one (true labels
against given ones), for `em` and for cleanlab's `confident`; average precision and F1 of the default cut in
finding wrong labels, for `hesstune.clean` and for cleanlab, which has the best average precision of three
scores; the estimated noise rate and its 90 % interval; the expected calibration error of the probability of
a wrong label (10 bins of equal width); the share of wrong labels among the 100 most suspected. cleanlab has
probabilities cross-fitted by scikit-learn's LogisticRegression with a cross-validated penalty. Every number
of `clean` that was chosen on data was chosen on the development tasks: some with half of their noise or with
none, and the worse of two people's labels. Settings: `part` is `test`, `development` or `small`, which has
sets of 100 texts of two classes.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tasks import FieldTask, field_task

from hesstune.labeling.clean import clean
from hesstune.noise.estimate import confident
from peers import CrossValidated
from records import Run

DRAWN_FROM = {"sst2": "sst2 symmetric:0.2", "mrpc": "mrpc pair:0.2", "youtube": "youtube votes"}
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def _development_task(name: str, seed: int, data: Path) -> FieldTask:
    """Return a task; `half` or `true` at the end of its name: so much of its noise is corrected."""
    if " two " in name:
        first, second = (field_task(name.replace("two", one), seed, data) for one in ("random2", "random3"))
        wrong = np.where(second.given == second.true, first.given, second.given)
        return replace(first, name=name, given=np.where(first.given == first.true, wrong, first.given))
    whole, _, part = name.rpartition(" ")
    if part not in ("half", "true"):
        return field_task(name, seed, data)
    task = field_task(whole, seed, data)
    kept = np.random.default_rng([seed, 0x4A1F]).random(len(task.x)) < (0.5 if part == "half" else 0.0)
    return replace(task, name=name, given=np.where(kept, task.given, task.true))


def _small_task(name: str, seed: int, data: Path) -> FieldTask:
    """Return training examples of a task with true labels, some changed to the other class."""
    origin, n, wrong = name.split()
    task = field_task(DRAWN_FROM[origin], seed, data)
    rows = np.random.default_rng([seed, int(wrong)]).permutation(len(task.x))[: int(n)]
    true = task.true[rows]
    given = np.where(np.arange(len(rows)) < int(wrong), 1 - true, true)
    return replace(task, name=name, x=task.x[rows], given=given, true=true)


READERS = {"test": field_task, "development": _development_task, "small": _small_task}


def _variation(matrix: NDArray[np.float64], task: FieldTask) -> float:
    counts = np.eye(task.k)[task.true].T @ np.eye(task.k)[task.given]
    realised = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(np.abs(matrix - realised).sum(axis=1).mean() / 2)


def _cross_fitted(task: FieldTask, seed: int) -> NDArray[np.float64]:
    """Return scikit-learn's out-of-sample probabilities, (N, K)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    strength = CrossValidated(seed).fit(task.x, task.given).strength_
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(model, task.x, task.given, cv=folds, method="predict_proba"))


def calibration_error(p: NDArray[np.float64], wrong: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the mean over examples of |mean p − share of wrong labels| of their bin of equal width."""
    at = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(at, p - wrong, bins)).sum() / len(p))


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Find the label errors of one task."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.metrics import average_precision_score, f1_score

    warnings.simplefilter("ignore")
    task = READERS[run.settings["part"]](case["task"], run.seed, run.data)
    wrong = task.given != task.true
    started = time.monotonic()
    found = clean(features=task.x, labels=task.given, seed=run.seed)
    seconds = round(time.monotonic() - started, 2)
    probabilities = _cross_fitted(task, run.seed)
    measured = {
        "noise": wrong.mean(),
        "tv_em": _variation(found.noise_matrix.array, task),
        "tv_confident": _variation(confident(probabilities, task.given).array, task),
    }
    if wrong.any():
        scores = [get_label_quality_scores(task.given, probabilities, method=name) for name in SCORES]
        issues = find_label_issues(task.given, probabilities, n_jobs=1)  # its others need `fork`
        measured["ap_clean"] = average_precision_score(wrong, found.p_wrong)
        measured["ap_cleanlab"] = max(average_precision_score(wrong, -s) for s in scores)
        measured |= {"f1_clean": f1_score(wrong, found.suspected), "f1_cleanlab": f1_score(wrong, issues)}
    measured |= dict(zip(("rate", "low", "high"), (found.rate, *found.rate_interval), strict=True))
    measured["ece"] = calibration_error(found.p_wrong, wrong)
    measured["top100"] = wrong[found.ranked[:100]].mean()
    rounded = {name: round(float(value), 4) for name, value in measured.items()}
    return {"n": len(task.x), "chosen": found.chosen, **rounded, "seconds": seconds}

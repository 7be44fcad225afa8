"""The field benchmark of suspected label errors: which labels are wrong, how many, how probably.

For each task and seed: total variation between rows of the estimated F and of the realised one (true labels
against given ones), for `em` and for cleanlab's `confident`; average precision and F1 of the default cut in
finding wrong labels, for `hesstune.clean` and for cleanlab, which has the best average precision of three
scores; the estimated noise rate and its 90 % interval; the expected calibration error of the probability of
a wrong label (10 bins of equal width); the share of wrong labels among the 100 most suspected. cleanlab has
probabilities cross-fitted by scikit-learn's LogisticRegression with a cross-validated penalty. Every number
of `clean` that was chosen on data was chosen on the development tasks: some with half of their noise or with
none, and the worse of two people's labels. PART is `test`, `development` or `small`: sets of 100 texts of two
classes. Continues where it stopped.

    python benchmarks/field/label_errors.py --data DATA [--part PART] [--seeds N] [--only TEXT]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from tasks import DEVELOPMENT_SEEDS, TEST_SEEDS, FieldTask, field_task

from hesstune.labeling.clean import clean
from hesstune.noise.estimate import confident
from peers import CrossValidated
from records import RESULTS, add_row, arguments, read_rows

COLUMNS = (
    "task", "seed", "n", "noise", "chosen", "tv_em", "tv_confident",
    "ap_clean", "ap_cleanlab", "f1_clean", "f1_cleanlab", "rate", "low", "high", "ece", "top100", "seconds",
)  # fmt: skip
TASKS = (
    *(
        f"cifar10n {labels} {n}".strip()
        for n in ("4000", "2000", "")
        for labels in ("worse", "random1", "aggregate")
    ),
    "cifar10n votes",
    "amazon_isbook votes",
    "digits clean",
    "digits symmetric:0.2",
    "digits symmetric:0.4",
    "digits symmetric:0.6",
    "digits pair:0.4",
    "photo symmetric:0.4",
)
DEVELOPMENT = (
    "cifar10n random2 2000",
    "cifar10n random2 4000",
    "cifar10n random3 4000",
    "cifar10n random2 4000 half",
    "cifar10n random3 4000 half",
    "cifar10n two 4000",
    "cartoon symmetric:0.2 half",
    "cartoon pair:0.4",
    "cartoon instance:0.3",
    "sketch symmetric:0.2 half",
    "digits symmetric:0.3 half",
    "sst2 symmetric:0.3 half",
    "cifar10n random2 2000 true",
    "cartoon symmetric:0.2 true",
    "sst2 symmetric:0.3 true",
)
# Source, number of texts, number of wrong labels.
SMALL = ("sst2 100 6", "sst2 100 9", "mrpc 100 7", "mrpc 100 10", "youtube 100 8", "youtube 100 11")
DRAWN_FROM = {"sst2": "sst2 symmetric:0.2", "mrpc": "mrpc pair:0.2", "youtube": "youtube votes"}
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def _development_task(name: str, seed: int, data: Path) -> FieldTask:
    """Return a task whose name may end in `half` or `true`: so much of its noise is mended; or `two`."""
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
    """Return training examples of a task with true labels, of which some are changed to the other class."""
    origin, n, wrong = name.split()
    task = field_task(DRAWN_FROM[origin], seed, data)
    rows = np.random.default_rng([seed, int(wrong)]).permutation(len(task.x))[: int(n)]
    true = task.true[rows]
    given = np.where(np.arange(len(rows)) < int(wrong), 1 - true, true)
    return replace(task, name=name, x=task.x[rows], given=given, true=true)


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


def row_of(task: FieldTask, seed: int) -> list[object]:
    """Return a row of the record."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.metrics import average_precision_score, f1_score

    wrong = task.given != task.true
    started = time.monotonic()
    found = clean(features=task.x, labels=task.given, seed=seed)
    spent = time.monotonic() - started
    probabilities = _cross_fitted(task, seed)
    figures: list[float | str] = [
        round(_variation(found.noise_matrix.array, task), 4),
        round(_variation(confident(probabilities, task.given).array, task), 4),
    ]
    if wrong.any():
        scores = [get_label_quality_scores(task.given, probabilities, method=name) for name in SCORES]
        issues = find_label_issues(task.given, probabilities)
        figures += [
            round(float(average_precision_score(wrong, found.p_wrong)), 4),
            round(max(float(average_precision_score(wrong, -s)) for s in scores), 4),
            round(float(f1_score(wrong, found.suspected)), 4),
            round(float(f1_score(wrong, issues)), 4),
        ]
    else:
        figures += ["", "", "", ""]
    figures += [round(each, 4) for each in (found.rate, *found.rate_interval)]
    figures.append(round(calibration_error(found.p_wrong, wrong), 4))
    figures.append(round(float(wrong[found.ranked[:100]].mean()), 4))
    noise = round(float(wrong.mean()), 4)
    return [task.name, seed, len(task.x), noise, found.chosen, *figures, round(spent, 2)]


PARTS: dict[str, tuple[str, tuple[str, ...], Callable[[str, int, Path], FieldTask], range]] = {
    "test": ("field_labels.csv", TASKS, field_task, TEST_SEEDS),
    "development": ("field_labels_development.csv", DEVELOPMENT, _development_task, DEVELOPMENT_SEEDS),
    "small": ("field_labels_small.csv", SMALL, _small_task, TEST_SEEDS),
}


def main() -> None:
    parser = arguments(__doc__, "pacs128/ and cifar10n/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="tasks whose name has this in it")
    parser.add_argument("--part", choices=PARTS, default="test")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    file, names, make, seeds = PARTS[asked.part]
    path = RESULTS / file
    done = {(row["task"], int(row["seed"])) for row in read_rows(path)}
    for seed in seeds[: asked.seeds]:
        for name in (name for name in names if asked.only in name):
            if (name, seed) not in done:
                add_row(path, COLUMNS, row_of(make(name, seed, asked.data), seed))


if __name__ == "__main__":
    main()

"""The field benchmark of heads: `auto`, told nothing, beside what users have, on frozen features.

All heads see the same features, labels and splits, and run by their own packages. Peers: scikit-learn's
LogisticRegressionCV and cleanlab's CleanLearning (standardised features, the penalty by cross-validated
accuracy on the labels as given); on votes also crowd-kit's Dawid-Skene before LogisticRegressionCV; on texts
TF-IDF with LogisticRegressionCV; and LogisticRegressionCV on 5, 10 or 50 checked examples a class alone. Test
tasks and seeds were run once, after everything was settled on the development tasks and seeds of tasks.py;
the votes of YouTube, TREC and Amazon were looked at before (see there). Continues where it stopped.

    python benchmarks/field/heads.py --data DATA [--part development|test] [--seeds N] [--only TEXT]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from tasks import DEVELOPMENT, DEVELOPMENT_SEEDS, TEST, TEST_SEEDS, FieldTask, field_task

from hesstune.errors import DataError
from hesstune.methods import method_class
from hesstune.methods._heads import HeadMaterial
from hesstune.weak.vote_models import vote_counts
from peers import CrossValidated
from records import RESULTS, add_row, arguments, read_rows

COLUMNS = ("task", "kind", "seed", "n", "noise", "method", "accuracy", "seconds", "chosen")
CLEAN = (5, 10, 50)
Head = Callable[[FieldTask, int], tuple[float, str]]


def record_path(part: str) -> Path:
    """Return where a part's rows are kept."""
    return RESULTS / f"field_heads_{part}.csv"


def _material(task: FieldTask, seed: int) -> HeadMaterial:
    counts = None
    if task.votes is not None:  # as a run takes them
        counts = vote_counts(task.votes.ballots)
    return HeadMaterial(task.x, task.given, task.k, counts, seed=seed, votes=task.votes)


def _solved(name: str) -> Head:
    def run(task: FieldTask, seed: int) -> tuple[float, str]:
        found = method_class(name).solve_head(_material(task, seed))
        hits = (task.x_test @ found.weight.T + found.bias).argmax(axis=1) == task.y_test
        return float(hits.mean()), str(found.details.get("chosen", found.name))

    return run


def _cross_validated(task: FieldTask, labels: NDArray[np.int64], seed: int) -> tuple[float, str]:
    return _test_accuracy(task, CrossValidated(seed).fit(task.x, labels))


def _test_accuracy(task: FieldTask, found: CrossValidated) -> tuple[float, str]:
    given = found.pipeline_.predict(task.x_test)
    return float((given == task.y_test).mean()), f"C = {found.strength_:g}"


def _tf_idf(task: FieldTask, seed: int) -> tuple[float, str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    assert task.texts is not None
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = words.fit_transform(task.texts[0])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    grid = list(np.geomspace(0.01, 100, 5))
    model = LogisticRegressionCV(Cs=grid, cv=folds, max_iter=300, scoring="accuracy").fit(x, task.given)
    return float((model.predict(words.transform(task.texts[1])) == task.y_test).mean()), ""


def _clean_alone(each: int) -> Head:
    """LogisticRegressionCV on some checked validation examples of each class, and on nothing else."""

    def run(task: FieldTask, seed: int) -> tuple[float, str]:
        x, y = task.clean
        order = np.random.default_rng([seed, each]).permutation(len(y))
        rows = np.concatenate([order[y[order] == c][:each] for c in range(task.k)])
        return _test_accuracy(task, CrossValidated(seed).fit(x[rows], y[rows]))

    return run


def heads(task: FieldTask) -> Iterator[tuple[str, Head]]:
    """Yield what applies to a task."""
    for name in ("auto", "sklearn_cv", "cleanlab"):
        yield name, _solved(name)
    if task.votes is not None:
        yield "crowd_kit", _solved("crowd_kit")
    if task.texts is not None:
        yield "tf_idf", _tf_idf
    for each in CLEAN:
        if (np.bincount(task.clean[1], minlength=task.k) >= each).all():
            yield f"clean_{each}", _clean_alone(each)
    yield "sklearn_cv, true labels", lambda t, seed: _cross_validated(t, t.true, seed)


def main() -> None:
    parser = arguments(__doc__, "pacs128/, cifar10n/, wrench/, amazon_isbook/, sst2/ and mrpc/")
    parser.add_argument("--part", choices=("development", "test"), default="development")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="tasks whose name has this in it")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    names, seeds = (DEVELOPMENT, DEVELOPMENT_SEEDS) if asked.part == "development" else (TEST, TEST_SEEDS)
    path = record_path(asked.part)
    done = {(row["task"], int(row["seed"]), row["method"]) for row in read_rows(path)}
    for seed in seeds[: asked.seeds]:
        for name in (name for name in names if asked.only in name):
            if not {(name, seed, "auto"), (name, seed, "sklearn_cv, true labels")} <= done:  # first and last
                _run(field_task(name, seed, asked.data), seed, path, done)


def _run(task: FieldTask, seed: int, path: Path, done: set[tuple[str, int, str]]) -> None:
    noise = round(float((task.given != task.true).mean()), 4)
    for method, head in heads(task):
        if (task.name, seed, method) in done:
            continue
        started = time.monotonic()
        try:
            accuracy, chosen = head(task, seed)
        except DataError as error:  # a peer that cannot do it: its user would go back to plain scikit-learn
            accuracy, chosen = _solved("sklearn_cv")(task, seed)
            chosen = f"sklearn_cv in its place: {error}"
        spent = round(time.monotonic() - started, 2)
        row = [task.name, task.kind, seed, len(task.x), noise, method, round(accuracy, 5), spent, chosen]
        add_row(path, COLUMNS, row)


if __name__ == "__main__":
    main()

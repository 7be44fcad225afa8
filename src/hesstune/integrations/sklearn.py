"""Classifiers for scikit-learn: fine-tuning of images and texts, and the head of `auto` on embeddings."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors.torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hesstune.analysis.predict import predict_with
from hesstune.data.formats import listing
from hesstune.data.labels import label_columns, missing_labels
from hesstune.errors import DataError, listed, unknown_name
from hesstune.methods._base import Budget, ClassEvidence, HeadMaterial
from hesstune.methods.auto import Auto
from hesstune.models.load import MODULE, LoadedModel
from hesstune.noise.matrix import NoiseMatrix, written_out
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.loading import network_of, reading_of, size_of
from hesstune.runs.records import MODEL, RECORD, RunRecord
from hesstune.runs.run import Run
from hesstune.storage.files import writing
from hesstune.training.finetune import finetune
from hesstune.training.prepare import as_trained


class RobustClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tune a pretrained network on images (arrays) or texts (strings) with labels that may be wrong.

    Args:
        model: As for `hesstune.finetune`, a string or a module; default: `efficientnet_lite0`, or `minilm`
            for texts.
        method: A fine-tuning method.
        noise_matrix: Known label noise: a rate, `symmetric:RATE`, `pair:RATE`; None: no noise information.
        radius: Radii of the distance constraint; default: the method's own.
        train: `all` or `head`.
        epochs: Passes over the training set.
        batch_size: Examples per step.
        lr: Peak learning rate; by default as for `hesstune.finetune`.
        image_size: Side of the images, in pixels, after resizing.
        max_length: Maximum number of tokens of a text.
        val_fraction: Share of the examples held out for validation; default: 0.2 if `auto` fine-tunes more
            layers than the head, else 0.
        options: More options of `hesstune.finetune`, by name.
        out: Run folder, overwritten by the next `fit`; default: the run is kept in memory.
        random_state: The seed.

    Attributes:
        classes_: The classes, sorted.
        run_: The finished run (`hesstune.Run`); measure or certify it as any other.

    A fitted classifier pickles with its weights, but without examples: `run_.measure` of one that was
    unpickled needs them again, `data=(X, y)`.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> digits = load_digits()
        >>> model = RobustClassifier(train="head", image_size=32)
        >>> model.fit(digits.images[:200] / 16, digits.target[:200]).predict(digits.images[:3] / 16).shape
        (3,)
    """

    def __init__(  # noqa: PLR0913
        self,
        model: Any = None,
        method: str = "auto",
        noise_matrix: str | float | None = None,
        radius: float | dict[str, float] | None = None,
        train: str = "all",
        epochs: int = 15,
        batch_size: int = 32,
        lr: float | None = None,
        image_size: int = 64,
        max_length: int = 128,
        val_fraction: float | None = None,
        options: dict[str, Any] | None = None,
        out: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.noise_matrix = noise_matrix
        self.radius = radius
        self.train = train
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.image_size = image_size
        self.max_length = max_length
        self.val_fraction = val_fraction
        self.options = options
        self.out = out
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that X is a stack of images or a list of texts, not a table."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    def fit(self, X: Any, y: Any) -> RobustClassifier:
        """Fine-tune on images (N, H, W[, C]) or N strings, with labels of any kind, (N,), or one-hot, (N, K).

        Examples whose label is missing (None, NaN, an empty text, NA, −1) are left out, and counted in the
        notes of the run.
        """
        given = _values(y)
        missing = np.array(missing_labels(given), dtype=bool)
        present = np.asarray([value for value, gone in zip(given, missing, strict=True) if not gone])
        check_classification_targets(present)
        self.classes_, codes = np.unique(present, return_inverse=True)
        labels = np.full(len(given), None, dtype=object)
        labels[~missing] = codes
        if not len(self.classes_):
            raise DataError("y has no label at all; at least two classes are needed")
        if len(self.classes_) < 2:
            raise DataError(f"y has one class only ({self.classes_.tolist()[0]!r}); at least two are needed")
        self.is_text_ = _is_text(X)
        names = [str(name) for name in self.classes_]
        if len(set(names)) < len(names):
            raise DataError(f"several classes are written alike: {listed(names)}; give each another name")
        own = self.get_params(deep=False)
        more = {"test_fraction": 0.0, "seed": own.pop("random_state"), **(own.pop("options") or {})}
        options = {name: value for name, value in own.items() if name != "out"} | more
        self._network: LoadedModel | None = None
        if options["val_fraction"] is None:
            options["val_fraction"] = 0.2 if self._uses_validation(options | {"val_fraction": 0.0}) else 0.0
        config = self._resolved(options)
        # Labels are integers here; messages and the run use the names of the classes in y.
        found = listing((X, labels), size_of(config), how=reading_of(config, config.seed))
        if found.vectors is not None:
            raise DataError(
                "X must be texts or images, such as (N, H, W); it is a table of numbers, (N, D): for feature "
                "vectors use hesstune.finetune((X, y)), or RobustLinearClassifier"
            )
        self._data = replace(found, classes=names) if len(found.classes) == len(names) else found
        with tempfile.TemporaryDirectory() as folder:
            out = folder if self.out is None else self.out
            run = finetune(self._data, out=out, overwrite=True, **options)
            self._config, self._facts = run.config.to_dict(), run.record
            self._files = {path.name: path.read_bytes() for path in run.path.iterdir() if _is_kept(path)}
        self._run = None if self.out is None else run
        return self

    def _resolved(self, options: dict[str, Any]) -> FinetuneConfig:
        own = {"model": MODULE} if self._given_model() is not None else {}
        named = {name: value for name, value in options.items() if (name, value) != ("model", None)}
        config = make_config(named | own).resolved()
        return config.on_texts()[0] if self.is_text_ else config

    def _uses_validation(self, options: dict[str, Any]) -> bool:
        """Return whether `auto` needs validation examples, which it does for other layers than the head."""
        config = self._resolved(options)
        if config.method != "auto":
            return False
        return not as_trained(
            config, self._given_model() or config.model, len(self.classes_), self.is_text_
        ).head_only

    @property
    def run_(self) -> Run:
        """The finished run.

        Without `out`, or if that folder is gone, a temporary folder is made, and removed with the classifier.
        """
        check_is_fitted(self)
        if self._run is None or not (self._run.path / RECORD).is_file():
            with writing(Path(tempfile.gettempdir())):
                folder = Path(tempfile.mkdtemp(prefix="hesstune-"))
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                for name, content in self._files.items():
                    (folder / name).write_bytes(content)
            self._run = Run.load(folder, data=self._data, model=self._given_model())
        return self._run

    def _given_model(self) -> Any:
        return None if isinstance(self.model, str) else self.model

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle: the run's files, with weights in safetensors, and no examples."""
        state: dict[str, Any] = dict(super().__getstate__())  # the attributes themselves stay as they are
        if "_files" in state:
            state |= {"_run": None, "_data": None, "_network": None}
        return state

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the classes' probabilities, (N, K), in the order of `classes_`."""
        check_is_fitted(self)
        if _is_text(X) != self.is_text_:
            raise DataError(f"the classifier was fitted on {'texts' if self.is_text_ else 'images'}")
        config, facts = make_config(self._config), RunRecord.model_validate(self._facts)
        if self._network is None:
            weights = safetensors.torch.load(self._files[MODEL])
            self._network = network_of(config, facts, weights, "the classifier", self._given_model())
        return predict_with(self._network, config, config.seed, facts.classes, (X, None)).probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each example."""
        predicted: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return predicted


# With up to so many examples, equal ones are one example that counts several times.
MERGED = 50_000


class RobustLinearClassifier(LinearClassifierMixin, BaseEstimator):
    """A linear classifier of embeddings with labels that may be wrong: the head of method `auto`.

    It stands in for `LogisticRegression`. Penalties need not be searched: softmax regressions and linear
    discriminants are fitted with and without a noise model, by EM, and those that predict held-out labels
    best together are averaged (`hesstune.noise.latent`).

    Args:
        noise_matrix: What is known of the noise: a `NoiseMatrix`, an array (K, K) with rows P(given | true),
            or the rate of symmetric noise; None: it is estimated.
        budget: How many candidates are tried: `fast`, `default` or `thorough`.
        random_state: The seed, an integer.

    Attributes:
        classes_: The classes, sorted, (K,).
        coef_: (K, D), or (1, D) with two classes, as of `LogisticRegression`; float64.
        intercept_: (K,) or (1,).
        noise_matrix_: The noise matrix that was found or given (`NoiseMatrix`).
        posterior_: P(true class | features, given label), (N, K), from classifiers that did not see the
            example.
        label_issues_: Rows of X with a given label that is not the most probable class, (M,), the least
            probable label first. `hesstune.clean(features=X, labels=y)` searches longer, and counts them.
        description_: The noise model and the heads, and why they were chosen, in words.
        n_features_in_: D.

    Up to 50,000 examples may be in any order, and equal ones count as one with the sum of their weights. With
    more, memory-mapped features are read in parts, candidates are compared on 6,000 examples, and EM is
    fitted to 50,000.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> true = rng.integers(0, 2, 400)
        >>> X = np.eye(2)[true] + 0.4 * rng.normal(size=(400, 2))
        >>> y = np.where(rng.random(400) < 0.2, 1 - true, true)
        >>> model = RobustLinearClassifier().fit(X, y)
        >>> bool(model.score(X, true) > 0.93), bool((y != true)[model.label_issues_].mean() > 0.8)
        (True, True)
    """

    def __init__(
        self,
        noise_matrix: NoiseMatrix | ArrayLike | float | None = None,
        budget: Budget = "default",
        random_state: int = 0,
    ) -> None:
        self.noise_matrix = noise_matrix
        self.budget = budget
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        checked: ArrayLike | None = None,
    ) -> RobustLinearClassifier:
        """Fit to embeddings (N, D) and labels (N,) of any kind.

        Args:
            X: Dense features; reduce sparse ones first, such as by `TruncatedSVD`.
            y: Labels, possibly wrong.
            sample_weight: (N,) not negative: how often each example counts; 0 leaves it out.
            checked: (N,) True for examples with a label that a person has checked; their labels are correct.

        Raises:
            DataError: If labels are of one class or missing.
            ValueError: If X or y are malformed, by scikit-learn's rules.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], order="C")
        import pandas as pd

        values = pd.unique(pd.Series(np.asarray(y))).tolist()
        missing = [value for value, gone in zip(values, missing_labels(values), strict=True) if gone]
        if missing:
            raise DataError(f"y has missing labels ({listed(map(repr, missing))}); leave these examples out")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        k = len(self.classes_)
        if k < 2:
            raise DataError(f"y has one class only ({self.classes_.tolist()[0]!r}); at least two are needed")
        if self.budget not in get_args(Budget):
            raise unknown_name("budget", str(self.budget), get_args(Budget))
        weight = np.ones(len(X))
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        sure: NDArray[np.bool_] = np.zeros(len(X), dtype=np.bool_) if checked is None else np.asarray(checked)
        if sure.shape != (len(X),) or sure.dtype != bool:
            raise DataError(f"checked must be ({len(X)},) of bool; got {sure.dtype} {sure.shape}")
        if len(np.unique(labels[weight > 0])) < 2:
            raise DataError("examples of sample weight above 0 have one class only; at least two are needed")
        known = self.noise_matrix is not None
        matrix = NoiseMatrix.parse(written_out(self.noise_matrix), k) if known else None
        material = HeadMaterial(X, labels, k, None, None, matrix, weight, self.budget, self.random_state)
        material, group = _distinct(material, sure)
        solved = Auto.solve_head(material)
        two = k == 2
        self.coef_ = solved.weight[1:] - solved.weight[:1] if two else solved.weight
        self.intercept_ = solved.bias[1:] - solved.bias[:1] if two else solved.bias
        self.noise_matrix_ = solved.noise_matrix or NoiseMatrix.identity(k)
        self.description_ = f"{solved.name}; {solved.reason}"
        assert solved.evidence is not None
        self.posterior_ = solved.evidence.posterior()[group]
        if (apart := np.flatnonzero(group < 0)).size:  # left out: the classifier did not see them
            likelihood = self.noise_matrix_.array[:, labels[apart]].T
            self.posterior_[apart] = ClassEvidence(self.predict_proba(X[apart]), likelihood).posterior()
        given = self.posterior_[np.arange(len(X)), labels]
        differ = np.flatnonzero((self.posterior_.argmax(axis=1) != labels) & ~sure)
        self.label_issues_ = differ[np.argsort(given[differ], kind="stable")]
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return P(true class | features), (N, K), in the order of `classes_`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.asarray(np.stack([expit(-scores), expit(scores)], axis=1))
        return np.asarray(softmax(scores, axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ln P(true class | features), (N, K)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        return np.asarray(log_softmax(scores, axis=1))


def _distinct(material: HeadMaterial, sure: NDArray[np.bool_]) -> tuple[HeadMaterial, NDArray[np.int64]]:
    """Return material of distinct examples, up to MERGED, with checked rows; and each example's row, or −1.

    Equal examples with different labels have a soft label.
    """
    weight = material.weight
    assert weight is not None
    group = np.arange(len(weight))
    if len(weight) <= MERGED:
        first, group, counts = _merged(material.features, material.labels, sure, weight)
        weight, sure, labels = counts.sum(axis=1), sure[first], counts.argmax(axis=1)
        soft = counts / weight[:, None] if (np.count_nonzero(counts, axis=1) > 1).any() else None
        material = replace(material, features=material.features[first], labels=labels, soft=soft)
    rows = np.flatnonzero(sure)
    checked = (rows, material.labels[rows]) if len(rows) else None
    return replace(material, checked=checked, weight=None if (weight == 1).all() else weight), group


def _merged(
    X: NDArray[Any], labels: NDArray[np.int64], sure: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return distinct examples: the first row of each, each row's example, and the weights of labels, (G, K).

    Examples are in an order by content, and those of weight 0 belong to none (−1).
    """
    import pandas as pd

    used = np.flatnonzero(weight > 0)
    frame = pd.DataFrame(X[used] + 0.0).assign(sure=sure[used])  # −0 is 0
    keys = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    _, first, own = np.unique(keys, return_index=True, return_inverse=True)
    counts = np.zeros((len(first), labels.max() + 1))
    np.add.at(counts, (own, labels[used]), weight[used])
    group = np.full(len(X), -1, dtype=np.int64)
    group[used] = own
    return used[first].astype(np.int64), group, counts


def _values(y: Any) -> list[Any]:
    """Return the labels in y, one an example; of one-hot labels, (N, K), the column."""
    columns, _ = label_columns(y)
    if len(columns) > 1:
        raise DataError(
            "y holds soft labels; give each example one class, or train on them by "
            "hesstune.finetune((X, y), soft_labels=True)"
        )
    if np.ndim(y) < 2 or np.shape(y)[1] == 1:
        flat = y.to_numpy() if hasattr(y, "to_numpy") else y
        return list(np.ravel(flat).tolist() if np.ndim(y) == 2 else getattr(flat, "tolist", lambda: flat)())
    names = {str(name): name for name in (y.columns if hasattr(y, "columns") else range(np.shape(y)[1]))}
    return [names.get(cell) for cell in columns["label"]]


def _is_text(X: Any) -> bool:
    """Return whether X holds texts; raise DataError if it holds neither texts nor images."""
    kinds = "a list of texts or images, or an array of images, (N, H, W) or (N, H, W, C)"
    if isinstance(X, str | bytes) or not hasattr(X, "__len__") or getattr(X, "ndim", 1) == 0:
        raise DataError(f"X must be {kinds}; got {type(X).__name__}")
    if len(X) == 0:
        raise DataError("X holds no examples")
    rows = list(X) if isinstance(X, Sequence) or getattr(getattr(X, "dtype", None), "kind", "") == "O" else []
    shapes = [_shape(row) for row in rows if isinstance(row, list | tuple | np.ndarray)]
    for at, shape in enumerate(shapes):
        if shape is None:
            raise DataError(f"X is ragged: row {at} holds lists of unequal lengths; X must be {kinds}")
        if shape != shapes[0] and len(shape) < 2:
            raise DataError(
                f"X is ragged: row {at} has the shape {shape}, and row 0 {shapes[0]}; X must be {kinds}"
            )
    return isinstance(X[0] if isinstance(X, Sequence | np.ndarray) else next(iter(X)), str)


def _shape(row: Any) -> tuple[int, ...] | None:
    """Return the shape of a row, or None if it is ragged."""
    try:
        return tuple(np.shape(row))
    except ValueError:
        return None


def _is_kept(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")

"""scikit-learn: fine-tuning as a classifier with `fit` and `predict`."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from hesstune.analysis.predict import predict_with
from hesstune.data.formats import listing
from hesstune.data.label_arrays import label_columns
from hesstune.data.labels import missing_labels
from hesstune.errors import DataError, listed
from hesstune.models.load import MODULE, LoadedModel
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
        model: As for `hesstune.finetune`, a string or a module; `minilm` or `hf:NAME` for texts.
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
        model: Any = "efficientnet_lite0",
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
        found = listing((X, labels), size_of(config), how=reading_of(config))
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
        return make_config(options | ({} if isinstance(self.model, str) else {"model": MODULE})).resolved()

    def _uses_validation(self, options: dict[str, Any]) -> bool:
        """Return whether `auto` needs validation examples, which it does for other layers than the head."""
        config = self._resolved(options)
        if config.method != "auto":
            return False
        return not as_trained(config, self.model, len(self.classes_), self.is_text_).head_only

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
        return predict_with(self._network, config, facts.classes, (X, None)).probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each example."""
        predicted: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return predicted


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

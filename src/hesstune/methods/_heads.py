"""Heads that are solved on features of the frozen network before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from hesstune.errors import ConfigError, DataError
from hesstune.forward import logits_of
from hesstune.methods._base import HeadMaterial, Method, MethodSetup, SolvedHead
from hesstune.runtime.device import one_thread
from hesstune.storage.files import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hesstune.weak.votes import Votes

# The largest deviation from linear scores, of the largest score.
LINEAR_TOLERANCE = 1e-3


def linear_head(setup: MethodSetup) -> nn.Linear | None:
    """Return the head if it is one plain linear layer."""
    if setup.other_heads:
        return None
    module = setup.model.get_submodule(setup.head)
    return module if type(module) is nn.Linear else None


def training_features(
    setup: MethodSetup, head: nn.Linear, predict: Callable[[nn.Module], torch.Tensor]
) -> torch.Tensor:
    """Return the head's inputs for all training examples, (n, D), by the loop's `predict`."""
    whole = setup.network is not head
    return predict(_Features(setup.network, head) if whole else nn.Identity())


class _Features(nn.Module):
    """A network that returns the inputs of its head."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, inputs: Any = None, **named: Any) -> torch.Tensor:
        """Run the network and return the head's inputs, (N, D)."""
        seen: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            logits_of(self.network, named or inputs)
        finally:
            handle.remove()
        return seen[0]


def takes_solution(head: nn.Module, k: int, d: int) -> bool:
    """Tell whether a head is a linear layer from d features to k classes."""
    return type(head) is nn.Linear and tuple(head.weight.shape) == (k, d) and head.bias is not None


class SolvedHeadMethod(Method):
    """Cross-entropy from a head that was solved on frozen features."""

    solves_head = True
    head_penalty = 0.0
    weighs_classes = False

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        if setup.solved is not None:
            head = setup.model.get_submodule(setup.head)
            assert isinstance(head, nn.Linear)  # as `takes_solution` says
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(setup.solved.weight))
                head.bias.copy_(torch.from_numpy(setup.solved.bias))

    @property
    def goes_on(self) -> bool:
        """Whether steps follow: if more is trained than the solved head, or no head was solved."""
        if self.setup.solved is None:
            return True
        alone = self.head_alone or self.setup.alone
        return not alone and any(not self.setup.in_head(name) for name in self.setup.trained)

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the choice of weights: the best on validation, the start among them."""
        return {} if cls.head_alone else {"select": "best"}


class EstimatorHead(SolvedHeadMethod):
    """A scikit-learn estimator on features of the frozen network; see `estimator_method`."""

    head_alone = True
    takes_soft = False
    estimator: ClassVar[Any]
    combine: ClassVar[Callable[[Votes], NDArray[np.int64]] | None] = None

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        """Return the head of the estimator, fitted to the labels as given or to labels from votes.

        Raises:
            ConfigError: If the estimator's scores are not linear in the features.
            DataError: If it cannot be fitted, or there are no votes for these classes.
        """
        labels, reason = material.labels, "fitted to the labels as given"
        if cls.combine is not None:
            votes = material.votes
            if votes is None or votes.k != material.k:
                what = "there are none" if votes is None else f"those given are for {votes.k}"
                raise DataError(f"method '{cls.__name__}' needs votes for the {material.k} classes; {what}")
            made = np.asarray(cls.combine(votes))
            if made.shape != labels.shape or not np.isin(made, np.arange(-1, material.k)).all():
                raise DataError(
                    f"method '{cls.__name__}': labels from votes must be {labels.shape} in [-1, K)"
                )
            silent = int((made < 0).sum())
            labels = np.where(made < 0, labels, made)
            reason = f"fitted to labels from votes; {silent} examples have no vote and keep their label"
        if len(np.unique(labels)) < 2:
            raise DataError(f"all {len(labels)} training examples have one class; a head needs two")
        from sklearn.base import clone

        x = material.features
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fitted = clone(cls.estimator).fit(x, labels)
            except ValueError as error:
                raise DataError(f"{len(x)} training examples: {one_line(error)}") from error
            weight, bias = linear_scores(fitted, x)
        classes = np.asarray(fitted.classes_)
        whole, offset = np.zeros((material.k, x.shape[1])), np.full(material.k, -1e3)
        whole[classes], offset[classes] = weight, bias
        return SolvedHead(whole, offset, None, type(cls.estimator).__name__, reason)


def linear_scores(fitted: Any, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight, (K, D), and bias, (K,), of the linear scores of a fitted estimator.

    The scores are its decision function, or the logarithm of its probabilities. Differences between the mean
    of the features and one step along each of them give the weight.

    Raises:
        ConfigError: If the scores are not linear on the features x, (N, D).
    """

    def scores(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if hasattr(fitted, "decision_function"):
            found = np.asarray(fitted.decision_function(rows), dtype=np.float64)
            found = np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found
        else:
            found = np.log(np.maximum(fitted.predict_proba(rows), 1e-300))
        return np.asarray(found - found.mean(axis=1, keepdims=True))

    mean, step = x.mean(axis=0), x.std(axis=0)
    moved = mean + np.diag(step)
    taken = np.diagonal(moved) - mean  # the step as rounded
    centre = scores(mean[None])[0]
    slope = (scores(moved) - centre).T
    weight = np.divide(slope, taken, out=np.zeros_like(slope), where=np.broadcast_to(taken != 0, slope.shape))
    given = scores(x)
    gap = np.abs((x - mean) @ weight.T + centre - given).max(initial=0.0)
    if not gap <= LINEAR_TOLERANCE * max(float(np.abs(given).max(initial=0.0)), 1.0):
        raise ConfigError(
            f"the scores of {type(fitted).__name__} are not linear in the features (off by {gap:.2g}); a run "
            "keeps a linear head"
        )
    return weight, centre - weight @ mean


def estimator_method(
    name: str, estimator: Any, combine: Callable[[Votes], NDArray[np.int64]] | None = None
) -> type[Method]:
    """Return a method that fits a scikit-learn estimator to features of the frozen network.

    It stands beside hesstune's methods in `compare` and in `finetune(train="head")`.

    Args:
        name: The method's name.
        estimator: A classifier with linear scores, such as a pipeline of StandardScaler and
            LogisticRegressionCV. It is cloned before it is fitted.
        combine: Makes labels, (N,) with -1 for no label, from votes; the estimator is then fitted to them
            instead of the labels as given.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> estimator_method("logistic", LogisticRegression()).__name__
        'logistic'
    """
    voted = None if combine is None else staticmethod(combine)
    own = {"estimator": estimator, "combine": voted, "needs_votes": combine is not None}
    return cast("type[Method]", type(name, (EstimatorHead,), own))

"""Older complexity measures of a finished run, beside its Hessian distance measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.bounds.baselines import (
    distance_sum,
    mars_measure,
    pac_bayes_spectral_measure,
    parameter_count_measure,
    spectral_measure,
)
from hesstune.bounds.hessian import constrained_distance_measure, noisy_hessian_distance_measure
from hesstune.curvature.result import Measure
from hesstune.curvature.sharpness import Sharpness
from hesstune.forward import Inputs, evaluating, logits_of, named_parameters
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference
from hesstune.runs.measure_records import OtherMeasure
from hesstune.runtime.distributed import all_gather

__all__ = ["Margins", "complexity_measures", "margins_of"]

# Of the margins over the training examples: the smallest few belong to the hardest pictures alone
# (Jiang et al., Fantastic generalization measures, 2020).
PERCENTILE = 10
_Row = tuple[str, str, Callable[[], float]]


@dataclass(frozen=True)
class Margins:
    """What the margin bounds need of the examples.

    Attributes:
        margin: γ, the 10th percentile over the examples of f_y − max_{j≠y} f_j.
        norm: B, the root mean square Euclidean norm of the inputs; None for tokens.
        largest: X, the largest absolute input; None for tokens.
        inputs: d, the numbers in one input.
    """

    margin: float
    norm: float | None
    largest: float | None
    inputs: int


def margins_of(model: nn.Module, batches: Iterator[tuple[Inputs, torch.Tensor]]) -> Margins:
    """Return the margins and input norms over the examples of all ranks; the model runs in eval mode.

    Args:
        model: The network.
        batches: (inputs, targets) of this rank.
    """
    margins = [torch.empty(0, dtype=torch.float64)]
    pixels: list[list[float]] = []  # of each batch: sum of squares, largest, images, numbers in one
    with evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            logits = logits_of(model, inputs).double().cpu()
            own = logits.gather(1, targets[:, None])[:, 0]
            others = logits.scatter(1, targets[:, None], -math.inf).amax(dim=1)
            margins.append(own - others)
            row = [0.0, 0.0, 0, 0]
            if isinstance(inputs, torch.Tensor):
                square, largest = float(inputs.double().square().sum()), float(inputs.abs().max())
                row = [square, largest, len(inputs), inputs[0].numel()]
            pixels.append(row)
    gamma = float(np.percentile(torch.cat(all_gather(torch.cat(margins))).numpy(), PERCENTILE))
    every = torch.cat(all_gather(torch.tensor(pixels, dtype=torch.float64).reshape(-1, 4)))
    count, size = float(every[:, 2].sum()), int(every[0, 3])
    if count == 0:
        return Margins(gamma, None, None, size)
    squares = math.fsum(every[:, 0].tolist())  # the same in any order of ranks
    return Margins(gamma, math.sqrt(squares / count), float(every[:, 1].max()), size)


def complexity_measures(
    found: Measure,
    model: nn.Module,
    reference: Reference,
    margins: Margins,
    n: int,
    radii: Mapping[str, float] | None = None,
    noise_matrix: NoiseMatrix | None = None,
    norm: str = "frobenius",
    sharpness: Sharpness | None = None,
) -> list[OtherMeasure]:
    """Return further measures of a run; those that do not exist say why.

    None is a guarantee: constants and logarithms are left out as in `hesstune.bounds.baselines`. A
    convolution's kernel counts as the matrix of its output channels, and layers between, such as batch
    norm, count as 1-Lipschitz.

    Args:
        found: The run's measurement.
        model: The fine-tuned network.
        reference: The weights before fine-tuning.
        margins: Of the training examples.
        n: Size of the training set.
        radii: The balls' radii, by layer; a layer without one counts with its distance.
        noise_matrix: F of the consistent loss, where the run trained with it.
        norm: That of the balls. Of `mars`, with rows of at most α in absolute sum, a layer of m rows lies
            within √m·α in the Frobenius norm, which counts here.
        sharpness: Of the measured examples, where it is to be in the list.
    """
    bound = float(found.losses.max())
    norms = _norms(found, model, reference)
    ball = radii or {}
    widen = np.sqrt(norms["rows"]) if norm == "mars" else np.ones(len(found.names))
    alpha = [
        ball[name] * float(wide) if name in ball else moved
        for name, wide, moved in zip(found.names, widen, norms["distance"], strict=True)
    ]
    rows: list[_Row] = [
        (
            "Σ √(Cα²·max Tr H⁺/n)",
            "paper, section 2.2: within balls of radius α",
            lambda: constrained_distance_measure(alpha, _traces(found), n, bound),
        ),
        *_older(norms, margins, n),
    ]
    if sharpness is not None:
        rise = sharpness.value
        where = f"ℓ(W + ρg/‖g‖) − ℓ(W), ρ = {sharpness.rho:g}, all weights, measured examples"
        rows.append(("SAM sharpness", f"Foret et al. 2021: {where}", lambda: rise))
    if noise_matrix is not None:
        quadratic = found.maximum.numpy()
        rows.insert(
            0,
            (
                "Σ √(ρC𝓗/n)",
                "paper, section 2.3: of the consistent loss",
                lambda: noisy_hessian_distance_measure(quadratic, n, bound, noise_matrix),
            ),
        )
    return [_record(name, source, compute) for name, source, compute in rows]


def _older(norms: dict[str, NDArray[np.float64]], margins: Margins, n: int) -> list[_Row]:
    """Return the measures that need norms and margins alone."""
    weights, width = int(norms["size"].sum()), int(norms["width"].max())
    moved = {key: values[norms["spectral"] > 0] for key, values in norms.items()}

    def gamma() -> float:
        return _margin(margins.margin)

    return [
        ("Σ ‖v‖", "Nagarajan & Kolter 2019", lambda: distance_sum(norms["distance"])),
        (
            "√(p·Σ ‖v‖₂/n)",
            "Long & Sedghi 2020, Theorem 2.1",
            lambda: parameter_count_measure(norms["moved_spectral"], weights, n),
        ),
        (
            "spectral margin",
            "Bartlett et al. 2017, Theorem 1.1",
            lambda: spectral_measure(
                moved["spectral"], moved["moved_21"], n, gamma(), _numbers(margins.norm)
            ),
        ),
        (
            "PAC-Bayes spectral margin",
            "Neyshabur et al. 2018, Theorem 1",
            lambda: pac_bayes_spectral_measure(
                moved["spectral"], moved["distance"], n, gamma(), width, _numbers(margins.norm)
            ),
        ),
        (
            "MARS distance",
            "Gouk et al. 2021, Theorem 1",
            lambda: mars_measure(
                moved["mars"], moved["moved_mars"], n, margins.inputs, _numbers(margins.largest)
            ),
        ),
    ]


class _MissingError(Exception):
    """Why a measure does not exist for a run."""


def _traces(found: Measure) -> NDArray[np.float64]:
    if found.trace is None or bool(found.trace.isnan().any()):
        raise _MissingError("needs the trace of every layer on every example: hesstune measure --trace")
    return np.asarray(found.trace.amax(0))


def _margin(margin: float) -> float:
    if margin <= 0:
        raise _MissingError(
            f"{PERCENTILE} % or more of the training examples are misclassified (margin {margin:.3g})"
        )
    return margin


def _numbers(value: float | None) -> float:
    if not value:
        raise _MissingError("stated for inputs that are numbers, not tokens")
    return value


def _record(name: str, source: str, compute: Callable[[], float]) -> OtherMeasure:
    try:
        with np.errstate(over="ignore"):
            value = compute()
    except _MissingError as reason:
        return OtherMeasure(name=name, value=None, why=str(reason), source=source)
    if not math.isfinite(value):
        return OtherMeasure(name=name, value=None, why="beyond the largest float", source=source)
    return OtherMeasure(name=name, value=value, source=source)


def _norms(found: Measure, model: nn.Module, reference: Reference) -> dict[str, NDArray[np.float64]]:
    """Return each layer's norms, (L,): of its weight, and of how far it moved."""
    weights = named_parameters(model)
    rows: dict[str, list[float]] = {}
    for name in found.names:
        weight = weights[name].detach().double().flatten(1).cpu()
        moved = weight - reference[name].double().flatten(1).cpu()
        values = {
            "spectral": _spectral(weight),
            "mars": float(weight.abs().sum(dim=1).max()),
            "distance": float(moved.norm()),
            "moved_spectral": _spectral(moved),
            "moved_21": float(moved.norm(dim=1).sum()),
            "moved_mars": float(moved.abs().sum(dim=1).max()),
            "size": float(weight.numel()),
            "rows": float(len(weight)),
            "width": float(max(weight.shape)),
        }
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in rows.items()}


def _spectral(matrix: torch.Tensor) -> float:
    """Return the largest singular value, from the smaller Gram matrix: many times cheaper than an SVD."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))

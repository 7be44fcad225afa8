"""Gaussian priors at the reference: global scales times ratios fixed without the data."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.checks import positive
from hesstune.errors import ConfigError, LayerError, listed
from hesstune.forward import named_modules, named_parameters
from hesstune.reference import Reference, in_modules

Sigma = Mapping[str, float | torch.Tensor]
Array = NDArray[np.float64]
PRIOR_SCALES = tuple(2.0**-12 * (2.0**0.25) ** k for k in range(69))  # up to 2^5
# Ratios of the relative noise of the layers below the head to that of the head.
BODY_RATIOS = tuple(2.0**-18 * (2.0**0.5) ** k for k in range(37))  # up to 1
_ROUNDINGS = 16


def random_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters, by name: those that get noise and count in the KL.

    Raises:
        LayerError: If every parameter has requires_grad=False.
    """
    chosen = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    if not chosen:
        raise LayerError(
            "every parameter has requires_grad=False, so nothing was trained and no posterior exists; "
            "set requires_grad=True on the parameters that were fine-tuned"
        )
    return chosen


def base_deviations(model: nn.Module, ref: Reference) -> dict[str, float]:
    """Return each trained parameter's natural scale, from the reference alone.

    The root mean square of its reference values; if those are zero (a new head), 1/√fan_in of the
    module that owns it, as for torch's own initial values.

    Args:
        model: The network, for names and shapes.
        ref: The prior's centre.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(model.weight), nn.init.constant_(model.bias, 3.0)
        >>> base_deviations(model, Reference.of(model))
        {'weight': 0.5, 'bias': 3.0}
    """
    fan_in = {}
    for path, module in named_modules(model).items():
        own = dict(module.named_parameters(path, recurse=False))
        matrices = [p for p in own.values() if p.ndim > 1]
        width = matrices[0][0].numel() if matrices else 1
        fan_in.update(dict.fromkeys(own, width))
    result = {}
    for name in random_parameters(model):
        rms = float(ref[name].double().square().mean().sqrt())
        result[name] = rms if rms > 0 else 1 / math.sqrt(fan_in.get(name, 1))
    return result


def _ratios(names: Sequence[str], patterns: Mapping[str, float]) -> list[float]:
    """Match each name with the first pattern; raise for a pattern or a name without a match."""
    used: set[str] = set()
    result = []
    for name in names:
        match = next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
        if match is None:
            raise LayerError(f"no ratio matches '{name}'; add it, or the pattern '*' for all others")
        used.add(match)
        result.append(positive(f"ratio of '{match}'", patterns[match]))
    unused = [p for p in patterns if p not in used]
    if unused:
        raise LayerError(f"the ratios {listed(unused)} match no trained parameter; those are {listed(names)}")
    return result


def head_ratios(names: Sequence[str], heads: Sequence[str]) -> list[dict[str, float]]:
    """Return sets of ratios for a network with a new head: 1 for the head, 2⁻¹⁸ to 1 for all other layers.

    Relative to its natural scale, a head that starts at zero tolerates much more noise than trained layers.
    The pilot chooses among these sets, which are fixed without data.

    Args:
        names: The trained parameters.
        heads: The names of the head's modules.

    Example:
        >>> head_ratios(["fc.weight"], ["fc"])
        [{'*': 1.0}]
        >>> len(head_ratios(["conv.weight", "fc.weight"], ["fc"]))
        37
    """
    inside = [name for name in names if in_modules(name, heads)]
    if len(inside) in (0, len(names)):
        return [{"*": 1.0}]
    return [{**dict.fromkeys((f"{head}.*" for head in heads), 1.0), "*": ratio} for ratio in BODY_RATIOS]


def nearest_member(log_scale: float, log_ratio: float) -> tuple[float, float]:
    """Return the default family's global scale and body ratio that are nearest to the learnt ones."""
    scale = min(PRIOR_SCALES, key=lambda s: abs(math.log(s) - log_scale))
    wanted = log_scale + log_ratio - math.log(scale)
    return scale, min(BODY_RATIOS, key=lambda r: abs(math.log(r) - wanted))


class Displacement:
    """The squared distance of each trained parameter from the prior's centre.

    Args:
        model: The network; its trained parameters are the posterior's means.
        ref: The prior's centre.
    """

    def __init__(self, model: nn.Module, ref: Reference) -> None:
        parameters = random_parameters(model)
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.square = np.array(
            [
                float((p.detach().double() - ref[name].to(p.device).double()).square().sum())
                for name, p in parameters.items()
            ]
        )

    @property
    def has_moved(self) -> bool:
        """Whether any weight differs from the prior's centre."""
        return bool(self.square.any())

    def distances(self) -> dict[str, float]:
        """Return ‖W − W⁽ˢ⁾‖ of each trained parameter."""
        return dict(zip(self.shapes, np.sqrt(self.square).tolist(), strict=True))


class Posterior:
    """Gaussian posterior around the trained weights, summarised for the KL.

    Args:
        displacement: The means' distances from the prior's centre.
        sigma: Standard deviation of each trained parameter, a number or a tensor of its shape.

    Raises:
        LayerError: If names or shapes are not those of the trained parameters.
        ConfigError: If a deviation is not finite and above 0.
    """

    def __init__(self, displacement: Displacement, sigma: Sigma) -> None:
        missing = [name for name in displacement.shapes if name not in sigma]
        extra = [name for name in sigma if name not in displacement.shapes]
        if missing or extra:
            raise LayerError(
                "the posterior needs one deviation for each trained parameter; "
                f"missing: {listed(missing) or 'none'}; not trained: {listed(extra) or 'none'}"
            )
        self.sigma = {name: sigma[name] for name in displacement.shapes}
        rows = []
        for name, shape in displacement.shapes.items():
            value = torch.as_tensor(sigma[name], dtype=torch.float64).cpu()
            if value.ndim and value.shape != shape:
                raise LayerError(
                    f"the deviation of '{name}' has shape {tuple(value.shape)}; needed {tuple(shape)}"
                )
            if not bool(torch.isfinite(value).all()) or bool((value <= 0).any()):
                raise ConfigError(f"the posterior's deviation of '{name}' must be finite and above 0")
            repeat = shape.numel() if value.ndim == 0 else 1
            square, log = float(value.square().sum()) * repeat, float(value.log().sum()) * 2 * repeat
            rows.append((shape.numel(), square, log))
        self.distance = displacement.square
        self.dimension, self.square, self.log = np.array(rows, np.float64).T

    def deviations(self) -> dict[str, float]:
        """Return the root mean square deviation of each parameter."""
        return dict(zip(self.sigma, np.sqrt(self.square / self.dimension).tolist(), strict=True))


@dataclass(frozen=True)
class PriorFamily:
    """A finite family of priors N(W⁽ˢ⁾, s_i² I), s_i = scale · ratio_i · base_i, fixed beforehand.

    Attributes:
        names: The trained parameters, (P,).
        deviations: s_i of every member, (J, P); members run over ratio sets, then scales.
        scales: The global scales.
        sets: How many sets of ratios there are; J = sets · len(scales).
    """

    names: tuple[str, ...]
    deviations: Array
    scales: tuple[float, ...]
    sets: int

    @classmethod
    def build(
        cls,
        model: nn.Module,
        ref: Reference,
        scales: Sequence[float] | None = None,
        ratios: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    ) -> PriorFamily:
        """Make the family from a grid of global scales and one or more sets of ratios.

        Args:
            model: The network.
            ref: The prior's centre, also the source of the parameters' natural scales.
            scales: Global scales; a geometric grid of ratio 2^(1/4) from 2⁻¹² to 2⁵ by default.
            ratios: {pattern: ratio} on top of the natural scales, the first match wins; or several.

        Raises:
            LayerError: If a pattern matches no trained parameter, or none matches a parameter.
            ConfigError: If a scale or ratio is not above 0.
        """
        base = base_deviations(model, ref)
        names = tuple(base)
        grid = tuple(positive("a prior scale", s) for s in (PRIOR_SCALES if scales is None else scales))
        sets = [{"*": 1.0}] if ratios is None else [ratios] if isinstance(ratios, Mapping) else list(ratios)
        if not grid or not sets:
            raise ConfigError("a family of priors needs at least one scale and one set of ratios")
        rows = np.array([_ratios(names, patterns) for patterns in sets]) * np.array(list(base.values()))
        table = rows[:, None, :] * np.array(grid)[None, :, None]
        return cls(names, table.reshape(-1, len(names)), grid, len(sets))

    @property
    def size(self) -> int:
        """J, the number of members that share δ."""
        return len(self.deviations)

    def tied(self, member: int) -> dict[str, float]:
        """Return posterior deviations equal to a member's."""
        return dict(zip(self.names, self.deviations[member].tolist(), strict=True))

    def terms(self, posterior: Posterior) -> Array:
        """Return each parameter's share of the KL under each member, (J, P), rounded up, in nats.

        ‖v_i‖²/(2s²) + ½ Σ (σ²/s² − 1 − ln(σ²/s²)); the sum over parameters is the KL.
        """
        s2 = self.deviations**2
        d = posterior.dimension
        scaled, logs = posterior.square / s2, d * np.log(s2)
        spread = scaled - d - posterior.log + logs
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * (scaled + d + abs(posterior.log) + abs(logs))
        terms: Array = posterior.distance / (2 * s2) + np.maximum(spread + rounding, 0.0) / 2
        return terms

    def kl(self, posterior: Posterior) -> Array:
        """Return the KL of the posterior from each member, (J,), in nats."""
        total: Array = self.terms(posterior).sum(axis=1)
        return total

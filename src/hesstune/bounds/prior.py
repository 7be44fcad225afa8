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
    """Return the trained parameters, by name: those that get noise and count in the KL."""
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
    """Return the ratio of each name by the first pattern that matches; raise if one has no match."""
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


@dataclass(frozen=True)
class Posterior:
    """Standard deviations of a Gaussian posterior around the trained weights, summarised for the KL."""

    # Standard deviation of each trained parameter, a number or a tensor of its shape.
    sigma: dict[str, float | torch.Tensor]
    square: Array  # (P,) Σ σ² of each parameter's entries
    log: Array  # (P,) Σ ln σ² of each parameter's entries


@dataclass(frozen=True)
class PriorFamily:
    """A finite family of priors N(W⁽ˢ⁾, s_i² I), s_i = scale · ratio_i · base_i, fixed beforehand."""

    shapes: dict[str, torch.Size]  # The shape of each trained parameter, by name; P names
    moved: Array  # (P,) squared distance of each trained parameter from the priors' centre
    deviations: Array  # s_i of every member, (J, P); members run over ratio sets, then scales
    scales: tuple[float, ...]  # The global scales
    sets: int  # How many sets of ratios there are; J = sets · len(scales)

    @classmethod
    def build(
        cls,
        model: nn.Module,
        ref: Reference,
        scales: Sequence[float] | None = None,
        ratios: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    ) -> PriorFamily:
        """Make the family from a grid of global scales and one or more sets of ratios."""
        base, parameters = base_deviations(model, ref), random_parameters(model)
        grid = tuple(positive("a prior scale", s) for s in (PRIOR_SCALES if scales is None else scales))
        sets = [{"*": 1.0}] if ratios is None else [ratios] if isinstance(ratios, Mapping) else list(ratios)
        if not grid or not sets:
            raise ConfigError("a family of priors needs at least one scale and one set of ratios")
        rows = np.array([_ratios(list(base), patterns) for patterns in sets]) * np.array(list(base.values()))
        table = rows[:, None, :] * np.array(grid)[None, :, None]
        moved = [
            float((p.detach().double() - ref[name].to(p.device).double()).square().sum())
            for name, p in parameters.items()
        ]
        shapes = {name: p.shape for name, p in parameters.items()}
        return cls(shapes, np.array(moved), table.reshape(-1, len(base)), grid, len(sets))

    @property
    def size(self) -> int:
        """J, the number of members that share δ."""
        return len(self.deviations)

    @property
    def dimension(self) -> Array:
        """The number of entries of each trained parameter, (P,)."""
        return np.array([shape.numel() for shape in self.shapes.values()], np.float64)

    def by_name(self, values: Array) -> dict[str, float]:
        """Return one value of each trained parameter, (P,), by its name."""
        return dict(zip(self.shapes, values.tolist(), strict=True))

    def posterior(self, sigma: Sigma) -> Posterior:
        """Check and summarise a posterior's deviations."""
        missing = [name for name in self.shapes if name not in sigma]
        extra = [name for name in sigma if name not in self.shapes]
        if missing or extra:
            raise LayerError(
                "the posterior needs one deviation for each trained parameter; "
                f"missing: {listed(missing) or 'none'}; not trained: {listed(extra) or 'none'}"
            )
        rows = []
        for name, shape in self.shapes.items():
            value = torch.as_tensor(sigma[name], dtype=torch.float64).cpu()
            if value.ndim and value.shape != shape:
                raise LayerError(
                    f"the deviation of '{name}' has shape {tuple(value.shape)}; needed {tuple(shape)}"
                )
            if not bool(torch.isfinite(value).all()) or bool((value <= 0).any()):
                raise ConfigError(f"the posterior's deviation of '{name}' must be finite and above 0")
            repeat = shape.numel() if value.ndim == 0 else 1
            rows.append((float(value.square().sum()) * repeat, float(value.log().sum()) * 2 * repeat))
        square, log = np.array(rows, np.float64).T
        return Posterior({name: sigma[name] for name in self.shapes}, square, log)

    def member(self, index: int) -> Posterior:
        """Return the posterior with a member's deviations."""
        return self.posterior(self.by_name(self.deviations[index]))

    def terms(self, posterior: Posterior) -> Array:
        """Return each parameter's share of the KL under each member, (J, P), rounded up, in nats.

        ‖v_i‖²/(2s²) + ½ Σ (σ²/s² − 1 − ln(σ²/s²)); the sum over parameters is the KL.
        """
        s2, d = self.deviations**2, self.dimension
        scaled, logs = posterior.square / s2, d * np.log(s2)
        spread = scaled - d - posterior.log + logs
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * (scaled + d + abs(posterior.log) + abs(logs))
        terms: Array = self.moved / (2 * s2) + np.maximum(spread + rounding, 0.0) / 2
        return terms

    def kl(self, posterior: Posterior) -> Array:
        """Return the KL of the posterior from each member, (J,), in nats."""
        total: Array = self.terms(posterior).sum(axis=1)
        return total

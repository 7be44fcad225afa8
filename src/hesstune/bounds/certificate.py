"""`hesstune.certify`: an upper bound on the clean error of a fine-tuned network, weights randomised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hesstune.bounds.conditions import Conditions, check_model, check_separate, check_story
from hesstune.bounds.data import BoundData
from hesstune.bounds.monte_carlo import (
    Draws,
    Feeder,
    HeadDraws,
    Perturbation,
    WeightDraws,
    head_io,
    only_head,
)
from hesstune.bounds.noisy import CleanLoss, KnownNoise, NoiseConfidenceSet, clean_losses, zero_one_loss
from hesstune.bounds.pac_bayes import MIN_EXAMPLES, confidence_upper
from hesstune.bounds.partition import Share
from hesstune.bounds.prior import PriorFamily, Sigma, Travel, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.bounds.search import Choice, Problem, choose
from hesstune.checks import also_called, one_of
from hesstune.errors import ConfigError, DataError, NoiseMatrixError
from hesstune.forward import evaluating, logits_of
from hesstune.reference import Reference

__all__ = ["certify"]

MONTE_CARLO_SHARE = 0.2
PASSES = 100  # draws of the head alone, for each example
DRAWS = 2048


@also_called(noise="noise_matrix")
def certify(
    model: nn.Module,
    ref: Reference,
    dataset: Any,
    delta: float = 0.05,
    noise_matrix: Any = None,
    *,
    prior_scales: Sequence[float] | None = None,
    ratios: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    posterior: Sigma | None = None,
    posterior_scales: Sequence[float] = (1.0,),
    noise_method: str = "tightest",
    noise_is: str = "known",
    draws: int | None = None,
    draw_on: str = "blocks",
    block_size: int = 32,
    seed: int = 0,
    prior_data: Any = None,
    held_out: Any = None,
    repeats: str = "refuse",
    leaks: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    diagnostic: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    share: Share | None = None,
) -> Certificate:
    """Bound the clean 0-1 risk of the fine-tuned network with Gaussian noise on its trained weights.

    PAC-Bayes-kl (Maurer 2004) with prior N(W⁽ˢ⁾, s²) and posterior N(Ŵ, σ²) on every parameter with
    requires_grad=True: with probability at least 1 − δ,
    risk ≤ kl⁻¹(R̂⁺, (KL + ln(2√n · J/δ₁))/n), where R̂⁺ bounds the empirical error of the randomised
    predictor from m weight draws with confidence 1 − δ₂. A pilot with draws of its own chooses the
    prior's scale and the loss among J fixed beforehand; fresh draws certify.

    Args:
        model: The fine-tuned network; runs in eval mode and is left bit for bit as it was.
        ref: The prior's centre: the weights before fine-tuning, or trained on other data.
        dataset: Map-style (input, target), independent draws of the target distribution. It may be the
            training set. An input is a tensor or a mapping of tensors.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: None for clean labels; F, (K, K) with rows summing to 1, or an object with `.array`; or
            a `NoiseConfidenceSet`, whose own delta is part of `delta`.
        prior_scales: Global scales of the prior, fixed without the examples.
        ratios: {parameter pattern: ratio} between parameters on top of their natural scales (root mean
            square of the reference, or 1/√fan_in where that is zero); several such sets make a grid.
        posterior: σ of each trained parameter, a number or a tensor; by default one of the priors' times
            one of `posterior_scales`, chosen by the pilot.
        posterior_scales: Factors between posterior and prior to try.
        noise_method: `tightest`, `inverse`, `linear_program` or `margin`.
        noise_is: `known`, `estimated` (refused: from noisy data alone) or `instance_dependent` (refused).
        draws: m, the number of weight draws; rounded up to whole passes. 100 an example where a last
            linear layer alone is trained, else 2048.
        draw_on: `blocks`, each draw counted on its own block of a partition, or `all`, on every example.
        block_size: Examples to a block, and to a batch.
        seed: Of the weight draws and of the order of examples.
        prior_data: The examples that trained the prior, where any did: checked to be others.
        held_out: Clean held-out examples for the Clopper–Pearson bound of the unperturbed network.
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: Names of choices that used these examples (keys of `hesstune.bounds.conditions.LEAKS`).
        assumptions: Further assumptions to print with the certificate.
        diagnostic: Return a number marked as no certificate where an assumption fails, not an error.
        progress: Called with (passes done, passes in all, text) while the certifying draws run.
        share: This process's share of the blocks, where several processes call this alike; the numbers
            are those of one.

    Raises:
        HesstuneError: If a condition fails; the message says which and what would mend it.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 5, generator=g)
        >>> model = nn.Linear(5, 2)
        >>> _ = [nn.init.zeros_(p) for p in model.parameters()]
        >>> ref = Reference.of(model)
        >>> _ = model.weight.data[1].fill_(3.0)
        >>> data = torch.utils.data.TensorDataset(x, (x.sum(dim=1) > 0).long())
        >>> c = certify(model, ref, data)
        >>> c.vacuous, c.risk < 0.25
        (False, True)
    """
    conditions = Conditions(diagnostic)
    _check_options(draw_on, repeats, block_size, draws)
    check_story(conditions, leaks, noise_is, noise_matrix is not None)
    check_model(conditions, model, ref)
    share = share or Share()
    data, aside = _gather(conditions, dataset, block_size, seed, repeats, prior_data, held_out, share)
    travel = Travel(model, ref)
    family = PriorFamily.build(model, ref, prior_scales, ratios)
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
    with evaluating(model), torch.no_grad(), _estimator(model, data, draw_on, share) as (estimator, k):
        data.check_labels(k)
        losses = _losses(noise_matrix, k, noise_method)
        shares = _shares(delta, noise_matrix)
        problem = Problem(travel, family, losses, data.n, shares["pac_bayes"], shares["monte_carlo"])
        choice = choose(problem, estimator, posterior, posterior_scales, generator)
        default = PASSES * data.n if isinstance(estimator, HeadDraws) else DRAWS
        wanted = default if draws is None else draws
        final = estimator.run(choice.posterior.sigma, wanted, generator, progress)
    # Only now: while the estimator lives, the weights are those of its last draw.
    with evaluating(model), torch.no_grad():
        beside = None if aside is None else _held_out(model, aside, delta, k, share)
    told = _assumptions(problem, noise_matrix, noise_is, repeats, prior_data is not None) + list(assumptions)
    return _record(problem, choice, final, shares, delta, noise_matrix, told, conditions.failures, beside)


def _check_options(draw_on: str, repeats: str, block_size: int, draws: int | None) -> None:
    one_of("draw_on", draw_on, ("blocks", "all"))
    one_of("repeats", repeats, ("refuse", "allow"))
    for name, count in (("block_size", block_size), ("draws", 1 if draws is None else draws)):
        if count < 1:
            raise ConfigError(f"{name} must be at least 1; got {count}")


def _shares(delta: float, noise_matrix: Any) -> dict[str, float]:
    """Divide the probability of failure among the parts of the argument."""
    spent = noise_matrix.delta if isinstance(noise_matrix, NoiseConfidenceSet) else 0.0
    if not 0 < delta - spent < 1:
        least = f"above the noise set's own {spent:g} and below 1" if spent else "in (0, 1)"
        raise ConfigError(f"delta must lie {least}; got {delta}")
    return {
        "pac_bayes": (delta - spent) * (1 - MONTE_CARLO_SHARE),
        "monte_carlo": (delta - spent) * MONTE_CARLO_SHARE,
        "noise": spent,
    }


def _gather(
    conditions: Conditions,
    dataset: Any,
    block_size: int,
    seed: int,
    repeats: str,
    prior_data: Any,
    held_out: Any,
    share: Share,
) -> tuple[BoundData, BoundData | None]:
    """Read all examples and check that they are a proper sample, apart from the others."""
    data = BoundData(dataset, block_size, seed, share=share)
    if data.n < MIN_EXAMPLES:
        raise DataError(f"a certificate needs at least {MIN_EXAMPLES} examples; got {data.n}")
    conditions.attempt(data.check_steady)
    if repeats == "refuse":
        conditions.attempt(data.check_repeats)
    prior = None if prior_data is None else BoundData(prior_data, block_size, seed, "prior_data")
    aside = None if held_out is None else BoundData(held_out, block_size, seed, "held_out", share)
    check_separate(conditions, data, {"prior's": prior, "held-out": aside})
    return data, aside


def _losses(noise_matrix: Any, k: int, method: str) -> list[CleanLoss]:
    if noise_matrix is None:
        return [zero_one_loss(k)]
    known = noise_matrix if isinstance(noise_matrix, NoiseConfidenceSet) else KnownNoise(noise_matrix)
    if known.k != k:
        raise NoiseMatrixError(f"the noise matrix is for {known.k} classes; the model has {k}")
    return clean_losses(known, method)


@contextmanager
def _estimator(
    model: nn.Module, data: BoundData, draw_on: str, share: Share
) -> Iterator[tuple[WeightDraws | HeadDraws, int]]:
    """Give the cheapest exact way to draw, and the number of classes."""
    feed, parameters = Feeder(model), random_parameters(model)
    first = feed(data.first())
    k = logits_of(model, first).shape[1]
    head = only_head(model, list(parameters), first)
    if head is None:
        with Perturbation(parameters) as perturbation:
            every = draw_on == "all"
            yield WeightDraws(model, perturbation, data.__iter__, data.sizes, every, share, k), k
        return
    names = {id(p): name for name, p in parameters.items()}
    with head_io(head) as probe:  # a process may be left without a block
        logits_of(model, first)
    with head_io(head) as seen:
        for inputs, _ in data:
            logits_of(model, feed(inputs))
    yield (
        HeadDraws(
            share.together(torch.cat([x[:0] for x, _ in probe] + [x for x, _ in seen]), data.sizes),
            torch.as_tensor(data.labels),
            share.together(torch.cat([z[:0] for _, z in probe] + [z for _, z in seen]), data.sizes),
            names.get(id(head.weight)),
            names.get(id(head.bias)),
        ),
        k,
    )


def _held_out(model: nn.Module, data: BoundData, delta: float, k: int, share: Share) -> dict[str, float]:
    """Count the unperturbed network's errors on held-out examples."""
    data.check_labels(k)
    feed = Feeder(model)
    wrong = sum(
        int((logits_of(model, feed(inputs)).argmax(dim=1).cpu() != targets).sum()) for inputs, targets in data
    )
    wrong = int(share.all_reduce_sum(torch.tensor(wrong)))
    bound = confidence_upper(wrong, data.n, delta)
    return {"errors": wrong, "n": data.n, "error": wrong / data.n, "bound": bound, "delta": delta}


def _assumptions(
    problem: Problem, noise_matrix: Any, noise_is: str, repeats: str, trained_prior: bool
) -> list[str]:
    """List what must hold, in words."""
    family = problem.family
    told = [
        f"the {problem.n} examples are independent draws from the distribution that the model will meet",
        "the prior's centre (weights before fine-tuning, batch-norm statistics, input normalisation, head's "
        "initial values) did not use these examples",
        f"the {family.size} priors ({len(family.scales)} global scales from {min(family.scales):.3g} to "
        f"{max(family.scales):.3g}, {family.sets} set{'s' * (family.sets > 1)} of ratios between parameters) "
        "were fixed without them",
        "the predictor draws fresh weights for every prediction and runs in eval mode",
        "the seed of the weight draws was chosen without regard to the result",
    ]
    if trained_prior:
        told.append("the prior was trained and selected on the prior_data alone")
    if repeats == "allow":
        told.append("repeated inputs are independent draws of a distribution that has such repeats")
    if noise_matrix is not None:
        told.append("label noise depends on the true class alone, not on the input")
        if isinstance(noise_matrix, NoiseConfidenceSet):
            told.append(
                f"the clean sample's {int(noise_matrix.counts.sum())} examples are independent of the "
                "certificate's and have the same noise"
            )
        elif noise_is == "known":
            told.append("the noise matrix is known, not estimated")
    return told


def _record(
    problem: Problem,
    choice: Choice,
    final: Draws,
    shares: dict[str, float],
    delta: float,
    noise_matrix: Any,
    told: list[str],
    failures: list[str],
    beside: dict[str, float] | None,
) -> Certificate:
    risk, empirical_bound = problem.certified(choice, final)
    names = problem.family.names
    terms = problem.family.terms(choice.posterior)[choice.member]
    kind = "clean" if noise_matrix is None else "noisy, with a known noise matrix"
    if isinstance(noise_matrix, NoiseConfidenceSet):
        kind = "noisy, with a confidence set for the noise matrix"
    classes = len(final.counts)
    return Certificate(
        risk=risk,
        empirical=final.mean(zero_one_loss(classes)),
        empirical_bound=empirical_bound,
        kl=float(terms.sum()),
        n=problem.n,
        delta=delta,
        shares=shares,
        classes=classes,
        sigma=choice.posterior.deviations(),
        prior_sigma=problem.family.tied(choice.member),
        distance=problem.travel.distances(),
        kl_terms=dict(zip(names, terms.tolist(), strict=True)),
        family=problem.size,
        draws=final.draws,
        draw_size=final.block,
        loss=choice.loss.name,
        noise=kind,
        assumptions=told,
        failures=failures,
        held_out=beside,
    )

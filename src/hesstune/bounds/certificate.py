"""`hesstune.certify`: an upper bound on the clean error of a fine-tuned network, weights randomised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune.bounds.conditions import (
    HELD_OUT_LABELS,
    TEST_SHARE,
    Conditions,
    check_bound,
    check_floor,
    check_model,
    check_noisy_risk,
    check_story,
    class_count_of,
    gather,
)
from hesstune.bounds.data import BoundData, Share
from hesstune.bounds.monte_carlo import (
    Draws,
    Feeder,
    HeadDraws,
    Perturbation,
    WeightDraws,
    head_io,
    only_head,
)
from hesstune.bounds.networks import confusion_of, held_out_beside, tail_certificate
from hesstune.bounds.noisy import (
    kind_of,
    losses_for,
    noise_as_told,
    sample_assumptions,
    spent_by,
    zero_one_loss,
)
from hesstune.bounds.pac_bayes import complexity, kl_inverse
from hesstune.bounds.posterior import Choice, Problem, choose
from hesstune.bounds.prior import PriorFamily, Sigma, Travel, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.checks import one_of
from hesstune.errors import ConfigError
from hesstune.forward import evaluating, logits_of
from hesstune.reference import Reference

__all__ = ["certify"]

MONTE_CARLO_SHARE = 0.2
# Of δ, where a prior was trained: for the exact tail of the prior's own network, which a posterior that does
# not move cannot beat. Fixed beforehand, so the smaller of the two bounds may be printed.
TAIL_SHARE = 0.9
PASSES = 100  # draws of the head alone, for each example
DRAWS = 2048


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
    held_out_labels: str = "true",
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
    prior's scale and the loss among J fixed beforehand; fresh draws certify. With `prior_data` the network at
    the prior's centre has nine tenths of δ for its exact binomial tail, and the smaller bound is returned;
    where the model is the reference itself, that tail with all of δ.

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
        noise_is: `known`, `estimated` (refused: from noisy data alone) or `instance_dependent` (refused). A
            `NoiseMatrix` that says of itself that it is one of the latter is taken at its word.
        draws: m, the number of weight draws; rounded up to whole passes. 100 an example where a last
            linear layer alone is trained, else 2048.
        draw_on: `blocks`, each draw counted on its own block of a partition, or `all`, on every example.
        block_size: Examples to a block, and to a batch.
        seed: Of the weight draws and of the order of examples.
        prior_data: The examples that trained the prior, where any did: checked to be others.
        held_out: Held-out examples for a bound of the unperturbed network beside the certificate.
        held_out_labels: Whether their labels are `true` (Clopper–Pearson), `noisy` as those of `dataset`
            are, or `unknown`: then their error is told without a bound.
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
    _check_options(draw_on, repeats, block_size, draws, held_out_labels)
    noise_is = noise_as_told(noise_matrix, noise_is)
    check_story(conditions, leaks, noise_is, noise_matrix is not None)
    check_model(conditions, model, ref)
    share = share or Share()
    data, aside = gather(conditions, dataset, block_size, seed, repeats, prior_data, held_out, share)
    losses = losses_for(noise_matrix, class_count_of(model, data), noise_method)
    shares = _shares(delta, noise_matrix, prior_data)
    family, travel = PriorFamily.build(model, ref, prior_scales, ratios), Travel(model, ref)
    problem = Problem(travel, family, losses, data.n, shares["pac_bayes"], shares["monte_carlo"])
    told = _assumptions(problem, noise_matrix, noise_is, repeats, prior_data is not None) + list(assumptions)
    case = _Case(conditions, model, ref, data, problem, shares, delta, noise_matrix, share)
    found = None
    if travel.moved or prior_data is not None:
        found = case.drawn(draw_on, posterior, posterior_scales, draws, seed, progress)
    if found is None or prior_data is not None:
        tail = case.centre(shares["exact_tail"] if found else delta - shares["noise"])
        if found is None or tail.risk <= found.risk:
            found, told = tail, [text for text in told if text not in _DRAWN]
    conditions.attempt(lambda: check_bound(found.risk, noise_matrix, delta))
    beside = {} if aside is None else case.beside(aside, held_out_labels)
    return dataclasses.replace(found, assumptions=told, failures=list(conditions.failures), **beside)


@dataclass(frozen=True)
class _Case:
    """One call of `certify`, checked: the ways to bound its network's error."""

    conditions: Conditions
    model: nn.Module
    ref: Reference
    data: BoundData
    problem: Problem
    shares: dict[str, float]
    delta: float
    noise_matrix: Any
    share: Share

    @property
    def k(self) -> int:
        """The number of classes."""
        return len(self.problem.losses[0].matrix)

    def drawn(
        self,
        draw_on: str,
        posterior: Sigma | None,
        factors: Sequence[float],
        draws: int | None,
        seed: int,
        progress: Callable[[int, int, str], None] | None,
    ) -> Certificate:
        """Bound the error of the randomised predictor by PAC-Bayes; afterwards the weights are the means."""
        generator = torch.Generator(device=next(self.model.parameters()).device).manual_seed(seed)
        with (
            evaluating(self.model),
            torch.no_grad(),
            _estimator(self.model, self.data, draw_on, self.share, self.k) as estimator,
        ):
            choice = choose(self.problem, estimator, posterior, factors, generator)
            wanted = _wanted(draws, estimator, self.data.n)
            final = estimator.run(choice.posterior.sigma, wanted, generator, progress)
        self._check_noisy_risk(choice, final)
        return _record(self.problem, choice, final, self.shares, self.delta, self.noise_matrix)

    def _check_noisy_risk(self, choice: Choice, final: Draws) -> None:
        """Compare a bound on the randomised predictor's error on the given labels with the noise floor."""
        part, family = TEST_SHARE * self.delta, self.problem.family
        drawn = final.upper(zero_one_loss(self.k), part * MONTE_CARLO_SHARE)
        kl = float(family.kl(choice.posterior)[choice.member])
        side = complexity(kl, self.data.n, part * (1 - MONTE_CARLO_SHARE), family.size)
        upper = float(kl_inverse(drawn, side))
        self.conditions.attempt(lambda: check_noisy_risk(upper, self.noise_matrix, part))

    def centre(self, part: float) -> Certificate:
        """Bound the error of the network at the prior's centre by its tail, with this part of delta."""
        parameters = random_parameters(self.model)
        with evaluating(self.model), torch.no_grad(), Perturbation(parameters):
            for name, parameter in parameters.items():
                parameter.copy_(self.ref[name])
            confusion = confusion_of(self.model, self.data, self.k, self.share)
        self.conditions.attempt(lambda: check_floor(confusion, self.noise_matrix, self.delta))
        return tail_certificate(confusion, self.problem.losses, self.delta, part, self.noise_matrix)

    def beside(self, aside: BoundData, labels: str) -> dict[str, Any]:
        """Count the unperturbed network's errors on held-out examples, and bound its clean error by them."""
        return held_out_beside(
            self.conditions,
            self.model,
            aside,
            self.problem.losses,
            labels,
            self.delta,
            self.noise_matrix,
            self.share,
        )


def _wanted(draws: int | None, estimator: WeightDraws | HeadDraws, n: int) -> int:
    if draws is not None:
        return draws
    return PASSES * n if isinstance(estimator, HeadDraws) else DRAWS


def _check_options(
    draw_on: str, repeats: str, block_size: int, draws: int | None, held_out_labels: str
) -> None:
    one_of("draw_on", draw_on, ("blocks", "all"))
    one_of("held_out_labels", held_out_labels, HELD_OUT_LABELS)
    one_of("repeats", repeats, ("refuse", "allow"))
    for name, count in (("block_size", block_size), ("draws", 1 if draws is None else draws)):
        if count < 1:
            raise ConfigError(f"{name} must be at least 1; got {count}")


def _shares(delta: float, noise_matrix: Any, prior_data: Any) -> dict[str, float]:
    """Divide the probability of failure among the parts of the argument."""
    spent = spent_by(noise_matrix, delta)
    left = delta - spent
    tail = 0.0 if prior_data is None else left * TAIL_SHARE
    return {
        "pac_bayes": (left - tail) * (1 - MONTE_CARLO_SHARE),
        "monte_carlo": (left - tail) * MONTE_CARLO_SHARE,
        "exact_tail": tail,
        "noise": spent,
    }


@contextmanager
def _estimator(
    model: nn.Module, data: BoundData, draw_on: str, share: Share, k: int
) -> Iterator[WeightDraws | HeadDraws]:
    """Give the cheapest exact way to draw."""
    feed, parameters = Feeder(model), random_parameters(model)
    first = feed(data.first())
    head = only_head(model, list(parameters), first)
    if head is None:
        with Perturbation(parameters) as perturbation:
            every = draw_on == "all"
            yield WeightDraws(model, perturbation, data.__iter__, data.sizes, every, share, k)
        return
    names = {id(p): name for name, p in parameters.items()}
    with head_io(head) as probe:  # a process may be left without a block
        logits_of(model, first)
    with head_io(head) as seen:
        for inputs, _ in data:
            logits_of(model, feed(inputs))
    yield HeadDraws(
        share.together(torch.cat([x[:0] for x, _ in probe] + [x for x, _ in seen]), data.sizes),
        torch.as_tensor(data.labels),
        share.together(torch.cat([z[:0] for _, z in probe] + [z for _, z in seen]), data.sizes),
        names.get(id(head.weight)),
        names.get(id(head.bias)),
    )


# What a certificate of the network itself does not rest on.
_DRAWN = (
    "the predictor draws fresh weights for every prediction and runs in eval mode",
    "the seed of the weight draws was chosen without regard to the result",
)


def _assumptions(
    problem: Problem, noise_matrix: Any, noise_is: str, repeats: str, trained_prior: bool
) -> list[str]:
    """List what must hold, in words."""
    family = problem.family
    told = [
        "the prior's centre (weights before fine-tuning, batch-norm statistics, input normalisation, head's "
        "initial values) did not use these examples",
        f"the {family.size} priors ({len(family.scales)} global scales from {min(family.scales):.3g} to "
        f"{max(family.scales):.3g}, {family.sets} set{'s' * (family.sets > 1)} of ratios between parameters) "
        "were fixed without them",
        *_DRAWN,
    ]
    if trained_prior:
        told.append("the prior was trained and selected on the prior_data alone")
    return sample_assumptions(problem.n, noise_matrix, noise_is, repeats) + told


def _record(
    problem: Problem,
    choice: Choice,
    final: Draws,
    shares: dict[str, float],
    delta: float,
    noise_matrix: Any,
) -> Certificate:
    risk, empirical_bound = problem.certified(choice, final)
    names = problem.family.names
    terms = problem.family.terms(choice.posterior)[choice.member]
    classes, loss = len(final.counts), choice.loss
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
        loss=loss.name,
        noise=kind_of(noise_matrix),
        assumptions=[],
        numbers={
            "mean": final.mean(loss),
            "low": loss.low,
            "high": loss.high,
            "padding": final.blocks * final.block / final.n,
        },
    )

"""`hesstune.certify`: an upper bound on the clean error of a fine-tuned network with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesstune.bounds.conditions import TEST_SHARE, Conditions, check_model, check_noisy_risk
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
from hesstune.bounds.noisy import kind_of, losses_for, zero_one_loss
from hesstune.bounds.pac_bayes import MIN_EXAMPLES, complexity, kl_inverse
from hesstune.bounds.posterior import Choice, Problem, choose
from hesstune.bounds.prior import Displacement, PriorFamily, Sigma, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import Sample, SampleOptions, confusion_of
from hesstune.errors import ConfigError
from hesstune.forward import evaluating, logits_of
from hesstune.reference import Reference

MONTE_CARLO_SHARE = 0.2
# The share of δ, if a prior was trained, for the exact tail of the prior's own network. A posterior that does
# not move cannot have a smaller bound. It is fixed beforehand, so the smaller of the two bounds is valid.
TAIL_SHARE = 0.9
PASSES = 100  # draws of the head for each example, if the head alone is trained
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
    noise_is: str = "known",
    draws: int | None = None,
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
    predictor from m weight draws with confidence 1 − δ₂. Pilot draws choose the prior's scale and the loss
    among J fixed beforehand; fresh draws certify. With `prior_data`, the exact binomial tail of the network
    at the prior's centre has nine tenths of δ, and the smaller bound is returned. If the model is the
    reference itself, that tail has all of δ.

    Args:
        model: The fine-tuned network; runs in eval mode and is left unchanged, bit for bit.
        ref: The prior's centre: the weights before fine-tuning, or trained on other data.
        dataset: Map-style (input, target), independent draws of the target distribution. It may be the
            training set. An input is a tensor or a mapping of tensors.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: None for clean labels; F, (K, K) with rows summing to 1, or an object with `.array`; or
            a `NoiseConfidenceSet`, which has its own part of `delta`.
        prior_scales: Global scales of the prior, fixed without the examples.
        ratios: {parameter pattern: ratio} on top of the parameters' natural scales (root mean square of the
            reference, or 1/√fan_in if that is zero); several such sets make a grid.
        posterior: σ of each trained parameter, a number or a tensor; by default that of one of the priors,
            chosen by the pilot.
        noise_is: `known`, `estimated` (from noisy data alone: refused) or `instance_dependent` (refused). The
            recorded origin of a `NoiseMatrix` has priority over `known`.
        draws: m, the number of weight draws, rounded up to whole passes. Default: 100 an example if a last
            linear layer alone is trained, else 2048.
        block_size: Examples in a batch; each draw is counted on one block of a partition of the examples.
        seed: Of the weight draws and of the order of examples.
        prior_data: The examples that trained the prior, if any: checked to be different.
        held_out: Held-out examples for a second bound, on the unperturbed network.
        held_out_labels: Whether their labels are `true` (Clopper–Pearson), `noisy` as those of `dataset`,
            or `unknown` (error without a bound).
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: Names of choices that used these examples (keys of `hesstune.bounds.conditions.LEAKS`).
        assumptions: Further assumptions to print with the certificate.
        diagnostic: If an assumption fails, return a number marked as no certificate instead of an error.
        progress: Called with (passes done, passes in all, text) while the certifying draws run.
        share: This process's share of the blocks, if several processes make the same call; the numbers
            are those of one process.

    Raises:
        HesstuneError: If a condition fails; the message says which one and how to fix it.

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
    if draws is not None and draws < 1:
        raise ConfigError(f"draws must be at least 1; got {draws}")
    options = SampleOptions(
        seen=prior_data,
        held_out=held_out,
        held_out_labels=held_out_labels,
        block_size=block_size,
        seed=seed,
        repeats=repeats,
        leaks=leaks,
        assumptions=assumptions,
        diagnostic=diagnostic,
        share=share or Share(),
    )
    conditions = Conditions(diagnostic)
    check_model(conditions, model, ref)
    sample = Sample.read(
        dataset,
        options,
        delta,
        noise_matrix,
        noise_is,
        conditions=conditions,
        seen_as="prior's",
        least=MIN_EXAMPLES,
    )
    losses = losses_for(noise_matrix, sample.class_count(model))
    shares = _shares(delta, sample.spent, prior_data is not None)
    family = PriorFamily.build(model, ref, prior_scales, ratios)
    displacement = Displacement(model, ref)
    problem = Problem(displacement, family, losses, sample.n, shares["pac_bayes"], shares["monte_carlo"])
    case = _Case(model, ref, sample, problem, shares)
    certificate = None
    if displacement.has_moved or prior_data is not None:
        certificate = case.drawn(posterior, draws, progress)
    own = [*_prior_assumptions(family), *_DRAWN]
    if certificate is None or prior_data is not None:
        tail = case.centre(shares["exact_tail"] if certificate else delta - shares["noise"])
        if certificate is None or tail.risk <= certificate.risk:
            certificate, own = tail, own[: -len(_DRAWN)]
    if prior_data is not None:
        own.append("the prior was trained and selected on the prior_data alone")
    return sample.finish(certificate, model, losses, sample.assumptions(*own))


@dataclass(frozen=True)
class _Case:
    """The ways to bound a network's error on one checked sample."""

    model: nn.Module
    ref: Reference
    sample: Sample
    problem: Problem
    shares: dict[str, float]

    @property
    def k(self) -> int:
        """The number of classes."""
        return len(self.problem.losses[0].matrix)

    def drawn(
        self,
        posterior: Sigma | None,
        draws: int | None,
        progress: Callable[[int, int, str], None] | None,
    ) -> Certificate:
        """Bound the error of the randomised predictor by PAC-Bayes; afterwards the weights are the means."""
        device, sample = next(self.model.parameters()).device, self.sample
        generator = torch.Generator(device=device).manual_seed(sample.options.seed)
        with (
            evaluating(self.model),
            torch.no_grad(),
            _estimator(self.model, sample.data, sample.options.share, self.k) as estimator,
        ):
            choice = choose(self.problem, estimator, posterior, generator)
            if draws is None:
                draws = PASSES * sample.n if isinstance(estimator, HeadDraws) else DRAWS
            final = estimator.run(choice.posterior.sigma, draws, generator, progress)
        self._check_noisy_risk(choice, final)
        return _record(self.problem, choice, final, self.shares, sample)

    def _check_noisy_risk(self, choice: Choice, final: Draws) -> None:
        """Compare a bound on the randomised predictor's error on the given labels with the noise floor."""
        part, family = TEST_SHARE * self.sample.delta, self.problem.family
        drawn = final.upper(zero_one_loss(self.k), part * MONTE_CARLO_SHARE)
        kl = float(family.kl(choice.posterior)[choice.member])
        side = complexity(kl, self.sample.n, part * (1 - MONTE_CARLO_SHARE), family.size)
        upper = float(kl_inverse(drawn, side))
        self.sample.conditions.attempt(lambda: check_noisy_risk(upper, self.sample.noise_matrix, part))

    def centre(self, part: float) -> Certificate:
        """Bound the error of the network at the prior's centre by its tail, with this part of delta."""
        parameters = random_parameters(self.model)
        with evaluating(self.model), torch.no_grad(), Perturbation(parameters):
            for name, parameter in parameters.items():
                parameter.copy_(self.ref[name])
            confusion = confusion_of(self.model, self.sample.data, self.k, self.sample.options.share)
        return self.sample.tail_certificate(confusion, self.problem.losses, part)


def _shares(delta: float, spent: float, has_trained_prior: bool) -> dict[str, float]:
    """Divide the probability of failure among the parts of the argument."""
    left = delta - spent
    tail = left * TAIL_SHARE if has_trained_prior else 0.0
    return {
        "pac_bayes": (left - tail) * (1 - MONTE_CARLO_SHARE),
        "monte_carlo": (left - tail) * MONTE_CARLO_SHARE,
        "exact_tail": tail,
        "noise": spent,
    }


@contextmanager
def _estimator(model: nn.Module, data: BoundData, share: Share, k: int) -> Iterator[WeightDraws | HeadDraws]:
    """Return the cheapest exact way to draw."""
    feed, parameters = Feeder(model), random_parameters(model)
    first = feed(data.first())
    head = only_head(model, list(parameters), first)
    if head is None:
        with Perturbation(parameters) as perturbation:
            yield WeightDraws(model, perturbation, data.__iter__, data.sizes, share, k)
        return
    names = {id(p): name for name, p in parameters.items()}
    with head_io(head) as probe:  # a process may have no block
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


# Assumptions of the randomised predictor alone.
_DRAWN = (
    "the predictor draws fresh weights for every prediction and runs in eval mode",
    "the seed of the weight draws was chosen without regard to the result",
)


def _prior_assumptions(family: PriorFamily) -> list[str]:
    return [
        "the prior's centre (weights before fine-tuning, batch-norm statistics, input normalisation, head's "
        "initial values) did not use these examples",
        f"the {family.size} priors ({len(family.scales)} global scales from {min(family.scales):.3g} to "
        f"{max(family.scales):.3g}, {family.sets} set{'s' * (family.sets > 1)} of ratios between parameters) "
        "were fixed without them",
    ]


def _record(
    problem: Problem, choice: Choice, final: Draws, shares: dict[str, float], sample: Sample
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
        delta=sample.delta,
        shares=shares,
        classes=classes,
        sigma=choice.posterior.deviations(),
        prior_sigma=problem.family.tied(choice.member),
        distance=problem.displacement.distances(),
        kl_terms=dict(zip(names, terms.tolist(), strict=True)),
        family=problem.size,
        draws=final.draws,
        draw_size=final.block,
        loss=loss.name,
        noise=kind_of(sample.noise_matrix),
        assumptions=[],
        numbers={
            "mean": final.mean(loss),
            "low": loss.low,
            "high": loss.high,
            "padding": final.blocks * final.block / final.n,
        },
    )

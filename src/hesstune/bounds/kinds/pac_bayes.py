"""The error of the network with random weights, by PAC-Bayes-kl with a Gaussian prior and posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from hesstune.bounds.kinds.holdout import tail_certificate
from hesstune.bounds.kl import complexity, kl_inverse, monte_carlo_upper
from hesstune.bounds.monte_carlo import Draws, HeadDraws, WeightDraws, restoring, weight_draws
from hesstune.bounds.noisy import TEST_SHARE, CleanLoss, check_noisy_risk, zero_one_loss
from hesstune.bounds.prior import Posterior, PriorFamily, Sigma, random_parameters
from hesstune.bounds.record import Bound, Certificate, Network, Prior, finished
from hesstune.bounds.sample import BoundOptions, Conditions, Sample
from hesstune.errors import ConfigError, LayerError, ModelError, listed
from hesstune.forward import evaluating, named_buffers, named_modules, named_parameters
from hesstune.reference import Reference

MONTE_CARLO_SHARE = 0.2
# The share of δ, if a prior was trained, for the exact tail of the prior's own network. A posterior that does
# not move cannot have a smaller bound. It is fixed beforehand, so the smaller of the two bounds is valid.
TAIL_SHARE = 0.9
PILOT_BLOCKS = 16
# A KL per example outside of this range gives a bound near 1, or noise much larger than the weights.
_USEFUL = (2e-3, 2.0)
# Assumptions of the randomised predictor alone.
_DRAWN = (
    "the predictor draws fresh weights for every prediction and runs in eval mode",
    "the seed of the weight draws was chosen without regard to the result",
)


class PacBayes(Bound):
    """The error of the randomised predictor; that of the prior's own network if it is smaller."""

    share = "pac_bayes"
    network = "posterior"
    short_name = "the randomised predictor"
    predictor = (
        "randomised: fresh weights N(W, sigma^2) for every prediction; nothing is claimed of the unperturbed "
        "network"
    )
    record: ClassVar[dict[str, str]] = {
        "mean": "mean of the loss on the given labels over the draws, scaled to [0, 1]",
        "low": "smallest value of the loss",
        "high": "largest value of the loss",
        "padding": "factor for blocks of unequal size",
    }

    @classmethod
    def evaluate(cls, network: Network, prior: Prior | None, sample: Sample) -> Certificate:
        if prior is None:
            raise ConfigError("the bound pac_bayes needs a prior")
        model, options = network.model, sample.options
        was_trained = options.seen is not None
        check_model(sample.conditions, model, prior.reference)
        family = PriorFamily.build(model, prior.reference, prior.scales, prior.ratios)
        left = options.delta - options.spent
        tail_share = left * TAIL_SHARE if was_trained else 0.0
        shares = {
            "pac_bayes": (left - tail_share) * (1 - MONTE_CARLO_SHARE),
            "monte_carlo": (left - tail_share) * MONTE_CARLO_SHARE,
            "exact_tail": tail_share,
            "noise": options.spent,
        }
        certificate: Certificate | None = None
        own = [*_prior_assumptions(family), *_DRAWN]
        if family.moved.any() or was_trained:
            certificate = _Draw(sample, family, shares).certificate(model, network.posterior)
        if certificate is None or was_trained:
            parameters = random_parameters(model)
            with torch.no_grad(), restoring(parameters):
                for name, parameter in parameters.items():
                    parameter.copy_(prior.reference[name])
                confusion = sample.data.confusion(model, sample.k)
            tail = tail_certificate(sample, confusion, left if certificate is None else tail_share)
            if certificate is None or tail.risk <= certificate.risk:
                certificate, own = tail, own[: -len(_DRAWN)]
        if was_trained:
            own.append("the prior was trained and selected on the prior_data alone")
        return finished(certificate, sample, model, *own)

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        low, high, padding = (one.numbers[name] for name in ("low", "high", "padding"))
        drawn = monte_carlo_upper(min(1.0, one.numbers["mean"] / padding), one.draws, shares["monte_carlo"])
        side = complexity(one.kl, one.n, shares["pac_bayes"], one.family)
        return min(1.0, low + (high - low) * float(kl_inverse(min(1.0, padding * drawn), side)))

    @staticmethod
    def counts(one: Certificate) -> str:
        return (
            f"KL = {one.kl:.2f} nats, priors and losses to choose from = {one.family}, draws = {one.draws}\n"
            f"Error on the given labels over the draws: {one.empirical:.4f}; {one.labels_text()}"
        )


BOUND = PacBayes


def check_model(conditions: Conditions, model: nn.Module, ref: Reference) -> None:
    """Check that exactly the random parameters differ from the reference, and that no batch-norm statistic
    moved.
    """
    ref.check(model)
    for path, module in named_modules(model).items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            conditions.fail(
                ModelError(
                    f"batch norm '{path}' has no running statistics, so one example's prediction depends on "
                    "the others in its batch; set track_running_stats=True with pretrained statistics"
                )
            )
    buffers = named_buffers(model)
    fixed: dict[str, torch.Tensor] = {
        name: p for name, p in named_parameters(model).items() if not p.requires_grad
    }
    # The count of batches changes no prediction.
    fixed |= {name: b for name, b in buffers.items() if not name.endswith("num_batches_tracked")}
    moved = [
        name for name, value in fixed.items() if not torch.equal(value.detach(), ref[name].to(value.device))
    ]
    if stats := [name for name in moved if name in buffers]:
        conditions.fail(
            ModelError(
                f"buffers moved since the reference ({listed(stats, 3)}): batch-norm statistics that saw the "
                "examples are covered by no prior; keep batch norm in eval mode while fine-tuning"
            )
        )
    if frozen := [name for name in moved if name not in buffers]:
        conditions.fail(
            LayerError(
                f"parameters with requires_grad=False moved since the reference ({listed(frozen, 3)}), "
                "so they are neither fixed nor part of the KL; set requires_grad=True on what was trained"
            )
        )


def _prior_assumptions(family: PriorFamily) -> list[str]:
    return [
        "the prior's centre (weights before fine-tuning, batch-norm statistics, input normalisation, head's "
        "initial values) did not use these examples",
        f"the {family.size} priors ({len(family.scales)} global scales from {min(family.scales):.3g} to "
        f"{max(family.scales):.3g}, {family.sets} set{'s' * (family.sets > 1)} of ratios between parameters) "
        "were fixed without them",
    ]


@dataclass(frozen=True)
class _Choice:
    """A posterior, a member of the prior family, a loss, and the risk that the pilot predicts."""

    posterior: Posterior
    member: int
    loss: CleanLoss
    risk: float


@dataclass(frozen=True)
class _Draw:
    """The bound of the randomised predictor: pilot draws choose, fresh draws certify."""

    sample: Sample
    family: PriorFamily
    shares: dict[str, float]

    @property
    def size(self) -> int:
        """The number of pairs of prior and loss that share δ."""
        return self.family.size * len(self.sample.losses)

    def bound(self, mean: float, kl: float, loss: CleanLoss) -> float:
        """Return the risk bound, given a bound on the scaled loss's empirical expectation."""
        side = complexity(kl, self.sample.n, self.shares["pac_bayes"], self.size)
        return loss.risk(float(kl_inverse(mean, side)))

    def certificate(self, model: nn.Module, sigma: Sigma | None) -> Certificate:
        """Return the certificate of posterior deviations, or of those that the pilot chooses."""
        sample, family, options = self.sample, self.family, self.sample.options
        generator = torch.Generator(device=next(model.parameters()).device).manual_seed(options.seed)
        with evaluating(model), torch.no_grad(), weight_draws(model, sample.data, sample.k) as estimator:
            choice = self.chosen(estimator, sigma, generator)
            count = estimator.default_draws if options.draws is None else options.draws
            draws = estimator.run(choice.posterior.sigma, count, generator, options.progress)
        terms = family.terms(choice.posterior)[choice.member]
        kl, loss, wrong = float(terms.sum()), choice.loss, zero_one_loss(sample.k)
        self.check_noise(draws, kl)
        upper = draws.upper(loss, self.shares["monte_carlo"])
        return Certificate(
            risk=self.bound(upper, kl, loss),
            empirical=draws.mean(wrong),
            empirical_bound=max(0.0, loss.risk(upper)),
            kl=kl,
            n=sample.n,
            delta=options.delta,
            shares=self.shares,
            classes=sample.k,
            sigma=family.by_name(np.sqrt(choice.posterior.square / family.dimension)),
            prior_sigma=family.by_name(family.deviations[choice.member]),
            distance=family.by_name(np.sqrt(family.moved)),
            kl_terms=family.by_name(terms),
            family=self.size,
            draws=draws.draws,
            draw_size=draws.block,
            loss=loss.name,
            noise=sample.noise_text,
            numbers={"mean": draws.mean(loss), "low": loss.low, "high": loss.high, "padding": draws.padding},
        )

    def check_noise(self, draws: Draws, kl: float) -> None:
        """Compare a bound on the randomised predictor's error on the given labels with the noise floor."""
        sample, part = self.sample, TEST_SHARE * self.sample.options.delta
        mean = draws.upper(zero_one_loss(sample.k), part * MONTE_CARLO_SHARE)
        side = complexity(kl, sample.n, part * (1 - MONTE_CARLO_SHARE), self.family.size)
        upper = float(kl_inverse(mean, side))
        sample.conditions.attempt(lambda: check_noisy_risk(upper, sample.noise, part))

    def chosen(
        self, estimator: WeightDraws | HeadDraws, sigma: Sigma | None, generator: torch.Generator
    ) -> _Choice:
        """Choose prior, loss and, unless it is given, posterior by pilot draws, which do not certify."""
        if sigma is not None:
            return self.predicted(estimator, self.family.posterior(sigma), generator)
        best: _Choice | None = None
        for group in range(self.family.sets):
            found = self.best_scale(estimator, group, generator)
            best = found if best is None or found.risk < best.risk else best
        assert best is not None
        return best

    def best_scale(
        self, estimator: WeightDraws | HeadDraws, group: int, generator: torch.Generator
    ) -> _Choice:
        """Search the global scales of one set of ratios: every fourth useful one, then between."""
        count, posteriors, kls = len(self.family.scales), {}, {}
        for index in range(group * count, (group + 1) * count):
            posteriors[index] = self.family.member(index)
            kls[index] = float(self.family.kl(posteriors[index]).min()) / self.sample.n
        useful = [i for i, kl in kls.items() if _USEFUL[0] <= kl <= _USEFUL[1]]
        useful = useful or [min(kls, key=lambda i: abs(np.log(max(kls[i], 1e-300) / 0.1)))]
        tried: dict[int, _Choice] = {}
        for stride in (4, 2, 1):
            middle = min(tried, key=lambda i: tried[i].risk) if tried else None
            for index in useful[::stride] if middle is None else (middle - stride, middle + stride):
                if index in useful and index not in tried:
                    tried[index] = self.predicted(estimator, posteriors[index], generator)
        return min(tried.values(), key=lambda choice: choice.risk)

    def predicted(
        self, estimator: WeightDraws | HeadDraws, posterior: Posterior, generator: torch.Generator
    ) -> _Choice:
        """Return the best prior and loss of a posterior, by pilot draws."""
        kls = self.family.kl(posterior)
        member = int(kls.argmin())
        pilot = estimator.pilot(posterior.sigma, PILOT_BLOCKS, generator)
        losses = self.sample.losses
        risks = [self.bound(pilot.mean(loss), float(kls[member]), loss) for loss in losses]
        index = int(np.argmin(risks))
        return _Choice(posterior, member, losses[index], risks[index])


def certify(  # noqa: PLR0913
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
    distributed: bool = False,
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
        leaks: Names of choices that used these examples (keys of `hesstune.bounds.sample.LEAKS`).
        assumptions: Further assumptions to print with the certificate.
        diagnostic: If an assumption fails, return a number marked as no certificate instead of an error.
        progress: Called with (passes done, passes in all, text) while the certifying draws run.
        distributed: Whether all processes of a group make the same call and share the examples. The numbers
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
    options = BoundOptions(
        delta=delta,
        noise_matrix=noise_matrix,
        noise_is=noise_is,
        seen=prior_data,
        held_out=held_out,
        held_out_labels=held_out_labels,
        draws=draws,
        block_size=block_size,
        seed=seed,
        repeats=repeats,
        leaks=leaks,
        assumptions=assumptions,
        diagnostic=diagnostic,
        progress=progress,
        distributed=distributed,
    )
    prior = Prior(reference=ref, scales=prior_scales, ratios=ratios)
    sample = Sample.read(model, dataset, options)
    return PacBayes.evaluate(Network(model=model, posterior=posterior), prior, sample)

"""Votes and features together, by latent-truth EM."""

from __future__ import annotations

from typing import ClassVar

from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.head import robust_head
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.label_models.calibrated import weighed_counts
from hesstune.weak.vote_models import vote_counts
from hesstune.weak.votes import Votes

# The power of the posteriors: 1 is right if annotators err independently of one another and of the features.
TEMPER = 0.5


class Latent(LabelModel):
    """The true class as a latent variable that features predict and votes report with errors."""

    summary = "Estimates the true classes from votes and features of a pretrained network together, by EM."
    record: ClassVar[dict[str, str]] = {
        "chosen": "latent",
        "reasons": "why, in sentences",
        "latent": "candidates and scores",
    }
    needs_features = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the tempered posteriors of EM."""
        if votes.soft is None:
            counts = vote_counts(votes)
        else:
            counts = weighed_counts(votes, inputs.checked, inputs.seed)
        observed = Observed.of(counts, votes.k, checked=inputs.checked)
        assert inputs.features is not None
        head = robust_head(inputs.features, observed, seed=inputs.seed)
        why = (
            f"latent: votes and features, true classes by EM ({head.choice.candidate.name}); the estimated "
            f"noise rate of a vote is {head.truth.channel.rate:.2g}"
        )
        posterior = head.truth.posterior**TEMPER
        posterior /= posterior.sum(axis=1, keepdims=True)
        return posterior, {"chosen": "latent", "reasons": [why], "latent": head.choice.details()}


LABEL_MODEL = Latent

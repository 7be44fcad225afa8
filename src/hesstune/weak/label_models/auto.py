"""The default label model: `latent` with features, else `calibrated`, else the best model of votes alone."""

from __future__ import annotations

from typing import ClassVar

from hesstune.noise.latent.head import MIN_EXAMPLES
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.label_models.calibrated import Calibrated
from hesstune.weak.label_models.latent import Latent
from hesstune.weak.label_models.weighted import Weighted
from hesstune.weak.vote_models import CANDIDATES, collapse
from hesstune.weak.votes import Votes


class VoteChoice(Weighted):
    """The simplest of all models of votes within one standard error of the best."""

    candidates = tuple(CANDIDATES)


class Auto(LabelModel):
    """A choice among label models by what is given."""

    summary = (
        "latent with features; else calibrated if annotators give probabilities; else the model of votes "
        "with the best held-out likelihood of votes."
    )
    record: ClassVar[dict[str, str]] = {**Weighted.record, **Calibrated.record, **Latent.record}
    keeps_classes = True

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the posterior of the model that is chosen."""
        by_votes: type[LabelModel] = VoteChoice if votes.soft is None else Calibrated
        if inputs.features is None:
            return by_votes.fit(votes, inputs)
        if len(votes) < MIN_EXAMPLES:
            said = f"{len(votes)} examples are too few to use features: {MIN_EXAMPLES} are needed"
        else:
            posterior, details = Latent.fit(votes, inputs)
            lost = collapse(posterior, votes)
            if lost is None:
                return posterior, details
            said = f"latent refused: {lost}"
        posterior, details = by_votes.fit(votes, inputs)
        return posterior, {**details, "reasons": [*details["reasons"], said]}


LABEL_MODEL = Auto

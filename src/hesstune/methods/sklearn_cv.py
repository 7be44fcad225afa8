"""scikit-learn's LogisticRegressionCV on frozen, standardised features: what a user has in five lines.

Its penalty is chosen by cross-validated accuracy on the labels as given. The head alone is fitted.
"""

from __future__ import annotations

from hesstune.methods._head import HeadMaterial, SolvedHead
from hesstune.methods._peers import cross_validated, unscaled
from hesstune.methods._solved import SolvedHeadMethod


class SklearnCV(SolvedHeadMethod):
    """A head by scikit-learn."""

    head_alone = True
    takes_soft = False

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        """Return the head of LogisticRegressionCV."""
        scaler, found = cross_validated(material, material.labels)
        return unscaled(
            scaler,
            found,
            material.k,
            f"scikit-learn's LogisticRegressionCV (C = {found.strength:g})",
            "its penalty has the best cross-validated accuracy on the labels as given",
        )


METHOD = SklearnCV

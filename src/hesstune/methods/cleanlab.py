"""cleanlab's CleanLearning on frozen, standardised features: find label issues, prune them, train again.

Around scikit-learn's logistic regression, whose penalty is chosen by cross-validated accuracy on the labels
as given. The head alone is fitted. Source: Northcutt, Jiang, Chuang 2021.
"""

from __future__ import annotations

import warnings

import numpy as np

from hesstune.errors import MissingExtraError
from hesstune.methods._head import HeadMaterial, SolvedHead
from hesstune.methods._peers import Regression, cross_validated, enough_examples, unscaled
from hesstune.methods._solved import SolvedHeadMethod
from hesstune.runtime.threads import one_thread


class Cleanlab(SolvedHeadMethod):
    """A head by cleanlab."""

    head_alone = True
    takes_soft = False

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        """Return the head of CleanLearning.

        Raises:
            MissingExtraError: If cleanlab is not installed.
        """
        from sklearn.linear_model import LogisticRegression

        try:
            from cleanlab.classification import CleanLearning
        except ImportError:
            raise MissingExtraError("cleanlab", "noise", "the method cleanlab") from None
        scaler, plain = cross_validated(material, material.labels)
        present, labels = np.unique(material.labels, return_inverse=True)
        with one_thread(), enough_examples(len(labels)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner = CleanLearning(
                LogisticRegression(C=plain.strength, max_iter=200),
                seed=material.seed,
                # In one process: one that is forked beside torch's threads may never get its locks.
                find_label_issues_kwargs={"n_jobs": 1},
                verbose=False,
            )
            learner.fit(scaler.transform(material.features), labels)
        found = learner.clf
        pruned = Regression(found.coef_, found.intercept_, present[found.classes_], plain.strength)
        issues = int(learner.get_label_issues()["is_label_issue"].sum())
        return unscaled(
            scaler,
            pruned,
            material.k,
            f"cleanlab's CleanLearning (C = {plain.strength:g})",
            f"{issues} of {len(labels)} examples were pruned as label issues",
        )


METHOD = Cleanlab

"""Whose posterior the noise matrix of labels made from votes is estimated from."""

import numpy as np
import pytest

from hesstune.labeling.label_data import _Given, _noise
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes


@pytest.mark.parametrize("model", ["soft", "majority"])
def test_the_noise_of_labels_is_judged_by_features_where_there_are_some(model):
    rng = np.random.default_rng(0)
    true = np.arange(240) % 3
    features = (np.eye(3)[true] + 0.2 * rng.normal(size=(240, 3))).astype(np.float32)
    wrong = rng.random((240, 3)) < 0.3
    votes = Votes(np.where(wrong, (true[:, None] + 1) % 3, true[:, None]), 3, ["a", "b", "c"])
    balance = np.array([0.5, 0.3, 0.2])
    for given, name in (
        (_Given(votes, features, None, balance, 0), "soft_features"),
        (_Given(votes, None, None, balance, 0), "weighted"),
    ):
        made = given.label(model)
        found = _noise(given, made, "auto")
        assert found.method.startswith(f"labelmodel ({name}")
        judge = label(votes, name, features=given.features, balance=balance, seed=0).posterior
        by_hand = np.stack([judge[made.labels == j].sum(axis=0) for j in range(3)], axis=1)
        by_hand /= by_hand.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.matrix.array, by_hand, atol=0.03)
        others = [_noise(given, made, other).matrix.array for other in ("dawid_skene", model)]
        assert not any(np.allclose(found.matrix.array, other, atol=1e-3) for other in others)


def test_votes_that_contradict_each_other_have_an_even_posterior():
    made = label(Votes(np.array([[0, 1], [1, 0]] * 30), 2), "majority")
    assert made.posterior.tolist() == [[0.5, 0.5]] * 60

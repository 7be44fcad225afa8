"""Public names that changed: the former ones still work, or say in one line what they are now."""

import numpy as np
import pytest
import torch

from hesstune import ConsistentLoss, NoiseMatrix
from hesstune.analysis.label_issues import label_posterior
from hesstune.analysis.noise import perturbed
from hesstune.bounds.hessian import inverse_norm, noisy_hessian_distance_measure
from hesstune.bounds.noisy import KnownNoise, clean_losses, inverse_loss, margin_bound
from hesstune.errors import ConfigError
from hesstune.losses.robust import ForwardLoss
from hesstune.noise.estimate.fit import log_likelihoods, well_conditioned
from hesstune.training.evaluate import cross_entropy_under

F = NoiseMatrix.symmetric(2, 0.2)
PROBS, LABELS = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 1])
LOGITS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda **f: ConsistentLoss(**f)(LOGITS, torch.tensor(LABELS)),
        lambda **f: ForwardLoss(**f)(LOGITS, torch.tensor(LABELS)),
        inverse_norm,
        lambda **f: noisy_hessian_distance_measure([1.0, 2.0], 10, 1.0, **f),
        lambda **f: margin_bound(0.3, **f),
        lambda **f: label_posterior(PROBS, LABELS, **f).tolist(),
        lambda **f: perturbed(off=0.1, direction="too much", **f).array.tolist(),
        lambda **f: log_likelihoods(probs=PROBS, labels=LABELS, **f).tolist(),
        lambda **f: well_conditioned(**f)[1],
        lambda **f: cross_entropy_under(LOGITS, LABELS, **f),
    ],
)
def test_f_is_noise_matrix_and_its_former_name_is_taken(call):
    assert call(noise=F) == call(noise_matrix=F)
    with pytest.raises(ConfigError, match="noise is the former name of noise_matrix"):
        call(noise=F, noise_matrix=F)


@pytest.mark.parametrize("call", [inverse_loss, clean_losses])
def test_losses_for_clean_risk_take_the_former_name(call):
    assert str(call(noise=KnownNoise(F))) == str(call(noise_matrix=KnownNoise(F)))


def test_the_error_of_the_consistent_loss_names_its_argument():
    with pytest.raises(ConfigError, match="noise_matrix must be a NoiseMatrix"):
        ConsistentLoss(np.eye(2))

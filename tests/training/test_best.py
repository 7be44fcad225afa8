"""Which weights are kept: the best on validation, or the latest whose error is not clearly larger."""

import pytest
import torch

from hesstune.training.trainer import Best, ValidationResult


def offer(best, losses, errors, first=0):
    for epoch, rows in enumerate(zip(losses, errors, strict=True), start=first):
        best.offer(ValidationResult(*rows), lambda epoch=epoch: {"w": torch.tensor(epoch)}, epoch)
    assert best.epoch == int(best.weights["w"])
    return best.epoch, best.waited


def beats(one, other):
    """Whether one is lower than another by more than a standard error of the mean difference."""
    gain = other - one
    return gain.mean() > gain.std() / len(gain) ** 0.5


def by_definition(losses, errors, latest):
    """The epoch kept, from the losses of all epochs at once."""
    means, wrong = losses.mean(dim=1), errors.mean(dim=1)
    after = [e for e in range(1, len(losses)) if beats(losses[e], losses[0])]
    if not after:
        return 0
    if not latest:
        return min(range(after[0], len(losses)), key=lambda e: means[e])
    kept = fewest = after[0]
    for epoch in range(after[0] + 1, len(losses)):
        if not beats(errors[fewest], errors[epoch]):
            kept = epoch
            fewest = min(fewest, epoch, key=lambda e: wrong[e])
    return kept


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_epoch_kept_is_that_of_the_definition_and_survives_a_checkpoint(latest, seed):
    torch.manual_seed(seed)
    level = torch.tensor([1.0, 1.05, 0.9, 0.7, 0.6, 0.62, 0.58, 0.61, 0.7, 0.9])
    losses = (level[:, None] + 0.2 * torch.randn(40)[None] + 0.15 * torch.randn(10, 40)).double()
    errors = (losses + 0.3 * torch.randn(10, 40) > 0.8).double()
    found = offer(Best(True, latest), losses, errors)
    assert found[0] == by_definition(losses, errors, latest)
    first, second = Best(True, latest), Best(True, latest)
    offer(first, losses[:5], errors[:5])
    second.take(first.tree())
    assert offer(second, losses[5:], errors[5:], first=5) == found


def test_the_latest_of_equals_is_kept_and_a_clearly_worse_one_is_not():
    losses = torch.tensor([1.0, 0.5, 0.6, 0.7])[:, None] + 0.1 * torch.randn(4, 50).double()
    errors = torch.zeros(4, 50).double()
    errors[1, :10] = errors[2, 1:11] = 1
    errors[3, :20] = 1
    assert offer(Best(True, latest=True), losses, errors) == (2, 1)
    assert offer(Best(True), losses, errors) == (1, 2)
    # One validation example has no standard error.
    losses, errors = torch.tensor([[1.0], [0.5], [0.6], [0.4]]), torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    assert offer(Best(True, latest=True), losses, errors)[0] == 3
    assert offer(Best(True, latest=True), losses[:3], errors[:3])[0] == 1

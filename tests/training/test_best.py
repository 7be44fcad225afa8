"""Which weights are kept: the best on validation, or the latest that are not told apart from them."""

import pytest
import torch

from hesstune.training.trainer import Best, ValidationResult


def offered(losses, errors=None, **options):
    """Offer losses and errors, (epochs, N); return the epoch whose weights are kept, and for how long."""
    best = Best(True, **options)
    errors = torch.zeros_like(losses) if errors is None else errors
    for epoch, rows in enumerate(zip(losses, errors, strict=True)):
        best.offer(ValidationResult(*rows), lambda epoch=epoch: {"w": torch.tensor(epoch)}, epoch)
    assert best.epoch == int(best.weights["w"])
    return best.epoch, best.waited


def beats(one, other):
    """Whether one is lower than another by more than a standard error of the mean difference."""
    gain = other - one
    return gain.mean() > gain.std() / len(gain) ** 0.5


def judged(losses, errors, latest):
    """The same by the definitions, from all at once."""
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


def drawn(seed):
    torch.manual_seed(seed)
    level = torch.tensor([1.0, 1.05, 0.9, 0.7, 0.6, 0.62, 0.58, 0.61, 0.7, 0.9])
    losses = (level[:, None] + 0.2 * torch.randn(40)[None] + 0.15 * torch.randn(10, 40)).double()
    return losses, (losses + 0.3 * torch.randn(10, 40) > 0.8).double()


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_epoch_kept_is_that_of_the_definition(latest, seed):
    losses, errors = drawn(seed)
    assert offered(losses, errors, latest=latest)[0] == judged(losses, errors, latest)


def test_the_latest_of_equals_is_kept_and_a_clearly_worse_one_is_not():
    losses = torch.tensor([1.0, 0.5, 0.6, 0.7])[:, None] + 0.1 * torch.randn(4, 50).double()
    errors = torch.zeros(4, 50).double()
    errors[1, :10] = errors[2, 1:11] = 1
    errors[3, :20] = 1
    assert offered(losses, errors, latest=True) == (2, 1)
    assert offered(losses, errors) == (1, 2)


def test_a_kept_state_goes_on_where_it_was():
    losses, errors = drawn(3)
    through, first, second = (Best(True, latest=True) for _ in range(3))
    for epoch, rows in enumerate(zip(losses, errors, strict=True)):
        for best in (through, first if epoch < 5 else second):
            best.offer(ValidationResult(*rows), lambda e=epoch: {"w": torch.tensor(e)}, epoch)
        if epoch == 4:
            second.take(first.tree())
    assert torch.equal(second.weights["w"], through.weights["w"])
    assert (second.epoch, second.waited) == (through.epoch, through.waited)


def test_one_validation_example_is_no_reason_to_keep_a_worse_epoch():
    losses, errors = torch.tensor([[1.0], [0.5], [0.6], [0.4]]), torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    assert offered(losses, errors, latest=True)[0] == 3
    assert offered(losses[:3], errors[:3], latest=True)[0] == 1

"""Networks in which a per-example Hessian means nothing, refused by name before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hesstune.curvature.batches import changed_example, each_alone
from hesstune.errors import MeasureError, listed
from hesstune.forward import Inputs, logits_of, named_modules, named_parameters

__all__ = [
    "refuse_bad_logits",
    "refuse_hidden_use",
    "refuse_mixed_examples",
    "refuse_other_alone",
    "refuse_other_logits",
    "refuse_training_modules",
    "require_finite",
]

_SAME_LOGITS = 1e-4
# In a batch of another size, kernels sum in another order and, on some devices, in fewer bits.
_SAME_IN_OTHER_BATCH = 1e-2


def refuse_training_modules(model: nn.Module) -> None:
    """Refuse batch norm and dropout that do not follow eval()."""
    for name, module in named_modules(model).items():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise MeasureError(
                f"batch norm '{name}' uses the statistics of the batch even in eval mode, so examples "
                "influence each other; give it running statistics and let eval() reach it"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise MeasureError(f"dropout '{name}' stays active in eval mode; let eval() reach it")


def refuse_bad_logits(model: nn.Module, probe: Inputs, logits: torch.Tensor, rows: torch.Tensor) -> None:
    """Refuse logits that are no logits, change from call to call, or change with another example.

    Args:
        model: The network.
        probe: Examples of the first batch that differ, as far as there are such.
        logits: Its logits on them.
        rows: Their places in the batch, for messages.
    """
    if logits.shape[1] < 2:
        raise MeasureError(f"cross-entropy needs at least 2 classes; the model has {logits.shape[1]} logit")
    if logits.dtype not in (torch.float32, torch.float64):
        raise MeasureError(f"the logits are {logits.dtype}; measure in float32 or float64")
    require_finite(logits, rows)
    tolerance = _SAME_LOGITS * float(logits.abs().max())
    with torch.no_grad():
        # Two plain calls: the captured one computes batch norm in another way, and rounds otherwise.
        logits = logits_of(model, probe)
        if not _close(logits_of(model, probe), logits, tolerance):
            raise MeasureError(
                "the logits change from one call to the next in eval mode (functional dropout with "
                "training=True, or another source of randomness); make the model deterministic"
            )
        for row in range(len(logits)):
            changed = changed_example(probe, row) if len(logits) > 1 else None
            if changed is not None:
                keep = torch.arange(len(logits), device=logits.device) != row
                if not _close(logits_of(model, changed)[keep], logits[keep], tolerance):
                    raise _influence("in the logits")


def refuse_mixed_examples(
    model: nn.Module, probe: Inputs, logits: torch.Tensor, names: Sequence[str]
) -> None:
    """Look twice at layers without a known place of the examples: only alone can examples be measured there.

    Raises:
        MeasureError: If an example's logits are others alone than in the batch, or nothing about the examples
            can be changed to see whether they influence each other.
    """
    if not names or len(logits) == 1:
        return
    if any(changed_example(probe, row) is None for row in range(len(logits))):
        raise MeasureError(
            f"the examples of the first batch are all the same, so it cannot be told whether they influence "
            f"each other at {listed(names)}; put examples that differ in the first batch, or leave the "
            "layers out with layers="
        )
    refuse_other_alone(model, probe, logits, f"at {listed(names)}")


@torch.no_grad()
def refuse_other_alone(model: nn.Module, probe: Inputs, logits: torch.Tensor, where: str) -> None:
    """Refuse a network in which an example's logits are others alone than in the batch."""
    alone = torch.cat([logits_of(model, one) for _, one in each_alone(probe)])
    refuse_other_logits(alone, logits, where)


def refuse_other_logits(found: torch.Tensor, logits: torch.Tensor, where: str) -> None:
    """Refuse a network whose logits, (B, K), are not the same in batches of other sizes."""
    if not _close(found, logits, _SAME_IN_OTHER_BATCH * float(logits.abs().max())):
        raise _influence(where)


def _influence(where: str) -> MeasureError:
    return MeasureError(
        f"the examples of a batch influence each other ({where}: changing or leaving out one changed "
        "another); a per-example Hessian needs a network that treats examples apart in eval mode"
    )


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance).all())


def require_finite(logits: torch.Tensor, examples: torch.Tensor | None = None) -> None:
    """Raise MeasureError, naming the examples by `examples` or their rows, unless all logits are finite."""
    wrong = (~logits.isfinite().all(1)).nonzero().flatten().cpu()
    if wrong.numel():
        rows = listed((wrong if examples is None else examples[wrong]).tolist())
        raise MeasureError(f"the logits of example {rows} are not finite; did training diverge?")


def refuse_hidden_use(model: nn.Module, probe: Inputs, name: str) -> None:
    """Refuse a weight without a gradient on which the logits depend all the same."""
    weight = named_parameters(model)[name]
    with torch.no_grad():
        before = logits_of(model, probe)
        kept = weight.detach().clone()
        try:
            weight.mul_(1.5).add_(0.1)
            after = logits_of(model, probe)
        finally:
            weight.copy_(kept)
    if not _close(before, after, 1e-6 * float(before.abs().max())):
        raise MeasureError(
            f"'{name}' changes the logits, but no gradient reaches it (no_grad, detach or .data in the "
            "forward pass); let gradients through, or leave it out with layers="
        )

"""Weight decay: cross-entropy by AdamW, whose decay pulls weights to zero, not to the reference.

Source: Loshchilov and Hutter 2019; 0.01 is the default of torch's AdamW. `--weight-decay` sets it.
"""

from __future__ import annotations

from typing import Any

from hesstune.methods._base import Method


class WeightDecay(Method):
    """Cross-entropy with decoupled weight decay."""

    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the optimizer and its decay."""
        return {"optimizer": "adamw", "weight_decay": 0.01}


METHOD = WeightDecay

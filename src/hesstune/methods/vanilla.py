"""Plain fine-tuning: cross-entropy on the labels as they are.

A head that is trained alone has a ridge penalty, chosen by cross-validation on the labels as given, where
`--weight-decay` names none.
"""

from __future__ import annotations

from hesstune.methods._base import Method


class Vanilla(Method):
    """Cross-entropy on the given labels, with no constraint."""

    shards = True
    penalises_heads = True


METHOD = Vanilla

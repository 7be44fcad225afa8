"""Plain fine-tuning: cross-entropy on the labels as they are."""

from __future__ import annotations

from hesstune.methods._base import Method


class Vanilla(Method):
    """Cross-entropy on the given labels, with no constraint."""

    shards = True


METHOD = Vanilla

"""Early stopping: cross-entropy, ended when validation no longer improves; the best epoch is kept.

Validation labels are as noisy as the training labels; where F is told, it is judged how well they are
foretold under F. Source: Li, Soltanolkotabi, Oymak 2020 for label noise; patience as in Prechelt 1998.
"""

from __future__ import annotations

from typing import Any

from hesstune.methods._base import Method


class EarlyStopping(Method):
    """Cross-entropy with `--patience 3 --select best`, unless they are given."""

    shards = True

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the patience and the rule for which weights are kept."""
        return {"patience": 3, "select": "best"}


METHOD = EarlyStopping

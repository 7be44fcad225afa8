"""How a command that was interrupted ends."""

from __future__ import annotations

import os

__all__ = ["Interrupted", "is_first"]


def is_first() -> bool:
    """Tell whether this process speaks: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


class Interrupted(Exception):
    """The user stopped the command; the message says how to go on. Exit code 130.

    Its own class because the parser turns KeyboardInterrupt into a bare exit code.
    """

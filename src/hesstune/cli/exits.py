"""How a command that was interrupted ends."""

from __future__ import annotations

__all__ = ["Interrupted"]


class Interrupted(Exception):
    """The user stopped the command; the message says how to go on. Exit code 130.

    Its own class because the parser turns KeyboardInterrupt into a bare exit code.
    """

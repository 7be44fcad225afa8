"""Load from transformers without its bars and reports, its settings left as found, and say why one fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hesstune.errors import ModelError

__all__ = ["quiet_transformers", "unloadable"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' logging below errors, and its progress bars, inside the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def unloadable(what: str, name: str, error: Exception) -> ModelError:
    """Return the error that says why transformers cannot load what a name stands for, or a folder."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    path = Path(name)
    here = "" if path.exists() else f"; as a folder it would be {path.absolute()}, which is not there"
    return ModelError(f"transformers cannot load {what} from '{name}': {reason}{here}")

"""A run is never resumed with something else than it was started from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from hesstune.errors import HesstuneWarning, RunError
from hesstune.reference import Reference
from hesstune.runs.records import REFERENCE
from hesstune.runs.run import Run
from hesstune.storage.atomic import replace_file
from hesstune.storage.tensors import digest

__all__ = ["check_start", "check_unchanged"]

# What to say about each checksum: what has changed, and the option it belongs to.
_NAMES = {
    "classes": ("the classes", "data"),
    "examples": ("the examples or their split", "data"),
    "labels": ("the labels", "data"),
    "contents": ("the images or texts", "data"),
    "weights": ("the weights that training starts from", "model"),
}


def check_unchanged(before: Run, found: Mapping[str, str]) -> None:
    """Refuse to resume a run, finished or not, from other data or weights.

    Args:
        before: The run, as its folder has it.
        found: Checksums of what it would be resumed from (see `runs/fingerprint.py`).

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    then = before.facts.checksums
    for key, value in found.items():
        if key in then and then[key] != value:
            what, option = _NAMES[key]
            raise RunError(
                f"cannot resume the run in {before.path}: {what} of --{option} "
                f"{getattr(before.config, option)} changed since it was started; restore them, or start over "
                "with --overwrite"
            )


def check_start(before: Run, now: Run, reference: Reference) -> None:
    """Refuse to resume from other data or weights; mend a reference file that was damaged since.

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    found, out = now.facts.checksums, now.path
    check_unchanged(before, found)
    try:
        kept = before.reference()
        same = digest({name: kept[name] for name in kept.names()}) == found["weights"]
    except RunError:
        same = False
    if not same:
        warnings.warn(f"{out / REFERENCE} was damaged; it is written anew", HesstuneWarning, stacklevel=2)
        replace_file(out / REFERENCE, reference.save)

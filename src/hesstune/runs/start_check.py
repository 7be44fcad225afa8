"""A run is never resumed with something else than it was started from."""

from __future__ import annotations

import warnings

from hesstune.errors import HesstuneWarning, RunError
from hesstune.reference import Reference
from hesstune.runs.records import REFERENCE
from hesstune.runs.run import Run
from hesstune.storage.atomic import replace_file
from hesstune.storage.tensors import digest

__all__ = ["check_start"]

# What to say about each checksum: what has changed, and the option it belongs to.
_NAMES = {
    "classes": ("the classes", "data"),
    "examples": ("the examples or their split", "data"),
    "labels": ("the labels", "data"),
    "contents": ("the images or texts", "data"),
    "weights": ("the weights that training starts from", "model"),
}


def check_start(before: Run, now: Run, reference: Reference) -> None:
    """Refuse to resume from other data or weights; mend a reference file that was damaged since.

    Raises:
        RunError: Naming what is no longer what the run was started from.
    """
    then, found, out = before.facts.checksums, now.facts.checksums, now.path
    for key, value in found.items():
        if key in then and then[key] != value:
            what, option = _NAMES[key]
            raise RunError(
                f"cannot resume the run in {out}: {what} of --{option} {getattr(now.config, option)} changed "
                "since it was started; restore them, or start over with --overwrite"
            )
    try:
        kept = before.reference()
        same = digest({name: kept[name] for name in kept.names()}) == found["weights"]
    except RunError:
        same = False
    if not same:
        warnings.warn(f"{out / REFERENCE} was damaged; it is written anew", HesstuneWarning, stacklevel=2)
        replace_file(out / REFERENCE, reference.save)

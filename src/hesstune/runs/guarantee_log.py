"""The log of what was asked of a run folder: every certificate, and every sheet of examples to check.

A guarantee holds for one number that was fixed beforehand. Of several, the smallest holds only if each of
them pays a part of δ, so the log is only ever appended to, and `--overwrite` keeps it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesstune.bounds.record import Certificate
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.runs.records import GUARANTEES
from hesstune.storage.atomic import writing

__all__ = ["certificates", "log_certificate", "log_sheet", "sheet_of", "sheets", "with_union"]

CERTIFICATE, SHEET = "certificate", "sheet"


def _entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind, the oldest first; a last line that a kill cut off is left out."""
    path = folder / GUARANTEES
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        *whole, _ = lines
        found = [json.loads(line) for line in whole if line]
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); it holds every certificate of the folder, so restore it, or "
            "train to another --out"
        ) from error
    return [entry for entry in found if isinstance(entry, dict) and entry.get("kind") == kind]


def _append(folder: Path, kind: str, entry: dict[str, Any]) -> None:
    path = folder / GUARANTEES
    with writing(path), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a kill cut off
        file.write(json.dumps({"kind": kind, **entry}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def certificates(folder: Path) -> list[Certificate]:
    """Return what the log holds of the certificates of a run folder, each once."""
    found = {json.dumps(entry["facts"], sort_keys=True): entry for entry in _entries(folder, CERTIFICATE)}
    return [Certificate.of_facts(entry["facts"]) for entry in found.values()]


def log_certificate(folder: Path, found: Certificate, asked: dict[str, Any]) -> None:
    """Append a certificate, and the options that it was made with, to the log of its run folder."""
    _append(folder, CERTIFICATE, {"asked": asked, "facts": found.facts()})


def with_union(folder: Path, found: Certificate) -> Certificate:
    """Return a logged certificate with the number of different ones, J, and the smallest of them at δ/J.

    That bound holds with probability 1 − δ whichever of them is reported.
    """
    every = certificates(folder)
    smallest = min(_at(one, found.delta / len(every)) for one in every)
    return replace(found, number=len(every), smallest=smallest)


def _at(one: Certificate, delta: float) -> float:
    try:
        return one.at(delta)
    except ConfigError:  # a confidence set of the noise has spent more
        return 1.0


def log_sheet(folder: Path, ids: Sequence[str], asked: dict[str, Any]) -> None:
    """Append a sheet of drawn examples to the log of the run folder that it was drawn for."""
    _append(folder, SHEET, {"asked": asked, "ids": list(ids)})


def sheets(folder: Path) -> list[list[str]]:
    """Return the ids of each different sheet that was drawn for a run folder, the oldest first."""
    return list({tuple(sorted(entry["ids"])): entry["ids"] for entry in _entries(folder, SHEET)}.values())


def sheet_of(folder: Path, filled: Sequence[str], path: str | Path) -> list[str]:
    """Return the ids of the last sheet that holds all examples whose label was filled in.

    Raises:
        DataError: If there is no such sheet: an example was chosen instead of drawn.
    """
    drawn = sheets(folder)
    if not drawn:
        raise DataError(
            f"no examples were drawn for the run in {folder}, so the {len(filled)} labels of {path} are no "
            "random sample; draw some by hesstune check"
        )
    wanted = set(filled)
    for ids in reversed(drawn):
        if wanted <= set(ids):
            return ids
    strange = sorted(wanted - set(drawn[-1]))
    raise DataError(
        f"{path} has a label for '{strange[0]}' ({len(strange)} such examples), which hesstune check did not "
        "draw for this run; remove these rows: chosen examples are no random sample"
    )

"""The log of the certificates of a run folder, and of the sheets of examples to check.

A certificate holds for one number that was fixed beforehand. The smallest of several holds if each of them
takes a part of δ, so entries are only appended, and `--overwrite` keeps the log.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hesstune.bounds.record import Certificate
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.runs.records import GUARANTEES
from hesstune.storage.files import one_line, writing

CERTIFICATE, SHEET = "certificate", "sheet"

T = TypeVar("T")


def _entries(folder: Path, kind: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """Return the entries of a kind, the oldest first, as `read` makes them of their fields.

    A last line that a kill cut off is left out.

    Raises:
        RunError: If the log cannot be read, or an entry is damaged.
    """
    path = folder / GUARANTEES
    try:
        *lines, _ = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        found = [json.loads(line) for line in lines if line]
        return [read(entry) for entry in found if entry["kind"] == kind]
    except Exception as error:  # damaged text raises many kinds
        raise RunError(
            f"{path} cannot be read ({one_line(error)}); it holds every certificate of the folder: "
            "restore it, or train to another --out"
        ) from error


def _append(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / GUARANTEES
    with writing(path), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a kill cut off
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def certificates(folder: Path) -> list[Certificate]:
    """Return what the log holds of the certificates of a run folder, each once."""
    found = _entries(folder, CERTIFICATE, _read_certificate)
    return list({json.dumps(one.facts(), sort_keys=True): one for one in found}.values())


def check_log(folder: Path, last: Certificate | None) -> None:
    """Check that the log of a run folder has the certificate in the folder, if there is one.

    Raises:
        RunError: If it does not: the log was removed, cut or replaced.
    """
    if last is None or last.diagnostic or last.facts() in [one.facts() for one in certificates(folder)]:
        return
    raise RunError(
        f"{folder / GUARANTEES} lacks the certificate in {folder}, so it does not hold every certificate of "
        "the folder: restore it, or train to another --out"
    )


def _read_certificate(entry: dict[str, Any]) -> Certificate:
    found = Certificate.of_facts(entry["facts"])
    found.at(found.delta)  # raises if numbers are missing or impossible
    return found


def log_certificate(folder: Path, found: Certificate, asked: dict[str, Any]) -> None:
    """Append a certificate, and the options that it was made with, to the log of its run folder."""
    _append(folder, {"kind": CERTIFICATE, "asked": asked, "facts": found.facts()})


def with_union(folder: Path, found: Certificate) -> Certificate:
    """Return a logged certificate with the number of different ones, J, and the smallest of them at δ/J.

    That bound holds with probability 1 − δ whichever of them is reported.
    """
    every, smallest = certificates(folder), 1.0
    for one in every:
        with contextlib.suppress(ConfigError):  # a confidence set of the noise has spent more than δ/J
            smallest = min(smallest, one.at(found.delta / len(every)))
    return found.replaced(number=len(every), smallest=smallest)


def log_sheet(folder: Path, ids: Sequence[str], asked: dict[str, Any]) -> None:
    """Append a sheet of drawn examples to the log of the run folder that it was drawn for."""
    _append(folder, {"kind": SHEET, "asked": asked, "ids": list(ids)})


def sheets(folder: Path) -> list[list[str]]:
    """Return the ids of each different sheet that was drawn for a run folder, the oldest first."""
    return list({tuple(sorted(ids)): ids for ids in _entries(folder, SHEET, _read_ids)}.values())


def _read_ids(entry: dict[str, Any]) -> list[str]:
    ids = entry["ids"]
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise ValueError("'ids' must be a list of ids")
    return ids


def sheet_of(folder: Path, filled: Sequence[str], path: str | Path) -> list[str]:
    """Return the ids of the last sheet that holds all examples with a label that was filled in.

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

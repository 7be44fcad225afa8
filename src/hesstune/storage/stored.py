"""Typed records that are stored as JSON, validated when they are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hesstune.errors import RunError
from hesstune.storage.files import one_line, read_text, write_json


class Stored(BaseModel):
    """A record that is kept as JSON.

    Keys that this version does not know are kept and written back: within a format, others may add some.

    Attributes:
        what: What the file holds, for errors.
        fix: What to do if it is damaged.
        newest: The latest format that can be read, of records that hold their `format`.

    Example:
        >>> class Size(Stored):
        ...     width: float
        >>> Size.model_validate({"width": 2, "height": 3}).to_dict()
        {'width': 2.0, 'height': 3}
        >>> Size(width=2)["width"]
        2.0
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    what: ClassVar[str] = "a record"
    fix: ClassVar[str] = "remove it"
    newest: ClassVar[int] = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what was set, as plain values for JSON."""
        return self.model_dump(mode="json", exclude_unset=True)

    def keys(self) -> list[str]:
        """Return the keys of `to_dict`; with `[key]` a record reads like the JSON it is kept as."""
        return list(self.to_dict())

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def replaced(self, **changes: Any) -> Self:
        """Return the record with some fields changed."""
        return self.model_copy(update=changes)


Record = TypeVar("Record", bound=Stored)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a JSON file of one record; None if it is absent; RunError if it is damaged or too new."""
    if not path.is_file():
        return None
    return checked_record(path, kind, lambda: json.loads(read_text(path)))


def checked_record(path: Path, kind: type[Record], content: Callable[[], Any]) -> Record:
    """Return the record that a call reads from a file; RunError if the call fails or it is no such record."""
    try:
        found = content()
        _refuse_later(path, kind, found)
        return kind.model_validate(found)
    except RunError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
    except Exception as error:  # damaged text raises many kinds
        reason = str(error) or type(error).__name__
    raise RunError(f"{path} cannot be read as {kind.what} ({one_line(reason)}); {kind.fix}")


def refuse_later(path: Path, kind: type[Stored]) -> None:
    """Raise RunError if a record has a later format than can be read; say nothing else of it."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        _refuse_later(path, kind, json.loads(read_text(path)))


def _refuse_later(path: Path, kind: type[Stored], found: Any) -> None:
    made = found.get("format", 0) if isinstance(found, dict) else 0
    if isinstance(made, int) and made > kind.newest and "format" in kind.model_fields:
        raise RunError(
            f"{path} has format {made}, of a later hesstune; this one reads formats up to {kind.newest}: "
            "upgrade hesstune"
        )


def write_record(path: Path, record: Stored) -> None:
    """Write a record as JSON, whole or not at all; RunError if it cannot be written."""
    write_json(path, record.to_dict())

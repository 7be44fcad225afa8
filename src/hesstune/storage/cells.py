"""Cells of tables and values of columns as text, and which of them stand for nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hesstune.errors import plain

__all__ = ["MISSING", "as_cell", "is_missing"]

# What stands for nothing where a label is expected: what Python, pandas, R, spreadsheets and databases write,
# as pandas reads it. In other case it may well be a word, such as a class called none.
MISSING = (
    "",
    "None",
    "nan",
    "NaN",
    "-nan",
    "-NaN",
    "NA",
    "#NA",
    "N/A",
    "n/a",
    "#N/A",
    "NULL",
    "null",
    "<NA>",
    "NaT",
)


def is_missing(value: object, names: Collection[str] = ()) -> bool:
    """Tell whether a cell stands for nothing; one that is among `names` does not.

    Example:
        >>> is_missing(None), is_missing(" NaN "), is_missing("none"), is_missing("NA", ["EU", "NA"])
        (True, True, False, False)
    """
    text = "" if value is None else str(value).strip()
    return text in MISSING and text not in names


def as_cell(value: Any) -> str:
    """Return a value as a cell of a table: a whole number without a point, what is missing empty.

    Example:
        >>> as_cell(2.0), as_cell(None), as_cell(float("nan")), as_cell("None")
        ('2', '', '', 'None')
    """
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else plain(str(value))

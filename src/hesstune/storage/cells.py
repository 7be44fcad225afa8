"""Cells of tables and values of columns as text, and which of them stand for nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hesstune.checks import parse_number
from hesstune.errors import plain

__all__ = ["MISSING", "as_cell", "is_missing", "restored_cell", "safe_cell"]

# How cells begin that spreadsheets compute, and the mark that keeps such cells text.
FORMULA_SIGNS = "=+-@\t\r\n＝＋－＠"
MARK = "'"

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


def _is_formula(cell: str) -> bool:
    start = cell.lstrip(MARK)
    return start[:1] in FORMULA_SIGNS and start != "" and parse_number(cell) is None


def safe_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file that spreadsheets open: text that they would compute is marked.

    A text that begins with =, +, -, @, a tab or a line break gets an apostrophe in front; numbers stay. A
    text that has apostrophes before such a sign gets one more, so that `restored_cell` is the inverse.

    Example:
        >>> [safe_cell(value) for value in ("=1+1", "-0.5", -0.5, "-ism", "'=1", "cat's")]
        ["'=1+1", '-0.5', -0.5, "'-ism", "''=1", "cat's"]
    """
    return MARK + value if isinstance(value, str) and _is_formula(value) else value


def restored_cell(cell: str) -> str:
    """Return the text that `safe_cell` made a cell of.

    Example:
        >>> [restored_cell(cell) for cell in ("'=1+1", "''=1", "'cat'", "-0.5")]
        ['=1+1', "'=1", "'cat'", '-0.5']
    """
    return cell[1:] if cell.startswith(MARK) and _is_formula(cell) else cell


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

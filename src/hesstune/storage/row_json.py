"""JSON for records that are kept with code: a row a line, so that they are short and differences show."""

from __future__ import annotations

import json

__all__ = ["row_json"]

# What is longer than this is broken into its parts.
WIDTH = 300


def row_json(record: object) -> str:
    """Return a record as JSON text in which every part that fits has one line.

    Raises:
        ValueError: If it holds a number that is not finite.

    Example:
        >>> runs = [{"seed": seed, "gap": seed / 10} for seed in range(20)]
        >>> for line in row_json({"command": "x", "runs": runs}).splitlines()[:4]:
        ...     print(line)
        {
         "command": "x",
         "runs": [
          {"seed": 0, "gap": 0.0},
    """
    return _text(json.loads(json.dumps(record, allow_nan=False)), 0) + "\n"


def _text(value: object, depth: int) -> str:
    line = json.dumps(value)
    if not isinstance(value, dict | list) or len(line) <= WIDTH or _numbers(value):
        return line
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {_text(part, depth + 1)}" for name, part in value.items()]
        return "{" + inner + f",{inner}".join(parts) + outer + "}"
    return "[" + inner + f",{inner}".join(_text(part, depth + 1) for part in value) + outer + "]"


def _numbers(value: dict[str, object] | list[object]) -> bool:
    """Whether it is a list of numbers, which is one row however long it is."""
    return isinstance(value, list) and all(isinstance(part, int | float) for part in value)

"""JSON Lines: `jsonl:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv


class JsonLines(Csv):
    """A file of JSON objects, one on each line."""

    written = "jsonl:PATH"
    summary = "A file of JSON objects, one on each line, with the keys of the columns of `csv:`."


FORMAT = JsonLines

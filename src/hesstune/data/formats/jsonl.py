"""JSON Lines: `jsonl:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv
from hesstune.storage.tables import JSON_LINES


class JsonLines(Csv):
    """A file of JSON objects, one on each line."""

    written = "jsonl:PATH"
    summary = "A file of JSON objects, one on each line, with the keys of the columns of `csv:`."
    suffixes = JSON_LINES


FORMAT = JsonLines

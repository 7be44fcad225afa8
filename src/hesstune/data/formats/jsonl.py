"""JSON Lines: `jsonl:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv
from hesstune.storage.table_files import SUFFIXES


class JsonLines(Csv):
    """A file of JSON objects, one on each line, or a list of them."""

    written = "jsonl:PATH"
    summary = (
        "A file of JSON objects, one on each line (or in one list), with the keys of the columns of `csv:`."
    )
    suffixes = SUFFIXES["jsonl"]


FORMAT = JsonLines

"""Parquet: `parquet:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv


class Parquet(Csv):
    """A Parquet file."""

    written = "parquet:PATH"
    summary = "A Parquet file with the columns of `csv:`."


FORMAT = Parquet

"""Spreadsheets: `excel:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv
from hesstune.storage.table_files import SUFFIXES


class Excel(Csv):
    """An Excel file; it is read by openpyxl, which computes no formulas."""

    written = "excel:PATH"
    summary = (
        "An Excel file, .xlsx, with the columns of `csv:` in the first row of a sheet; `PATH#SHEET` "
        "names one of several sheets. It needs the extra `excel`."
    )
    suffixes = SUFFIXES["excel"]


FORMAT = Excel

"""Tables in files: `csv:PATH`."""

from __future__ import annotations

from typing import ClassVar

from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.reading import Reading
from hesstune.data.tables import USUAL, listing_of
from hesstune.resizing import Size
from hesstune.storage.tables import TABS, read_table


class Csv(DataFormat):
    """A CSV file, or a tab-separated file that ends in .tsv or .tab."""

    written = "csv:PATH"
    summary = (
        "A CSV file, or a .tsv file separated by tabs, with columns `text` (and `text2` for pairs) or "
        "`image` (a path), and `label`; perhaps `id` and `split`. Columns `vote_…`, one per annotator, "
        "replace `label`."
    )
    has_columns = True
    is_table = True
    suffixes: ClassVar[tuple[str, ...]] = (".csv", *TABS)

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        table = read_table(path)
        roles, notes = how.columns.find(list(table.columns), USUAL, table.name)
        return listing_of(table, roles, how, labelled, notes=notes)


FORMAT = Csv

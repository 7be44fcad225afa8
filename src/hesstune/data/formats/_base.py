"""What every data format declares, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hesstune.data.examples import Listing
from hesstune.data.reading import Reading
from hesstune.resizing import Size


class DataFormat:
    """A data format: the class FORMAT of a file in this folder with the format's name."""

    # How it is written on the command line, and a sentence for the documentation.
    written: ClassVar[str]
    summary: ClassVar[str]
    # Whether it has columns: --text-column, --label-column and the like name them.
    has_columns: ClassVar[bool] = False
    # Whether it is a table that `read_table` reads, and the suffixes of its files.
    is_table: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether a path that exists seems to be of this format."""
        return path.is_file() and path.suffix.lower() in cls.suffixes

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        """List the examples.

        Args:
            path: What follows the format's name and a colon.
            size: Side in pixels of images that need no decoding later.
            labelled: Whether labels are required; otherwise they go into `given` as written.
            how: Named columns, how votes become labels, and the background of transparent images.

        Raises:
            DataError: If the data cannot be used, with what is needed.
        """
        raise NotImplementedError

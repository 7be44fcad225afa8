"""Data formats are registered by file, documented, and refuse strings that they cannot read."""

from pathlib import Path

import pytest

from hesstune.data.formats import FORMATS, WITHOUT_PATH, data_format, listing
from hesstune.errors import DataError

DOCS = (Path(__file__).parents[2] / "docs" / "howto" / "own-data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_documented_and_named_by_its_file(name):
    kind = data_format(name)
    assert f"| `{kind.written}` | {kind.summary} | {'yes' if kind.has_columns else 'no'} |" in DOCS
    assert kind.written.partition(":")[0] == name
    assert (":" in kind.written) == (name not in WITHOUT_PATH)


@pytest.mark.parametrize(
    "data", ["digit", "csv", "folder:", "digits:8", "memory", "csv:nowhere.csv", "{path}"]
)
def test_strings_that_name_no_data_are_refused(tmp_path, data):
    with pytest.raises(DataError):
        listing(data.format(path=tmp_path), 8)

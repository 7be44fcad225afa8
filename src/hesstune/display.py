"""Results in notebooks: a title, sentences and the first rows of a table, as HTML."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_ROWS = 12


def as_html(title: str, sentences: Iterable[str], frame: DataFrame) -> str:
    """Return a result as HTML with every text escaped, for `_repr_html_`.

    Example:
        >>> from pandas import DataFrame
        >>> as_html("<b>", [], DataFrame({"p": ["&"]})).count("&lt;b&gt;")
        1
    """
    parts = [f"<p><strong>{escape(title)}</strong></p>", *(f"<p>{escape(text)}</p>" for text in sentences)]
    parts.append(
        frame.head(MOST_ROWS).to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format)
    )
    if len(frame) > MOST_ROWS:
        parts.append(f"<p>{len(frame) - MOST_ROWS} more rows</p>")
    return f"<div>{''.join(parts)}</div>"

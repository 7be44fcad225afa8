"""Count words per sentence on the pages: `python benchmarks/prose.py [PAGE ...]`.

Code, tables, generated parts and headings are left out. Inline code counts as one word, and a link's address
as none. A list item or paragraph without a full stop is one sentence.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from records import DOCS, ROOT

MOST = 20
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
DROPPED = (
    r"(?s)<!-- generated: \w+ -->.*?<!-- end of generated -->",
    r"(?ms)^ *```.*?^ *```",
    r"(?s)<!--.*?-->",
    r"(?m)^(#|:::|\||!\[| {4}(options:|Σ|risk|\(|P\(|KL)).*$",
)

END = re.compile(r"(?<=[.!?])[*)\"”]*\s+(?=[\"“*(]*(?:[A-Z0-9v]|code|hesstune|cleanlab))")


def sentences(text: str) -> list[str]:
    """Return the sentences of a Markdown page."""
    for pattern in DROPPED:
        text = re.sub(pattern, "\n\n", text)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\n(?=\s*([-*]|\d+\.) )", "\n\n", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(re.sub(r"^\s*([-*]|\d+\.) ", "", paragraph).split())
        found += [sentence for sentence in END.split(joined) if words(sentence)]
    return found


def words(sentence: str) -> int:
    """Return the number of words; numbers and formulas between spaces count as words."""
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


def mean_words(page: Path) -> float:
    """Return the mean number of words per sentence of a page; 0 if it has no sentence."""
    found = sentences(page.read_text(encoding="utf-8"))
    return sum(map(words, found)) / max(1, len(found))


def main(paths: list[str]) -> None:
    """Print the mean of every page, or the sentences of the given pages, the longest first."""
    for page in PAGES if not paths else ():
        print(f"{mean_words(page):5.1f}  {page.relative_to(ROOT)}")
    for path in paths:
        for sentence in sorted(sentences(Path(path).read_text(encoding="utf-8")), key=words, reverse=True):
            print(f"{words(sentence):3d}  {sentence}")


if __name__ == "__main__":
    main(sys.argv[1:])

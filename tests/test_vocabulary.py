"""Code, help, messages and pages use the field's standard terms: no name or text has one of these words."""

import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

import prose

SRC = Path(__file__).parents[1] / "src" / "hesstune"
# {pattern: what to write instead}; names are split at underscores and capitals.
WORDS = {
    r"foret(ell|old)\w*": "predict, held-out log-likelihood",
    r"(un)?told": "given, known",
    r"(dis)?believ\w*": "assume",
    r"doubt\w*": "suspected label error, estimate noise",
    r"hears?|heard|deaf": "use network predictions",
    r"settl\w*": "choose, converge",
    r"balls?": "distance constraint, radius",
    r"mend(s|ed|ing)?": "fix",
    r"fifths?": "5-fold cross-validation",
    r"likeliest": "most probable class",
    r"voters?": "annotator",
    r"pictures?": "image",
    r"as likely as not|looks? wrong": "suspected label errors",
    r"until (both|they|it) rests?|comes? to rest": "converge",
    r"goes by the name|calls? by": "is named",
    r"noise (that is )?seen": "estimated noise rate",
    r"goes? deeper": "fine-tunes more layers",
    r"of which": "split the sentence",
}
# Of pages alone: development history and the project's own targets.
HISTORY = r"goals? (is|was|were|of|[\d.]+)|goal:|reached on|first version of|formerly|was settled on"


def plain(text):
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)).lower()


@cache
def texts():
    """Return {file and line: names, comments and texts}, in lower case."""
    found = {}
    for path in sorted(path for path in SRC.rglob("*") if path.suffix in (".py", ".j2", ".js")):
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            tokens = tokenize.generate_tokens(io.StringIO(content).readline)
            wanted = (tokenize.NAME, tokenize.STRING, tokenize.COMMENT)
            lines = [(t.start[0], t.string) for t in tokens if t.type in wanted]
        else:
            lines = list(enumerate(content.splitlines(), start=1))
        for line, text in lines:
            found.setdefault(f"{path.relative_to(SRC)}:{line}", []).append(plain(text))
    for page in prose.PAGES:
        for line, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            found[f"{page.name}:{line}"] = [plain(text)]
    return {place: " | ".join(parts) for place, parts in found.items()}


@pytest.mark.parametrize("pattern", WORDS)
def test_no_word_of_the_list_is_used(pattern):
    sought = re.compile(rf"\b(?:{pattern})\b")
    assert [place for place, text in texts().items() if sought.search(text)] == [], WORDS[pattern]


@pytest.mark.parametrize("page", prose.PAGES, ids=lambda page: page.name)
def test_a_page_has_short_sentences_and_no_history(page):
    assert prose.mean_words(page) <= prose.MOST
    assert re.findall(HISTORY, page.read_text(encoding="utf-8")) == []


def test_words_per_sentence_are_counted():
    page = "# Title\n\nOne two `three four`. Five [six](seven.md).\n\n- a b\n- c d\n\n```sh\nx y z\n```\n"
    assert [prose.words(sentence) for sentence in prose.sentences(page)] == [3, 2, 2, 2]

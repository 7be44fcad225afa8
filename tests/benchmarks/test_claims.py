"""What is said of the measure is what the study's records say."""

from pathlib import Path

import pytest

import write_study_gap
from hesstune.curvature.result import FOUND, STATEMENT
from write_study import records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return write_study_gap.summary(records())


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def test_the_sentence_quotes_the_records(found):
    measure, distance = found["measure"], found["distance"]
    assert f"{measure['runs']:,} runs" in FOUND
    assert (
        f"Kendall's τ was {signed(measure['tau'])}, {signed(measure['parts']['programmatic_full'])}" in FOUND
    )
    assert f"({signed(distance['parts']['programmatic_full'])} for the distance" in FOUND
    heads = [measure["parts"][name] for name in ("programmatic_head", "injected_head", "clean_head")]
    assert f"between {signed(min(heads))} and {signed(max(heads))} for heads alone" in FOUND
    assert FOUND in STATEMENT


PAGES = ["README.md", "docs/concepts/measure.md", "docs/faq.md", "docs/measure.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_quote_them_too(found, page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    measure, distance = found["measure"], found["distance"]
    assert signed(measure["tau"]) in text
    assert signed(measure["parts"]["programmatic_full"]) in text
    assert signed(distance["parts"]["programmatic_full"]) in text
    if "1,262" in text:
        assert measure["runs"] == 1262


def test_nothing_says_that_the_measure_follows_the_gap():
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    files += [
        *(ROOT / "src").rglob("*.j2"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
    ]
    for path in files:
        text = " ".join(path.read_text(encoding="utf-8").split())
        for wrong in ("follows the gap", "follows the generalization gap", "carry the generalization gap"):
            assert wrong not in text, (path, wrong)

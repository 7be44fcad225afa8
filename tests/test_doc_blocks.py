"""Code in README and docs works: Python is run as it stands, commands are parsed by the command line."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import pages as executed
from hesstune.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# By the tests of executed pages below, and of examples.
RUN_ELSEWHERE = [*executed.PAGES, ROOT / "docs" / "howto" / "training-loop.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(page):
    """The hesstune commands of a page's shell blocks, without comments, continued lines joined."""
    for block in blocks(page, "(?:sh|bash)"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["hesstune"] and "DIR" not in words:
                yield words[1:]
            elif "hesstune" in words and "-m" in words:
                yield words[words.index("hesstune") + 1 :]


def relative(page):
    return str(page.relative_to(ROOT))


WITH_PYTHON = [p for p in PAGES if p not in RUN_ELSEWHERE and blocks(p, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=relative)
def test_python_blocks_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, relative(page), "exec"), names)


@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=relative)
def test_commands_parse(page):
    group = typer.main.get_command(app)
    for words in commands(page):
        if words[0].startswith("-"):
            continue
        command = group.commands[words[0]]
        if "--help" not in words:
            command.make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_linked_files_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("page", executed.PAGES, ids=relative)
def test_an_executed_page_has_the_output_of_its_code(page):
    cells = executed.cells(page.read_text(encoding="utf-8"))
    for cell, found in zip(cells, executed.outputs(cells), strict=True):
        assert not cell.wanted or executed.alike(cell.shown, found), (cell.shown, found)


@pytest.mark.parametrize("page", executed.TUTORIALS, ids=relative)
def test_a_notebook_has_the_cells_and_outputs_of_its_page(page):
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert notebook == executed.notebook(page.read_text(encoding="utf-8"))


def test_outputs_are_compared_word_by_word_and_number_by_number():
    assert executed.alike("23 of 119 labels, about 0.30", "25 of  119 labels, about 0.31")
    assert not executed.alike("23 of 119 labels", "23 of 119 rows")
    assert not executed.alike("23 of 119 labels", "43 of 119 labels")
    row = "auto │ 87.1 ± 0.8 │ -1.82 │ 0.599 │ 8.38 │ {} │ +9.5 │ {}"
    assert executed.alike(row.format(6.33, 1.0), row.format(12, 1.0))
    assert not executed.alike(row.format(6.33, 1.0), row.format(6.33, 2.0))


def test_outputs_are_written_below_their_code(tmp_path):
    page = (
        "A.\n\n```python\nprint('a 1')\nprint('b 2')\n```\n\n<!-- output: ^b -->\n\n```text\nold\n```\n\nB.\n"
    )
    cells = executed.cells(page)
    assert [(cell.wanted, cell.shown) for cell in cells] == [("^b", "old\n")]
    made = executed.written(page, executed.outputs(cells))
    assert executed.cells(made)[0].shown == "b 2\n"
    assert made.endswith("```\n\nB.\n")
    assert [cell["cell_type"] for cell in executed.notebook(made)["cells"]] == [
        "markdown",
        "code",
        "markdown",
    ]

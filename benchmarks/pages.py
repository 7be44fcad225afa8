"""Run the code of README.md and the tutorials, and write its output into the pages and their notebooks.

    python benchmarks/pages.py            # run and write
    python benchmarks/pages.py PAGE       # one page

The code of a page runs in one empty folder, in order. `examples` there is the folder of the repository.
A block of code that is followed by `<!-- output: PATTERN -->` has a text block after it: the lines of output
that match. The notebook of a tutorial has the same cells and outputs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hesstune.storage.files import write_text
from records import DOCS, ROOT

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *TUTORIALS]
CODE = re.compile(
    r"^```(sh|python)\n(?P<code>.*?)^```\n"
    r"(?:\n<!-- output: (?P<wanted>.+?) -->\n\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Cell:
    """A block of code, and the output that the page shows.

    Attributes:
        language: `sh` or `python`.
        code: The block.
        wanted: Pattern of the lines of its output that the page shows, or None.
        shown: These lines as the page has them.
        place: Start and end of all of it in the page.
    """

    language: str
    code: str
    wanted: str | None
    shown: str
    place: tuple[int, int]


def cells(text: str) -> list[Cell]:
    """Return the blocks of code of a page, without those that install."""
    found = (Cell(m[1], m["code"], m["wanted"], m["shown"] or "", m.span()) for m in CODE.finditer(text))
    return [cell for cell in found if not cell.code.startswith("pip ")]


def outputs(page: list[Cell]) -> list[str]:
    """Run blocks in a temporary folder and return the lines of each output that are wanted.

    Raises:
        RuntimeError: If a block fails, or has no line that is wanted.
    """
    found, names, here = [], {"__name__": "__main__"}, Path.cwd()
    bin_folder = str(Path(sys.executable).parent)
    package = os.environ.get("PYTHONPATH") or str(ROOT / "src")
    changes = {"COLUMNS": "110", "HF_HUB_OFFLINE": "1", "PYTHONPATH": package, "PYTHONWARNINGS": "ignore"}
    changes["PATH"] = os.pathsep.join((bin_folder, os.environ["PATH"]))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(ROOT / "examples")
        os.chdir(folder)
        try:
            for cell in page:
                if cell.language == "sh":
                    # The package of this tree, also if the command that is installed has another one.
                    code = re.sub(r"(?m)^(\s*)hesstune ", rf"\1{sys.executable} -m hesstune ", cell.code)
                    ran = subprocess.run(
                        ["bash", "-ec", code], env=os.environ | changes, capture_output=True, text=True
                    )
                    if ran.returncode:
                        raise RuntimeError(f"{cell.code} failed: {ran.stderr[-2000:]}")
                    output = ran.stdout
                else:
                    stream = io.StringIO()
                    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()):
                        exec(compile(cell.code, "page", "exec"), names)
                    output = stream.getvalue()
                lines = [line.rstrip() for line in output.splitlines()]
                if cell.wanted:
                    lines = [line for line in lines if re.search(cell.wanted, line)]
                    if not lines:
                        raise RuntimeError(f"no line of {output!r} matches {cell.wanted!r}")
                found.append("\n".join(lines) + "\n")
        finally:
            os.chdir(here)
    return found


def written(text: str, found: list[str]) -> str:
    """Return a page with new outputs."""
    for cell, output in reversed(list(zip(cells(text), found, strict=True))):
        if cell.wanted:
            start, end = cell.place
            head = text[start:end].split("```text\n")[0]
            text = f"{text[:start]}{head}```text\n{output}```\n{text[end:]}"
    return text


def notebook(text: str) -> dict[str, Any]:
    """Return a page as a Jupyter notebook: commands become lines with an exclamation mark."""
    made: list[dict[str, Any]] = []
    at = 0

    def prose(part: str) -> None:
        part = re.sub(
            r"!?\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", re.sub(r"(?s)<!--.*?-->\n?", "", part)
        ).strip()
        if part:
            made.append({"cell_type": "markdown", "metadata": {}, "source": part.splitlines(True)})

    for number, cell in enumerate(cells(text)):
        prose(text[at : cell.place[0]])
        at = cell.place[1]
        code = cell.code.rstrip("\n")
        if cell.language == "sh":
            code = re.sub(r"(?m)^(?=hesstune|python)", "!", code)
        stream = {"name": "stdout", "output_type": "stream", "text": cell.shown.splitlines(True)}
        made.append(
            {"cell_type": "code", "execution_count": number + 1, "metadata": {}}
            | {"outputs": [stream] if cell.wanted else [], "source": code.splitlines(True)}
        )
    prose(text[at:])
    for number, one in enumerate(made):
        one["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


# The seconds in a row of the table of `hesstune compare`; they differ between machines.
SECONDS = re.compile(r"(?m)^((?:[^│\n]*│){5})[^│\n]*(?=(?:│[^│\n]*){2}$)")


def alike(shown: str, found: str, relative: float = 0.15, absolute: float = 0.03) -> bool:
    """Return whether two outputs have the same words, and numbers other than seconds that differ by little.

    Args:
        shown: Output on the page.
        found: Output of a run.
        relative: Difference of two numbers that is allowed, of the larger one.
        absolute: Difference that is always allowed.
    """
    shown, found = SECONDS.sub(r"\1", shown), SECONDS.sub(r"\1", found)
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", found).split():
        return False
    numbers = (
        [float(n.replace(",", "").replace("−", "-")) for n in NUMBER.findall(t)] for t in (shown, found)
    )
    return all(
        abs(a - b) <= max(absolute, relative * max(abs(a), abs(b))) for a, b in zip(*numbers, strict=True)
    )


def write(paths: list[Path]) -> None:
    """Run pages and write their outputs, and the notebooks of tutorials."""
    for page in paths:
        text = page.read_text(encoding="utf-8")
        text = written(text, outputs(cells(text)))
        write_text(page, text)
        if page in TUTORIALS:
            write_text(
                page.with_suffix(".ipynb"), json.dumps(notebook(text), indent=1, ensure_ascii=False) + "\n"
            )
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    write([Path(path).resolve() for path in sys.argv[1:]] or PAGES)

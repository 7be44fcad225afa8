"""Code in README and docs works: Python is run as it stands, commands are parsed by the command line."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from hesstune.cli.main import app, run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_ELSEWHERE = {"README.md", "own-loop.md"}  # test_readme.py; examples, by test_examples.py


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


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


WITH_PYTHON = [p for p in PAGES if p.name not in RUN_ELSEWHERE and blocks(p, "python")]


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
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target and not (page.parent / target).exists():
            # Pages of the navigation may be on their way; anything else is a mistake.
            nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
            assert Path(target).name in str(nav), target


def test_the_first_page_works_in_small_settings(tmp_path, monkeypatch, capsys):
    small = ["--limit", "60", "--epochs", "1", "--image-size", "32"]
    monkeypatch.chdir(tmp_path)
    for words in commands(ROOT / "docs" / "start.md"):
        with pytest.raises(SystemExit) as end:
            run([*words, *(small if words[0] == "finetune" else [])])
        assert end.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "runs/auto/report.html").is_file()
    assert (tmp_path / "predictions.csv").is_file()

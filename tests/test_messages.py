"""Help, pages and messages: every placeholder is filled in, and what they advise can be done."""

import ast
import json
import re
import shlex
from importlib import metadata
from pathlib import Path

import click
import pytest
import typer

import hesstune as ht
from hesstune.cli.main import COMMANDS, app
from hesstune.cli.main import run as run_command
from hesstune.errors import ConfigError, MissingExtraError, install_command
from hesstune.options import SYNONYMS, Options, make_options, names_written
from hesstune.runs.config import FinetuneConfig

ROOT = Path(__file__).parents[1]
SRC = Path(ht.__file__).parent
# {name}, {name['key']}, {name.field:.1f}; but not {m=k} or x_{i} of a formula.
PLACEHOLDER = re.compile(r"(?<![_^\\$])\{[a-z]\w+(\[[^\]]*\]|\.\w+)*(![rsa])?(:[^}]*)?\}")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def models():
    """Every model of options."""
    found, left = set(), [Options]
    while left:
        kinds = left.pop().__subclasses__()
        found |= set(kinds)
        left += kinds
    return found


@pytest.mark.parametrize("name", [command.__name__ for command in COMMANDS])
def test_help_has_no_unfilled_placeholder(name):
    command = typer.main.get_command(app).commands[name]
    shown = command.get_help(click.Context(command, info_name=name, terminal_width=100))
    assert "--" in shown
    assert not PLACEHOLDER.search(shown)


def test_descriptions_name_options_that_there_are():
    known = {name for kind in models() for name in kind.model_fields}
    for kind in models():
        for field in kind.model_fields.values():
            text = re.sub(r"\{\{\w+\}\}", "", field.description or "")
            assert set(re.findall(r"\{(\w+)\}", text)) <= known
    assert names_written("by {split}, not {{split}}", style="--{}") == "by --split, not {split}"
    assert names_written("{lr} {else}", FinetuneConfig, "--{}") == "--lr {else}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("learning_rate", "lr"), ("batch", "batch_size"), ("n_epochs", "epochs"), ("random_state", "seed")],
)
def test_names_of_other_libraries_lead_to_the_option(given, meant, capsys):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        make_options(FinetuneConfig, {given: 1})
    with pytest.raises(SystemExit):
        run_command(["finetune", "--" + given.replace("_", "-"), "1"])
    assert "--" + meant.replace("_", "-") in capsys.readouterr().err


def test_a_name_like_no_other_is_given_no_wrong_advice():
    with pytest.raises(ConfigError) as refused:
        make_options(FinetuneConfig, {"zebra": 1})
    assert "did you mean" not in str(refused.value)
    known = {name for kind in models() for name in kind.model_fields}
    assert set(SYNONYMS.values()) <= known
    assert not set(SYNONYMS) & set(FinetuneConfig.model_fields)


class Installed:
    def __init__(self, record):
        self.record = record

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.record


def test_the_command_that_installs_a_part_is_one_that_works_here(tmp_path, monkeypatch):
    folder = tmp_path / "a clone"
    folder.mkdir()
    (folder / "constraints.txt").touch()
    for record, found in (
        (json.dumps({"url": folder.as_uri(), "dir_info": {}}), True),
        (json.dumps({"url": (tmp_path / "gone").as_uri()}), False),
        (json.dumps({"url": "https://example.org/a.whl"}), False),
        (None, False),
        ("{", False),
    ):
        monkeypatch.setattr(metadata, "distribution", lambda name, record=record: Installed(record))
        words = shlex.split(install_command("peft").replace("hesstune's", "the"))
        wanted = [f"{folder}/constraints.txt", f"{folder}[peft]"] if found else ["constraints.txt", ".[peft]"]
        assert words[-5:] == ["pip", "install", "-c", *wanted]
    assert install_command("peft") in str(MissingExtraError("peft", "peft", "lora"))


@pytest.mark.parametrize(
    "function", [ht.finetune, ht.compare, ht.label_data, ht.clean, ht.certify, ht.measure]
)
def test_docstrings_have_no_unfilled_placeholder(function):
    arguments = re.sub(r"(?s)Example:.*", "", function.__doc__ or "")
    found = [match[0] for match in PLACEHOLDER.finditer(arguments)]
    assert set(found) <= {"{seed}", "{task}", "{layer}"}  # that the text explains


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_have_no_unfilled_placeholder(path):
    text = re.sub(r"(?s)^---\n.*?\n---\n", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    text = re.sub(r"(?m)^( {4}|:::).*$", "", text)
    text = re.sub(r"`[^`\n]*`|\$[^$]*\$", "", text)
    assert not [match[0] for match in PLACEHOLDER.finditer(text)]


def test_no_text_of_the_code_holds_what_an_f_string_would_fill_in():
    wrong = re.compile(r"\{[A-Za-z_]\w*(\[['\"\w]|\.\w+[}.(]|\([^)]*\)\}|:[.,+%\d][^}]*\})")
    for path in [*SRC.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                found = wrong.search(node.value)
                assert found is None or ".format(" in text or path.name == "render.py", (path, node.value)


def test_nothing_advises_to_install_what_no_index_has():
    for path in [*SRC.rglob("*.py"), *PAGES]:
        assert "hesstune[" not in path.read_text(encoding="utf-8").replace("hesstune\\[", "hesstune["), path

"""The contracts on imports and the page on architecture say the same; importing is cheap; nothing pickles.

import-linter holds the contracts themselves, in `make lint`.
"""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hesstune

SRC = Path(hesstune.__file__).parent
ROOT = Path(__file__).parents[1]
TREES = ("src", "tests", "benchmarks")
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def contracts(kind):
    return [contract for contract in LINTER["contracts"] if contract["type"] == kind]


def table(heading):
    """The rows of the page's table whose first line begins so, as lists of cells."""
    lines = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    return [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_has_the_layers_of_the_contract():
    (contract,) = contracts("layers")
    layers = []
    for layer in contract["layers"]:
        rooms = re.split(r" [|:] ", layer)
        beside = "" if len(rooms) == 1 else "independent" if "|" in layer else "in one direction"
        layers.append((rooms, beside))
    rows = table("| layer | rooms |")
    assert [(names(rooms), beside) for _, rooms, beside, _ in rows] == layers
    assert [row[0] for row in rows] == [str(i) for i in range(len(layers), 0, -1)]
    assert all(len(row[3]) > 10 for row in rows)  # each says what it is for
    assert contract["exhaustive"]


def test_the_page_has_the_homes_of_the_contracts():
    homes = []
    for contract in contracts("forbidden"):
        assert contract["source_modules"] == ["hesstune.*"]  # whatever room may come
        exempt = [entry.removeprefix("hesstune.").split(".** -> ") for entry in contract["ignore_imports"]]
        rooms = list(dict.fromkeys(room for room, _ in exempt))
        assert exempt == [[room, package] for room in rooms for package in contract["forbidden_modules"]]
        homes.append((contract["forbidden_modules"], rooms))
    assert [
        (names(packages), names(rooms)) for packages, rooms in table("| package | imported only in")
    ] == homes


def test_the_page_has_all_that_is_looked_up_by_name():
    listed = {}
    for file, found, why in table("| file | looks up |"):
        (path,) = re.findall(r"`([^`]+)`", file)
        listed[path] = {name.replace("/", ".") for name in names(found)}
        assert len(why) > 10
    found = {}
    for path in source("src"):
        place = path.relative_to(SRC).as_posix()
        text = path.read_text(encoding="utf-8")
        if place.endswith("__init__.py"):  # exports that are loaded on first use, from their own room
            continue
        if "import_module(" in text:
            looked_up = set(re.findall(r'"hesstune\.([\w.]+)"', text))
            if place != "_lazy.py" and looked_up:
                found[place] = looked_up
        assert not re.search(r'import_module\(f?"hesstune|__import__\(', text) or place in listed, place
        # A table of modules by name, loaded elsewhere.
        assert not re.search(r'\("hesstune\.[\w.]+", "\w+"\)', text) or place in listed, place
    assert found == listed


def source(*tops):
    return [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]


def test_files_stay_under_700_lines():
    found = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source(*TREES)}
    assert len(found) > 200
    assert {str(path): lines for path, lines in found.items() if lines >= 700} == {}


def test_nothing_pickles():
    for path in SRC.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "weights_only=False", "allow_pickle=True", "yaml.load("):
            assert word not in text, f"{path}: {word}"


def test_import_is_cheap_and_every_public_name_loads():
    code = (
        "import sys, hesstune\n"
        "assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)\n"
        "[getattr(hesstune, name) for name in hesstune.__all__]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'measures'"):
        _ = hesstune.measures


def test_help_is_cheap():
    code = "import sys, runpy\nsys.argv = ['hesstune', '--help']\n" + (
        "try:\n    runpy.run_module('hesstune', run_name='__main__')\n"
        "finally:\n    assert not {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout


LAZY = sorted(path.parent.name for path in SRC.glob("*/__init__.py") if "lazily(" in path.read_text())


def test_packages_are_cheap_to_import_and_export_names_that_load():
    code = (
        "import importlib, sys\n"
        f"for name in {LAZY}:\n"
        "    room = importlib.import_module(f'hesstune.{name}')\n"
        "    assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules), name\n"
        "    assert dir(room) == sorted(room.__all__), name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for room in LAZY:
        package = importlib.import_module(f"hesstune.{room}")
        for name in package.__all__:
            assert not (SRC / room / f"{name}.py").exists(), f"the module hides {name}"
            if room != "integrations" or name == "RobustClassifier":  # the others need optional packages
                assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="nothing"):
            package.nothing  # noqa: B018


def test_the_reference_and_examples_have_public_paths_alone():
    reference = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert len(reference) > 20
    packages = (
        "hesstune",
        "hesstune.integrations",
        "hesstune.losses",
        "hesstune.labeling",
        "hesstune.curvature",
    )
    names = {f"{p}.{name}" for p in packages for name in importlib.import_module(p).__all__}
    assert names - {"hesstune.__version__", "hesstune.losses.ConsistentLoss"} <= set(reference)
    for path in reference:
        package, _, name = path.rpartition(".")
        module = importlib.import_module(package)
        assert name in getattr(module, "__all__", vars(module)), path
    listed = [*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    public = {"hesstune", "hesstune.errors", "hesstune.methods", *(f"hesstune.{room}" for room in LAZY)}
    for file in listed:
        for package in re.findall(r"^from (hesstune[\w.]*) import", file.read_text(), re.MULTILINE):
            assert package in public or package.startswith("hesstune.integrations."), f"{file}: {package}"


def test_every_room_is_there_and_is_what_the_page_calls_it():
    for _, rooms, _, _ in table("| layer | rooms |"):
        for room in re.findall(r"`([^`]+)`", rooms):
            assert (SRC / room).exists(), room
            assert (SRC / room).is_dir() == room.endswith("/")


def test_circles_are_forbidden_everywhere():
    (contract,) = contracts("acyclic_siblings")
    assert contract["ancestors"] == ["hesstune"]
    assert not any(key in contract for key in ("depth", "skip_descendants", "ignore_imports"))
    assert "ignore_imports" not in contracts("layers")[0]


def test_files_that_the_page_names_are_there():
    walks = PAGE[PAGE.index("## A batch through `finetune`") :]
    files = set(re.findall(r"`([\w/]+\.py)`", walks))
    assert len(files) > 15
    for file in files:
        assert list(SRC.rglob(file)), file

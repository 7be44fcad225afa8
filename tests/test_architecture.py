"""The rules of direction hold, heavy packages stay out of the core, and importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hesstune

SRC = Path(hesstune.__file__).parent


def imports(folder):
    """The hesstune packages and the third-party packages that a folder's files import, anywhere."""
    found = set()
    for path in (SRC / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    return {name.split(".")[1] if name.startswith("hesstune.") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("folder", ["curvature", "noise", "losses", "constraints"])
def test_the_four_parts_never_import_each_other_or_what_builds_on_them(folder):
    others = {"curvature", "noise", "losses", "constraints", "bounds", "methods", "training", "cli", "data"}
    assert not imports(folder) & (others - {folder})


def test_heavy_packages_appear_only_where_they_belong():
    homes = {"accelerate": {"training"}, "transformers": {"models", "data", "integrations"}, "typer": {"cli"}}
    homes |= {"timm": homes["transformers"], "torchvision": homes["transformers"], "matplotlib": {"report"}}
    for folder in (p.name for p in SRC.iterdir() if p.is_dir()):
        for package in imports(folder) & set(homes):
            assert folder in homes[package], f"{folder} imports {package}"


def test_nothing_pickles():
    for path in SRC.rglob("*.py"):
        text = path.read_text()
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

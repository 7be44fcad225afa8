"""What the project says about itself in several files is the same in all of them."""

import re
import tomllib
from pathlib import Path

import yaml

import hesstune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_version_and_addresses_agree():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hesstune._version.__version__"}
    assert CITATION["version"] == hesstune.__version__
    assert CITATION["repository-code"] == PROJECT["project"]["urls"]["Repository"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, flags=re.M)[:2] == ["Unreleased", hesstune.__version__]


def test_python_versions_are_those_that_are_tried():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["linux"]["strategy"]["matrix"]["python"]
    classifiers = PROJECT["project"]["classifiers"]
    assert [c.rsplit(" ", 1)[1] for c in classifiers if re.fullmatch(r".*:: Python :: 3\.\d+", c)] == tried
    assert PROJECT["project"]["requires-python"] == f">={tried[0]}"


def test_hooks_use_the_pinned_ruff():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (ruff,) = [repo for repo in repos if repo["repo"].endswith("ruff-pre-commit")]
    assert ruff["rev"] == f"v{pins['ruff']}"

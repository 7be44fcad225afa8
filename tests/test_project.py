"""What the project says about itself in several files is the same in all of them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import hesstune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def test_the_version_is_in_one_place():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hesstune._version.__version__"}
    assert CITATION["version"] == hesstune.__version__
    written = re.compile(rf"(?<![\d.]){re.escape(hesstune.__version__)}(?![\d.])")
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "_version.py":
            assert not written.search(path.read_text(encoding="utf-8")), path


def test_the_changelog_has_what_is_to_come_and_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\]", text, flags=re.M)
    assert releases[:2] == ["Unreleased", hesstune.__version__]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.M)) <= kinds
    for release in releases:
        assert f"\n[{release}]: https://" in text


def test_addresses_are_of_one_repository():
    urls = PROJECT["project"]["urls"]
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert CITATION["repository-code"] == urls["Repository"]
    assert all(urls[name].startswith(urls["Repository"]) for name in ("Changelog", "Issues"))


def test_python_versions_are_those_that_are_tried():
    tried = WORKFLOW["jobs"]["linux"]["strategy"]["matrix"]["python"]
    classifiers = PROJECT["project"]["classifiers"]
    told = [c.rsplit(" ", 1)[1] for c in classifiers if re.fullmatch(r".*:: Python :: 3\.\d+", c)]
    assert told == tried
    assert PROJECT["project"]["requires-python"] == f">={tried[0]}"
    assert "Operating System :: OS Independent" in classifiers


def test_workflows_call_targets_that_exist():
    targets = re.findall(r"^([\w-]+):", MAKEFILE, flags=re.M)
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    called = [m[1] for step in steps if (m := re.match(r"make ([\w-]+)", step.get("run", "")))]
    assert {"lint", "test", "docs", "test-slow"} <= set(called) <= set(targets)
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^within_limit ([\w-]+)$", check, flags=re.M) == ["test", "test-slow"]
    assert 'if [ "$status" = 124 ]' in check
    assert WORKFLOW[True]["schedule"]  # YAML reads the key `on` as true


def test_lint_is_the_four_checks():
    lint = MAKEFILE[MAKEFILE.index("\nlint:") :].split("\n\n")[0]
    assert re.findall(r"\$\(BIN\)/(.*)", lint) == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports --no-logo",
    ]


def test_extras_that_are_installed_are_declared():
    extras = set(PROJECT["project"]["optional-dependencies"])
    runs = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    for text in (MAKEFILE, *runs):
        for group in re.findall(r"\.\[([\w,-]+)\]", text):
            assert set(group.split(",")) <= extras


@pytest.mark.parametrize("package", ["import-linter", "mypy", "pytest", "ruff"])
def test_tools_are_pinned(package):
    assert package in PINS


def test_hooks_use_the_pinned_ruff():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (ruff,) = [repo for repo in repos if repo["repo"].endswith("ruff-pre-commit")]
    assert ruff["rev"] == f"v{PINS['ruff']}"
    assert {hook["id"] for hook in ruff["hooks"]} == {"ruff-check", "ruff-format"}
    assert all("rev" in repo for repo in repos)

"""Try hesstune beside the versions installed here: its tests that touch other libraries, once.

Appends what passed to benchmarks/results/versions.json, one entry a set of versions. Run it in an
environment of its own for each: the pinned one, the newer torch, the oldest versions claimed.

    python benchmarks/versions.py                # all of these tests
    python benchmarks/versions.py --libraries    # those that use more than torch: for the oldest libraries
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from records import ROOT, arguments, read_record, write_record

PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "peft", "lightning", "accelerate", "datasets",
    "scikit-learn", "numpy",
)  # fmt: skip
TESTS = (
    "tests/integrations", "tests/models", "tests/training", "tests/data/test_hub.py",
    "tests/test_examples.py", "tests/test_reference.py", "tests/constraints", "tests/methods/test_runs.py",
    "tests/curvature/test_padding.py", "tests/curvature/test_attention.py", "tests/curvature/test_exact.py",
    "tests/curvature/test_lanczos.py",
)  # fmt: skip
# Of these, what uses transformers, peft, Lightning, accelerate or datasets directly.
LIBRARIES = (
    "tests/integrations", "tests/models", "tests/data/test_hub.py", "tests/test_examples.py",
    "tests/training/test_texts.py", "tests/training/test_export.py", "tests/curvature/test_padding.py",
    "tests/curvature/test_attention.py",
)  # fmt: skip


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def tried(tests: tuple[str, ...]) -> dict[str, object]:
    """Run tests under this interpreter; return the versions and what became of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"]
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "-m", "not slow", *tests], cwd=ROOT, env=environment, check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        "python": platform.python_version(),
        "passed": count["tests"] - count["failures"] - count["errors"] - count["skipped"],
        "skipped": count["skipped"],
        "failed": bad,
        "tests": list(tests),
    }


def node(failed: str) -> str:
    """Return a failed test as pytest takes it.

    Example:
        >>> node("tests.test_examples::test_example_runs[lora]")
        'tests/test_examples.py::test_example_runs[lora]'
    """
    module, _, name = failed.partition("::")
    return f"{module.replace('.', '/')}.py::{name}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--libraries", action="store_true", help="only tests that use more than torch")
    parser.add_argument("--again", action="store_true", help="only what failed beside these versions")
    given = parser.parse_args()
    record = read_record("versions", {"tried": []})
    if given.again:
        here = {name: found for name in PACKAGES if (found := version(name))}
        before = next(e for e in record["tried"] if e["versions"] == here)
        now = tried(tuple(map(node, before["failed"])))
        passed = before["passed"] + now["passed"]
        entry = {**before, "passed": passed, "failed": now["failed"]}
    else:
        entry = tried(LIBRARIES if given.libraries else TESTS)
    record = read_record("versions", {"tried": []})  # it may have grown
    others = [e for e in record["tried"] if e["versions"] != entry["versions"]]
    record = {"command": "python benchmarks/versions.py", "tried": [*others, entry]}
    write_record("versions", record)
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()

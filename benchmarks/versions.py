"""Run the tests that use other libraries with the versions that are installed here.

Run it in one environment for each set of versions: the pinned one, the newest torch, the oldest that are
supported.

    python benchmarks/versions.py                # all of these tests
    python benchmarks/versions.py --libraries    # those that use more than torch: for the oldest libraries
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from records import ROOT, append, versions

TESTS = (
    "tests/integrations", "tests/models", "tests/training", "tests/data/test_hub.py",
    "tests/test_examples.py", "tests/test_reference.py", "tests/constraints", "tests/methods/test_runs.py",
    "tests/curvature/test_attention.py", "tests/curvature/test_exact.py",
    "tests/curvature/test_lanczos.py",
)  # fmt: skip
# Of these, what uses transformers, peft, Lightning, accelerate or datasets directly.
LIBRARIES = (
    "tests/integrations", "tests/models", "tests/data/test_hub.py", "tests/test_examples.py",
    "tests/training/test_texts.py", "tests/training/test_export.py",
    "tests/curvature/test_attention.py",
)  # fmt: skip


def tried(tests: tuple[str, ...]) -> dict[str, object]:
    """Run tests with this interpreter; return how many passed, and which failed."""
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
        "passed": count["tests"] - count["failures"] - count["errors"] - count["skipped"],
        "skipped": count["skipped"],
        "failed": bad,
    }


def main() -> None:
    """Run the tests and add a line to the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--libraries", action="store_true", help="only tests that use more than torch")
    tests = LIBRARIES if parser.parse_args().libraries else TESTS
    case = {name: versions().get(name) for name in ("torch", "transformers")}
    append("versions", case, None, {"test paths": len(tests), **tried(tests)})


if __name__ == "__main__":
    main()

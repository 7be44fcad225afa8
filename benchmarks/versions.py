"""Run the tests that use other libraries with the versions that are installed here.

Run it in one environment for each set of versions: the pinned one, the newest torch, the oldest that are
supported.

    python benchmarks/versions.py                # all of these tests
    python benchmarks/versions.py --libraries    # those that use more than torch: for the oldest libraries
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict

import pytest

from records import ROOT, append, versions

# What uses transformers, peft, Lightning, accelerate or datasets directly.
LIBRARIES = (
    "tests/integrations", "tests/models", "tests/data/test_hub.py", "tests/test_examples.py",
    "tests/inputs/test_text_inputs.py", "tests/analysis/test_export.py", "tests/curvature/test_attention.py",
)  # fmt: skip
OTHERS = (
    "tests/training", "tests/test_reference.py", "tests/constraints", "tests/methods/test_runs.py",
    "tests/curvature/test_exact.py", "tests/curvature/test_lanczos.py",
)  # fmt: skip


class Outcomes:
    """The tests by outcome: `passed`, `skipped` or `failed`."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.tests[report.outcome].add(report.nodeid)


def main() -> None:
    """Run the tests and add a line to the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--libraries", action="store_true", help="only tests that use more than torch")
    tests = LIBRARIES if parser.parse_args().libraries else (*LIBRARIES, *OTHERS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    outcomes = Outcomes()
    paths = [str(ROOT / path) for path in tests]
    pytest.main(["-p", "no:cacheprovider", "-q", "-m", "not slow", *paths], plugins=[outcomes])
    failed = sorted(outcomes.tests["failed"])
    case = {name: versions().get(name) for name in ("torch", "transformers")}
    counts = {
        "passed": len(outcomes.tests["passed"] - set(failed)),
        "skipped": len(outcomes.tests["skipped"]),
    }
    append("versions", case, None, {"test paths": len(tests), **counts, "failed": failed})


if __name__ == "__main__":
    main()

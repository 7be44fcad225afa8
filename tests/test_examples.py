"""Every example runs as it stands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "trainer": "transformers",
    "lightning_module": "lightning",
    "lora": "peft",
    "sentiment_rules": "vaderSentiment",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path):
    needed = NEEDS.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for line in done.stdout.splitlines():
        if line.startswith("test accuracy"):
            assert float(line.split(":")[1].split(";")[0]) > 0.5


def test_few_lines_are_added_to_a_users_loop():
    for path in EXAMPLES.glob("*.py"):
        added = [line for line in path.read_text().splitlines() if "# +" in line]
        assert len(added) <= 10, path

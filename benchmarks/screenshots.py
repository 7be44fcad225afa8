"""Take the pictures of the real report pages that README and docs show.

python benchmarks/screenshots.py            # runs the demo, measures it, compares three methods: minutes
python benchmarks/screenshots.py --run RUN --study STUDY   # of runs that are there
python benchmarks/screenshots.py --only report_study
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from records import FIGURES, arguments

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def hesstune(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "hesstune", *map(str, words)], check=True)


def make_run(folder: Path) -> Path:
    hesstune("demo", "--out", folder / "demo", "--quiet")
    run = folder / "demo" / "vanilla"
    hesstune("measure", run, "--stability", "--quiet")
    return run


def make_study(folder: Path) -> Path:
    hesstune(
        "compare", "--data", "digits", "--inject-noise", "symmetric:0.4", "--train", "head", "--limit", 300,
        "--methods", "vanilla,label_smoothing,constraint,forward,robust", "--quiet",
        "--out", folder / "study",
    )  # fmt: skip
    return folder / "study"


def take(page: Path, name: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page(viewport={"width": 900, "height": 1050}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=FIGURES / f"{name}.png")
        browser.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--only", choices=("report_run", "report_study"))
    given = parser.parse_args()
    pages = {"report_run": (given.run, make_run), "report_study": (given.study, make_study)}
    with tempfile.TemporaryDirectory() as folder:
        for name in [given.only] if given.only else pages:
            there, make = pages[name]
            path = there or make(Path(folder))
            hesstune("report", path, "--quiet")
            take(path / "report.html", name)


if __name__ == "__main__":
    main()

"""The size of a large run's page, and how long Chromium takes to open it.

python benchmarks/report_page.py
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from records import ROOT, write_record

sys.path.insert(0, str(ROOT / "tests" / "report"))
SETTING = {"layers": 200, "n": 10_000, "k": 50}


def main() -> None:
    from playwright.sync_api import sync_playwright
    from report_runs import run_folder

    from hesstune.report.run_page import render_run

    with tempfile.TemporaryDirectory() as folder:
        path = run_folder(Path(folder), **SETTING)
        started = time.perf_counter()
        text = render_run(path)
        render = time.perf_counter() - started
        page = path / "report.html"
        page.write_text(text, encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            opened = []
            for _ in range(7):
                tab = browser.new_page()
                tab.goto(page.as_uri())
                opened.append(
                    tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
                )
                tab.close()
            browser.close()
    record = {
        "command": "python benchmarks/report_page.py",
        "setting": SETTING,
        "megabytes": round(len(text.encode()) / 1e6, 3),
        "seconds_to_open": round(statistics.median(opened), 3),
        "seconds_to_open_slowest": round(max(opened), 3),
        "seconds_to_render": round(render, 2),
    }
    write_record("report_page", record)


if __name__ == "__main__":
    main()

"""Draw the figures of the documentation.

    python benchmarks/bench.py figures          # from the records, and the concept figures
    python benchmarks/figures.py                # screenshots of pages: clean_page, report_run, report_study
    python benchmarks/figures.py clean_page     # one of them

Screenshots need `pip install -c constraints.txt playwright` and Chromium.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import hesstune as ht
from hesstune.bounds.kl import kl_inverse
from records import FIGURES, ROOT, result, rows


def save(figure: Figure, name: str) -> None:
    """Write a figure as SVG, the same bytes for the same content."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})


def new(count: int = 1) -> tuple[Figure, Any]:
    """Return a figure with axes side by side."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    return figure, figure.subplots(1, count)


def concept_noise() -> None:
    figure, axes = new(2)
    kinds = {"symmetric:0.4": ht.NoiseMatrix.symmetric(5, 0.4), "pair:0.4": ht.NoiseMatrix.pair(5, 0.4)}
    for ax, (title, matrix) in zip(axes, kinds.items(), strict=True):
        image = ax.imshow(matrix.array, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=title, xlabel="given label", ylabel="true label")
    figure.colorbar(image, ax=axes, label="probability")
    save(figure, "concept_noise")


def concept_distance() -> None:
    figure, ax = new()
    angle = np.linspace(0, 2 * math.pi, 200)
    ax.plot(np.cos(angle), np.sin(angle), "--", color="#595959", label="constraint of radius α")
    ax.plot(0, 0, "o", color="#0072b2", label="pretrained weights W⁽ˢ⁾")
    ax.plot(1.5, 0.9, "s", color="#b34700", label="after a step")
    end = np.array([1.5, 0.9]) / math.hypot(1.5, 0.9)
    ax.annotate("", end, (1.5, 0.9), arrowprops={"arrowstyle": "->", "color": "#b34700"})
    ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": "#0072b2"})
    ax.plot(*end, "^", color="#00795a", label="projected")
    ax.set(aspect="equal", xlabel="one weight of the layer", ylabel="another")
    ax.legend(loc="center left", bbox_to_anchor=(1.05, 0.5), frameon=False)
    save(figure, "concept_distance")


def concept_measure() -> None:
    figure, ax = new()
    t = np.linspace(-0.4, 1.6, 100)
    for style, curvature, title in (("-", 0.3, "small vᵀH⁺v"), ("--", 2.4, "large vᵀH⁺v")):
        ax.plot(t, 0.1 + curvature / 2 * (t - 1) ** 2, style, label=title)
    for at in (0, 1):
        ax.axvline(at, color="#595959", linewidth=0.8)
    ax.set_xticks([0, 1], ["pretrained, W⁽ˢ⁾", "fine-tuned, W⁽ˢ⁾ + v"])
    ax.set(xlabel="position on the line of one layer", ylabel="loss of an example")
    ax.legend(frameon=False)
    save(figure, "concept_measure")


def concept_certificate() -> None:
    figure, ax = new()
    kl = np.linspace(0, 1500, 60)
    for style, n in (("-", 500), ("--", 2000), (":", 8000)):
        bound = [float(kl_inverse(0.1, (k + math.log(2 * math.sqrt(n) / 0.05)) / n)) for k in kl]
        ax.plot(kl, bound, style, label=f"n = {n}")
    ax.axhline(0.9, color="#595959", linewidth=0.8, label="guessing among 10 classes")
    ax.set(xlabel="KL = Σ ‖v_i‖²/2σ_i² (nats)", ylabel="bound on the error", ylim=(0, 1))
    ax.legend(frameon=False)
    save(figure, "concept_certificate")


def measure_cost() -> None:
    growth = result("measure")["growth"]
    figure, axes = new(2)
    for axis, key, unit in zip(axes, ("examples", "classes"), ("s", "s per example"), strict=True):
        axis.plot([r[key] for r in growth[key]], [r["seconds"] for r in growth[key]], "o-", color="#0072b2")
        axis.set(xlabel=key, ylabel=f"CPU time ({unit})", xlim=(0, None), ylim=(0, None))
    save(figure, "measure_cost")


def noise_stability() -> None:
    found, (figure, axis) = rows("noise_stability"), new()
    for colour, network in zip(
        ("#d55e00", "#0072b2", "#009e73"), dict.fromkeys(r["network"] for r in found), strict=True
    ):
        own = [r for r in found if r["network"] == network]
        sigma, error = [r["sigma"] for r in own], [2 * r["stderr"] for r in own]
        axis.errorbar(sigma, [r["value"] for r in own], error, fmt="o-", color=colour, label=network)
        axis.plot(sigma, [r["taylor"] for r in own], "--", color=colour)
    axis.set(xscale="log", yscale="log", xlabel="noise σ", ylabel="rise of the mean loss (nats)")
    axis.set_title("Noise stability (dashed: ½σ²·Tr H; bars: 2 s.e.)")
    axis.legend()
    save(figure, "noise_stability")


def gap() -> None:
    import analysis as a
    from gap import DEVELOPMENT

    found = a.gap_rows()
    names = a.gap_tasks(found, False, True) + a.gap_tasks(found, False, False)
    lines = -(-len(names) // 5)
    figure = Figure(figsize=(11, 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, 5, sharex=True, sharey=True).flat
    for ax, name in zip(axes, names, strict=False):
        own = [row for row in found if row["task"] == name and row["gap"] > 0]
        for key, mark in (("paper", "x"), (a.DEFAULT, "o")):
            title, value = a.MEASURES[key]
            x, y = [value(row) for row in own], [row["gap"] for row in own]
            ax.plot(x, y, mark, ms=4, alpha=0.7, label=title.strip("*"))
        ax.plot([1e-2, 10], [1e-2, 10], "k-", lw=0.6)
        ax.set_title(name + (" (development)" if name in DEVELOPMENT else ""), fontsize=7)
        ax.set(xscale="log", yscale="log", xlim=(5e-3, 20), ylim=(5e-3, 20))
    for ax in figure.axes[len(names) :]:
        ax.axis("off")
    figure.axes[0].legend(fontsize=6)
    figure.supxlabel("measure")
    figure.supylabel("generalization gap")
    save(figure, "gap")


def write() -> None:
    """Draw everything but the screenshots."""
    concepts = (concept_noise, concept_distance, concept_measure, concept_certificate)
    for draw in (*concepts, measure_cost, noise_stability, gap):
        draw()


def hesstune(*words: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "hesstune", *map(str, words), "--quiet"], check=True)


def clean_page(folder: Path) -> Path:
    """Write the page of `hesstune clean` on the data of the tutorial on images."""
    script = ROOT / "examples" / "data" / "images.py"
    subprocess.run([sys.executable, script, "photos"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    page = folder / "clean.html"
    hesstune("clean", "--data", f"folder:{folder / 'photos'}", "--out", folder / "clean.csv", "--page", page)
    return page


def report_run(folder: Path) -> Path:
    """Write the report of a run of the demo."""
    hesstune("demo", "--full", "--out", folder / "demo")
    hesstune("measure", folder / "demo" / "plain", "--stability")
    hesstune("report", folder / "demo" / "plain")
    return folder / "demo" / "plain" / "report.html"


def report_study(folder: Path) -> Path:
    """Write the report of a comparison."""
    methods = "vanilla,label_smoothing,constraint,forward,robust"
    data = ("--data", "digits", "--inject-noise", "symmetric:0.4", "--limit", 300)
    hesstune("compare", *data, "--train", "head", "--methods", methods, "--out", folder / "study")
    hesstune("report", folder / "study")
    return folder / "study" / "report.html"


# What makes a page, and the height of its screenshot.
SCREENSHOTS = {
    "clean_page": (clean_page, 880),
    "report_run": (report_run, 1050),
    "report_study": (report_study, 1050),
}


def screenshots(names: list[str]) -> None:
    """Make pages and take their screenshots."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name in names:
            make, height = SCREENSHOTS[name]
            tab = browser.new_page(viewport={"width": 900, "height": height}, color_scheme="light")
            tab.goto(make(Path(folder)).resolve().as_uri())
            tab.screenshot(path=FIGURES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    screenshots(sys.argv[1:] or list(SCREENSHOTS))

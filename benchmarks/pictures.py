"""Draw the pictures of the concept pages into docs/figures.

python benchmarks/pictures.py
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import hesstune as ht
from hesstune.bounds.pac_bayes import kl_inverse
from records import FIGURES


def save(figure: Figure, name: str) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(FIGURES / f"concept_{name}.svg", metadata={"Date": None})


def new(count: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    return figure, figure.subplots(1, count)


def noise() -> None:
    figure, axes = new(2)
    kinds = {"symmetric:0.4": ht.NoiseMatrix.symmetric(5, 0.4), "pair:0.4": ht.NoiseMatrix.pair(5, 0.4)}
    for ax, (title, matrix) in zip(axes, kinds.items(), strict=True):
        image = ax.imshow(matrix.array, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=title, xlabel="label given", ylabel="true label")
    figure.colorbar(image, ax=axes, label="probability")
    save(figure, "noise")


def distance() -> None:
    figure, ax = new()
    angle = np.linspace(0, 2 * math.pi, 200)
    ax.plot(np.cos(angle), np.sin(angle), "--", color="#595959", label="ball of radius α")
    ax.plot(0, 0, "o", color="#0072b2", label="pretrained weights W⁽ˢ⁾")
    ax.plot(1.5, 0.9, "s", color="#b34700", label="after a step")
    end = np.array([1.5, 0.9]) / math.hypot(1.5, 0.9)
    ax.annotate("", end, (1.5, 0.9), arrowprops={"arrowstyle": "->", "color": "#b34700"})
    ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": "#0072b2"})
    ax.plot(*end, "^", color="#00795a", label="projected")
    ax.set(aspect="equal", xlabel="one weight of the layer", ylabel="another")
    ax.legend(loc="center left", bbox_to_anchor=(1.05, 0.5), frameon=False)
    save(figure, "distance")


def measure() -> None:
    figure, ax = new()
    t = np.linspace(-0.4, 1.6, 100)
    for style, curvature, title in (("-", 0.3, "small vᵀH⁺v"), ("--", 2.4, "large vᵀH⁺v")):
        ax.plot(t, 0.1 + curvature / 2 * (t - 1) ** 2, style, label=title)
    ax.axvline(0, color="#595959", linewidth=0.8)
    ax.axvline(1, color="#595959", linewidth=0.8)
    ax.set_xticks([0, 1], ["pretrained, W⁽ˢ⁾", "fine-tuned, W⁽ˢ⁾ + v"])
    ax.set(xlabel="along the way of one layer", ylabel="loss of an example")
    ax.legend(frameon=False)
    save(figure, "measure")


def certificate() -> None:
    figure, ax = new()
    kl = np.linspace(0, 1500, 60)
    for style, n in (("-", 500), ("--", 2000), (":", 8000)):
        bound = [float(kl_inverse(0.1, (k + math.log(2 * math.sqrt(n) / 0.05)) / n)) for k in kl]
        ax.plot(kl, bound, style, label=f"n = {n}")
    ax.axhline(0.9, color="#595959", linewidth=0.8, label="guessing among 10 classes")
    ax.set(xlabel="KL = Σ ‖v_i‖²/2σ_i² (nats)", ylabel="bound on the error", ylim=(0, 1))
    ax.legend(frameon=False)
    save(figure, "certificate")


if __name__ == "__main__":
    for draw in (noise, distance, measure, certificate):
        draw()

"""Fill templates, and draw plots as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from hesstune.errors import counted
from hesstune.runs.records import StabilityRow


def render(template: str, context: Mapping[str, object]) -> str:
    """Fill a template of this folder; every value is escaped, except plots."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("hesstune", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["counted"] = counted
    own = {name: Markup(_file(f"page.{name}")) for name in ("css", "js")}  # noqa: S704 - files of this package
    page: str = environment.get_template(template).render(**context, **own)
    return page


def _file(name: str) -> str:
    return files("hesstune.report").joinpath(name).read_text(encoding="utf-8")


# Drawn in these, then replaced by CSS variables; the palette is Okabe and Ito's, safe for the colour-blind.
COLOURS = {"#010101": "ink", "#010102": "c1", "#010103": "c2", "#010104": "c3", "#010105": "faint"}
INK, ONE, TWO, THREE, FAINT = COLOURS
STYLES: Sequence[tuple[str, str, str]] = ((ONE, "-", "o"), (TWO, "--", "s"), (THREE, ":", "^"))


def svg(name: str, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 3.8)) -> str:
    """Draw on fresh axes and return an SVG element without ids that could clash on the page."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "svg.fonttype": "none",
        "svg.hashsalt": name,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"(\d+px) [^;\"]*(?:DejaVu Sans|sans-serif)[^;\"]*", r"\1 system-ui, sans-serif", text)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def curves(
    name: str,
    x: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float | None]]],
    labels: tuple[str, str, str],
    limit: tuple[str, float] | None = None,
    moment: tuple[str, float] | None = None,
) -> str:
    """Return lines of shares over epochs; labels: title, x, y.

    `limit` is a labelled horizontal line, `moment` a vertical one.
    """

    def draw(axes: Any) -> None:
        for (colour, dash, marker), (label, values) in zip(STYLES, lines, strict=False):
            y = [float("nan") if v is None else v for v in values]
            axes.plot(x, y, dash, color=colour, marker=marker, markersize=3.5, label=label)
        if limit is not None:
            axes.axhline(limit[1], color=FAINT, linestyle="-.", label=limit[0])
        if moment is not None:
            axes.axvline(moment[1], color=INK, linewidth=1, label=moment[0])
        axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2], ylim=(0, 1.02))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize="small")

    return svg(name, draw)


def heat_map(name: str, matrix: Sequence[Sequence[float]], classes: Sequence[str], title: str) -> str:
    """Return a matrix of probabilities; rows are true labels, columns given ones."""

    def draw(axes: Any) -> None:
        image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        if len(classes) <= 12:
            shown = [c if len(c) <= 14 else c[:13] + "…" for c in classes]
            axes.set_xticks(range(len(classes)), shown, rotation=45, ha="right", parse_math=False)
            axes.set_yticks(range(len(classes)), shown, parse_math=False)
        axes.set(title=title, xlabel="label given", ylabel="true label")
        axes.figure.colorbar(image, ax=axes, label="probability")

    return svg(name, draw, (5.2, 4.4))


def quantile_curves(
    name: str,
    shares: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float]]],
    labels: tuple[str, str, str],
) -> str:
    """Return the quantiles of positive values, on a logarithmic scale; labels: title, x, y."""

    def draw(axes: Any) -> None:
        for (colour, dash, _), (label, values) in zip(STYLES, lines, strict=False):
            shown = [v if v > 0 else float("nan") for v in values]
            axes.plot(shares, shown, dash, color=colour, label=_layer(label))
        axes.set_yscale("log")
        axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize="small")

    return svg(name, draw)


def spectra(
    name: str,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
) -> str:
    """Return mean eigenvalues by rank, on a logarithmic scale; lines: layer, means, their errors' bars."""

    def draw(axes: Any) -> None:
        for at, ((colour, dash, marker), (label, values, errors)) in enumerate(
            zip(STYLES, lines, strict=False)
        ):
            # Side by side, so that no bar hides another.
            x = [rank + 0.08 * at for rank in range(1, len(values) + 1)]
            shown = [v if v > 0 else float("nan") for v in values]
            axes.errorbar(
                x, shown, errors, color=colour, linestyle=dash, marker=marker, markersize=3.5, capsize=3,
                label=_layer(label),
            )  # fmt: skip
        axes.set_yscale("log", nonpositive="clip")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize="small")

    return svg(name, draw)


def _layer(name: str) -> str:
    # matplotlib leaves labels out that begin with an underscore, and reads $ as mathematics.
    return "layer " + name.replace("$", r"\$")


def stability(name: str, rows: Sequence[StabilityRow]) -> str:
    """Return the rise of the loss under noise of size σ, with its Taylor prediction."""

    def draw(axes: Any) -> None:
        sigma = [row.sigma for row in rows]
        axes.errorbar(
            sigma, [r.value for r in rows], [2 * r.stderr for r in rows], color=ONE, marker="o",
            linestyle="none", capsize=3, label="measured ± 2 standard errors",
        )  # fmt: skip
        axes.plot(sigma, [r.taylor for r in rows], "--", color=TWO, label="Taylor: ½σ²·Σ Tr H")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set(title="Noise stability", xlabel="σ (units of the weights)", ylabel="rise of the mean loss")
        axes.legend()

    return svg(name, draw)


def scatter(
    name: str,
    groups: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
) -> str:
    """Return points of (x, y), a marker a group; x is logarithmic if all are above 0."""
    markers = "os^DvP*X<>hp"

    def draw(axes: Any) -> None:
        for at, (label, x, y) in enumerate(groups):
            colour, filled = (ONE, TWO, THREE)[at % 3], at // len(markers) % 2 == 0
            # matplotlib leaves labels out that begin with an underscore, and reads $ as mathematics.
            text = f"method {label}".replace("$", r"\$")
            axes.plot(
                x, y, linestyle="none", marker=markers[at % len(markers)], color=colour, alpha=0.8,
                markersize=5, fillstyle="full" if filled else "none", label=text,
            )  # fmt: skip
        if all(value > 0 for _, x, _ in groups for value in x):
            axes.set_xscale("log")
        axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize="small")

    return svg(name, draw, (6.4, 3.8 + 0.08 * len(groups)))


def bars(name: str, values: Sequence[tuple[str, float]], labels: tuple[str, str]) -> str:
    """Return a horizontal bar a name; labels: title, x."""

    def draw(axes: Any) -> None:
        names = [label if len(label) <= 20 else label[:19] + "…" for label, _ in values]
        axes.barh(range(len(values)), [value for _, value in values], color=ONE)
        axes.set_yticks(range(len(values)), names, parse_math=False)
        axes.invert_yaxis()
        axes.set(title=labels[0], xlabel=labels[1])

    return svg(name, draw, (6.4, 1.2 + 0.28 * len(values)))

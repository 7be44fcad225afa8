"""Fill templates, and draw plots as inline SVG."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from hesstune.errors import counted
from hesstune.runs.records import ExampleImage


class Cell(NamedTuple):
    """A cell of a table: a text, and a bar in percent with a mark, or an interval below it."""

    text: str
    bar: float | None = None
    tick: float | None = None
    at_radius: bool = False
    interval: str = ""


class Plot(NamedTuple):
    """A plot as SVG, its description in words, and the table of its numbers."""

    title: str
    svg: str
    words: str
    columns: Sequence[object]
    rows: Sequence[Sequence[object]]


class Card(NamedTuple):
    """An example on the page: its id, its image or text, and facts: (what, value, more)."""

    id: str
    image: ExampleImage | None
    facts: Sequence[tuple[str, str, str]]


def number(value: object, form: str = ".3g") -> str:
    """Return a number as text; a dash if it does not exist."""
    return "–" if value is None else format(value, form)


def render(
    template: str, context: Mapping[str, object], assets: Sequence[str] = ("page",), strict: bool = False
) -> str:
    """Fill a template of this folder with a context and its assets; every value is escaped, except plots.

    A Content-Security-Policy lets the page run its own script only, and load nothing. Plots have styles of
    their own; with `strict` the page's own style sheet is the only one.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("hesstune", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(counted=counted, number=number)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    folder = files("hesstune.report")
    own = {
        kind: "".join(folder.joinpath(f"{name}.{kind}").read_text(encoding="utf-8") for name in assets)
        for kind in ("css", "js")
    }
    style = _source(own["css"]) if strict else "'unsafe-inline'"
    policy = (
        f"default-src 'none'; script-src {_source(own['js'])}; style-src {style}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    marked = {kind: Markup(text) for kind, text in own.items()}  # noqa: S704 - own files
    page: str = environment.get_template(template).render(**context, **marked, policy=policy)
    return page


def _source(text: str) -> str:
    """Return what allows a script or style sheet in a Content-Security-Policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Drawn in these, then replaced by CSS variables; the palette is Okabe and Ito's, safe for the colour-blind.
COLOURS = {"#010101": "ink", "#010102": "c1", "#010103": "c2", "#010104": "c3", "#010105": "faint"}
INK, ONE, TWO, THREE, FAINT = COLOURS
DASHES, MARKERS = ("-", "--", ":"), "os^DvP*X<>h"


def svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
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


Series = tuple[str, Sequence[float], Sequence[float | None], Sequence[float] | None]
"""A label, x, y (None if there is no value), and the lengths of the error bars, if any."""


def chart(
    name: str,
    series: Sequence[Series],
    labels: tuple[str, str, str],
    *,
    scales: tuple[str, str] = ("linear", "linear"),
    joined: bool = True,
    limits: Mapping[str, tuple[float, bool]] | None = None,
) -> str:
    """Return a plot of series, each with its own colour, dash and marker; labels are title, x and y.

    Args:
        name: What the element's ids begin with.
        series: What is drawn; on a logarithmic axis values that are not above 0 are left out.
        labels: Title, x and y.
        scales: Of x and y: `linear`, `log`, `integer` (ticks at whole numbers), or `share` (from 0 to 1).
        joined: Whether the points of a series are joined.
        limits: Straight lines by label: their place, and whether they are vertical.
    """

    def draw(axes: Any) -> None:
        for at, (label, x, y, errors) in enumerate(series):
            shown = [float("nan") if v is None or (scales[1] == "log" and v <= 0) else v for v in y]
            axes.errorbar(
                x, shown, errors, color=(ONE, TWO, THREE)[at % 3], marker=MARKERS[at % len(MARKERS)],
                linestyle=DASHES[at % 3] if joined else "none", markersize=3.5, capsize=3,
                label=label.replace("$", r"\$"),  # no mathematics
            )  # fmt: skip
        for label, (place, vertical) in (limits or {}).items():
            if vertical:
                axes.axvline(place, color=INK, linewidth=1, label=label)
            else:
                axes.axhline(place, color=FAINT, linestyle="-.", label=label)
        for axis, scale in zip("xy", scales, strict=True):
            if scale == "integer":
                axes.locator_params(axis=axis, integer=True)
            elif scale == "share":
                axes.set(**{f"{axis}lim": (0, 1.02)})
            else:
                axes.set(**{f"{axis}scale": scale})
        axes.set(title=labels[0], xlabel=labels[1], ylabel=labels[2])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize="small")

    return svg(name, draw, (6.4, 3.8 + 0.08 * len(series)))


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

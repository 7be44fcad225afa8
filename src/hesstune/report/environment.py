"""The templates: escaped, strict, one file with its style and script inside."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from hesstune.errors import counted

__all__ = ["render"]


def render(template: str, context: Mapping[str, object]) -> str:
    """Fill a template of this folder; every value is escaped unless it was drawn here."""
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

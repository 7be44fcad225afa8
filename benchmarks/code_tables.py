"""Generated parts of the documentation that come from the code: examples, methods, commands, networks."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial

from analysis import joined, listed, markdown
from hesstune.methods import methods_by_tier
from records import ROOT, Row


def method_tiers() -> str:
    return "\n".join(f"- {tier}: {joined('`{}`', list(names))}" for tier, names in methods_by_tier().items())


def commands() -> str:
    """Return every command with its options; options that several commands share are listed once."""
    import typer

    from hesstune.cli.main import app

    shared: set[tuple[str, str]] = set()
    parts = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        groups: dict[str, list[list[str]]] = {}
        usage = [f"hesstune {name}"]
        for option in command.params:
            if option.param_type_name == "argument":
                usage.append(str(option.metavar or option.name).upper())
                continue
            text = " ".join(str(option.help).split()).replace("|", r"\|")
            if name != "demo" and (option.opts[0], text) not in shared:
                made = " ".join([*option.opts, str(option.metavar or "").replace("|", r"\|")]).strip()
                groups.setdefault(option.rich_help_panel or "Options", []).append([f"`{made}`", text])
            shared.add((option.opts[0], text))
        parts += [f"## {name}", f"`{' '.join(usage)}`", " ".join(str(command.help).split())]
        for group, cells in groups.items():
            parts += [f"### {group} of {name}", markdown(["option", "what it does"], cells)]
    return "\n\n".join(parts)


def methods() -> str:
    def plain(words: str) -> str:
        return " ".join(words.split()).replace("*", r"\*").replace("[", r"\[")

    parts = []
    for name, found in (item for tier in methods_by_tier().values() for item in tier.items()):
        title, _, text = (inspect.getdoc(found) or "").partition("\n\n")
        marks = [m for m, has in (("F", found.uses_noise()), ("constrained", found.constrained)) if has]
        mark = f"*{', '.join(marks)}.* " if marks else ""
        parts += [f"## {name}", mark + plain(title), plain(text)]
        if options := found.own_options:
            cells = ([f"`{n}`", f"{o.default:g}", o.source] for n, o in options.items())
            parts.append(markdown(["option", "default", "source of the default"], cells))
    return "\n\n".join(part for part in parts if part)


def networks() -> str:
    sys.path.insert(0, str(ROOT / "tests" / "zoo"))
    found: list[Row] = [dict(vars(n)) for n in importlib.import_module("zoo_networks").NETWORKS]
    steps, parts = {"train": "training", "measure": "`measure`"}, []
    for row in found:
        row["result"] = "works"
        if (no := row["refused"]) is not None:
            row["result"] = f"refused by {steps[no.by]} with `{no.error.__name__}`: {no.why}"
    for library in dict.fromkeys(row["library"] for row in found):
        own = [row for row in found if row["library"] == library]
        columns = {"network": "`{name}`", "reads": "{reads}", "result": "{result}"}
        parts += [f"## {library}", listed(own, columns)]
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (method_tiers, methods, commands, networks)
}
for example in sorted((ROOT / "examples").glob("*.py")):
    if example.stem != "sentiment_rules":  # of the page on weak labels
        code = f"```python\n{example.read_text(encoding='utf-8')}```"
        TABLES[f"example_{example.stem}"] = partial(str, code)

"""Docstrings for the reference: sections named as griffe names them, and what options say of themselves."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Rename the sections while the docstrings are read: `Example:` is code, as `Examples:` is to griffe."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename them in one object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)


class OptionDescriptions(griffe.Extension):
    """Show an option by its description and its default: its declaration is `name: type = Field(…)`."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Take them from every field, also from those that several models share by name."""
        self._describe(pkg, pkg)

    def _describe(self, pkg: griffe.Module, within: griffe.Module | griffe.Class) -> None:
        for member in within.members.values():
            if isinstance(member, griffe.Module | griffe.Class):
                self._describe(pkg, member)
            elif isinstance(member, griffe.Attribute) and isinstance(within, griffe.Class):
                made: Any = member.value
                if isinstance(made, griffe.ExprName) and made.name.isupper():
                    made = pkg[made.canonical_path.removeprefix(f"{pkg.name}.")].value
                if isinstance(made, griffe.ExprCall) and str(made.function) == "Field":
                    self._document(member, made.arguments)

    def _document(self, option: griffe.Attribute, arguments: list[Any]) -> None:
        named = {a.name: a.value for a in arguments if isinstance(a, griffe.ExprKeyword)}
        if "description" not in named:  # a record's field
            return
        text = re.sub(r"\{(\w+)\}", r"\1", _text(str(named["description"])))
        option.docstring = griffe.Docstring(f"{text[:1].upper()}{text[1:]}.", parent=option)
        option.value = None if isinstance(arguments[0], griffe.ExprKeyword) else arguments[0]


def _text(code: str) -> str:
    """Return the string that an expression makes; what is known only at run time is an ellipsis."""

    def made(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(made, node.values))
        return made(node.left) + made(node.right) if isinstance(node, ast.BinOp) else "…"

    return made(ast.parse(code, mode="eval").body)

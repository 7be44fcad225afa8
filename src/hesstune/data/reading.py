"""How data is read beside what it is: columns by name, votes, what lies behind images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hesstune.checks import parse_integer
from hesstune.errors import DataError, cut, unknown_name

WHITE = (255, 255, 255)
ROLES = ("text", "label", "id", "image")
# Splits that make no independent sample: certificates refuse them.
DRAWN = ("stratified", "group", "time")


def rgb_of(text: str) -> tuple[int, int, int]:
    """Return a colour's red, green and blue, 0 … 255, from its name, #rrggbb or R,G,B.

    Raises:
        ValueError: If it is none.

    Example:
        >>> rgb_of("white"), rgb_of("#102030"), rgb_of("1, 2, 3")
        ((255, 255, 255), (16, 32, 48), (1, 2, 3))
    """
    from PIL import ImageColor

    try:
        if "," in text and "(" not in text:
            text = f"rgb({text.replace(' ', '')})"
        red, green, blue = ImageColor.getrgb(text.strip())[:3]
    except ValueError:
        raise ValueError("must be a colour's name, #rrggbb or R,G,B") from None
    if max(red, green, blue) > 255:
        raise ValueError("must be a colour of red, green and blue from 0 to 255")
    return red, green, blue


@dataclass(frozen=True)
class Voting:
    """How a table's votes become labels.

    Attributes:
        columns: Columns of votes; none: those named vote_….
        model: The label model.
        seed: Of its ties.
    """

    columns: tuple[str, ...] = ()
    model: str = "majority"
    seed: int = 0


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, where they are not called as usual.

    Attributes:
        text: Column of texts, or two with a comma between, of pairs.
        label: Column of labels.
        id: Column of the examples' ids.
        image: Column of images.
        needed: The roles, of these four, whose column must be there where it is named; of others the usual
            ones are taken instead.
    """

    text: str | None = None
    label: str | None = None
    id: str | None = None
    image: str | None = None
    needed: frozenset[str] = frozenset(ROLES)

    @property
    def demanded(self) -> list[str]:
        """The roles whose column is named and must be there."""
        return [role for role in ROLES if getattr(self, role) and role in self.needed]

    def found(
        self, columns: Sequence[str], usual: Mapping[str, Sequence[str]], what: str
    ) -> tuple[dict[str, str], list[str]]:
        """Return {role: column} of the roles that some column has, and what was guessed, in sentences.

        Args:
            columns: The names that there are.
            usual: {role: names it usually has, the first one before all}.
            what: The file, for messages.

        Raises:
            DataError: If a column that was named is missing, or named twice.

        Example:
            >>> usual = {"text": ("text", "sentence"), "label": ("label",)}
            >>> Columns(label="stars").found(["sentence", "stars", "label"], usual, "the file")[0]
            {'label': 'stars', 'text': 'sentence'}
        """
        asked = self._asked(columns, what)
        found = dict(asked)
        # Texts or images: one that is named, or has its first name, leaves no question about the other.
        first = [role for role in ("text", "image") if role in asked]
        first = first or [r for r in ("text", "image") if r in usual and usual[r][0] in columns]
        for role, names in usual.items():
            if role in found or (first and role in ("text", "image") and role not in first):
                continue
            if role == "text2" and ("text" in asked or first == ["image"]):
                continue
            if (column := _called(names, columns, list(found.values()))) is not None:
                found[role] = column
        notes = [
            f"column '{cut(column)}' is read as the {role}"
            for role, column in found.items()
            if column != role and role not in asked
        ]
        return found, notes

    def _asked(self, columns: Sequence[str], what: str) -> dict[str, str]:
        """Return {role: column} of those that are named."""
        named = {role: name for role in ROLES if (name := getattr(self, role))}
        if "text" in named and "," in named["text"] and named["text"] not in columns:
            named["text"], named["text2"] = (part.strip() for part in named["text"].split(",", 1))
        must = {role.removesuffix("2") for role in named} & self.needed
        missing = [n for role, n in named.items() if n not in columns and role.removesuffix("2") in must]
        if missing:
            raise unknown_name(f"column of {what}", missing[0], list(columns), DataError)
        named = {role: name for role, name in named.items() if name in columns}
        if len(set(named.values())) < len(named):
            raise DataError(f"{what}: one column is named for two purposes; name a column for each")
        return named


def _called(names: Sequence[str], columns: Sequence[str], taken: Sequence[str]) -> str | None:
    """Return the column with one of the names, or the only one that differs from it by case and spaces."""
    free = [column for column in columns if column not in taken]
    for name in names:
        if name in free:
            return name
        near = [column for column in free if column.strip().lower() == name]
        if len(near) == 1:
            return near[0]
    return None


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        columns: Which columns hold what.
        voting: How votes in columns become labels.
        background: The colour, RGB, that transparent images are laid on.
        told: A further column that is read, by which the data is split.
    """

    columns: Columns = Columns()
    voting: Voting = Voting()
    background: tuple[int, int, int] = WHITE
    told: str | None = None


@dataclass(frozen=True)
class SplitRule:
    """A rule, of its text: `uniform`, `stratified`, `group:COLUMN`, `time:COLUMN` or the path of a file.

    Attributes:
        kind: One of these, or `file`.
        argument: The column, or the path.

    Example:
        >>> SplitRule.parse("group:patient")
        SplitRule(kind='group', argument='patient')
    """

    kind: str = "uniform"
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> SplitRule:
        """Read a rule; raise DataError where it is none, with the nearest."""
        kind, colon, argument = text.partition(":")
        if kind in ("group", "time") and colon:
            if not argument.strip():
                raise DataError(f"split '{text}' names no column; write {kind}:COLUMN")
            return cls(kind, argument.strip())
        if text in ("uniform", "stratified"):
            return cls(text)
        if Path(text).suffix.lower() in (".csv", ".tsv", ".tab") or Path(text).expanduser().is_file():
            return cls("file", text)
        raise unknown_name(
            "split", text, ["uniform", "stratified", "group:COLUMN", "time:COLUMN", "FILE.csv"], DataError
        )

    @property
    def column(self) -> str | None:
        """The column of the data that the rule needs, or None."""
        return self.argument if self.kind in ("group", "time") else None


def fold_of(text: str) -> tuple[int, int]:
    """Read `i/K`, the i-th of K folds; raise ValueError where it is not that, with K of at least 2."""
    number, slash, count = text.partition("/")
    i, k = parse_integer(number), parse_integer(count)
    if not slash or i is None or k is None:
        raise ValueError("must be written I/K, such as 1/5")
    if k < 2 or not 1 <= i <= k:
        raise ValueError("must be I/K with K of at least 2 and I from 1 to K")
    return i, k

"""How data is read and split: named columns, votes, background colour, split rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hesstune.checks import parse_integer
from hesstune.errors import DataError, cut, listed, unknown_name

WHITE = (255, 255, 255)
ROLES = ("text", "label", "id", "image")
# Splits whose parts are no independent samples: certificates refuse them.
DRAWN = ("stratified", "group", "time")


def rgb_of(text: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour: a name, #rrggbb or R,G,B; ValueError if it is none.

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
    """How a table's votes become labels."""

    columns: tuple[str, ...] = ()  # columns of votes; none: those named vote_…
    model: str = "majority"  # the label model
    seed: int = 0  # seed of ties


@dataclass(frozen=True)
class Columns:
    """Columns that the user names."""

    text: str | None = None  # column of texts, or two columns separated by a comma for pairs
    label: str | None = None  # column of labels
    id: str | None = None  # column of the examples' ids
    image: str | None = None  # column of images
    # The roles whose named column must exist; for other roles the usual column is taken instead
    needed: frozenset[str] = frozenset(ROLES)

    @property
    def demanded(self) -> list[str]:
        """The roles whose column is named and must exist."""
        return [role for role in ROLES if getattr(self, role) and role in self.needed]

    def find(
        self,
        columns: Sequence[str],
        usual: Mapping[str, Sequence[str]],
        what: str,
        needs_inputs: bool = True,
    ) -> tuple[dict[str, str], list[str]]:
        """Return {role: column}, with either a text or an image column, and what was guessed, in sentences.

        `usual` are {role: its usual names, in order of preference}. DataError is raised if a named column is
        missing or named twice, or there is no text or image column that is needed, or both.
        """
        asked = self._named(columns, what)
        roles = dict(asked)
        # A named column of texts or images, or one with the first usual name, decides between the two.
        inputs = [role for role in ("text", "image") if role in asked]
        inputs = inputs or [r for r in ("text", "image") if r in usual and usual[r][0] in columns]
        for role, names in usual.items():
            if role in roles or (inputs and role in ("text", "image") and role not in inputs):
                continue
            if role == "text2" and ("text" in asked or inputs == ["image"]):
                continue
            if (column := _matching(names, columns, list(roles.values()))) is not None:
                roles[role] = column
        if ("text" in roles) == ("image" in roles) and (needs_inputs or "text" in roles):
            both = "both in " if "text" in roles else ""
            raise DataError(
                f"{what} needs either a column 'image' or a column 'text'; got "
                f"{both}{listed(columns) or 'no column'} (a file's first row names its columns); name one by "
                "--text-column or --image-column"
            )
        notes = [
            f"column '{cut(column)}' is read as the {role}"
            for role, column in roles.items()
            if column != role and role not in asked
        ]
        return roles, notes

    def _named(self, columns: Sequence[str], what: str) -> dict[str, str]:
        """Return {role: column} of the named columns."""
        named = {role: name for role in ROLES if (name := getattr(self, role))}
        if "text" in named and "," in named["text"] and named["text"] not in columns:
            named["text"], named["text2"] = (part.strip() for part in named["text"].split(",", 1))
        for role, name in named.items():
            if name not in columns and role.removesuffix("2") in self.needed:
                raise unknown_name(f"column of {what}", name, list(columns), DataError)
        named = {role: name for role, name in named.items() if name in columns}
        if len(set(named.values())) < len(named):
            raise DataError(f"{what}: one column is named for two purposes; name a column for each")
        return named


def _matching(names: Sequence[str], columns: Sequence[str], taken: Sequence[str]) -> str | None:
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
    """How data is read."""

    columns: Columns = Columns()  # columns that the user names
    voting: Voting = Voting()  # how votes in columns become labels
    background: tuple[int, int, int] = WHITE  # background colour, RGB, of transparent images
    split_column: str | None = None  # a further column to read, by which the data is split
    # What to do with a label cell that names several classes; see `hesstune.data.labels.SEVERAL`
    several: str = "refuse"
    confidence: str | None = None  # column of the confidence in each label, which makes soft labels, or None


@dataclass(frozen=True)
class SplitRule:
    """A rule by which parts are drawn.

    Example:
        >>> SplitRule.parse("group:patient")
        SplitRule(kind='group', argument='patient')
    """

    kind: str = "uniform"  # `uniform`, `stratified`, `group`, `time` or `file`
    argument: str = ""  # the column of `group` and `time`, the path of `file`

    @classmethod
    def parse(cls, text: str) -> SplitRule:
        """Read `uniform`, `stratified`, `group:COLUMN`, `time:COLUMN` or the path of a CSV file.

        Raises:
            DataError: If it is none of these, with the nearest.
        """
        kind, colon, argument = text.partition(":")
        if kind in ("group", "time") and colon:
            if not argument.strip():
                raise DataError(f"split '{text}' names no column; write {kind}:COLUMN")
            return cls(kind, argument.strip())
        if text in ("uniform", "stratified"):
            return cls(text)
        if Path(text).suffix.lower() in (".csv", ".tsv", ".tab") or Path(text).expanduser().is_file():
            return cls("file", text)
        valid = ["uniform", "stratified", "group:COLUMN", "time:COLUMN", "FILE.csv"]
        raise unknown_name("split", text, valid, DataError)

    @property
    def column(self) -> str | None:
        """The column of the data that the rule needs, or None."""
        return self.argument if self.kind in ("group", "time") else None


def fold_of(text: str) -> tuple[int, int]:
    """Read `I/K`, fold I of K; ValueError if it is not of this form, with K ≥ 2 and I from 1 to K."""
    number, slash, count = text.partition("/")
    i, k = parse_integer(number), parse_integer(count)
    if not slash or i is None or k is None:
        raise ValueError("must be written I/K, such as 1/5")
    if k < 2 or not 1 <= i <= k:
        raise ValueError("must be I/K with K of at least 2 and I from 1 to K")
    return i, k

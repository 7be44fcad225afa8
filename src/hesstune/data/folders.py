"""Images in folders: `folder:PATH`, one subfolder a class, or the parts' folders of those."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hesstune.data.examples import Listing
from hesstune.data.images import readable_suffixes
from hesstune.data.parts import parts_note, parts_of
from hesstune.errors import DataError, listed, plain

# Folders and files that systems leave beside a user's own.
SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
     "lost+found", "ehthumbs.db", "icon\r"}
)  # fmt: skip


def _own(name: str) -> bool:
    """Tell a user's files from hidden ones and those of a system."""
    return not name.startswith(".") and name.lower() not in SYSTEM


@dataclass
class _Seen:
    """What was met below a folder and not taken."""

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)

    def images(self, folder: Path, deep: bool = True) -> list[Path]:
        """Return the images in a folder and, if asked, in its subfolders, and count what else is there."""
        suffixes = readable_suffixes()
        found = []
        for base, folders, files in os.walk(folder):
            at = Path(base)
            self._hide(at, folders, files, suffixes)
            self.links += [at / name for name in folders if (at / name).is_symlink()] if deep else []
            folders[:] = [name for name in folders if _own(name)] if deep else []
            for name in filter(_own, files):
                if not (at / name).is_file():  # a broken link, a pipe
                    self.links.append(at / name)
                elif name.lower().endswith(suffixes):
                    found.append(at / name)
                else:
                    self.suffixes[Path(name).suffix.lower() or "without a suffix"] += 1
        return sorted(found)

    def _hide(self, at: Path, folders: list[str], files: list[str], suffixes: tuple[str, ...]) -> None:
        for name in files:
            if not _own(name) and name.lower().endswith(suffixes):
                self.hidden["._*" if name.startswith("._") else ".*"] += 1
        for name in folders:
            if not _own(name):
                inside = (n for _, _, names in os.walk(at / name) for n in names)
                self.hidden[name] += sum(n.lower().endswith(suffixes) for n in inside)

    def notes(self, root: Path, read: int) -> Iterator[str]:
        """Say what was left out."""
        if self.suffixes:
            left = ", ".join(f"{n} {suffix}" for suffix, n in self.suffixes.most_common(8))
            more = len(self.suffixes) - 8
            total = read + self.suffixes.total()
            yield f"{read} of {total} files read; {left}{f' and {more} other kinds' * (more > 0)} left out"
        if hidden := {name: n for name, n in self.hidden.items() if n}:
            count = sum(hidden.values())
            yield f"{count} hidden or system images skipped ({listed(map(plain, hidden))})"
        if self.links:
            shown = listed((plain(str(p.relative_to(root))) for p in self.links), 3)
            yield f"links that are not followed, or lead nowhere, left out: {shown}"


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # which knows folders without asking for each
        return sorted(folder / e.name for e in entries if _own(e.name) and e.is_dir())


def folder_listing(root: Path, labelled: bool) -> Listing:
    """List the images of a folder.

    Args:
        root: One subfolder a class, or folders of those that are called by parts' names. Hidden and system
            files and folders are skipped, linked folders below a class are not followed, and what is no
            image is left out: the listing's notes say how many.
        labelled: Whether labels are needed; where not, every image below is listed, and labels go into
            `given`.

    Raises:
        DataError: If there is no such folder, no image, or no two classes.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {state}; give a folder with one subfolder a class")
    seen = _Seen()
    if not labelled:
        return _unlabelled(root, seen)
    parts = _parts(root)
    roots = [root / name for name in parts] if parts else [root]
    classes = sorted({c.name for part in roots for c in _subfolders(part)})
    if len(classes) < 2:
        raise DataError(
            f"the data folder {root} needs two subfolders or more, one a class; "
            f"got {listed(map(plain, classes)) or 'none'}{_hint(root)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    given: list[str] = []
    for part in roots:
        kind = parts.get(part.name, "") if parts else ""
        for index, name in enumerate(classes):
            found = seen.images(part / name) if (part / name).is_dir() else []
            if not found and kind in ("", "train"):
                raise DataError(_empty(part / name, seen))
            paths += found
            labels += [index] * len(found)
            given += [kind] * len(found)
    outside = list(_outside(root, parts, seen))
    notes = [*parts_note(parts), *seen.notes(root, len(paths)), *outside]
    return Listing(
        _ids(paths, root),
        np.array(labels, dtype=np.int64),
        [plain(name) for name in classes],
        paths,
        parts=given if parts else None,
        notes=notes,
    )


def _parts(root: Path) -> dict[str, str]:
    """Return {folder: part} where a folder holds parts and not classes.

    Raises:
        DataError: If its subfolders look like parts, but have no part's names.
    """
    named, inner = _named(root)
    if named:
        return named
    if len(inner) > 1 and not parts_of(inner)[1] and not any(inner.values()):
        raise DataError(
            f"the subfolders of {root}, {listed(map(plain, inner))}, are parts of the data by their "
            "names, but hold no subfolders: put the images of each class into a subfolder of its part"
        )
    sets = list(inner.values())
    if len(sets) > 1 and len(sets[0]) > 1 and all(own == sets[0] for own in sets):
        raise DataError(
            f"the subfolders of {root}, {listed(map(plain, inner))}, all hold the same subfolders "
            f"({listed(map(plain, sorted(sets[0])))}), so they are no classes: call parts of the data "
            "train, val and test, or give one of the folders"
        )
    return {}


def _named(root: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return {folder: part} where folders of classes are called by parts' names, and all subfolders' own."""
    inner = {child.name: {c.name for c in _subfolders(child)} for child in _subfolders(root)}
    named, others = parts_of(inner)
    trains = [name for name, part in named.items() if part == "train"]
    split = any(inner[name] for name in trains) and (len(named) > len(trains) or not others)
    return (named if split else {}), inner


def _hint(root: Path) -> str:
    children = _subfolders(root)
    if len(children) == 1 and len(_subfolders(children[0])) > 1:
        return f"; did you mean folder:{plain(str(children[0]))}?"
    images = len(_Seen().images(root, deep=False))
    return f" (and {images} images beside: put those of each class into a subfolder)" if images else ""


def _empty(folder: Path, seen: _Seen) -> str:
    here = plain(str(folder))
    left = ", ".join(f"{n} {suffix}" for suffix, n in seen.suffixes.most_common(3))
    return (
        f"class '{plain(folder.name)}' has no image in {here}; add some or remove the folder"
        f"{f' (files left out so far: {left})' if left else ''}"
    )


def _outside(root: Path, parts: dict[str, str], seen: _Seen) -> Iterator[str]:
    """Say which images lie beside the class folders, and which folders beside the parts."""
    around = [root, *(root / name for name in parts)]
    loose = [path for folder in around for path in seen.images(folder, deep=False)]
    if loose:
        shown = plain(str(loose[0].relative_to(root)))
        yield f"{len(loose)} images beside the class folders left out: no class is theirs (such as {shown})"
    beside = [folder for folder in _subfolders(root) if parts and folder.name not in parts]
    if held := {folder.name: n for folder in beside if (n := len(_Seen().images(folder)))}:
        shown = listed(f"{plain(name)} ({n} images)" for name, n in held.items())
        yield f"folders beside the parts left out: {shown}"


def _unlabelled(root: Path, seen: _Seen) -> Listing:
    """List every image below; the folder that would be its class is its given label."""
    parts, _ = _named(root)
    paths = seen.images(root)
    if not paths:
        raise DataError(f"the data folder {root} holds no image ({listed(readable_suffixes(), 20)})")
    given, kinds = [], []
    for path in paths:
        above = path.relative_to(root).parts[:-1]
        kinds.append(parts.get(above[0], "") if above else "")
        above = above[1:] if kinds[-1] else above
        given.append(plain(above[0]) if above else "")
    return Listing(
        _ids(paths, root),
        None,
        [],
        paths,
        parts=kinds if any(kinds) else None,
        given=given if any(given) else None,
        notes=list(seen.notes(root, len(paths))),
    )


def _ids(paths: list[Path], root: Path) -> list[str]:
    ids = [plain(p.relative_to(root).as_posix()) for p in paths]
    if len(set(ids)) < len(ids):
        twice = next(i for i, n in Counter(ids).items() if n > 1)
        raise DataError(f"two files in {root} are called '{twice}' where bytes are written out; rename one")
    return ids

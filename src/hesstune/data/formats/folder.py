"""Images in folders: `folder:PATH`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.images import readable_suffixes
from hesstune.data.reading import Reading
from hesstune.data.tables import parts_note, parts_of
from hesstune.errors import DataError, listed, plain
from hesstune.resizing import Size
from hesstune.storage.table_files import shards_of

# Folders and files that operating systems leave beside a user's own.
SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
     "lost+found", "ehthumbs.db", "icon\r"}
)  # fmt: skip


class Folder(DataFormat):
    """A folder of images.

    Hidden and system files and folders are skipped, linked folders below a class are not followed, and other
    files are left out: the notes say how many. If labels are not required, every image below is listed, and
    `given` holds the name of the folder that would be its class.
    """

    written = "folder:PATH"
    summary = "One subfolder of images per class, or `train/`, `val/`, `test/` of those."

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not path.is_dir():
            return False
        suffixes = readable_suffixes()
        holding = {
            Path(base).relative_to(path).parts[:1]
            for base, _, files in os.walk(path)
            if any(_is_own(name) and name.lower().endswith(suffixes) for name in files)
        }
        # One folder of images beside a table belongs to it.
        shards = shards_of(path)
        return len(holding - {()}) > 1 or bool(holding and not (shards and shards.files))

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        root = Path(path)
        if not root.is_dir():
            state = "is a file" if root.exists() else "does not exist"
            raise DataError(f"the data folder {root} {state}; give a folder with one subfolder a class")
        return _labelled(root) if labelled else _unlabelled(root)


def _is_own(name: str) -> bool:
    """Tell a user's files and folders from hidden ones and those of a system."""
    return not name.startswith(".") and name.lower() not in SYSTEM


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # knows folders without a call for each
        return sorted(folder / e.name for e in entries if _is_own(e.name) and e.is_dir())


@dataclass
class _Search:
    """A search for images, with counts of what was left out."""

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)

    def images(self, folder: Path, deep: bool = True) -> list[Path]:
        """Return the images in a folder and, if deep, in its subfolders; count what else is there."""
        readable = readable_suffixes()
        found = []
        for base, folders, files in os.walk(folder):
            at = Path(base)
            for name in folders:
                if not _is_own(name):
                    inside = (n for _, _, names in os.walk(at / name) for n in names)
                    self.hidden[name] += sum(n.lower().endswith(readable) for n in inside)
            for name in files:
                is_image = name.lower().endswith(readable)
                if not _is_own(name):
                    self.hidden["._*" if name.startswith("._") else ".*"] += is_image
                elif not (at / name).is_file():  # a broken link, a pipe
                    self.links.append(at / name)
                elif is_image:
                    found.append(at / name)
                else:
                    self.suffixes[Path(name).suffix.lower() or "without a suffix"] += 1
            self.links += [at / name for name in folders if deep and (at / name).is_symlink()]
            folders[:] = [name for name in folders if deep and _is_own(name)]
        return sorted(found)

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


def _labelled(root: Path) -> Listing:
    search = _Search()
    parts, inner = _named_parts(root)
    _refuse_unnamed_parts(root, parts, inner)
    roots = [root / name for name in parts] if parts else [root]
    classes = sorted({c.name for part in roots for c in _subfolders(part)})
    if len(classes) < 2:
        raise DataError(
            f"the data folder {root} needs two subfolders or more, one a class; "
            f"got {listed(map(plain, classes)) or 'none'}{_hint(root)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    kinds: list[str] = []
    for part in roots:
        kind = parts.get(part.name, "") if parts else ""
        for index, name in enumerate(classes):
            folder = part / name
            found = search.images(folder) if folder.is_dir() else []
            if not found and kind in ("", "train"):
                left = ", ".join(f"{n} {suffix}" for suffix, n in search.suffixes.most_common(3))
                more = f" (files left out so far: {left})" if left else ""
                here = plain(str(folder))
                raise DataError(f"class '{plain(name)}' has no image in {here}; add some or remove it{more}")
            paths += found
            labels += [index] * len(found)
            kinds += [kind] * len(found)
    beside = list(_beside(root, parts, search))
    return Listing(
        _ids(paths, root),
        np.array(labels, dtype=np.int64),
        [plain(name) for name in classes],
        paths,
        parts=kinds if parts else None,
        notes=[*parts_note(parts), *search.notes(root, len(paths)), *beside],
    )


def _unlabelled(root: Path) -> Listing:
    search = _Search()
    parts, _ = _named_parts(root)
    paths = search.images(root)
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
        paths=paths,
        parts=kinds if any(kinds) else None,
        given=given if any(given) else None,
        notes=list(search.notes(root, len(paths))),
    )


def _named_parts(root: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return {folder: part} of folders of classes named like parts, and {folder: its subfolders} of all."""
    inner = {child.name: {c.name for c in _subfolders(child)} for child in _subfolders(root)}
    named, others = parts_of(inner)
    trains = [name for name, part in named.items() if part == "train"]
    split = any(inner[name] for name in trains) and (len(named) > len(trains) or not others)
    return (named if split else {}), inner


def _refuse_unnamed_parts(root: Path, parts: dict[str, str], inner: dict[str, set[str]]) -> None:
    """Raise DataError if the subfolders look like parts, but are not named so or hold no classes."""
    if parts:
        return
    if len(inner) > 1 and not parts_of(inner)[1] and not any(inner.values()):
        raise DataError(
            f"the subfolders of {root}, {listed(map(plain, inner))}, are parts of the data by their "
            "names, but hold no subfolders: put the images of each class into a subfolder of its part"
        )
    sets = list(inner.values())
    if len(sets) > 1 and len(sets[0]) > 1 and all(own == sets[0] for own in sets):
        raise DataError(
            f"the subfolders of {root}, {listed(map(plain, inner))}, all hold the same subfolders "
            f"({listed(map(plain, sorted(sets[0])))}), so they are no classes: name parts of the data train, "
            "val and test, or give one of the folders"
        )


def _hint(root: Path) -> str:
    children = _subfolders(root)
    if len(children) == 1 and len(_subfolders(children[0])) > 1:
        return f"; did you mean folder:{plain(str(children[0]))}?"
    images = len(_Search().images(root, deep=False))
    return f" (and {images} images beside: put those of each class into a subfolder)" if images else ""


def _beside(root: Path, parts: dict[str, str], search: _Search) -> Iterator[str]:
    """Say which images lie beside the class folders, and which folders beside the parts."""
    around = [root, *(root / name for name in parts)]
    loose = [path for folder in around for path in search.images(folder, deep=False)]
    if loose:
        shown = plain(str(loose[0].relative_to(root)))
        yield f"{len(loose)} images beside the class folders left out: no class is theirs (such as {shown})"
    others = [folder for folder in _subfolders(root) if parts and folder.name not in parts]
    if held := {folder.name: n for folder in others if (n := len(_Search().images(folder)))}:
        shown = listed(f"{plain(name)} ({n} images)" for name, n in held.items())
        yield f"folders beside the parts left out: {shown}"


def _ids(paths: list[Path], root: Path) -> list[str]:
    ids = [plain(p.relative_to(root).as_posix()) for p in paths]
    if len(set(ids)) < len(ids):
        twice = next(i for i, n in Counter(ids).items() if n > 1)
        raise DataError(f"two files in {root} are named '{twice}' when bytes are written out; rename one")
    return ids


FORMAT = Folder

"""Every error hesstune raises on purpose: what was given, what is needed, how to fix it."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname


def plain(text: str) -> str:
    r"""Return a text that can be written: bytes of a file's name that are not UTF-8 as `\xNN`.

    Example:
        >>> print(plain("caf\udce9.png"), plain("café.png"))
        caf\xe9.png café.png
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def install_command(extra: str) -> str:
    """Return the command that installs an optional part of this installation, or says where to run it.

    hesstune is installed from its source, so the name `hesstune` alone means nothing to pip.

    Args:
        extra: The part's name in pyproject.toml, such as `text`.
    """
    source = _source_folder()
    if source is None:
        return f"in the folder of hesstune's source, pip install -c constraints.txt '.[{extra}]'"
    return f"pip install -c {shlex.quote(f'{source}/constraints.txt')} {shlex.quote(f'{source}[{extra}]')}"


def _source_folder() -> str | None:
    """Return the folder that pip installed this package from, if it is still there."""
    try:
        record = json.loads(metadata.distribution("hesstune").read_text("direct_url.json") or "{}")
        address = urlparse(str(record.get("url", "")))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    folder = url2pathname(address.path)
    return folder if address.scheme == "file" and (Path(folder) / "constraints.txt").is_file() else None


class HesstuneError(Exception):
    """Base of every deliberate error; the command line prints it as one line and exits with 2."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_short(plain(arg)) if isinstance(arg, str) else arg for arg in args))


def _short(text: str, start: int = 1500, end: int = 500) -> str:
    """Cut the middle out of a long message: names from a file can be of any length, the fix is at the end."""
    return text if len(text) <= start + end else f"{text[:start]} … {text[-end:]}"


class ConfigError(HesstuneError, ValueError):
    """An option or argument has a wrong value, type or name."""


class DataError(HesstuneError, ValueError):
    """The examples or labels cannot be used as given."""


class NoiseMatrixError(HesstuneError, ValueError):
    """A noise matrix is malformed, of the wrong size, or singular if its inverse is needed."""


class RefutedNoiseError(NoiseMatrixError):
    """Examples show that a stated noise matrix, or its assumption of class-conditional noise, is wrong."""


class LayerError(HesstuneError, ValueError):
    """Layers or parameters do not match the reference, or a pattern matches none."""


class MeasureError(HesstuneError, ValueError):
    """A layer or model cannot be measured as asked."""


class ModelError(HesstuneError, ValueError):
    """A model cannot be loaded, or does not output what is needed."""


class MissingExtraError(HesstuneError, ImportError):
    """An optional package is not installed; the message names the pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: {install_command(extra)}")


class RunError(HesstuneError):
    """A run folder is missing, incomplete, in use, or would be overwritten."""


class ChangedDataError(RunError):
    """The data at hand is not what a run was made from; the message names examples that differ."""


class DivergedError(HesstuneError):
    """Training produced a loss that is not a number; the last good checkpoint is kept."""


class HesstuneWarning(UserWarning):
    """Something is usable but needs the user's attention, such as a badly conditioned matrix."""


def listed(names: Iterable[object], most: int = 8) -> str:
    """Join names for a message, cutting long lists and long names, and saying how many were left out."""
    shown = [cut(name) for name in names]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "")


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, which ends in s unless the number is 1.

    Example:
        >>> counted(1, "layer"), counted(0, "layer")
        ('1 layer', '0 layers')
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def cut(name: object, most: int = 120) -> str:
    """Return a name for a message, cut if it is long: it may come from any file."""
    text = str(name)
    return text if len(text) <= most else f"{text[:most]}…"


def unknown_name(
    kind: str,
    given: str,
    valid: Iterable[str],
    error: type[HesstuneError] = ConfigError,
    synonyms: Mapping[str, str] | None = None,
) -> HesstuneError:
    """Build the error for a name that is not among the valid ones, with the nearest of them.

    Args:
        kind: What the name is for.
        given: The name.
        valid: The names that there are.
        error: The class of the error.
        synonyms: {other name: valid name}, of names that do not look like the valid one.
    """
    names = list(valid)
    other = (synonyms or {}).get(given)
    near = [other] if other in names else difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f"; did you mean '{cut(near[0])}'?" if near else ""
    return error(f"unknown {kind} '{cut(given)}'{hint} (valid: {listed(names, 12)})")

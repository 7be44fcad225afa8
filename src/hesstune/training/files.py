"""Write files whole or not at all, and store nested values without pickling."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from hesstune.errors import RunError

__all__ = ["load_tree", "replace_file", "save_tree", "write_csv", "write_json", "write_text"]


def replace_file(path: Path, write: Any) -> None:
    """Call write(temporary path), sync, and rename to `path`, so that readers never see a part of it."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, record: object) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    replace_file(path, write)


def save_tree(path: Path, tree: dict[str, Any]) -> None:
    """Store nested dicts and lists of tensors, numbers, strings and None as safetensors.

    Tensors become numbered entries, the rest JSON in the file's metadata; nothing is pickled.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = f"t{len(tensors)}"
            # Each entry owns its memory: safetensors refuses tensors that share it.
            tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[k, pack(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [pack(v) for v in value]}
        return {"value": value}

    metadata = {"tree": json.dumps(pack(tree))}
    replace_file(path, lambda part: save_file(tensors, str(part), metadata=metadata))


def load_tree(path: Path) -> dict[str, Any]:
    """Read what `save_tree` wrote.

    Raises:
        RunError: If the file is missing, damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    def unpack(value: Any) -> Any:
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "dict" in value:
            return {k: unpack(v) for k, v in value["dict"]}
        if "list" in value:
            return [unpack(v) for v in value["list"]]
        return value["value"]

    try:
        with safe_open(str(path), framework="pt") as file:
            packed = json.loads((file.metadata() or {})["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree: dict[str, Any] = unpack(packed)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is not a readable checkpoint ({error})") from error
    return tree

"""Tensors and nested values on disk: safetensors, with a checksum, never pickled."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hesstune.errors import RunError
from hesstune.storage.files import Writer, replace_file

# What a checkpoint holds: nested dicts and lists of tensors, numbers, texts and None.
Tree = dict[str, Any]

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all; RunError if it cannot be written."""
    replace_file(path, tensor_writer(tensors, metadata))


def tensor_writer(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Writer:
    """Return what writes tensors in the safetensors format, for `replace_files`."""
    return lambda part: stream_tensors(part, tensors, tensors.values(), metadata)


def stream_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    values: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the safetensors format one tensor at a time: nothing is copied that need not be.

    `tensors` are dtypes and shapes by name; `values` are their values, in the same order, wherever they are.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        if (kind := _DTYPES.get(tensor.dtype)) is None:
            raise RunError(
                f"{name} has dtype {tensor.dtype}, which safetensors cannot hold; convert it first"
            )
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    with path.open("wb") as file:
        file.write(_header_bytes(header))
        for value in values:
            if value.numel():
                flat = value.detach().cpu().contiguous().flatten()
                file.write(flat.view(torch.uint8).numpy().data)


def _header_bytes(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add texts to the header of a safetensors file; RunError, and the file as it was, if it cannot be."""

    def write(part: Path) -> None:
        with path.open("rb") as old, part.open("wb") as new:
            header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
            header["__metadata__"] = {**header.get("__metadata__", {}), **metadata}
            new.write(_header_bytes(header))
            shutil.copyfileobj(old, new)

    replace_file(path, write)


def digest(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """Return a checksum (BLAKE2b, 128 bits, hexadecimal) of named tensors and a text.

    Names, dtypes, shapes and values count; the order of the names and the memory layout do not.
    """
    made = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        made.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            made.update(tensor.flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def digest_of_texts(texts: Iterable[str | None]) -> str:
    """Return a checksum (BLAKE2b, 128 bits, hexadecimal) of texts in their order; None is no empty text."""
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        made.update(b"\2" if text is None else text.encode("utf-8", "surrogatepass"))
        made.update(b"\0")
    return made.hexdigest()


def save_tree(path: Path, tree: Tree) -> None:
    """Store nested dicts and lists of tensors, numbers, strings and None as safetensors.

    Tensors become numbered entries, other values JSON in the file's metadata, with a checksum of it all;
    nothing is pickled.
    """
    tensors: dict[str, torch.Tensor] = {}
    packed = json.dumps(_pack(tree, tensors))
    save_tensors(path, tensors, {"tree": packed, "checksum": digest(tensors, packed)})


# Not within their callers: a function that calls itself there is a cycle, and holds on to the tensors until
# cycles are collected.
def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach().cpu()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, tensors) for v in value]}
    return {"value": value}


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {k: _unpack(v, tensors) for k, v in value["dict"]}
    if "list" in value:
        return [_unpack(v, tensors) for v in value["list"]]
    return value["value"]


def load_tree(path: Path) -> Tree:
    """Read what `save_tree` wrote; RunError if the file is missing, truncated, altered or something else."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if digest(tensors, metadata["tree"]) != metadata["checksum"]:
            raise ValueError("its checksum does not match its contents")
        tree: Tree = _unpack(json.loads(metadata["tree"]), tensors)
    except Exception as error:  # damaged files raise many kinds in safetensors and torch
        raise RunError(f"{path} is not a readable checkpoint ({error})") from error
    return tree

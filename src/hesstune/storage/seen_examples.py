"""Digests of the examples that weights were trained on, stored in the files of the weights."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hesstune.errors import ModelError
from hesstune.storage.files import reading

# The entry in the metadata of safetensors files, and the attribute of networks and their configurations.
KEY = "hesstune_seen_examples"
# Bytes kept of each digest.
KEPT_BYTES = 6


def _no_digests() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class SeenExamples:
    """The examples that trained or selected weights, or the weights that these were trained from.

    An example is known by the first 6 bytes of the digest of its content, whatever its name, label and part.
    Of n recorded examples none is missed; an example that is not recorded is taken for a recorded one with
    probability n / 2^48. The record takes 8 bytes an example, in base64.
    """

    # (n,) truncated digests as integers, sorted, each once
    digests: NDArray[np.uint64] = field(default_factory=_no_digests)
    unrecorded: tuple[str, ...] = ()  # weights files without such a record that the training started from

    @classmethod
    def of(cls, digests: Iterable[NDArray[np.uint8]]) -> SeenExamples:
        """Record examples by their contents' digests, arrays of shape (N, 16)."""
        return cls(np.unique(np.concatenate([_no_digests(), *map(_truncated_digests, digests)])))

    @property
    def count(self) -> int:
        """The number of different examples."""
        return len(self.digests)

    def __or__(self, other: SeenExamples) -> SeenExamples:
        unrecorded = dict.fromkeys([*self.unrecorded, *other.unrecorded])
        return SeenExamples(np.union1d(self.digests, other.digests), tuple(unrecorded))

    def contain(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return for each of (N, 16) digests whether its example was seen."""
        return np.isin(_truncated_digests(digests), self.digests)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        kept = self.digests.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -KEPT_BYTES:]
        text = base64.b64encode(kept.tobytes()).decode()
        return {"bytes": KEPT_BYTES, "digests": text, "unrecorded": list(self.unrecorded)}

    @classmethod
    def of_dict(cls, record: Any, source: str) -> SeenExamples:
        """Return the record that `to_dict` gave; ModelError if it is damaged, naming its source."""
        with reading(source, "weights with a record of the examples they have seen", ModelError):
            if record["bytes"] != KEPT_BYTES:
                raise ValueError(f"it keeps {record['bytes']!r} bytes of each digest, not {KEPT_BYTES}")
            kept = np.frombuffer(base64.b64decode(record["digests"], validate=True), np.uint8)
            digests = np.unique(_truncated_digests(kept.reshape(-1, KEPT_BYTES)))
            return cls(digests, tuple(str(name) for name in record["unrecorded"]))

    def metadata(self) -> dict[str, str]:
        """Return the record as metadata of a safetensors file."""
        return {KEY: json.dumps(self.to_dict())}

    @classmethod
    def of_file(cls, path: str | Path) -> SeenExamples | None:
        """Return the record in a weights file; None if it has none; ModelError if it is damaged."""
        from safetensors import safe_open

        if Path(path).suffix.lower() != ".safetensors":
            return None
        with reading(path, "weights", ModelError), safe_open(str(path), framework="np") as file:
            text = (file.metadata() or {}).get(KEY)
            return None if text is None else cls.of_dict(json.loads(text), str(path))

    def note_on(self, model: nn.Module) -> None:
        """Attach the record to a network: copies of it, and what `save_pretrained` writes, keep it."""
        setattr(_holder(model), KEY, self.to_dict())

    @classmethod
    def noted_on(cls, model: nn.Module) -> SeenExamples:
        """Return what is attached to a network or to the networks that it holds."""
        found = cls()
        for holder in {id(one): one for one in map(_holder, model.modules())}.values():
            if (record := getattr(holder, KEY, None)) is not None:
                found |= cls.of_dict(record, type(holder).__name__)
        return found


def _holder(model: nn.Module) -> Any:
    """Return what an attached record belongs to: the configuration of a transformers model, or the module."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "save_pretrained") else model


def _truncated_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    whole = np.zeros((len(digests), 8), np.uint8)
    whole[:, -KEPT_BYTES:] = digests[:, :KEPT_BYTES]
    return whole.reshape(-1).view(">u8").astype(np.uint64)

"""Digests of images and texts, by which equal contents are found again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.storage.tensors import digest_of_texts

DIGEST_BYTES = 16

Digests = NDArray[np.uint8]
"""(N, 16): a BLAKE2b digest a row."""


def as_digests(digests: Iterable[bytes]) -> Digests:
    """Return digests as rows, (N, 16)."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def digest_bytes(*contents: Any) -> bytes:
    """Return the digest of the concatenation of bytes-like objects."""
    made = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for content in contents:
        made.update(content)
    return made.digest()


def image_digests(images: Sequence[NDArray[Any]] | NDArray[Any]) -> Digests:
    """Return the digests of images given as arrays, (H, W, C): integers 0 to 255, or floats 0 to 1.

    The numbers and the shape count. The integer type does not, and floats are compared in float32.
    """

    def one(image: NDArray[Any]) -> bytes:
        kind = np.float32 if image.dtype.kind == "f" else np.uint8
        return digest_bytes(f"{image.shape} ".encode(), np.ascontiguousarray(image, kind).data)

    return as_digests(map(one, images))


def text_digests(texts: Iterable[tuple[str, str | None]]) -> Digests:
    """Return the digests of texts, or of pairs of texts."""
    return as_digests(bytes.fromhex(digest_of_texts(pair)) for pair in texts)

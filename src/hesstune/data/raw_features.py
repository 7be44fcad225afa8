"""What an example looks like, as plain numbers that no model computes: for noise that depends on it."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Examples

SIDE, WORDS, BATCH = 8, 256, 256


def raw_features(examples: Examples) -> NDArray[np.float64]:
    """Return standardised features, (N, D): images averaged to 8×8×3, texts as counts of hashed words.

    The scale is fixed, so that the same example has the same features in every part of the data.
    """
    texts = examples.texts
    if texts is None:
        parts = []
        for start in range(0, len(examples), BATCH):
            images = examples.images(np.arange(start, min(start + BATCH, len(examples)))).float()
            parts.append(torch.nn.functional.adaptive_avg_pool2d(images, SIDE).flatten(1))
        pooled = torch.cat(parts).double().numpy() if parts else np.zeros((0, 3 * SIDE * SIDE))
        return np.asarray((pooled - 127.5) / 64.0)
    found = np.zeros((len(examples), WORDS))
    for row, (first, second) in enumerate(texts):
        for word in f"{first} {second or ''}".lower().split():
            found[row, zlib.crc32(word.encode()) % WORDS] += 1
    lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1)
    scaled: NDArray[np.float64] = found / lengths * np.sqrt(WORDS)
    return scaled

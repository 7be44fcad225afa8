"""Built-in data: `digits`."""

from __future__ import annotations

import numpy as np
import torch

from hesstune.data.examples import Listing, image_digests
from hesstune.data.formats._base import DataFormat
from hesstune.data.images import resized
from hesstune.data.reading import Reading
from hesstune.resizing import Size


class Digits(DataFormat):
    """scikit-learn's handwritten digits."""

    written = "digits"
    summary = "Scikit-learn's 1,797 handwritten digits, to try things."

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        from sklearn.datasets import load_digits

        digits = load_digits()
        names = [str(name) for name in digits.target_names]
        return Listing(
            ids=[str(row) for row in range(len(digits.target))],
            labels=digits.target.astype(np.int64) if labelled else None,
            classes=names if labelled else [],
            given=None if labelled else [names[label] for label in digits.target],
            array=resized(torch.from_numpy(digits.images / 16.0 * 255.0).float()[:, None], size),
            flip=False,
            digests=image_digests(digits.images[..., None] / 16.0),
        )


FORMAT = Digits

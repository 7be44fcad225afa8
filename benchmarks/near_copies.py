"""Which altered copies `hesstune.data.near_duplicates` finds, and which other examples it joins.

Thresholds were chosen on every second row of the lists below (files by name, lines of a table). This measures
on the others. Each alteration is applied to other originals, and all copies are searched together with all of
the rows. One constant (NULL_DEVIATIONS) was raised from 3 to 4 after a first run had joined two different
guitars among the sketches.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from data_files import PACS, cifar10n_lines, sentences
from hesstune.data.examples import Examples, Texts
from hesstune.data.formats import listing
from hesstune.data.images import DecodedImages
from hesstune.data.near_duplicates import NULL_DEVIATIONS, near_duplicates
from records import Run

# All rows are searched, for the time, without copies.
ALL_ROWS = "cifar10n, all rows"
COPIES = 150
FLIP, BILINEAR, BLUR = Image.Transpose.FLIP_LEFT_RIGHT, Image.Resampling.BILINEAR, ImageFilter.GaussianBlur
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
Random = np.random.Generator


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image, share: float, rng: Random) -> Image.Image:
    side = round(image.width * share)
    left, top = rng.integers(0, image.width - side + 1, 2).tolist()
    return image.crop((left, top, left + side, top + side))


def _relit(image: Image.Image, rng: Random) -> Image.Image:
    brighter = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.7, 1.3))


def _gamma(image: Image.Image, rng: Random) -> Image.Image:
    power = float(rng.choice([0.6, 0.75, 1.33, 1.6]))
    return image.point(lambda value: round(255 * (value / 255) ** power))


IMAGES: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "mirrored": lambda image, rng: image.transpose(FLIP),
    "rotated by 90°, 180° or 270°": lambda image, rng: image.transpose(TURNS[rng.integers(3)]),
    "rotated by up to 10°": lambda image, rng: image.rotate(rng.uniform(-10, 10), BILINEAR),
    "cropped to 80 % of the sides": lambda image, rng: _cropped(image, 0.8, rng),
    "greyed": lambda image, rng: image.convert("L").convert("RGB"),
    "blurred (1/64 of the width)": lambda image, rng: image.filter(BLUR(image.width / 64)),
    "brightness and contrast ±30 %": _relit,
    "gamma 0.6 to 1.6": _gamma,
    "half the size": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "JPEG, quality 50": lambda image, rng: _jpeg(image, 50),
    "mirrored, rotated by 8°, cropped to 85 %": lambda image, rng: _cropped(
        image.transpose(FLIP).rotate(8, BILINEAR), 0.85, rng
    ),
    "mirrored and greyed": lambda image, rng: image.transpose(FLIP).convert("L").convert("RGB"),
}


def _replaced(words: list[str], count: int, rng: Random, put: list[str]) -> list[str]:
    at = set(rng.choice(len(words), count, replace=False).tolist())
    return [word for n, old in enumerate(words) for word in (put if n in at else [old])]


TEXTS: dict[str, Callable[[list[str], Random], list[str]]] = {
    "upper case": lambda words, rng: [word.upper() for word in words],
    "other punctuation": lambda words, rng: [*(w for w in words if w not in {",", ".", "--"}), "!"],
    "one word left out": lambda words, rng: _replaced(words, 1, rng, []),
    "one word replaced": lambda words, rng: _replaced(words, 1, rng, ["something"]),
    "two words replaced": lambda words, rng: _replaced(words, 2, rng, ["something"]),
}


def _part(rows: list[Any], side: int) -> Examples:
    ids = [str(n) for n in range(len(rows))]
    if isinstance(rows[0], str):
        return Examples(Texts([(row, None) for row in rows]), np.arange(len(rows)), ids, None)
    squares = [np.array(image.resize((side, side), BILINEAR)) for image in rows]
    array = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
    return Examples(DecodedImages(array), np.arange(len(array)), ids, None)


def _rows(data: Path, name: str) -> tuple[list[str], list[Any]]:
    """Return the names and the examples of all rows of a list."""
    if name in PACS:
        files = sorted((data / "pacs128" / name).glob("*/*.jpg"))
    elif name in ("cifar10n", ALL_ROWS):
        files = [Path(line["image"]) for line in cifar10n_lines(data / "cifar10n")]
    elif name == "digits":
        array = listing("digits", 32).array
        assert array is not None
        images = [Image.fromarray(some) for some in array.permute(0, 2, 3, 1).numpy()]
        return [str(n) for n in range(len(images))], images
    else:
        if name == "sst2":
            lines = [text for (text,), _ in sentences(data, name, "train")]
        else:
            with (data / "wrench" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
                lines = [row["text"] for row in csv.DictReader(file)]
        texts = list(dict.fromkeys(lines))[: 6000 if name == "sst2" else None]
        return texts, texts
    return [f"{f.parent.name}/{f.name}" for f in files], [Image.open(f).convert("RGB") for f in files]


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return recall by alteration, and the groups found among the unaltered rows."""
    name = case["collection"]
    whole = name in ("digits", ALL_ROWS)
    names, rows = (some if whole else some[1::2] for some in _rows(run.data, name))
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[Any, Random], Any]] = {**(TEXTS if isinstance(rows[0], str) else IMAGES)}
    side = 128 if name in PACS else 32
    start = time.process_time()
    (groups,) = near_duplicates([_part(rows, side)])
    record: dict[str, Any] = {"n": len(rows), "seconds": round(time.process_time() - start, 1)}
    record["null_deviations"] = NULL_DEVIATIONS
    joined = [[names[row] for row in np.flatnonzero(groups == group)] for group in np.unique(groups)]
    record["joined"] = [some for some in joined if len(some) > 1]
    if not whole:
        long = [n for n, row in enumerate(rows) if not isinstance(row, str) or len(row.split()) >= 8]
        share = min(COPIES, len(long) // len(kinds))
        chosen = rng.permutation(long)[: share * len(kinds)].reshape(len(kinds), share)
        copies: list[Any] = []
        for alter, some in zip(kinds.values(), chosen, strict=True):
            for n in some:
                row = rows[n]
                copies.append(" ".join(alter(row.split(), rng)) if isinstance(row, str) else alter(row, rng))
        one, two = near_duplicates([_part(rows, side), _part(copies, side)])
        found = (one[chosen] == two.reshape(chosen.shape)).mean(axis=1)
        record |= {"copies": share, "recall": dict(zip(kinds, np.round(found, 3).tolist(), strict=True))}
    return record

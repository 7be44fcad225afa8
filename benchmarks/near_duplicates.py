"""Measure which altered copies `hesstune.data.near_duplicates` finds, and what it joins besides.

python benchmarks/near_duplicates.py --data DATA [--only NAME]

DATA holds pacs128/, cifar10n/ and sst2/. Thresholds were chosen on PACS art paintings and cartoons and on the
first 5,000 images of CIFAR-10N; this measures on PACS photos and sketches, the next 5,000 images and SST-2.
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

from hesstune.data.examples import Examples, Texts
from hesstune.data.images import DecodedImages
from hesstune.data.near_duplicates import near_duplicates
from records import arguments, read_record, write_record

COPIES, POOL = 100, 800
MIRROR, TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270),
)
Altered = Callable[[Image.Image, np.random.Generator], Image.Image]


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    side = round(image.width * share)
    left, top = rng.integers(0, image.width - side + 1, 2).tolist()
    return image.crop((left, top, left + side, top + side))


def _rotated(image: Image.Image, angle: float) -> Image.Image:
    return image.rotate(angle, Image.Resampling.BILINEAR)


def _relit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    brighter = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.7, 1.3))


IMAGES: dict[str, Altered] = {
    "JPEG, quality 50": lambda image, rng: _jpeg(image, 50),
    "half the size": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "mirrored": lambda image, rng: image.transpose(MIRROR),
    "rotated by 90°, 180° or 270°": lambda image, rng: image.transpose(TURNS[rng.integers(3)]),
    "rotated by up to 10°": lambda image, rng: _rotated(image, rng.uniform(-10, 10)),
    "cropped to 80 % of the sides": lambda image, rng: _cropped(image, 0.8, rng),
    "greyed": lambda image, rng: image.convert("L").convert("RGB"),
    "blurred (1/64 of the width)": lambda image, rng: image.filter(
        ImageFilter.GaussianBlur(image.width / 64)
    ),
    "brightness and contrast ±30 %": _relit,
    "mirrored, rotated by 8°, cropped to 85 %": lambda image, rng: _cropped(
        _rotated(image.transpose(MIRROR), 8), 0.85, rng
    ),
}


def _swapped(words: list[str], rng: np.random.Generator) -> list[str]:
    cut = int(rng.integers(1, len(words)))
    return words[cut:] + words[:cut]


def _without(words: list[str], count: int, rng: np.random.Generator, put: list[str]) -> list[str]:
    at = set(rng.choice(len(words), count, replace=False).tolist())
    return [word for n, old in enumerate(words) for word in (put if n in at else [old])]


TEXTS: dict[str, Callable[[list[str], np.random.Generator], list[str]]] = {
    "upper case": lambda words, rng: [word.upper() for word in words],
    "other punctuation": lambda words, rng: [*(w for w in words if w not in {",", ".", "--"}), "!"],
    "two parts swapped": _swapped,
    "one word left out": lambda words, rng: _without(words, 1, rng, []),
    "one word replaced": lambda words, rng: _without(words, 1, rng, ["something"]),
    "two words replaced": lambda words, rng: _without(words, 2, rng, ["something"]),
}


def _files(data: Path, name: str) -> list[Path]:
    if name != "cifar10n 5000-9999":
        return sorted((data / "pacs128" / name).glob("*/*.jpg"))
    with (data / "cifar10n" / "labels.csv").open(newline="", encoding="utf-8") as file:
        return [data / "cifar10n" / line["image"] for line in csv.DictReader(file)][5000:10000]


def _part(images: list[Image.Image], side: int) -> Examples:
    squares = [np.array(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    array = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
    return Examples(DecodedImages(array), np.arange(len(array)), [str(n) for n in range(len(array))], None)


def _extra(groups: np.ndarray[Any, Any], ids: list[str]) -> dict[str, Any]:
    joined = [[ids[row] for row in np.flatnonzero(groups == group)] for group in np.unique(groups)]
    return {"n": len(ids), "joined": [names for names in joined if len(names) > 1]}


def images(data: Path, name: str) -> dict[str, Any]:
    """Return recall by kind of change, and the groups found among the unaltered images."""
    rng = np.random.default_rng(0)
    files = [files[row] for files in [_files(data, name)] for row in rng.permutation(len(files))[:POOL]]
    pool = [Image.open(file).convert("RGB") for file in files]
    side = max(64, pool[0].width)
    start = time.process_time()
    (groups,) = near_duplicates([_part(pool, side)])
    record = _extra(groups, [f"{file.parent.name}/{file.name}" for file in files])
    record["seconds"] = round(time.process_time() - start, 1)
    record["recall"] = {}
    for kind, alter in IMAGES.items():
        copies = [alter(image, rng) for image in pool[:COPIES]]
        one, two = near_duplicates([_part(pool[:COPIES], side), _part(copies, side)])
        record["recall"][kind] = float((one == two).mean())
        print(name, kind, record["recall"][kind], flush=True)
    return record


def texts(data: Path) -> dict[str, Any]:
    """Return the same of sentences of 8 words and more, in a collection of 3,000."""
    lines = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()
    pool = list(dict.fromkeys(line.split("\t")[0] for line in lines))[:3000]
    rng = np.random.default_rng(0)
    start = time.process_time()
    (groups,) = near_duplicates([_texts(pool)])
    record = _extra(groups, pool)
    record["seconds"] = round(time.process_time() - start, 1)
    chosen = [text for text in pool if len(text.split()) >= 8][: 5 * COPIES]
    record["recall"] = {}
    for kind, alter in TEXTS.items():
        copies = [" ".join(alter(text.split(), rng)) for text in chosen]
        one, two = near_duplicates([_texts(pool), _texts(copies)])
        group = dict(zip(pool, one.tolist(), strict=True))
        record["recall"][kind] = float(np.mean([group[t] == g for t, g in zip(chosen, two, strict=True)]))
        print(kind, record["recall"][kind], flush=True)
    return record


def _texts(rows: list[str]) -> Examples:
    return Examples(
        Texts([(row, None) for row in rows]), np.arange(len(rows)), list(map(str, range(len(rows)))), None
    )


if __name__ == "__main__":
    parser = arguments(__doc__, "pacs128/, cifar10n/ and sst2/")
    parser.add_argument("--only", help="one collection")
    told = parser.parse_args()
    for collection in ("photo", "sketch", "cifar10n 5000-9999", "sst2"):
        if told.only in (None, collection):
            found = texts(told.data) if collection == "sst2" else images(told.data, collection)
            every = read_record("near_duplicates", {"collections": {}})
            write_record("near_duplicates", {"collections": {**every["collections"], collection: found}})

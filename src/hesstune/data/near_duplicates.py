"""Near-duplicates: altered copies of an image, and texts that differ in case, punctuation or a few words."""

from __future__ import annotations

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import PurePath

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from hesstune.data.examples import Examples, Text, digest_bytes, raw_features
from hesstune.data.images import DecodedImages, FileImages
from hesstune.noise.latent.copies import by_first_appearance, feature_groups, joined
from hesstune.storage.user_cache import read_cached, user_cache, write_cached

# Texts are near-duplicates if the words that they share have this part of the weight of all their words, and
# words in the same order are this part of all. Texts of fewer words must have equal normal forms.
SHARED_WEIGHT, SHARED_ORDER, FEWEST_WORDS = 0.7, 0.8, 8
ROWS, PAIRS = 512, 1 << 16

Rows = NDArray[np.int64]


def near_duplicates(parts: Sequence[Examples]) -> list[NDArray[np.int64]]:
    """Return group numbers, (N,) for each part, the same for near-duplicates, by the examples' inputs alone.

    Images: see `_group_images`. Texts are near-duplicates if `plain_text` makes them equal, or if both have
    at least 8 different words, the weighted Jaccard similarity of their word sets is at least 0.7 (a word's
    weight is its inverse document frequency), at least 0.8 of their words are the same in the same order, and
    they hold the same numbers. Pairs are near-duplicates if both of their texts are. Feature vectors are
    near-duplicates if they are equal in single precision. A near-duplicate of one example of a group belongs
    to the group.
    """
    if any(part.texts is not None for part in parts):
        groups = _group_texts([text for part in parts for text in part.texts or []])
    elif any(part.vectors is not None for part in parts):
        groups = _group_vectors(parts)
    else:
        groups = _group_images(parts)
    return np.split(by_first_appearance(groups), np.cumsum([len(part) for part in parts])[:-1])


# Altered copies of images are looked for among so many images at most; equal ones and those that are named as
# copies in any case.
MOST_SEARCHED = 5000
# Descriptors of altered copies have a cosine of at least this: of 300 altered copies of photos 99.7 % do, and
# a quarter of the candidate pairs. Correlations of no copies are then taken from so many images.
LEAST_COSINE, NULL_IMAGES = 0.8, 100
# Groups by name hold if the inputs of copies are among the nearest share of all, for most of them.
NEAR_SHARE, MOST_NEAR, COMPARED = 0.05, 0.5, 2000
# Endings of the names of copies: of Roboflow, of augmentation scripts, and of files copied twice.
COPY_NAMES = re.compile(
    r"(?:_(?:jpe?g|png|bmp|webp|gif|tiff?))?\.rf\.[0-9A-Za-z]{8,}$"
    r"|[ _-]*\((?:\d{1,3}|copy)\)$"
    r"|[ _-]+(?:aug|augmented|augmentation|copy|dup|duplicate|flip|flipped|hflip|vflip|mirror|mirrored"
    r"|rot|rotated|crop|cropped|blur|blurred|noise|noisy|bright|dark)[ _-]?\d{0,4}$",
    re.IGNORECASE,
)
# Raised whenever groups of images, or how they are found, change: the user's cache outlives a version.
FORMAT = "1"
_KEPT: OrderedDict[str, Rows] = OrderedDict()
MOST_KEPT = 8


def copies_in(parts: Sequence[Examples]) -> list[Rows]:
    """Return group numbers, (N,) for each part, the same for copies of one example, by inputs and by names.

    As `near_duplicates`, but fast: altered copies of images are looked for among at most MOST_SEARCHED
    images, and only pairs of similar descriptors are compared. Images whose names differ only by an ending of
    COPY_NAMES, in one folder, are copies, too, if their inputs are similar (`confirmed_names`).
    """
    sizes = [len(part) for part in parts]
    ids = [name for part in parts for name in part.ids]
    if any(part.kind != "image" for part in parts):
        groups = np.concatenate(near_duplicates(parts))
        vectors = [
            found.batch(np.arange(len(found))) for part in parts if (found := part.vectors) is not None
        ]
        if vectors and len(groups) <= MOST_SEARCHED:
            groups = joined(groups, feature_groups(torch.cat(vectors).numpy()))
        return np.split(groups, np.cumsum(sizes)[:-1])
    content = [_digests(part, pixels=sum(sizes) <= MOST_SEARCHED) for part in parts]
    made_of = [FORMAT, np.__version__, torch.__version__, *map(_decoding, parts), *ids]
    key = digest_bytes(*(some.tobytes() for some in content), "\0".join(made_of).encode()).hex()
    if (kept := _KEPT.get(key)) is None:
        kept = _KEPT[key] = _kept_groups(key, parts, content)
        while len(_KEPT) > MOST_KEPT:
            _KEPT.popitem(last=False)
    return np.split(kept, np.cumsum(sizes)[:-1])


def _kept_groups(key: str, parts: Sequence[Examples], content: Sequence[NDArray[np.uint8]]) -> Rows:
    """Return groups of images, (N,): from the user's cache, or computed and written there."""
    n = sum(map(len, parts))
    if n > MOST_SEARCHED:
        images = np.unique(np.concatenate(content), axis=0, return_inverse=True)[1].reshape(-1)
        return joined(images, confirmed_names(parts))
    folder = user_cache()
    path = None if folder is None else folder / f"copies_{key}.safetensors"
    kept = None if path is None else (read_cached(path) or {}).get("groups")
    if isinstance(kept, torch.Tensor) and kept.shape == (n,) and kept.dtype == torch.int64:
        return kept.numpy()
    groups = joined(_group_images(parts, quick=True), confirmed_names(parts))
    if path is not None:
        write_cached(path, {"groups": torch.from_numpy(groups)})
    return groups


def _decoding(part: Examples) -> str:
    """Return how files become the pixels that are compared; nothing for pixels in memory."""
    source = part.source
    how = f"{source.size} {source.background} {PIL.__version__}" if isinstance(source, FileImages) else ""
    return f"{len(part)} {how}"


def _digests(part: Examples, pixels: bool) -> NDArray[np.uint8]:
    """Return the digests of images, (N, 16): of files, or of decoded images if they are in memory."""
    if hasattr(part.source, "digests"):
        anew = pixels and isinstance(part.source, DecodedImages)
        found: NDArray[np.uint8] = part.source.digests(part.rows, anew)
        return found
    starts = range(0, len(part), BATCH)
    batches = (part.images(np.arange(at, min(at + BATCH, len(part)))) for at in starts)
    rows = (one.tobytes() for batch in batches for one in batch.contiguous().numpy())
    return np.stack([np.frombuffer(digest_bytes(one), np.uint8) for one in rows])


def named_groups(ids: Sequence[str]) -> Rows:
    """Return groups, (N,), of names in one folder that differ only by an ending of a copy."""
    found: dict[tuple[str, str], int] = {}
    groups = []
    for name in ids:
        path = PurePath(name)
        stem = path.stem
        while (shorter := COPY_NAMES.sub("", stem)) not in (stem, ""):
            stem = shorter
        groups.append(found.setdefault((str(path.parent), stem), len(found)))
    return np.array(groups, np.int64)


def confirmed_names(parts: Sequence[Examples]) -> Rows:
    """Return `named_groups` of all parts if inputs of one group are near; else each example by itself.

    For up to COMPARED examples of a group, the distance to the nearest other one of its group has to be among
    the nearest NEAR_SHARE of the distances to all, for a share MOST_NEAR of these examples.
    """
    groups = named_groups([name for part in parts for name in part.ids])
    sizes = np.bincount(groups, minlength=1)
    rows = np.flatnonzero(sizes[groups] > 1)
    if not len(rows):
        return groups
    x = np.concatenate([raw_features(part) for part in parts])
    near = []
    for row in rows[:: max(1, len(rows) // COMPARED)].tolist():
        distance = ((x - x[row]) ** 2).sum(axis=1)
        own = (groups == groups[row]) & (np.arange(len(x)) != row)
        near.append(float((distance < distance[own].min()).mean()) <= NEAR_SHARE)
    return groups if np.mean(near) >= MOST_NEAR else np.arange(len(groups))


def _group_vectors(parts: Sequence[Examples]) -> NDArray[np.int64]:
    """Return the number of each vector's group of equal ones, (N,)."""
    kept = [
        vectors.digests(np.arange(len(vectors))) for part in parts if (vectors := part.vectors) is not None
    ]
    return np.unique(np.concatenate(kept), axis=0, return_inverse=True)[1].reshape(-1)


_MARKS = str.maketrans("‘’‚‛“”„‟«»‐‑‒–—―", '\'\'\'\'""""""------')
# Punctuation without the signs %, @, #, &, and without what stands before or within numbers.
_PUNCTUATION = re.compile(
    r"(?<!\d)[.,:/](?!\d)|(?<=\d)[.,:/](?!\d)|-(?!\d)|(?<=\w)-|[^\w\s.,:/%@#&+$<>=^~|-]|_"
)


def plain_text(text: str) -> str:
    """Return a text's normal form: NFKC, case folded, without punctuation.

    Words, their order, numbers with their signs, and symbols stay.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(c for c in folded.translate(_MARKS) if c.isspace() or unicodedata.category(c) != "Cf")
    joined = re.sub(r"(?<=\w)\s*'\s*(?=\w)", "", seen)
    plain = " ".join(_PUNCTUATION.sub(" ", joined).split())
    return plain or " ".join(seen.split())


def _group_texts(texts: Sequence[Text]) -> NDArray[np.int64]:
    keys = [(plain_text(one), None if two is None else plain_text(two)) for one, two in texts]
    found: dict[object, int] = {}
    same = np.array([found.setdefault(key, len(found)) for key in keys], np.int64)
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        return same
    near = _alike([one for one, _ in different])
    if any(two is not None for _, two in different):
        # A second text that is missing is like a missing one only.
        near = near * _alike([two if two is not None else "\0" for _, two in different])
    return np.asarray(connected_components(near, directed=False)[1][same])


def _alike(texts: Sequence[str]) -> sparse.csr_array:
    """Return which of N texts are near-duplicates, (N, N) sparse: equal, or of similar sets of words.

    Texts of enough similarity share one of their rarest words: of those that remain, the weight is too small
    (prefix filtering; Chaudhuri et al. 2006). So only few pairs are compared.
    """
    numbers: dict[str, int] = {}
    of = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    if len(numbers) < len(texts):
        whole: sparse.csr_array = _alike(list(numbers))[of][:, of]
        return whole
    words: dict[str, int] = {}
    rows = [np.array(sorted({words.setdefault(w, len(words)) for w in text.split()}), int) for text in texts]
    frequency = np.bincount(np.concatenate(rows), minlength=len(words))
    weight = np.log((len(texts) + 1) / frequency)
    prefixes = [_prefix(row, weight) for row in rows]
    long = [row if len(row) >= FEWEST_WORDS else row[:0] for row in rows]
    shares = _matrix(long, weight, len(words))
    starts = _matrix(prefixes, np.ones(len(words)), len(words))
    total = shares.sum(axis=1)
    found: tuple[list[Rows], list[Rows]] = [np.arange(len(texts))], [np.arange(len(texts))]
    indicator = _matrix(long, np.ones(len(words)), len(words))
    for at in range(0, len(texts), ROWS):
        near = (starts[at : at + ROWS] @ starts.T).tocoo()
        a, b = near.row + at, near.col
        a, b = a[a < b], b[a < b]
        for part in range(0, len(a), PAIRS):
            one, two = a[part : part + PAIRS], b[part : part + PAIRS]
            shared = shares[one].multiply(indicator[two]).sum(axis=1)
            keep = shared >= SHARED_WEIGHT * (total[one] + total[two] - shared)
            keep[keep] = [_same_order(texts[a], texts[b]) for a, b in zip(one[keep], two[keep], strict=True)]
            found[0].extend([one[keep], two[keep]])
            found[1].extend([two[keep], one[keep]])
    a, b = (np.concatenate(ends) for ends in found)
    return sparse.csr_array((np.ones(len(a)), (a, b)), (len(texts), len(texts)))


def _same_order(one: str, two: str) -> bool:
    """Tell whether two texts have most words in the same order, and the same words with digits."""
    words = one.split(), two.split()
    numbers = [[word for word in some if re.search(r"\d", word)] for some in words]
    return numbers[0] == numbers[1] and SequenceMatcher(None, *words, autojunk=False).ratio() >= SHARED_ORDER


def _prefix(row: Rows, weight: NDArray[np.float64]) -> Rows:
    """Return a text's rarest words, without those that alone cannot make two texts similar enough."""
    if len(row) < FEWEST_WORDS:
        return row[:0]
    order = row[np.argsort(-weight[row], kind="stable")]
    remaining = weight[order].sum() - np.concatenate([[0.0], np.cumsum(weight[order])[:-1]])
    kept: Rows = order[remaining >= SHARED_WEIGHT * weight[order].sum() - 1e-9]
    return kept


def _matrix(rows: Sequence[Rows], weight: NDArray[np.float64], words: int) -> sparse.csr_array:
    """Return an (N, V) matrix that holds the weights of each text's words."""
    columns = np.concatenate(rows)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return sparse.csr_array((weight[columns], columns, starts), (len(rows), words))


# -- copies of images

Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

BATCH = 256
# Sides of the thumbnails on which pairs are aligned and compared.
SIDE, FINE_SIDE = 32, 64
GREY = (0.299, 0.587, 0.114)
# Grey levels of deviation below which an image has no structure to compare; then only equal pixels count.
FLAT = 3.0
# Cosines a side of a descriptor; the images of nearest descriptors that each image is aligned with.
WAVES, NEAREST = 9, 8
# The same in the search at the start of a run.
QUICK_NEAREST = 2
# The correlation of normalised gradients at the coarse side from which a pair is compared at the fine side,
# and the share of the disk that must have a counterpart.
HOPELESS, OVERLAP = 0.8, 0.6
# A pair is a copy from the correlation r with atanh r = BASE + SLOPE / √(degrees of freedom): images with few
# details need a closer match. Chosen on the development rows of benchmarks/near_copies.py.
BASE, SLOPE = 1.5, 2.9
# It must also exceed this many deviations of the correlations of pairs that are no copies (below NO_COPY).
NULL_DEVIATIONS, NO_COPY, FEWEST = 4.0, 0.95, 20
# If the median of these correlations is larger, images are too alike (handwritten digits) for this test.
TOO_ALIKE = 0.8
# In all data, images are copies that differ after the alignment by at most this share of the mean gradient.
DIFFERENCE = 0.1
# Blurs in pixels of the coarse thumbnails for both stages of the alignment, and of the fine thumbnails.
BLURS, FINE_BLUR = (1.5, 0.7), 1.0
# Further blurs of one image of a pair: the other may be a blurred or enlarged copy.
FURTHER = ((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 1.0), (0.0, 2.0))


def _places(side: int) -> Maps:
    """Return coordinates from -1 to 1, (S, S, 3) with a column of ones, and a disk without the corners."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    radius = (across**2 + down**2).sqrt()
    return torch.stack([across, down, torch.ones_like(down)], dim=-1), (radius < 0.95).float(), radius


_PLACES = {side: _places(side) for side in (SIDE, FINE_SIDE)}


def _group_images(parts: Sequence[Examples], quick: bool = False) -> Rows:
    """Return group numbers, (N,), of all images: copies of an image have its number.

    Candidates are the pairs of nearest descriptors (low frequencies of a grey thumbnail inside a disk), where
    one image goes through a grid of transforms: mirrored or not, quarter turns, ±8°, crops. Gauss-Newton
    steps align a candidate by an affine map (Lucas and Kanade 1981). It is a copy if the gradients of the
    aligned images, normalised by their local size, correlate more than a threshold. The threshold depends on
    the detail of the images and on the correlations of pairs of the same data that are no copies.
    """
    if not sum(map(len, parts)):
        return np.zeros(0, np.int64)
    digests: dict[bytes, int] = {}
    same: list[int] = []
    small = []
    batches = ((part, at) for part in parts for at in range(0, len(part), BATCH))
    for part, at in batches:
        batch = part.images(np.arange(at, min(at + BATCH, len(part))))
        for one in batch.contiguous().numpy():
            same.append(digests.setdefault(digest_bytes(one.tobytes()), len(digests)))
        small.append(_thumbnails(batch))
    thumbs = torch.cat(small)
    _, first = np.unique(same, return_index=True)
    alone = first[(thumbs[first].float().std(dim=(1, 2, 3)) >= FLAT).numpy()]
    groups = np.arange(len(first))
    if len(alone) > 1:
        of_alone = np.asarray(same)[alone]
        groups[of_alone] = of_alone[_Search(thumbs[alone], LEAST_COSINE if quick else 0.0).groups()]
    return groups[same]


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Return grey thumbnails, (N, 1, 64, 64), in half precision."""
    grey = (images.float() * torch.tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    if min(grey.shape[-2:]) < FINE_SIDE:
        return functional.interpolate(grey, (FINE_SIDE, FINE_SIDE), mode="bilinear").half()
    return functional.adaptive_avg_pool2d(grey, FINE_SIDE).half()


class _Search:
    """The search for groups of copies among N thumbnails, (N, 1, S, S)."""

    def __init__(self, fine: torch.Tensor, least_cosine: float = 0.0) -> None:
        self.fine, self.least_cosine = fine, least_cosine
        self.nearest = QUICK_NEAREST if least_cosine else NEAREST
        coarse = functional.avg_pool2d(fine.float(), FINE_SIDE // SIDE)
        self.coarse = [_blurred(coarse, blur) for blur in BLURS]
        self.maps, self.bases = _transformed_bases()
        self.descriptors = _normalised(self.coarse[1].flatten(1) @ self.bases[0])
        self.freedom = _freedom(self.coarse[1])
        self.least: float | None = None

    def groups(self) -> Rows:
        """Return for each image the index of one image of its group, the same for all of a group."""
        found = np.arange(len(self.fine))
        rows = found
        if self.least_cosine:  # similar pairs alone are no sample of pairs that are no copies
            least, self.least_cosine = self.least_cosine, 0.0
            some = rows[:: max(1, len(rows) // NULL_IMAGES)]
            self._set_threshold(self._coarse(*self._candidates(some, found))[0])
            self.least_cosine = least
            if self.least == np.inf:  # too alike: only equal images are copies
                return found
        while len(rows):
            a, b, maps = self._candidates(rows, found)
            copies = self._are_copies(a, b, maps)
            for one, two in zip(a[copies].tolist(), b[copies].tolist(), strict=True):
                ends = found[one], found[two]
                if ends[0] != ends[1]:
                    found[found == max(ends)] = min(ends)
            # Copies may hide further ones: an image whose candidates are all copies looks again.
            tried, every = (np.bincount(at, minlength=len(found)) for at in (a[copies], a))
            rows = np.flatnonzero((tried > 0) & (tried == every))
        return found

    def _candidates(self, rows: Rows, groups: Rows) -> tuple[Rows, Rows, torch.Tensor]:
        """Return pairs of images of different groups, and the affine maps (B, 2, 3) to start from."""
        pairs, maps = [], []
        for at in range(0, len(rows), BATCH):
            some = rows[at : at + BATCH]
            moved = _normalised(self.coarse[1][some].flatten(1) @ self.bases)
            near = torch.full((len(some), len(self.fine)), -1.0)
            for one in moved:
                torch.maximum(near, one @ self.descriptors.T, out=near)
            near[torch.from_numpy(groups[some][:, None] == groups)] = -1.0
            value, nearest = near.topk(min(self.nearest, len(self.fine)))
            own, place = torch.nonzero(value > self.least_cosine, as_tuple=True)
            other = nearest[own, place]
            best = torch.einsum("tbd,bd->tb", moved[:, own], self.descriptors[other]).argmax(dim=0)
            pairs.append(np.stack([some[own.numpy()], other.numpy()]))
            maps.append(self.maps[best])
        a, b = np.concatenate(pairs, axis=1)
        return a, b, torch.cat(maps)

    def _are_copies(self, a: Rows, b: Rows, maps: torch.Tensor) -> NDArray[np.bool_]:
        coarse, maps, difference = self._coarse(a, b, maps)
        if self.least is None:
            self._set_threshold(coarse)
        freedom = np.minimum(self.freedom[a], self.freedom[b])
        least = np.tanh(np.maximum(BASE + SLOPE / np.sqrt(freedom), self.least or -1.0))
        found = np.zeros(len(a), bool)
        found[difference <= DIFFERENCE] = True
        open_ = np.flatnonzero((coarse >= HOPELESS) & ~found & (least < 1))
        for at in range(0, len(open_), BATCH):
            rows = open_[at : at + BATCH]
            found[rows] = self._fine(a[rows], b[rows], maps[rows]) >= least[rows]
        return found

    def _set_threshold(self, coarse: NDArray[np.float32]) -> None:
        """Set the least atanh of a correlation that pairs which are no copies do not reach."""
        null = np.arctanh(coarse[coarse < NO_COPY])
        self.least = -1.0
        if len(null) >= FEWEST:
            middle, high = np.quantile(null, [0.5, 0.9])
            self.least = float(middle + NULL_DEVIATIONS * (high - middle) / 1.2816)
            if np.tanh(middle) >= TOO_ALIKE:
                self.least = np.inf

    def _coarse(
        self, a: Rows, b: Rows, maps: torch.Tensor
    ) -> tuple[NDArray[np.float32], torch.Tensor, NDArray[np.float32]]:
        """Align pairs at the coarse side; return correlations, maps, and differences."""
        correlations, aligned, differences = [torch.zeros(0)], [maps[:0]], [torch.zeros(0)]
        for at in range(0, len(a), BATCH):
            one, two = a[at : at + BATCH], b[at : at + BATCH]
            now = maps[at : at + BATCH]
            for thumbs in self.coarse:
                moved, target, weight, now = _align(thumbs[one], thumbs[two], now, 2)
            correlations.append(_correlation(moved, target, weight))
            differences.append(_difference(moved, target, weight))
            aligned.append(now)
        return torch.cat(correlations).numpy(), torch.cat(aligned), torch.cat(differences).numpy()

    def _fine(self, a: Rows, b: Rows, maps: torch.Tensor) -> NDArray[np.float32]:
        """Return the correlations at the fine side, -1 if too little of the images overlaps."""
        one, two = (_blurred(self.fine[at].float(), FINE_BLUR) for at in (a, b))
        moved, target, weight, _ = _align(one, two, maps, 2)
        best = torch.full((len(a),), -1.0)
        for blurs in FURTHER:
            ours, others = (
                _standard(_blurred(t, s), weight) for t, s in zip((moved, target), blurs, strict=True)
            )
            best = torch.maximum(best, _correlation(ours, others, weight))
        overlap = weight.sum((1, 2, 3)) / _PLACES[FINE_SIDE][1].sum()
        return torch.where(overlap >= OVERLAP, best, -1.0).numpy()


def _correlation(moved: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the correlation of gradients, (B,), after division by their local root mean square."""
    sides = []
    for image in (moved, target):
        slopes = torch.cat(_slopes(image), dim=1)
        local = _blurred(slopes.square().sum(dim=1, keepdim=True), 3.0)
        mean = (local * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
        sides.append(slopes / (local + 0.1 * mean).sqrt().clamp(min=1e-9) * weight)
    ours, others = sides
    size = (ours.square().sum((1, 2, 3)) * others.square().sum((1, 2, 3))).sqrt().clamp(min=1e-9)
    return (ours * others).sum((1, 2, 3)) / size


def _difference(moved: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean difference over the smoother image's mean gradient, (B,)."""
    rough = [(torch.cat(_slopes(t), dim=1).abs() * weight).sum((1, 2, 3)) for t in (moved, target)]
    return ((moved - target).abs() * weight).sum((1, 2, 3)) / torch.minimum(*rough).clamp(min=1e-6)


@cache
def _transformed_bases() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all transforms, (T, 2, 3), and the bases that describe an image after each, (T, S², D)."""
    maps, basis = torch.stack(list(_transforms())), _basis()
    return maps, torch.stack([_resampling(affine) @ basis for affine in maps])


def _transforms() -> Iterator[torch.Tensor]:
    """Yield affine maps (2, 3) of places in an image, -1 to 1: the identity first."""
    near, far = (-0.055, 0.055), (-0.165, -0.055, 0.055, 0.165)
    for mirrored in (1.0, -1.0):
        for angle in (0, -8, 8, 90, 180, 270):
            yield _affine(mirrored, angle, 1.0, (0.0, 0.0))
            shifts = {0: far, 8: (-0.1, 0.1), -8: (-0.1, 0.1)}.get(angle, near)
            for place in ((x, y) for x in shifts for y in shifts):
                yield _affine(mirrored, angle, 0.83, place)


def _affine(mirrored: float, angle: float, scale: float, shift: tuple[float, float]) -> torch.Tensor:
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = np.diag([mirrored, 1.0]) @ np.array([[cos, -sin], [sin, cos]])
    return torch.from_numpy(np.c_[turned * scale, turned @ shift]).float()


def _resampling(affine: torch.Tensor) -> torch.Tensor:
    """Return the matrix (S², S²) that, multiplied from the right, resamples flattened thumbnails."""
    grid = torch.einsum("ij,yxj->yxi", affine, _PLACES[SIDE][0]).expand(SIDE**2, -1, -1, -1)
    every = torch.eye(SIDE**2).view(SIDE**2, 1, SIDE, SIDE)
    return _sampled(every, grid).view(SIDE**2, SIDE**2)


def _sampled(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _basis() -> torch.Tensor:
    """Return cosines (S², D) inside a soft disk, weighted by frequency and orthogonal to brightness."""
    window = torch.sigmoid((0.9 - _PLACES[SIDE][2]) / 0.0375).reshape(-1, 1)
    waves = torch.arange(WAVES)
    cosines = torch.cos(torch.pi * (torch.arange(SIDE)[:, None] + 0.5) * waves / SIDE)
    products = torch.einsum("ai,bj->abij", cosines, cosines).reshape(SIDE**2, -1)
    frequency = (waves[:, None] ** 2 + waves**2).sqrt().reshape(-1)
    kept = (frequency > 0) & (frequency < WAVES)
    weighted = products[:, kept] * frequency[kept] * window
    return weighted - window * (weighted.sum(dim=0) / window.sum())


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    return functional.normalize(rows, dim=-1, eps=1e-6)


def _blurred(images: torch.Tensor, deviation: float) -> torch.Tensor:
    if not deviation:
        return images
    reach = int(3 * deviation + 1)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.mT)


def _standard(thumbs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Bring thumbnails, (B, 1, S, S), to mean 0 and deviation 1 under a weight."""
    count = weight.sum((2, 3), keepdim=True).clamp(min=1)
    centred = thumbs - (thumbs * weight).sum((2, 3), keepdim=True) / count
    deviation = ((centred.square() * weight).sum((2, 3), keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1e-3)


def _slopes(thumbs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients across and down."""
    down, across = torch.gradient(thumbs, dim=(2, 3))
    return across, down


def _freedom(thumbs: torch.Tensor) -> NDArray[np.float32]:
    """Return the effective number of degrees of freedom, (Σ P)² / Σ P² of the gradients' power P, (N,)."""
    disk = _PLACES[SIDE][1]
    found = []
    for some in thumbs.split(BATCH):
        slopes = torch.stack(_slopes(_standard(some, disk.expand_as(some))))
        power = torch.fft.fft2(slopes * disk).abs().square().sum(dim=0).flatten(1)
        found.append(power.sum(dim=1).square() / power.square().sum(dim=1).clamp(min=1e-12))
    return torch.cat(found).clamp(min=1).numpy()


def _align(
    a: torch.Tensor, b: torch.Tensor, affine: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Warp images onto others, (B, 1, S, S), by Gauss-Newton steps, from affine maps (B, 2, 3).

    Returns:
        The warped images and the others, standardised; the weight, 0 if one has no counterpart; the maps.
    """
    side = a.shape[-1]
    places, disk, _ = _PLACES[side]
    for step in range(steps + 1):
        grid = torch.einsum("bij,yxj->byxi", affine, places)
        weight = ((grid.abs().amax(dim=-1) < 1) * disk)[:, None]
        moved, target = _standard(_sampled(a, grid), weight), _standard(b, weight)
        if step == steps:
            break
        slopes = torch.stack([slope * (side / 2) for slope in _slopes(moved)], dim=-1) * weight[..., None]
        # The derivative by the map's six entries: each slope times (x, y, 1).
        jacobian = (slopes[:, 0, :, :, :, None] * places[:, :, None]).reshape(len(a), -1, 6)
        residual = ((target - moved) * weight).reshape(len(a), -1, 1)
        normal = jacobian.mT @ jacobian + 0.1 * torch.eye(6)
        change = torch.linalg.solve(normal, jacobian.mT @ residual)[..., 0].view(-1, 2, 3).clamp(-0.1, 0.1)
        whole = torch.cat([change, torch.zeros(len(a), 1, 3)], dim=1) + torch.eye(3)
        affine = affine @ whole
    return moved, target, weight, affine

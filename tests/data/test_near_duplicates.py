"""Near-duplicates: altered copies of an image or a text are found, similar ones are not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from hesstune.data.examples import Examples, Texts
from hesstune.data.formats import listing
from hesstune.data.images import DecodedImages
from hesstune.data.near_duplicates import (
    FEWEST_WORDS,
    SHARED_ORDER,
    SHARED_WEIGHT,
    _Search,
    near_duplicates,
    plain_text,
)
from hesstune.data.near_duplicates import _alike as alike
from scenes import photo_tiles, scene

SIDE = 96


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def examples(images):
    squares = [np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    return of_array(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous())


def of_array(array):
    return Examples(DecodedImages(array), np.arange(len(array)), [str(i) for i in range(len(array))], None)


# Parts of a roof, of a fine regular pattern: the search misses some of their copies.
FINE_PATTERNS = [11, 12, 17]
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
COPIES = {
    "quality 40": lambda image: jpeg(image, 40),
    "a pixel cropped": lambda image: image.crop((1, 1, image.width, image.height)),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "9 degrees": lambda image: image.rotate(9, Image.Resampling.BILINEAR),
    "a corner of 85 %": lambda image: image.crop((0, 0, 85, 85)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "gamma": lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.5)),
    "mirrored, turned and cropped": lambda image: (
        image.transpose(MIRROR).rotate(8, Image.Resampling.BILINEAR).crop((8, 8, 93, 93))
    ),
    "mirrored and greyed": lambda image: image.transpose(MIRROR).convert("L").convert("RGB"),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name):
    images = photo_tiles(24)
    one, other = near_duplicates([examples(images), examples([COPIES[name](image) for image in images])])
    found = np.delete(one == other, FINE_PATTERNS)
    assert found.mean() > 0.95
    assert len(np.unique(one)) == 24


def test_other_images_are_none():
    (groups,) = near_duplicates([examples([scene(seed) for seed in range(100)])])
    assert groups.tolist() == list(range(100))


def test_noise_and_flat_images_match_only_if_they_are_equal():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 3, SIDE, SIDE))
    flat = np.broadcast_to(np.arange(50)[:, None, None, None] * 5, noise.shape)
    nearly = np.full_like(noise, 128) + rng.integers(-1, 2, noise.shape)
    every = torch.from_numpy(np.concatenate([noise, flat, nearly]).astype(np.uint8))
    (groups,) = near_duplicates([of_array(every)])
    assert len(np.unique(groups)) == 150
    (groups,) = near_duplicates([of_array(torch.cat([every, every[60:70]]))])
    assert groups[150:].tolist() == groups[60:70].tolist()


def test_digits_written_alike_are_no_copies():
    digits = listing("digits", 32).array[:300]
    (groups,) = near_duplicates([of_array(torch.cat([digits, digits[:50]]))])
    assert groups.tolist() == [*range(300), *range(50)]  # equal pixels are found


def test_the_cost_of_many_copies_is_not_quadratic(monkeypatch):
    rng, count, aligned = np.random.default_rng(0), 300, []
    base = examples([scene(0)]).images(np.arange(1))
    noise = torch.from_numpy(rng.integers(-2, 3, (count, 3, SIDE, SIDE)))
    align = _Search._coarse
    monkeypatch.setattr(_Search, "_coarse", lambda self, a, *b: aligned.append(len(a)) or align(self, a, *b))
    (groups,) = near_duplicates([of_array((base + noise).clamp(0, 255).to(torch.uint8))])
    assert len(np.unique(groups)) == 1
    assert sum(aligned) < 20 * count


def groups_of(*texts):
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    part = Examples(Texts(pairs), np.arange(len(texts)), [str(n) for n in range(len(texts))], None)
    return near_duplicates([part])[0].tolist()


def test_texts_of_one_normal_form_are_one():
    same = ["It 's good .", "it's  GOOD!", "It’s good.", "(Its good\u200b) .\n", "\uff29t's good?"]
    other = ["It's not good.", "good", "not good", "no table", "not able", "3.5 %", "35 %", "-3.5 %", "?!"]
    assert groups_of(*same, *other) == [0] * 5 + list(range(1, 10))
    assert plain_text("cafe\u0301") == plain_text("CAFÉ")


def test_texts_with_a_word_changed_are_one():
    text = "the old harbour master watched seven grey boats leave before dawn without lights"
    copies = [text, text.replace("watched", "saw"), text.replace(" seven", ""), text.title() + "!"]
    others = [
        "the old harbour master watched seven",
        " ".join(sorted(text.split())),
        text.replace("seven", "7"),
        *(f"what is the largest town of land{n} now" for n in range(40)),
    ]
    assert groups_of(*copies, *others) == [0] * 4 + list(range(1, 44))


def test_similar_texts_are_those_of_all_pairs():
    """The prefix filter loses no pair: compare with the definition, pair by pair."""
    rng = np.random.default_rng(0)
    words = np.array(list("abcdefghijklmn"))
    texts = [" ".join(words[np.sort(rng.permutation(14)[: rng.integers(6, 14)])]) for _ in range(60)]
    sets = [frozenset(text.split()) for text in texts]
    different = set(sets)
    weight = {w: np.log((len(different) + 1) / sum(w in one for one in different)) for w in words}

    def size(some):
        return sum(weight[word] for word in some)

    near = alike(texts).toarray() > 0
    similar = 0
    for a, one in enumerate(sets):
        for b, two in enumerate(sets):
            # The words are in one order, so those that both texts have are matched in order.
            order = 2 * len(one & two) >= SHARED_ORDER * (len(one) + len(two))
            shared = size(one & two) >= SHARED_WEIGHT * size(one | two)
            both = shared and min(len(one), len(two)) >= FEWEST_WORDS
            assert near[a, b] == ((both and order) or a == b or texts[a] == texts[b])
            similar += both and order
    assert similar > 60


def test_pairs_are_near_duplicates_if_both_texts_are():
    texts = Texts([("A b", "c"), ("a  b", "C"), ("a b", "d"), ("a b", None), ("c", "a b")])
    part = Examples(texts, np.arange(5), list("abcde"), None)
    assert near_duplicates([part.take([0, 2]), part.take([1, 3, 4])])[1].tolist() == [0, 2, 3]
    text = "the old harbour master watched seven grey boats leave before dawn without lights"
    assert groups_of(("yes", "no"), ("yes", text), ("yes", text.replace("watched", "saw"))) == [0, 1, 1]
    nothing = of_array(torch.zeros((0, 3, 8, 8), dtype=torch.uint8))
    assert [len(groups) for groups in near_duplicates([nothing])] == [0]


def test_portraits_before_one_wall_are_other_photos(pacs_photo):
    files = [f for f in sorted(pacs_photo.glob("*/*.jpg")) if f.parent.name in ("horse", "person")]
    files = files[::2]
    (groups,) = near_duplicates([examples([Image.open(file).convert("RGB") for file in files])])
    assert len(np.unique(groups)) == len(files)

"""Near-duplicates: altered copies of an image or a text are found, similar ones are not."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from hesstune.data.examples import Examples, Texts
from hesstune.data.images import DecodedImages
from hesstune.data.near_duplicates import _alike as alike
from hesstune.data.near_duplicates import near_duplicates, plain_text
from scenes import scene

SIDE = 96


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def examples(images):
    squares = [np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    array = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
    return of_array(array)


def of_array(array):
    return Examples(DecodedImages(array), np.arange(len(array)), [str(i) for i in range(len(array))], None)


MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
COPIES = {
    "quality 75": lambda image: jpeg(image, 75),
    "quality 40": lambda image: jpeg(image, 40),
    "a pixel cropped": lambda image: image.crop((1, 1, image.width, image.height)),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "brighter": lambda image: image.point(lambda value: min(255, value + 2)),
    "the same": lambda image: image,
    "mirrored": lambda image: image.transpose(MIRROR),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "9 degrees": lambda image: image.rotate(9, Image.Resampling.BILINEAR),
    "-5 degrees": lambda image: image.rotate(-5, Image.Resampling.BILINEAR),
    "80 % of the sides": lambda image: image.crop((20, 20, 180, 180)),
    "a corner of 85 %": lambda image: image.crop((0, 0, 170, 170)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "gamma": lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.2)),
    "mirrored, turned and cropped": lambda image: (
        image.transpose(MIRROR).rotate(8, Image.Resampling.BILINEAR).crop((15, 15, 185, 185))
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name):
    images = [scene(seed) for seed in range(20)]
    one, other = near_duplicates([examples(images), examples([COPIES[name](image) for image in images])])
    assert (one == other).all()
    assert len(np.unique(one)) == 20


def test_other_images_are_none():
    (groups,) = near_duplicates([examples([scene(seed) for seed in range(100)])])
    assert groups.tolist() == list(range(100))


def test_noise_and_flat_pictures_match_only_where_they_are_equal():
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
    from hesstune.data.sources import listing

    assert len(np.unique(near_duplicates([of_array(listing("digits", 32).array[:600])])[0])) == 600


def test_many_copies_of_one_picture_cost_no_square_of_them():
    rng = np.random.default_rng(0)
    base = examples([scene(0)]).images(np.arange(1))
    noise = torch.from_numpy(rng.integers(-2, 3, (3000, 3, SIDE, SIDE)))
    start = time.perf_counter()
    (groups,) = near_duplicates([of_array((base + noise).clamp(0, 255).to(torch.uint8))])
    assert len(np.unique(groups)) == 1
    assert time.perf_counter() - start < 120


def groups_of(*texts):
    rows = Texts([(text, None) for text in texts])
    (groups,) = near_duplicates(
        [Examples(rows, np.arange(len(texts)), [str(n) for n in range(len(texts))], None)]
    )
    return groups.tolist()


def test_texts_of_one_normal_form_are_one():
    same = ["It 's good .", "it's  GOOD!", "It’s good.", "(Its good\u200b) .\n", "\uff29t's good?"]
    other = ["It's not good.", "good", "not good", "no table", "not able", "3.5 %", "35 %", "-3.5 %", "?!"]
    assert groups_of(*same, *other) == [0] * 5 + list(range(1, 10))
    assert plain_text("cafe\u0301") == plain_text("CAFÉ")


def test_texts_with_a_word_changed_or_moved_are_one():
    text = "the old harbour master watched seven grey boats leave before dawn without lights"
    moved = "without lights seven grey boats leave before dawn the old harbour master watched"
    copies = [text, text.replace("watched", "saw"), moved, text.replace(" seven", ""), text.title() + "!"]
    others = [
        "the old harbour master watched seven",
        *(f"what is the largest town of land{n} now" for n in range(40)),
    ]
    assert groups_of(*copies, *others) == [0] * 5 + list(range(1, 42))


def test_similar_texts_are_those_of_all_pairs():
    """The prefix filter loses no pair: compare with the definition, pair by pair."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(12)[: rng.integers(5, 12)].astype(str)) for _ in range(60)]
    sets = [frozenset(text.split()) for text in texts]
    weight = {word: np.log(61 / sum(word in one for one in sets)) for word in set().union(*sets)}
    size = lambda words: sum(weight[word] for word in words)  # noqa: E731
    near = alike(texts).toarray() > 0
    for a, one in enumerate(sets):
        for b, two in enumerate(sets):
            similar = min(len(one), len(two)) >= 6 and size(one & two) >= 0.75 * size(one | two)
            assert near[a, b] == (similar or a == b or texts[a] == texts[b])


def test_pairs_are_copies_where_both_texts_are():
    texts = Texts([("A b", "c"), ("a  b", "C"), ("a b", "d"), ("a b", None), ("c", "a b")])
    part = Examples(texts, np.arange(5), list("abcde"), None)
    assert near_duplicates([part.take([0, 2]), part.take([1, 3, 4])])[1].tolist() == [0, 2, 3]


def test_nothing_to_compare():
    assert [
        len(one) for one in near_duplicates([of_array(torch.zeros((0, 3, 8, 8), dtype=torch.uint8))])
    ] == [0]


def test_few_images_of_pacs_are_copies(pacs_photo):
    """Its art paintings hold copies, its photos none: portraits before one wall are other photos."""
    for domain, extra in (("photo", 0), ("art_painting", 4)):
        files = sorted((pacs_photo.parent / domain).glob("*/*.jpg"))
        chosen = [f for f in files if f.parent.name in ("horse", "person")]
        images = [Image.open(file).convert("RGB") for file in chosen]
        (groups,) = near_duplicates([examples(images)])
        assert len(images) - len(np.unique(groups)) == extra

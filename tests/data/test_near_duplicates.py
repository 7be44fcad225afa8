"""Near-duplicates: copies of a picture or a text are found, similar ones are not."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hesstune.data.examples import Examples, Texts
from hesstune.data.images import DecodedImages
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


COPIES = {
    "quality 75": lambda image: jpeg(image, 75),
    "quality 40": lambda image: jpeg(image, 40),
    "a pixel cropped": lambda image: image.crop((1, 1, image.width, image.height)),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "brighter": lambda image: image.point(lambda value: min(255, value + 2)),
    "the same": lambda image: image,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name):
    images = [scene(seed) for seed in range(20)]
    one, other = near_duplicates([examples(images), examples([COPIES[name](image) for image in images])])
    assert (one == other).all()
    assert len(np.unique(one)) == 20


def test_other_pictures_are_none():
    images = [scene(seed) for seed in range(100)]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    groups = near_duplicates([examples(images), examples(mirrored)])
    assert len(np.unique(np.concatenate(groups))) == 200


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


def test_texts_of_one_normal_form_are_one():
    same = ["It 's good .", "it's  GOOD.", "It’s good.", "It's good\u200b .\n", "\uff29t's good."]
    other = ["It's not good.", "Its good.", "It's good!", "good", "not good", "no table", "not able"]
    texts = Texts([(text, None) for text in [*same, *other]])
    ids = [str(n) for n in range(len(texts.rows))]
    (groups,) = near_duplicates([Examples(texts, np.arange(len(ids)), ids, None)])
    assert groups.tolist() == [0] * 5 + list(range(1, 8))
    assert plain_text("cafe\u0301") == plain_text("CAFÉ")


def test_pairs_are_copies_where_both_texts_are():
    texts = Texts([("A b", "c"), ("a  b", "C"), ("a b", "d"), ("a b", None), ("c", "a b")])
    part = Examples(texts, np.arange(5), list("abcde"), None)
    assert near_duplicates([part.take([0, 2]), part.take([1, 3, 4])])[1].tolist() == [0, 2, 3]


def test_nothing_to_compare():
    assert [
        len(one) for one in near_duplicates([of_array(torch.zeros((0, 3, 8, 8), dtype=torch.uint8))])
    ] == [0]


def test_few_pictures_of_pacs_are_copies(pacs_photo):
    """Its art paintings hold copies, its photos none: portraits before one wall are other photos."""
    for domain, extra in (("photo", 0), ("art_painting", 4)):
        files = sorted((pacs_photo.parent / domain).glob("*/*.jpg"))
        chosen = [f for f in files if f.parent.name in ("horse", "person")]
        images = [Image.open(file).convert("RGB") for file in chosen]
        (groups,) = near_duplicates([examples(images)])
        assert len(images) - len(np.unique(groups)) == extra

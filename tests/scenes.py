"""Images for tests: made up, and parts of photos."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def scene(seed):
    """A picture of shapes before a gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 200)
    ends = rng.integers(40, 216, (4, 3))
    weights = [np.outer(one, other) for one in (1 - ramp, ramp) for other in (1 - ramp, ramp)]
    pixels = sum(weight[..., None] * end for weight, end in zip(weights, ends, strict=True))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = rng.integers(0, 150, 2)
        w, h = rng.integers(20, 90, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(1))


def photo_tiles(count, side=100):
    """Return the tiles of most contrast of two photos that come with scikit-learn; they do not overlap."""
    from sklearn.datasets import load_sample_images

    tiles = [
        photo[top : top + side, left : left + side]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - side + 1, side)
        for left in range(0, photo.shape[1] - side + 1, side)
    ]
    order = np.argsort([-tile.std() for tile in tiles], kind="stable")
    return [Image.fromarray(tiles[n]) for n in order[:count]]

"""Pictures made up for tests."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def scene(seed):
    """A picture of shapes before a gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 200)
    ends = rng.integers(40, 216, (4, 3))
    pixels = sum(
        weight[..., None] * end
        for weight, end in zip(
            (
                np.outer(1 - ramp, 1 - ramp),
                np.outer(1 - ramp, ramp),
                np.outer(ramp, 1 - ramp),
                np.outer(ramp, ramp),
            ),
            ends,
            strict=True,
        )
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = rng.integers(0, 150, 2)
        w, h = rng.integers(20, 90, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(1))

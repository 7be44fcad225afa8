"""Small images from known distributions, and linear networks: the true error is known.

In the worst cases labels are independent of the images: the true error is that of guessing for any network.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import nn

from hesstune.models.networks import IMAGENET

SIZE = 8
PIXELS = 3 * SIZE * SIZE
FRESH = 20_000  # examples that measure a true error
FLIP = 0.1  # the rule's own error, so that no certificate is right by itself
CODES = 3  # directions of the images; the first one decides
STRENGTH = 16.0  # of the hidden numbers, in grey levels; the noise has 40
PATTERNS = np.where(np.random.default_rng(0).random((CODES, SIZE, SIZE, 3)) < 0.5, -1.0, 1.0)


class Flat(nn.Module):
    """A linear head on the pixels."""

    def __init__(self, k):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(PIXELS, k)

    def forward(self, x):
        out = self.head(self.flat(x))
        return out


class Seeing(nn.Module):
    """A linear head on the hidden numbers, read off the pixels: a backbone that fits the task."""

    def __init__(self):
        super().__init__()
        first = torch.from_numpy(PATTERNS).permute(0, 3, 1, 2).flatten(1)
        self.register_buffer("patterns", first.T.float() / PIXELS)
        self.flat, self.head = nn.Flatten(), nn.Linear(CODES, 2)

    def forward(self, x):
        out = self.head(4 * self.flat(x) @ self.patterns)
        return out


class Even(nn.Module):
    """A linear head on coarse pixels, each added to its mirror image."""

    def __init__(self, k):
        super().__init__()
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(SIZE), nn.Flatten(), nn.Linear(PIXELS, k)

    def forward(self, x):
        coarse = self.pool(x)
        out = self.head(self.flat(coarse + coarse.flip(3)))
        return out


class Sided(nn.Module):
    """A head without bias on two features: which side a image is of, ±0.9, and a constant."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Linear(2, len(weight), bias=False)
        self.head.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))

    def forward(self, x):
        side = 0.9 * torch.sign(x[:, 0, :2].mean(dim=(1, 2)))
        out = self.head(torch.stack([side, torch.full_like(side, 0.19**0.5)], dim=1))
        return out


def noise_images(rng, n):
    """Draw images of pure noise, (N, 8, 8, 3)."""
    return rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def coded(rng, n, strength=STRENGTH):
    """Draw noisy images of a few hidden numbers; return them and the numbers, (N, CODES)."""
    z = rng.standard_normal((n, CODES))
    grey = 128 + strength * np.tensordot(z, PATTERNS, 1) + 40 * rng.standard_normal((n, SIZE, SIZE, 3))
    return grey.clip(0, 255).round().astype(np.uint8), z


def fed(images):
    """Return images normalised for a network, (N, 3, 8, 8)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET.mean, IMAGENET.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@functools.cache
def fresh(strength=STRENGTH):
    """Return many fresh coded images normalised for a network, and their hidden numbers."""
    images, z = coded(np.random.default_rng(1), FRESH, strength)
    return fed(images), z


def rates(flip, z):
    """Return how often each example's label is not the rule's: a rate, or one by the hidden numbers."""
    return flip(z) if callable(flip) else np.full(len(z), flip)


def ambiguous(z):
    """Say that the true label is random near the rule's border."""
    return np.where(np.abs(z[:, 0]) < 0.7, 0.5, 0.0)


def careless(z):
    """Return 0.5 close to the rule's border, else 0: noise that depends on the input."""
    return np.where(np.abs(z[:, 0]) < 0.4, 0.5, 0.0)


def tired(z):
    """Say that labels are wrong in 5 % far from the rule's border, and more often close to it."""
    found = 0.05 + 0.4 * np.exp(-2 * np.abs(z[:, 0]))
    return found


def ruled(rng, n, flip=FLIP, strength=STRENGTH):
    """Draw coded images, their true labels (the rule's, flipped at a rate) and the hidden numbers."""
    images, z = coded(rng, n, strength)
    return images, ((z[:, 0] > 0) ^ (rng.random(n) < rates(flip, z))).astype(np.int64), z


def guessed(rng, n, k):
    """Draw images of noise and labels at random: every network's true error is 1 − 1/K."""
    return noise_images(rng, n), rng.integers(0, k, n)


def noisy(rng, labels, matrix):
    """Draw the labels given for true ones of two classes."""
    found = (rng.random(len(labels)) < matrix[labels, 1]).astype(np.int64)
    return found


def true_error(model, sigma=None, flip=FLIP, strength=STRENGTH):
    """Return the true error of a network under the rule; with σ, of its head with Gaussian weights."""
    x, z = fresh(strength)
    with torch.no_grad():
        logits = model.eval()(x).double()
    lead = (logits[:, 1] - logits[:, 0]).numpy()
    if sigma:
        square = x.flatten(1).double().square().sum(dim=1).numpy()
        spread = np.sqrt(2 * (sigma["head.weight"] ** 2 * square + sigma["head.bias"] ** 2))
        up = stats.norm.cdf(lead / spread)
    else:
        up = (lead > 0).astype(float)
    missed = np.where(z[:, 0] > 0, 1 - up, up)
    share = rates(flip, z)
    return float((missed * (1 - share) + (1 - missed) * share).mean())


def fitted(images, labels, k):
    """Return a network with a head that fits every label: least squares in more dimensions than examples."""
    x = fed(images).flatten(1).double()
    wanted = 10 * torch.eye(k, dtype=torch.float64)[torch.from_numpy(labels)]
    model = Flat(k)
    with torch.no_grad():
        model.head.weight.copy_(torch.linalg.lstsq(x, wanted).solution.T)
        model.head.bias.zero_()
    return model


def random_head(rng, k):
    """Return a network with a head at random."""
    model = Flat(k)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(rng.standard_normal((k, PIXELS)) / 10))
        model.head.bias.zero_()
    return model


def many_sided(k):
    """Return a start with a network that runs through most of K classes as Pick-to-Learn's penalty falls.

    After an example of the right side was picked, the left one's logits are L_j + t·p_j, but for that class:
    p are the start's probabilities on the right side, and t grows as the penalty falls. L falls from j to
    j + 1 by τ_j times what p rises; with growing τ_j each logit is the largest for some t.
    """
    p = np.linspace(0.002, 2 / k - 0.002, k)
    left = -np.concatenate([[0.0], np.cumsum(np.geomspace(0.3, 3, k - 1) * np.diff(p))])
    right = np.log(p)
    return Sided(np.stack([(right - left) / 1.8, (right + left) / (2 * 0.19**0.5)], axis=1))


def sided_images(rng, n):
    """Draw images of noise with black or white upper rows."""
    images = noise_images(rng, n)
    images[:, :2] = np.where(rng.random(n) < 0.5, 0, 255)[:, None, None, None]
    return images


def copied(rng, images, labels, times):
    """Store each image so many times, a grey level changed, in an order at random."""
    rows = rng.permutation(np.repeat(np.arange(len(labels)), times))
    moved = images[rows].astype(np.int64) + rng.integers(0, 2, images[rows].shape)
    return moved.clip(0, 255).astype(np.uint8), labels[rows]


def altered(rng, n, alter):
    """Draw smooth images, and return them and their altered copies, (2N, 32, 32, 3)."""
    side = 4 * SIZE
    smooth = [
        Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in noise_images(rng, n)
    ]
    return np.stack([np.asarray(one) for one in [*smooth, *map(alter, smooth)]])


def mirrored(image):
    """Return an image's mirror image."""
    return ImageOps.mirror(image)


def cropped(image):
    """Return the middle 85 % of an image, in its size."""
    edge = 0.075 * image.width
    return image.resize(image.size, box=(edge, edge, image.width - edge, image.height - edge))


def rotated(image):
    """Return an image rotated by 8 degrees."""
    return image.rotate(8, Image.Resampling.BICUBIC)


def frame(images, **columns):
    """Return a table of images and other columns."""
    import pandas as pd

    return pd.DataFrame({"image": list(images), **columns})

"""What a network of the zoo is, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from hesstune.errors import HesstuneError

CLASSES, IMAGE_SIZE, VOCABULARY = 3, 32, 40


@dataclass(frozen=True)
class Refused:
    """What refuses a network, with which error, and why."""

    by: Literal["train", "measure"]
    error: type[HesstuneError]
    why: str


@dataclass(frozen=True)
class Network:
    """One tiny network.

    Attributes:
        library: The package that it comes from.
        name: Its class or name there, with a variant in brackets.
        build: Makes it with random weights and `CLASSES` outputs.
        reads: `texts` or `images`.
        refused: What is expected instead of a result; None where everything works.
        is_double: Whether its twin runs in float64; else in float32, and is compared with more slack.
        image_size: Height and width of its images.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    reads: Literal["texts", "images"]
    refused: Refused | None = None
    is_double: bool = True
    image_size: int = IMAGE_SIZE

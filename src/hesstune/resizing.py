"""How images are brought to squares: resized, then cropped at the centre."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from hesstune.checks import parse_integer

FILTERS = {f.name.lower(): f for f in Image.Resampling}
# The largest edge, in pixels.
MOST = 1 << 14
# Images with sides longer than so many times the square's are cut before they are resized.
LONGEST = 16


@dataclass(frozen=True)
class Resize:
    """A rule that brings images to squares, as the image processors of pretrained networks do.

    Attributes:
        side: Side of the result in pixels.
        edge: The shorter side after resizing, or both sides; 0: images are not resized.
        keeps_aspect: Whether the shorter side becomes `edge`; otherwise both do.
        resample: The filter, one of `FILTERS`.
        rounds: Whether the place of the crop is rounded to the nearest pixel (torchvision), not down
            (transformers).

    A crop larger than the image is filled with black.

    Example:
        >>> Resize.parse("shorter:256:bicubic", 224).apply(Image.new("RGB", (300, 400))).size
        (224, 224)
        >>> str(Resize(224, 256, True, "bicubic"))
        'shorter:256:bicubic'
    """

    side: int
    edge: int
    keeps_aspect: bool = True
    resample: str = "bilinear"
    rounds: bool = False

    @classmethod
    def parse(cls, text: str, side: int = 224) -> Resize:
        """Read `shorter:PIXELS:FILTER` or `both:PIXELS:FILTER`, with `:round` for `rounds`; ValueError if it
        is none.
        """
        parts = text.lower().split(":")
        rounds = parts[-1] == "round"
        way, edge, resample = [*parts[: len(parts) - rounds], "", "", ""][:3]
        pixels = parse_integer(edge) if len(parts) - rounds == 3 else None
        known = way in ("shorter", "both") and resample in FILTERS
        if pixels is None or not 0 <= pixels <= MOST or not known:
            raise ValueError(
                f"must be shorter:PIXELS:FILTER or both:PIXELS:FILTER, with a filter of {', '.join(FILTERS)}"
            )
        return cls(side, pixels, way == "shorter", resample, rounds)

    def __str__(self) -> str:
        way = "shorter" if self.keeps_aspect else "both"
        return f"{way}:{self.edge}:{self.resample}" + ":round" * self.rounds

    def to(self, side: int) -> Resize:
        """Return the rule for another side of the result: the same share of the image is cropped."""
        return replace(self, side=side, edge=int(self.edge * side / self.side))

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the square of an RGB image."""
        wide, high = image.size
        if self.edge:
            short = min(wide, high)
            long = int(self.edge * max(wide, high) / short)
            sides = (self.edge, long) if wide <= high else (long, self.edge)
            wide, high = sides if self.keeps_aspect else (self.edge, self.edge)
            if max(wide, high) > LONGEST * max(self.side, self.edge):
                image = self._cut(image, wide, high)
            else:
                image = image.resize((wide, high), FILTERS[self.resample])
        if image.size == (self.side, self.side):
            return image
        left, top = (self._start(length) for length in image.size)
        # Outside of the image the crop is black.
        return image.crop((left, top, left + self.side, top + self.side))

    def _start(self, length: int) -> int:
        """Return where the crop starts along one dimension; below 0 if the image is shorter."""
        spare = length - self.side
        if self.rounds:
            return round(spare / 2) if spare >= 0 else -(-spare // 2)
        return spare // 2

    def _cut(self, image: Image.Image, wide: int, high: int) -> Image.Image:
        """Resize the centre alone: resized whole, a strip one pixel high would fill the memory."""
        across, down = min(wide, max(self.side, self.edge)), min(high, max(self.side, self.edge))
        left, top = (wide - across) // 2, (high - down) // 2
        box = (left * image.width / wide, top * image.height / high)
        end = ((left + across) * image.width / wide, (top + down) * image.height / high)
        return image.resize((across, down), FILTERS[self.resample], box=(*box, *end))


# A side alone: the shorter side is resized to it, and the centre is cropped.
Size = int | Resize


def side_of(size: Size) -> int:
    """Return the side of the square in pixels."""
    return size.side if isinstance(size, Resize) else size

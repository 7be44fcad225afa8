"""How pretrained networks want their images: size, crop, order of channels, mean and deviation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hesstune.resizing import FILTERS, Resize, Size
from hesstune.storage.files import one_line

MeanAndStd = tuple[tuple[float, ...], tuple[float, ...]]
# What is assumed of a transformers model without an image processor.
ASSUMED: MeanAndStd = ((0.5,), (0.5,))
OWN_RULES = ("hf", "timm", "torchvision")
# Ratios of the side of the crop to the resized edge that processors write into their code.
RATIOS = (224 / 256, 0.9)
# Width and height of the images by which a rule is compared with the processor.
TRIED = ((60, 45), (37, 71), (300, 290), (64, 64))
# The largest difference that is taken for rounding, in levels of 256.
LEVELS = 0.01

Prepare = Callable[[Image.Image], NDArray[np.float64]]


@dataclass(frozen=True)
class ImageRule:
    """The rule by which a network's images are prepared.

    Attributes:
        mean: Channel means, subtracted from images in [0, 1], in the network's order; none if unknown.
        std: Channel deviations, by which images are then divided.
        bgr: Whether the network takes blue first.
        resize: The resizing and cropping; None if the rule is not known.
        notes: What was assumed, or cannot be followed, in sentences.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    resize: Resize | None = None
    notes: tuple[str, ...] = ()


def own_size(spec: object, image_size: int | None, usual: int) -> Size:
    """Return the size of images for a network: its own rule, for another side if one is given.

    Modules have no rule; networks without one take the `usual` side.
    """
    kind, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    resize = None
    if kind in OWN_RULES and name:
        with contextlib.suppress(Exception):  # of many libraries; raised where the network is loaded
            resize = image_rule(kind, name).resize
    if resize is None:
        return image_size or usual
    return resize if image_size in (None, resize.side) else resize.to(image_size)


def image_rule(kind: str, name: str) -> ImageRule:
    """Return the rule of a network of transformers (`hf`), timm or torchvision, without its weights."""
    return {"hf": _of_processor, "timm": _of_timm, "torchvision": _of_torchvision}[kind](name)


# -- transformers


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' logging below errors, and its progress bars, inside the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _of_processor(name: str) -> ImageRule:
    """Return the rule of an image processor: found by its attributes, and compared with what it makes."""
    with quiet_transformers():
        import transformers

        try:
            transformers.ImageProcessingMixin.get_image_processor_dict(name)
        except (OSError, ValueError):
            return ImageRule(
                *ASSUMED,
                notes=(
                    f"hf:{name} has no preprocessor_config.json: images are scaled to −1…1 (mean and std "
                    "0.5) as an assumption; --mean, --std, --image-size and --resize say otherwise",
                ),
            )
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil")
            kind = type(processor).__name__

            def prepare(image: Image.Image) -> NDArray[np.float64]:
                made = processor(image, return_tensors="np")["pixel_values"][0]
                return np.asarray(made, dtype=np.float64)

            mean, std, bgr = _values(prepare, kind, _declared_numbers(processor))
        except Exception as error:  # the file, the library and remote code each raise their own kinds
            problem = (
                f"the image processor of hf:{name} cannot be followed ({one_line(error)}); give --mean, "
                "--std, --image-size and --resize, or use another checkpoint"
            )
            return ImageRule((), (), notes=(problem,))
        resize, why = _geometry(prepare, (mean, std, bgr), _candidates(processor))
    notes = []
    if resize is None:
        notes.append(
            f"images are not resized as the {kind} of hf:{name} does it, since {why}: give --image-size and "
            "--resize for another way than the shorter side and a centre crop"
        )
    return ImageRule(mean, std, bgr, resize, tuple(notes))


def _declared_numbers(processor: Any) -> list[float]:
    found = [0.0, 0.5, 1.0, 1 / 255]
    for name in ("image_mean", "image_std"):
        value = getattr(processor, name, None)
        found += [float(v) for v in (value if isinstance(value, Iterable) else [value]) if v is not None]
    return found


def _values(
    prepare: Prepare, kind: str, known: list[float]
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return mean, std and whether the order is BGR, from images of one colour.

    Numbers near one of those known are taken for it, which removes their rounding to float32.
    """

    def of(*colour: int) -> NDArray[np.float64]:
        made = prepare(Image.new("RGB", (64, 64), colour))
        if made.ndim != 3 or made.shape[0] != 3:
            raise ValueError(f"the {kind} makes arrays of shape {made.shape}, not images of three channels")
        return made[:, made.shape[1] // 2, made.shape[2] // 2]

    low, high, red, mixed = of(0, 0, 0), of(255, 255, 255), of(255, 0, 0), of(200, 90, 30)
    step = (high - low) / 255
    size = np.abs(high - low) + 1e-30
    for bgr in (False, True):
        order = slice(None, None, -1 if bgr else 1)
        colours = (((255, 0, 0), red), ((200, 90, 30), mixed))
        off = [np.abs(low + step * np.array(colour)[order] - made) for colour, made in colours]
        if step.min() > 0 and bool((np.array(off) < 1e-4 * size).all()):
            std = 1 / (255 * step)
            mean = -low * std

            def near(value: float) -> float:
                close = min(known, key=lambda number: abs(number - value))
                return close if abs(close - value) <= 1e-5 * max(abs(value), 0.1) else float(f"{value:.7g}")

            return tuple(near(v) for v in mean.tolist()), tuple(near(v) for v in std.tolist()), bgr
    raise ValueError(f"the {kind} changes colours in a way that mean and std do not describe")


def _candidates(processor: Any) -> Iterator[tuple[int, str]]:
    """Yield the edges and filters that a processor may use, made of its attributes; its own filter first."""
    edges: list[int] = []
    for name in ("size", "crop_size"):
        found = getattr(processor, name, None)
        values: list[Any] = [found]
        for key in ("shortest_edge", "height", "width"):
            values.append(found.get(key) if isinstance(found, dict) else getattr(found, key, None))
        edges += [int(value) for value in values if isinstance(value, int) and value > 0]
    ratios = [r for r in (getattr(processor, "crop_pct", None), *RATIOS) if isinstance(r, float) and r > 0]
    edges += [int(edge / r) for edge in edges for r in ratios] + [int(256 / 224 * edge) for edge in edges]
    given = getattr(processor, "resample", None)
    own = next(
        (name for name, f in FILTERS.items() if given is not None and int(f) == int(given)), "bilinear"
    )
    for resample in (own, *(name for name in FILTERS if name != own)):
        yield from ((edge, resample) for edge in (*dict.fromkeys(edges), 0))


def _geometry(
    prepare: Prepare,
    values: tuple[tuple[float, ...], tuple[float, ...], bool],
    candidates: Iterable[tuple[int, str]],
) -> tuple[Resize | None, str]:
    """Return the rule that makes the same pixels as a processor; or None, and why."""
    mean, std = (np.array(v, dtype=np.float64)[:, None, None] for v in values[:2])
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in TRIED]
    levels = [255 * (prepare(image) * std + mean)[:: -1 if values[2] else 1] for image in images]
    shapes = sorted({made.shape[1:] for made in levels})
    if len(shapes) > 1:
        return None, f"it makes images of several shapes, such as {shapes[0]} and {shapes[1]}"
    high, wide = shapes[0]
    if high != wide:
        return None, f"it makes images of {high} × {wide} pixels, and squares are needed"

    def equal(rule: Resize, at: int) -> bool:
        made = np.asarray(rule.apply(images[at]), dtype=np.float64).transpose(2, 0, 1)
        return bool(np.abs(made - levels[at]).max() <= LEVELS)

    for edge, resample in candidates:
        for keeps_aspect in (True, False):
            for rounds in (False, True):
                rule = Resize(wide, edge, keeps_aspect, resample, rounds)
                if all(equal(rule, at) for at in range(len(images))):
                    return rule, ""
    return None, "no resizing with a centre crop makes the same pixels"


# -- timm and torchvision


def _of_timm(name: str) -> ImageRule:
    """Return the rule of a timm network, by timm's configuration of its data."""
    import timm

    found = timm.get_pretrained_cfg(name)
    data = timm.data.resolve_data_config({}, pretrained_cfg=found.to_dict() if found is not None else {})
    return timm_rule(data, f"timm:{name}")


def timm_rule(data: dict[str, Any], what: str) -> ImageRule:
    """Return the rule of timm's configuration of data, as `resolve_data_config` returns it.

    Example:
        >>> data = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
        >>> str(timm_rule({**data, "crop_mode": "center", "mean": (0.5,), "std": (0.5,)}, "").resize)
        'shorter:256:bicubic:round'
    """
    rule = ImageRule(tuple(data["mean"]), tuple(data["std"]))
    high, wide = data["input_size"][-2:]
    mode, resample = data.get("crop_mode") or "center", data.get("interpolation", "bicubic")
    if high != wide or mode not in ("center", "squash") or resample not in FILTERS:
        why = f"{high} × {wide} pixels, crop mode '{mode}', filter '{resample}'"
        note = f"images are not resized as {what} says ({why}): give --image-size and --resize"
        return replace(rule, notes=(note,))
    edge = math.floor(wide / (data.get("crop_pct") or 0.875))
    return replace(rule, resize=Resize(wide, edge, mode == "center", resample, rounds=True))


def _of_torchvision(name: str) -> ImageRule:
    """Return the rule of a torchvision network, by the transforms of its default weights."""
    from torchvision import models

    how = models.get_model_weights(name).DEFAULT.transforms()
    side, edge = int(how.crop_size[0]), int(how.resize_size[0])
    resize = Resize(side, edge, True, str(how.interpolation.value), rounds=True)
    return ImageRule(tuple(how.mean), tuple(how.std), resize=resize)

"""Images that are not plain 8-bit RGB: numpy or Pillow's own tools say what they should look like."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hesstune.data.images import decode, decode_all, decode_objects, to_rgb
from hesstune.data.load import load_task
from hesstune.data.reading import Columns, Reading, rgb_of
from hesstune.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)
SIZE = 20


def pixels(path, size=SIZE, **how):
    return decode(path, size, **how).permute(1, 2, 0).numpy()


def decoded(image, tmp_path, suffix="png", **saved):
    """Return the pixels of a file, which are those of its bytes and of the open image."""
    path = tmp_path / f"x.{suffix}"
    image.save(path, **saved)
    made = decode_objects([path.read_bytes(), Image.open(path), {"path": str(path)}], SIZE)
    files, bad, notes = decode_all([path], SIZE, 4)
    assert (made.bad, bad) == ({}, {})
    assert len(made.notes) == len(notes)
    for other in (*made.array[1:], files.array[0], decode(path, SIZE)):  # nothing is resized
        assert torch.equal(made.array[0], other)
    return pixels(path), notes


@pytest.mark.parametrize(
    ("orientation", "suffix"), [*((i, "png") for i in range(1, 9)), (6, "webp"), (7, "tiff")]
)
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    how = {"lossless": True} if suffix == "webp" else {}
    found, notes = decoded(image, tmp_path, suffix, exif=exif, **how)
    with Image.open(tmp_path / f"x.{suffix}") as raw:
        assert (found == np.asarray(ImageOps.exif_transpose(raw).convert("RGB"))).all()
    assert len(notes) == (orientation > 1 and suffix != "tiff")  # Pillow turns TIFF files itself


def test_damaged_exif_is_ignored(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x01")
    Image.fromarray(RGB).save(tmp_path / "y.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, bad, _ = decode_all([tmp_path / "x.jpg", tmp_path / "y.jpg"], SIZE, 4)
        alone = decode_objects([(tmp_path / "x.jpg").read_bytes()], SIZE).array
    assert bad == {}
    assert torch.equal(found.array[0], found.array[1])
    assert torch.equal(found.array[0], alone[0])


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, suffix):
    deep = RNG.integers(0, 65536, (20, 20)).astype(np.uint16)
    deep[0, :2] = 0, 65535
    found, _ = decoded(Image.fromarray(deep), tmp_path, suffix)
    assert (found == np.round(deep / 257).astype(int)[..., None]).all()
    if suffix == "png":  # one value may be transparent
        Image.fromarray(deep).save(tmp_path / "y.png", transparency=65535)
        assert pixels(tmp_path / "y.png", background=(9, 8, 7))[0, 1].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("values", "expected", "scale"),
    [
        (np.linspace(0, 1, 400), np.linspace(0, 255, 400), "from 0 to 1 (their largest value: 1)"),
        (np.linspace(0, 200, 400), np.floor(np.linspace(0, 200, 400)), None),
        (np.linspace(0, 65535, 400), np.linspace(0, 255, 400), "from 0 to 65535"),
        (np.linspace(-5, 3, 400), np.linspace(0, 255, 400), "from its own range"),
        (np.linspace(0, 1e9, 400), np.linspace(0, 255, 400), "from its own range"),
    ],
)
def test_floats_are_scaled_by_their_range(tmp_path, values, expected, scale):
    image = Image.fromarray(values.reshape(20, 20).astype(np.float32))
    found, notes = decoded(image, tmp_path, "tiff")
    assert np.abs(found[..., 0] - np.round(expected).reshape(20, 20)).max() <= 1
    assert [scale in note for note in notes] == [True] * (scale is not None)


def test_floats_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff: it holds values that are not finite"):
        decode(tmp_path / "x.tiff", 8)


@pytest.mark.parametrize("background", [(255, 255, 255), (16, 200, 32)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "PA", "key"])
def test_transparent_pixels_are_laid_on_the_background(tmp_path, kind, background):
    image = Image.fromarray(RNG.integers(0, 256, (20, 20, 4), dtype=np.uint8))
    path = tmp_path / ("x.tiff" if kind == "PA" else "x.png")
    if kind == "key":  # one colour of RGB is transparent
        rgb = RGB.copy()
        rgb[3:9, 2:5] = 1, 2, 3
        Image.fromarray(rgb).save(path, transparency=(1, 2, 3))
    elif kind == "P":
        image.quantize(32).save(path)
    else:
        (image.convert("LA") if kind == "LA" else image).save(path)
    with Image.open(path) as raw:
        rgba = np.asarray(raw.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + np.array(background) * (1 - alpha)
    assert np.abs(pixels(path, background=background) - expected).max() <= 1
    (note,) = decode_objects([path], SIZE, background).notes
    assert ("white" if min(background) == 255 else str(background)) in note


ORDINARY = {
    "rgb": Image.fromarray(RGB),
    "grey": Image.fromarray(RGB[..., 0]),
    "palette": Image.fromarray(RGB).quantize(40),
    "opaque": Image.fromarray(np.dstack([RGB, np.full((20, 20), 255, np.uint8)])),
    "black and white": Image.fromarray(RGB[..., 0] > 90),
    "cmyk": Image.fromarray(RGB).convert("CMYK"),
    "oblong": Image.fromarray(RNG.integers(0, 256, (31, 90, 3), dtype=np.uint8)),
    "strip": Image.fromarray(RNG.integers(0, 256, (400, 30, 3), dtype=np.uint8)),
}


def squared(rgb, size):
    """Resize and crop an RGB image whole."""
    scale = size / min(rgb.size)
    wide, high = (max(size, round(side * scale)) for side in rgb.size)
    left, top = (wide - size) // 2, (high - size) // 2
    if rgb.size == (size, size):
        return np.asarray(rgb)
    box = (left, top, left + size, top + size)
    return np.asarray(rgb.resize((wide, high), Image.Resampling.BILINEAR).crop(box))


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("size", [16, 33])
def test_ordinary_images_have_the_pixels_of_pillow(tmp_path, name, size):
    path = tmp_path / ("x.jpg" if name == "cmyk" else "x.png")
    ORDINARY[name].save(path)
    with Image.open(path) as image:
        image.draft("RGB", (size, size))
        assert (pixels(path, size) == squared(image.convert("RGB"), size)).all()
    assert to_rgb(ORDINARY[name])[1] == {}


@pytest.mark.parametrize("shape", [(1, 600), (600, 1), (900, 20)])
def test_strips_are_cut_before_they_are_resized(tmp_path, shape):
    image = Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    assert np.abs(pixels(tmp_path / "x.png", 24).astype(int) - squared(image, 24)).max() <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
def test_a_long_strip_takes_little_memory(tmp_path):
    Image.new("RGB", (60_000, 1), (9, 8, 7)).save(tmp_path / "x.png")
    code = f"""
import resource
from pathlib import Path
from hesstune.data.images import decode
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
print(decode(Path("{tmp_path}/x.png"), 224)[:, 0, 0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[9, 8, 7]", done.stderr


@pytest.fixture
def clear(tmp_path):
    """Folder, table, data set and objects of the same images, half of each transparent."""
    rgba = np.zeros((6, 10, 10, 4), dtype=np.uint8)
    rgba[:, :, 5:, 3] = 255
    for at, image in enumerate(rgba):
        path = tmp_path / "images" / ("ant", "bee")[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    labels = [p.parent.name for p in paths]
    rows = [f"{path},{label}\n" for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "x.csv").write_text("image,label\n" + "".join(rows))
    np.savez(tmp_path / "x.npz", images=rgba, labels=[0, 1] * 3)
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"image": [str(p) for p in paths], "label": labels})
    return {
        "folder": f"folder:{tmp_path}/images", "csv": f"csv:{tmp_path}/x.csv",
        "array": f"array:{tmp_path}/x.npz", "hf": made.cast_column("image", datasets.Image()),
        "objects": ([Image.open(p) for p in paths], labels), "arrays": (rgba, ["ant", "bee"] * 3),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "csv", "array", "hf", "objects", "arrays"])
def test_every_kind_of_data_lays_images_on_the_background_and_says_so(clear, kind):
    black = Reading(background=rgb_of("black"))
    for how, level, shown in ((Reading(), 255, "white"), (black, 0, "(0, 0, 0)")):
        found = load_task(clear[kind], size=10, val_fraction=0, test_fraction=0, how=how)
        images = found.train.images(np.arange(6))
        assert (images[..., :5] == level).all()
        assert (images[..., 5:] == 0).all()
        assert len([note for note in found.notes if "laid on" in note and shown in note]) == 1
    if kind in ("folder", "array", "objects"):
        with pytest.raises(DataError, match=r"label.column"):
            load_task(clear[kind], size=8, how=Reading(columns=Columns(label="y")))


def test_a_background_of_texts_is_refused():
    with pytest.raises(DataError, match="--background"):
        load_task((list("abcd"), [0, 1, 0, 1]), size=8, how=Reading(background=(0, 0, 0)))


def test_streamed_images_of_another_background_are_other_contents(clear):
    digests = set()
    for background in ((255, 255, 255), (0, 0, 0)):
        found = load_task(clear["folder"], size=8, cache_mib=0, how=Reading(background=background))
        assert (found.train.images(np.array([0]))[..., :2] == background[0]).all()
        digests.add(found.train.source.digest)
    assert len(digests) == 2


def test_arrays_of_sixteen_bits_are_scaled(tmp_path):
    deep = RNG.integers(0, 65536, (4, 8, 8, 3)).astype(np.uint16)
    np.savez(tmp_path / "x.npz", images=deep, labels=[0, 1, 0, 1])
    expected = np.round(deep / 257).transpose(0, 3, 1, 2)
    for data in (f"array:{tmp_path}/x.npz", (deep, [0, 1, 0, 1]), (list(deep), [0, 1, 0, 1])):
        found = load_task(data, size=8, val_fraction=0, test_fraction=0)
        assert (found.train.images(np.arange(4)).numpy() == expected).all()
        assert "from 0 to 65535" in found.notes[0]


def test_colours_are_read_as_they_are_written():
    written = {"white": (255,) * 3, "#fff": (255,) * 3, "1, 2,3": (1, 2, 3), "rgb(4,5,6)": (4, 5, 6)}
    assert {text: rgb_of(text) for text in written} == written
    for wrong in ("whit", "1,2", "1,2,300", "", "#12"):
        with pytest.raises(ValueError, match="must be a colour"):
            rgb_of(wrong)


def test_avif_is_read_if_pillow_can(tmp_path):
    buffer = io.BytesIO()
    try:
        Image.new("RGB", (SIZE, SIZE), (200, 30, 90)).save(buffer, format="AVIF")
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow cannot write AVIF")
    for name in ("ant/0", "ant/1", "bee/0", "bee/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.avif").write_bytes(buffer.getvalue())
    found = load_task(f"folder:{tmp_path}", size=SIZE, val_fraction=0, test_fraction=0)
    assert (found.train.images(np.array([0]))[0, :, 5, 5] - torch.tensor([200, 30, 90])).abs().max() < 8

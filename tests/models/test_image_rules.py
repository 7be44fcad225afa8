"""Images reach a network as its own image processor prepares them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

import hesstune as ht  # noqa: E402
from hesstune.analysis.export import export_run  # noqa: E402
from hesstune.data.load import load_examples  # noqa: E402
from hesstune.errors import ModelError  # noqa: E402
from hesstune.inputs.batches import make_inputs  # noqa: E402
from hesstune.models.load import LoadedModel, load_model  # noqa: E402
from hesstune.models.preparation import image_rule, own_size, timm_rule  # noqa: E402
from hesstune.resizing import Resize  # noqa: E402
from hesstune.runs.config import make_config  # noqa: E402
from hesstune.runs.loading import size_of  # noqa: E402
from hesstune.storage.files import made_folder  # noqa: E402

SQUARE = {"height": 40, "width": 40}
SIZES = [(60, 45), (37, 90), (40, 40), (131, 64), (20, 31)]
# (class of the processor, its changed attributes)
PROCESSORS = [
    ("ViTImageProcessor", {"size": SQUARE}),
    ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]}),
    ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "image_std": [60.0, 57.0, 58.0]}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": 3}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": 1}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": 4}),
    ("DeiTImageProcessor", {"size": {"height": 50, "width": 50}, "crop_size": SQUARE}),
    ("DeiTImageProcessor", {"size": {"height": 51, "width": 51}, "crop_size": SQUARE}),
    ("BeitImageProcessor", {"size": {"height": 48, "width": 48}, "crop_size": SQUARE,
                            "do_center_crop": True}),
    ("BeitImageProcessor", {"size": SQUARE}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 40}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 40}, "crop_pct": 0.95}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("EfficientNetImageProcessor", {"size": SQUARE}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "include_top": False, "rescale_offset": True}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True,
                                    "do_normalize": False, "include_top": False}),
    ("EfficientNetImageProcessor", {"size": {"height": 46, "width": 46}, "crop_size": SQUARE,
                                    "do_center_crop": True}),
    ("MobileNetV1ImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
    ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 43, "width": 43}}),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE,
                                 "do_flip_channel_order": False}),
    ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    ("BitImageProcessor", {"size": {"shortest_edge": 45}, "crop_size": SQUARE, "resample": 2}),
    ("BitImageProcessor", {"do_resize": False, "crop_size": SQUARE}),
    ("LevitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    ("PoolFormerImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    ("PoolFormerImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "crop_pct": 0.8}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    ("SiglipImageProcessor", {"size": SQUARE}),
    ("PvtImageProcessor", {"size": SQUARE}),
    ("SegformerImageProcessor", {"size": SQUARE}),
]  # fmt: skip


def processor_of(kind, options):
    return getattr(transformers, f"{kind}Pil")(**options)


def saved(kind, options, folder):
    folder.mkdir(exist_ok=True)
    processor_of(kind, options).save_pretrained(folder)
    return folder


def photos(folder, sizes=SIZES):
    folder.mkdir()
    rng = np.random.default_rng(1)
    for at, (wide, high) in enumerate(sizes):
        smooth = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        smooth.resize((wide, high), Image.Resampling.BICUBIC).save(folder / f"{at}.png")
    return folder


def prepared(rule, data, size):
    mean, std = ((values * 3)[:3] for values in (rule.mean, rule.std))
    loaded = LoadedModel(torch.nn.Conv2d(3, 2, 1), "", mean, std, bgr=rule.bgr)
    examples = load_examples(data, size=size, classes=["a", "b"]).examples
    return make_inputs(examples, loaded, torch.device("cpu")).inputs(np.arange(len(examples)))


def by_processor(processor, folder):
    images = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    return torch.stack(
        [torch.tensor(np.array(processor(image)["pixel_values"][0])).float() for image in images]
    )


@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
def test_pixels_are_those_of_the_processor(kind, options, tmp_path):
    folder, data = saved(kind, options, tmp_path / "model"), photos(tmp_path / "photos")
    rule = image_rule("hf", str(folder))
    assert rule.notes == ()
    size = own_size(f"hf:{folder}", None, 128)
    assert size == rule.resize
    expected = by_processor(processor_of(kind, options), data)
    scale = float(expected.abs().max())
    for given in (f"folder:{data}", [Image.open(path) for path in sorted(data.glob("*.png"))]):
        found = prepared(rule, given, size)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * max(scale, 1.0))


def test_another_size_keeps_the_share_that_is_cropped(tmp_path):
    options = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    folder, data = saved("BitImageProcessor", options, tmp_path / "model"), photos(tmp_path / "photos")
    config = make_config({"model": f"hf:{folder}", "data": f"folder:{data}", "image_size": 56}).resolved()
    assert (config.image_size, config.resize) == (56, "shorter:64:bicubic")
    small = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    found = prepared(image_rule("hf", str(folder)), f"folder:{data}", size_of(config))
    expected = by_processor(processor_of("BitImageProcessor", small), data)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_given_counts_more_than_the_rule_and_none_is_the_rule_of_earlier_runs(tmp_path):
    folder = saved("ViTImageProcessor", {"size": SQUARE}, tmp_path / "model")
    base = {"model": f"hf:{folder}", "data": "folder:x"}
    assert make_config(base).resolved().resize == "both:40:bilinear"
    assert make_config(base).resolved().resolved() == make_config(base).resolved()
    given = make_config({**base, "resize": "shorter:50:lanczos", "image_size": 44}).resolved()
    assert size_of(given) == Resize(44, 50, True, "lanczos")
    assert size_of(make_config({**base, "resize": None, "image_size": 44}).resolved()) == 44
    assert size_of(make_config({"data": "folder:x"}).resolved()) == 128


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "MobileViTImageProcessor", "ConvNextImageProcessor"])
def test_an_exported_network_comes_with_the_same_preparation(kind, tmp_path):
    """A run at the model's own size, its predictions, and the processor of its export, by the same pixels."""
    size = {"shortest_edge": 48} if kind == "MobileViTImageProcessor" else {"shortest_edge": 40}
    options = {"size": SQUARE} if kind == "ViTImageProcessor" else {"size": size, "crop_size": SQUARE}
    folder, data = saved(kind, options, vit(tmp_path / "model")), photos(tmp_path / "photos")
    classes = tmp_path / "classes"
    for name in "ab":
        photos(classes.joinpath(name) if classes.is_dir() else made_folder(classes) / name, SIZES * 2)
    run = ht.finetune(
        f"folder:{classes}", model=f"hf:{folder}", method="vanilla", epochs=1, lr=0.01, train="all",
        val_fraction=0, augment="none", out=str(tmp_path / "run"),
    )  # fmt: skip
    assert run.config.image_size == 40
    export_run(run, tmp_path / "out")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    with torch.no_grad():
        expected = torch.softmax(model(by_processor(processor, data)).logits, dim=1).numpy()
    np.testing.assert_allclose(run.predict(f"folder:{data}").probabilities, expected, atol=1e-5)
    original = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    torch.testing.assert_close(by_processor(processor, data), by_processor(original, data), rtol=0, atol=1e-5)


def vit(folder, **changes):
    config = transformers.ViTConfig(
        image_size=40, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_missing_processor_is_said_with_what_is_assumed(tmp_path):
    loaded = load_model(f"hf:{vit(tmp_path)}", 2)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.5,) * 3)
    assert any("preprocessor_config.json" in note and "0.5" in note for note in loaded.notes)
    quiet = load_model(f"hf:{tmp_path}", 2, mean=(0.4,), std=(0.3,))
    assert not any("preprocessor_config.json" in note for note in quiet.notes)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("ViTImageProcessor", {"size": {"height": 40, "width": 48}}, "40 × 48"),
        ("ViTImageProcessor", {"size": SQUARE, "do_resize": False}, "several shapes"),
        (
            "PerceiverImageProcessor",
            {"size": SQUARE, "crop_size": {"height": 50, "width": 50}},
            "same pixels",
        ),
        ("TextNetImageProcessor", {"size": {"shortest_edge": 40}}, "several shapes"),
    ],
)
def test_a_resizing_that_cannot_be_followed_is_said(kind, options, why, tmp_path):
    saved(kind, options, vit(tmp_path))
    loaded = load_model(f"hf:{tmp_path}", 2)
    assert any(kind in note and why in note and "--resize" in note for note in loaded.notes)
    assert own_size(f"hf:{tmp_path}", None, 128) == 128


def test_values_that_cannot_be_followed_are_refused_unless_given(tmp_path):
    vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ImageGPTImageProcessor", "clusters": [[0.0, 0.0, 0.0]] * 4})
    )
    with pytest.raises(ModelError, match="--mean"):
        load_model(f"hf:{tmp_path}", 2)
    assert load_model(f"hf:{tmp_path}", 2, mean=(0.5,), std=(0.5,)).mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("mode", "text"), [("center", "shorter:45:bicubic:round"), ("squash", "both:45:bicubic:round")]
)
def test_rules_of_timm(mode, text):
    data = {"input_size": (3, 40, 40), "crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": mode}
    rule = timm_rule({**data, "mean": (0.5,) * 3, "std": (0.2,) * 3}, "timm:x")
    assert str(rule.resize) == text
    assert rule.resize.side == 40
    unknown = timm_rule({**data, "crop_mode": "border", "mean": (0.5,), "std": (0.2,)}, "timm:x")
    assert unknown.resize is None
    assert "border" in unknown.notes[0]


def test_crops_are_rounded_as_torchvision_does():
    """By hand: of 45 pixels 40 are taken from round(2.5) = 2 on, of 47 from round(3.5) = 4 on."""
    for length, start in ((45, 2), (47, 4), (38, -1), (37, -1)):
        assert Resize(40, 0, rounds=True)._start(length) == start
    # transformers: 3 rows of black above, ceil(5 / 2).
    image = Image.new("RGB", (40, 35), (255, 255, 255))
    rows = np.asarray(Resize(40, 0).apply(image))[:, 0, 0]
    assert (rows[:3] == 0).all()
    assert rows[3] == 255


@pytest.mark.parametrize("text", ["shorter:256", "longer:256:bicubic", "both:x:bicubic", "both:64:cubic", ""])
def test_wrong_rules_are_refused(text):
    with pytest.raises(ValueError, match="shorter:PIXELS:FILTER"):
        Resize.parse(text)


def test_a_strip_is_cut_before_it_is_resized():
    strip = Image.new("RGB", (30_000, 2), (9, 8, 7))
    assert np.asarray(Resize(64, 73, True, "bicubic").apply(strip)).tolist() == [[[9, 8, 7]] * 64] * 64

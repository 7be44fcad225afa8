"""Tiny classifiers of timm and torchvision, from options of their constructors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn
from zoo_table import CLASSES, IMAGE_SIZE, Network

VIT = {"img_size": IMAGE_SIZE, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "window_size": 2,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (2, 2),
    "mlp_ratio": 1.5,
}
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 4},
    "resnetv2_50": {"layers": (1, 1), "channels": (8, 16), "stem_chs": 4},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4), "base_width": 26, "stem_width": 4},
    "skresnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_width": 4},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)},
    "inception_next_atto": {"depths": (1, 1), "dims": (16, 16)},
    "rdnet_tiny": {
        "num_init_features": 8,
        "growth_rates": (8, 8),
        "num_blocks_list": (1, 1),
        "is_downsample_block": (None, True),
        "transition_compression_ratio": 0.5,
        "block_type": ("Block", "Block"),
    },
    "mambaout_femto": {"depths": (1, 1), "dims": (8, 8)},
    "starnet_s1": {"base_dim": 4, "depths": (1, 1), "mlp_ratio": 2},
    "repvit_m0_9": {"embed_dim": (4, 8), "depth": (1, 1)},
    "vit_tiny_patch16_224": VIT,
    "vit_relpos_small_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "cait_xxs24_224": {**VIT, "depth": 1},
    "xcit_nano_12_p8_224": {**VIT, "depth": 1},
    "convit_tiny": {**VIT, "local_up_to_layer": 1},
    "naflexvit_base_patch16_gap": {"embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 8},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "swinv2_cr_tiny_224": SWIN,
    "twins_svt_small": {
        "img_size": IMAGE_SIZE,
        "embed_dims": [4, 4, 8, 8],
        "num_heads": [1, 1, 2, 2],
        "depths": [1, 1, 1, 1],
        "mlp_ratios": [1, 1, 1, 1],
        "wss": [2, 2, 2, 1],
    },
    "pvt_v2_b0": {
        "embed_dims": (4, 8, 8, 8),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
        "mlp_ratios": (1, 1, 1, 1),
    },
    "pit_ti_224": {
        "img_size": IMAGE_SIZE,
        "patch_size": 8,
        "stride": 4,
        "base_dims": [4, 4],
        "depth": [1, 1],
        "heads": [1, 2],
        "mlp_ratio": 1.5,
    },
    "levit_128s": {
        "img_size": 64,
        "embed_dim": (8, 8, 8),
        "key_dim": 4,
        "num_heads": (1, 1, 1),
        "depth": (1, 1, 1),
    },
    "efficientvit_m0": {
        "img_size": 64,
        "embed_dim": (8, 8, 8),
        "depth": (1, 1, 1),
        "num_heads": (2, 2, 2),
        "key_dim": (4, 4, 4),
        "window_size": (2, 2, 2),
        "kernels": (3, 3),
    },
    "tiny_vit_5m_224": {
        "embed_dims": (4, 8, 8, 8),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
        "window_sizes": (2, 2, 2, 1),
        "mlp_ratio": 1,
        "mbconv_expand_ratio": 1,
    },
    "edgenext_xx_small": {
        "dims": (8, 8, 8, 8),
        "depths": (1, 1, 1, 1),
        "heads": (2, 2, 2, 2),
        "expand_ratio": 1,
    },
    "davit_tiny": {
        "depths": (1, 1),
        "embed_dims": (8, 8),
        "num_heads": (2, 2),
        "window_size": 2,
        "mlp_ratio": 1,
    },
    "sequencer2d_s": {
        "layers": (1, 1),
        "patch_sizes": (8, 1),
        "embed_dims": (8, 8),
        "hidden_sizes": (4, 4),
        "mlp_ratios": (1.0, 1.0),
    },
    "visformer_tiny": {
        "img_size": IMAGE_SIZE,
        "init_channels": 4,
        "embed_dim": 8,
        "depth": (1, 1, 1),
        "num_heads": 2,
        "mlp_ratio": 1,
    },
    "shvit_s1": {"embed_dim": (16, 16, 16), "partial_dim": (4, 4, 4), "depth": (1, 1, 1)},
    "hiera_tiny_224": {
        "img_size": (64, 64),
        "embed_dim": 4,
        "num_heads": 1,
        "stages": (1, 1),
        "mask_unit_size": (4, 4),
        "mlp_ratio": 1,
        "q_pool": 1,
        "mask_unit_attn": (True, False),
    },
    "crossvit_tiny_240": {
        "img_size": 32,
        "img_scale": (1.0, 1.0),
        "patch_size": (8, 16),
        "embed_dim": (8, 8),
        "depth": ((1, 1, 0),),
        "num_heads": (2, 2),
        "mlp_ratio": (1, 1, 1),
    },
}


# Networks whose constructors in timm's registry fix the sizes: module, class and arguments.
TIMM_CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ConvMixer": ("convmixer", "ConvMixer", {"dim": 8, "depth": 2, "kernel_size": 3, "patch_size": 4}),
    "MlpMixer": (
        "mlp_mixer",
        "MlpMixer",
        {"img_size": IMAGE_SIZE, "patch_size": 8, "num_blocks": 1, "embed_dim": 8},
    ),
    "MetaFormer, pooling": ("metaformer", "MetaFormer", {"depths": (1, 1), "dims": (8, 8)}),
    "MetaFormer, attention": (
        "metaformer",
        "MetaFormer",
        {
            "depths": (1, 1),
            "dims": (8, 32),
            "token_mixers": ("SepConv", "Attention"),
            "norm_layers": ("LayerNorm2dNoBias", "LayerNormNoBias"),
        },
    ),
    "VOLO": (
        "volo",
        "VOLO",
        {
            "img_size": IMAGE_SIZE,
            "layers": (1, 1),
            "embed_dims": (8, 8),
            "num_heads": (2, 2),
            "stem_hidden_dim": 4,
            "mlp_ratio": 1,
            "downsamples": (True, False),
            "outlook_attention": (True, False),
        },
    ),
    "EfficientFormer": (
        "efficientformer",
        "EfficientFormer",
        {"depths": (1, 1, 1, 1), "embed_dims": (4, 4, 8, 8), "num_vit": 1, "mlp_ratios": 1, "img_size": 224},
    ),
    "TNT": (
        "tnt",
        "TNT",
        {
            "img_size": IMAGE_SIZE,
            "patch_size": 8,
            "embed_dim": 8,
            "inner_dim": 4,
            "depth": 1,
            "num_heads_inner": 2,
            "num_heads_outer": 2,
            "mlp_ratio": 1.5,
        },
    ),
    "FocalNet": (
        "focalnet",
        "FocalNet",
        {"embed_dim": 4, "depths": (1, 1), "focal_levels": (1, 1), "focal_windows": (3, 3), "mlp_ratio": 1},
    ),
    "MultiScaleVit": (
        "mvitv2",
        "MultiScaleVit",
        {
            "img_size": IMAGE_SIZE,
            "cfg": {
                "depths": (1, 1),
                "embed_dim": 4,
                "num_heads": 1,
                "stride_q": ((1, 1), (2, 2)),
                "mlp_ratio": 1,
            },
        },
    ),
    "Nest": (
        "nest",
        "Nest",
        {
            "img_size": IMAGE_SIZE,
            "patch_size": 4,
            "num_levels": 2,
            "embed_dims": (4, 8),
            "num_heads": (1, 2),
            "depths": (1, 1),
            "mlp_ratio": 1,
        },
    ),
    "GlobalContextVit": (
        "gcvit",
        "GlobalContextVit",
        {
            "img_size": 64,
            "embed_dim": 4,
            "depths": (1, 1),
            "num_heads": (1, 1),
            "window_ratio": (16, 16),
            "mlp_ratio": 1,
        },
    ),
}


TORCHVISION: dict[str, Callable[[Any], nn.Module]] = {
    "VisionTransformer": (lambda m: m.VisionTransformer(IMAGE_SIZE, 8, 2, 2, 8, 12, num_classes=CLASSES)),
    "SwinTransformer": (
        lambda m: m.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], 1.5, num_classes=CLASSES)
    ),
    "MobileNetV2": (lambda m: m.MobileNetV2(CLASSES, 0.1, [[1, 8, 1, 1], [2, 8, 2, 2]])),
    "ShuffleNetV2": (lambda m: m.ShuffleNetV2([1, 1, 1], [4, 8, 8, 16, 16], CLASSES)),
    "DenseNet": (lambda m: m.DenseNet(4, (2, 2), 8, 2, num_classes=CLASSES)),
    "ConvNeXt": (
        lambda m: m.ConvNeXt(
            [m.convnext.CNBlockConfig(4, 8, 1), m.convnext.CNBlockConfig(8, None, 1)], num_classes=CLASSES
        )
    ),
    "RegNet": (
        lambda m: m.RegNet(m.regnet.BlockParams([1, 1], [8, 8], [4, 4], [1.0, 1.0], [2, 2], 0.25), CLASSES, 4)
    ),
    "EfficientNet": (
        lambda m: m.EfficientNet(
            [
                m.efficientnet.MBConvConfig(2, 3, 1, 8, 8, 1, 1.0, 1.0),
                m.efficientnet.MBConvConfig(2, 3, 2, 8, 8, 1, 1.0, 1.0),
            ],
            0.0,
            num_classes=CLASSES,
            last_channel=16,
        )
    ),
    "MobileNetV3": (
        lambda m: m.MobileNetV3(
            [m.mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)], 16, CLASSES
        )
    ),
    "MaxVit": (lambda m: m.MaxVit((32, 32), 4, 2, [8, 8], [1, 1], 4, 0.0, num_classes=CLASSES)),
}


def _timm(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return model

    return build


def _timm_class(module: str, class_name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        found = importlib.import_module(f"timm.models.{module}")
        given = dict(options)
        if "cfg" in given and module == "mvitv2":
            given["cfg"] = found.MultiScaleVitCfg(**given["cfg"])
        for key in ("token_mixers", "norm_layers"):
            if key in given:
                given[key] = [getattr(found, name) for name in given[key]]
        model: nn.Module = getattr(found, class_name)(num_classes=CLASSES, **given)
        return model

    return build


def _torchvision(make: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make(importlib.import_module("torchvision.models"))


def _size(options: dict[str, Any]) -> int:
    size = options.get("img_size", IMAGE_SIZE)
    return size if isinstance(size, int) else size[0]


TIMM_NETWORKS = [
    *(Network("timm", name, _timm(name, o), "images", image_size=_size(o)) for name, o in TIMM.items()),
    *(
        Network("timm", name, _timm_class(module, class_name, o), "images", image_size=_size(o))
        for name, (module, class_name, o) in TIMM_CLASSES.items()
    ),
    *(Network("torchvision", name, _torchvision(make), "images") for name, make in TORCHVISION.items()),
]

"""Tiny text and image classifiers of transformers, from configurations."""

from __future__ import annotations

from typing import Any

from torch import nn
from zoo_table import CLASSES, IMAGE_SIZE, VOCABULARY, Network, Refused

from hesstune.errors import MeasureError, ModelError

# What most text configurations call the sizes. Names that a configuration lacks are kept as attributes.
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DECODER = {**ENCODER, "num_key_value_heads": 1, "head_dim": 4}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 12,
    "n_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4}
XLM = {
    "vocab_size": VOCABULARY,
    "n_words": VOCABULARY,
    "emb_dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 40,
    "pad_index": 0,
    "pad_token_id": 0,
}
FUNNEL = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "n_head": 2,
    "d_head": 4,
    "d_inner": 12,
    "block_sizes": [1, 1],
    "pad_token_id": 0,
}

TEXT: dict[str, dict[str, Any]] = {
    "Albert": {**ENCODER, "embedding_size": 6},
    "Bart": ENCODER_DECODER,
    "Bert": ENCODER,
    "BigBird": {**ENCODER, "attention_type": "original_full"},
    "BioGpt": ENCODER,
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 8, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    "CTRL": {**GPT, "dff": 12},
    "Canine": {
        **ENCODER,
        "num_hash_buckets": 32,
        "local_transformer_stride": 4,
        "attend_from_chunk_width": 4,
        "attend_from_chunk_stride": 4,
        "attend_to_chunk_width": 4,
        "attend_to_chunk_stride": 4,
        "num_hash_functions": 2,
        "downsampling_rate": 4,
    },
    "ConvBert": {**ENCODER, "embedding_size": 8, "conv_kernel_size": 3, "head_ratio": 2, "num_groups": 1},
    "Deberta": {
        **ENCODER,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 8,
        "type_vocab_size": 0,
    },
    "DebertaV2": {
        **ENCODER,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 8,
        "type_vocab_size": 0,
        "position_buckets": 8,
    },
    "DistilBert": {
        "vocab_size": VOCABULARY,
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 12,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "Electra": {**ENCODER, "embedding_size": 6},
    "Esm": {**ENCODER, "position_embedding_type": "rotary"},
    "EuroBert": DECODER,
    "FNet": ENCODER,
    "Falcon": {**ENCODER, "new_decoder_architecture": False, "multi_query": True},
    "Funnel": FUNNEL,
    "GPT2": GPT,
    "GPTBigCode": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTNeo": {
        **ENCODER,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "GPTNeoX": ENCODER,
    "Gemma": DECODER,
    "Gemma2": {**DECODER, "sliding_window": 4, "query_pre_attn_scalar": 4},
    "Gemma3Text": {**DECODER, "sliding_window": 4, "query_pre_attn_scalar": 4},
    "Glm": DECODER,
    "GptOss": {**DECODER, **EXPERTS, "sliding_window": 4},
    "Helium": DECODER,
    "IBert": ENCODER,
    "IBert quantised": {**ENCODER, "quant_mode": True},
    "Jamba": {
        **DECODER,
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 2,
        "use_mamba_kernels": False,
    },
    "JetMoe": {**DECODER, **EXPERTS, "kv_channels": 4},
    "LayoutLM": {**ENCODER, "max_2d_position_embeddings": 8},
    "Lilt": {**ENCODER, "hidden_size": 12, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 8},
    "Llama": DECODER,
    "Longformer": {**ENCODER, "attention_window": 4},
    "MPNet": ENCODER,
    "Mistral": {**DECODER, "sliding_window": 4},
    "Mixtral": {**DECODER, **EXPERTS},
    "MobileBert": {
        **ENCODER,
        "embedding_size": 6,
        "intra_bottleneck_size": 6,
        "true_hidden_size": 6,
        "num_feedforward_networks": 2,
        "trigram_input": True,
        "use_bottleneck": True,
    },
    "ModernBert": {
        **ENCODER,
        "global_attn_every_n_layers": 2,
        "local_attention": 4,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "Mpt": {
        "vocab_size": VOCABULARY,
        "d_model": 8,
        "n_heads": 2,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_seq_len": 40,
        "pad_token_id": 0,
    },
    "Nemotron": DECODER,
    "NomicBert": ENCODER,
    "Nystromformer": {**ENCODER, "num_landmarks": 12, "segment_means_seq_len": 12, "conv_kernel_size": 3},
    "OPT": {**ENCODER, "ffn_dim": 12, "word_embed_proj_dim": 8},
    "Olmo2": DECODER,
    "OpenAIGPT": GPT,
    "Perceiver": {
        "vocab_size": VOCABULARY,
        "d_model": 8,
        "d_latents": 8,
        "num_latents": 4,
        "num_self_attends_per_block": 1,
        "num_blocks": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "Phi": DECODER,
    "Phi3": DECODER,
    "Phimoe": {**DECODER, **EXPERTS},
    "Qwen2": DECODER,
    "Qwen2Moe": {**DECODER, **EXPERTS, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
    "Qwen3": DECODER,
    "Qwen3Moe": {**DECODER, **EXPERTS, "moe_intermediate_size": 12},
    "Reformer": {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "feed_forward_size": 12,
        "num_attention_heads": 2,
        "attention_head_size": 4,
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "max_position_embeddings": 40,
        "local_attn_chunk_length": 4,
        "is_decoder": False,
        "pad_token_id": 0,
        "eos_token_id": 3,
    },
    "RemBert": {**ENCODER, "input_embedding_size": 6, "output_embedding_size": 6},
    "RoCBert": {
        **ENCODER,
        "pronunciation_vocab_size": 5,
        "shape_vocab_size": 5,
        "enable_pronunciation": False,
        "enable_shape": False,
    },
    "RoFormer": {**ENCODER, "embedding_size": 8},
    "Roberta": ENCODER,
    "RobertaPreLayerNorm": ENCODER,
    "SmolLM3": DECODER,
    "SqueezeBert": {
        **ENCODER,
        "embedding_size": 8,
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "post_attention_groups": 1,
        "intermediate_groups": 2,
        "output_groups": 2,
    },
    "StableLm": DECODER,
    "Starcoder2": DECODER,
    "T5": T5,
    "UMT5": T5,
    "XLM": XLM,
    "XLNet": {
        "vocab_size": VOCABULARY,
        "d_model": 8,
        "n_layer": 2,
        "n_head": 2,
        "d_inner": 12,
        "pad_token_id": 0,
    },
    "Xmod": {**ENCODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "Yoso": {**ENCODER, "use_expectation": True},
}

VIT = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
SWIN = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
    "mlp_ratio": 1.5,
}
CONVNEXT = {
    "image_size": IMAGE_SIZE,
    "patch_size": 2,
    "num_stages": 2,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
}
MOBILE = {"image_size": IMAGE_SIZE, "depth_multiplier": 0.01, "min_depth": 4, "depth_divisible_by": 4}
PVT = {
    "image_size": IMAGE_SIZE,
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sequence_reduction_ratios": [2, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [4, 8],
    "patch_sizes": [4, 2],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
CLIP = {"vision_config": {**VIT, "projection_dim": 8}}

IMAGE: dict[str, dict[str, Any]] = {
    "Beit": {**VIT, "use_relative_position_bias": True},
    "Bit": {
        "embedding_size": 4,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_groups": 2,
        "layer_type": "bottleneck",
    },
    "CLIP": CLIP,
    "ConvNext": CONVNEXT,
    "ConvNextV2": CONVNEXT,
    "Cvt": {
        "patch_sizes": [7, 3, 3],
        "patch_stride": [4, 2, 2],
        "patch_padding": [2, 1, 1],
        "embed_dim": [4, 4, 8],
        "num_heads": [1, 1, 2],
        "depth": [1, 2, 3],
        "mlp_ratio": [1.5, 1.5, 1.5],
    },
    "DeiT": VIT,
    "DeiT teacher": VIT,
    "Dinov2": VIT,
    "Dinov2WithRegisters": VIT,
    "DonutSwin": SWIN,
    "EfficientNet": {
        "image_size": IMAGE_SIZE,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "hidden_dim": 320,
        "in_channels": [8, 8],
        "out_channels": [8, 16],
        "strides": [1, 2],
        "kernel_sizes": [3, 5],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
    },
    "FocalNet": {**SWIN, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "HGNetV2": {
        "embedding_size": 4,
        "stem_channels": [3, 4, 4],
        "hidden_sizes": [8, 8],
        "depths": [1, 1],
        "stage_in_channels": [4, 8],
        "stage_mid_channels": [4, 4],
        "stage_out_channels": [8, 8],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2],
    },
    "Hiera": {
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "embed_dim": 4,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
        "mlp_ratio": 1.5,
    },
    "IJepa": VIT,
    "Levit": {
        "image_size": IMAGE_SIZE,
        "hidden_sizes": [8, 8, 8],
        "num_attention_heads": [1, 1, 1],
        "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
        "patch_size": 16,
        "attention_ratio": [2, 2, 2],
        "mlp_ratio": [2, 2, 2],
    },
    "Levit teacher": {},
    "MobileNetV1": MOBILE,
    "MobileNetV2": MOBILE,
    "MobileViT": {
        "image_size": IMAGE_SIZE,
        "hidden_sizes": [8, 8, 8],
        "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 8],
        "num_attention_heads": 2,
        "mlp_ratio": 1.5,
        "expand_ratio": 1.0,
    },
    "PPLCNet": {
        "scale": 0.25,
        "class_expand": 16,
        "stem_channels": 16,
        "hidden_dropout_prob": 0.0,
        "block_configs": [
            [[3, 16, 16, 1, False]],
            [[3, 16, 16, 2, False]],
            [[3, 16, 16, 1, False]],
            [[5, 16, 16, 1, False]],
            [[5, 16, 32, 2, True]],
        ],
    },
    "PoolFormer": {
        "hidden_sizes": [4, 8],
        "depths": [1, 1],
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
        "mlp_ratio": 1.5,
    },
    "Pvt": PVT,
    "PvtV2": {**PVT, "image_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "patch_sizes": [7, 3]},
    "RegNet": {
        "embedding_size": 4,
        "hidden_sizes": [8, 8],
        "depths": [1, 1],
        "groups_width": 4,
        "layer_type": "y",
    },
    "ResNet": {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1]},
    "Segformer": {**PVT, "decoder_hidden_size": 8},
    "Siglip": CLIP,
    "SwiftFormer": {
        "image_size": IMAGE_SIZE,
        "depths": [1, 1],
        "embed_dims": [4, 8],
        "mlp_ratio": 2,
        "downsamples": [True, True],
    },
    "Swin": SWIN,
    "Swinv2": SWIN,
    "TextNet": {
        "stem_out_channels": 4,
        "hidden_sizes": [4, 4, 8, 8, 8],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 1]], [[1, 3]]],
        "conv_layer_strides": [[2], [2], [2], [2]],
    },
    "ViT": VIT,
    "ViTMSN": VIT,
}
IMAGE["Levit teacher"] = IMAGE["Levit"]


REFUSED = {
    "PPLCNetForImageClassification": Refused(
        "train", ModelError, "returns its logits as `last_hidden_state`"
    ),
    "ReformerForSequenceClassification": Refused(
        "measure", MeasureError, "its reversible layers hide their weights from the gradient of the logits"
    ),
    "YosoForSequenceClassification": Refused(
        "measure",
        MeasureError,
        "the gradient of its queries and keys is an approximation; `layers=` measures the other layers",
    ),
}
# In float64 its two masks add up to −∞.
SINGLE = {"CanineForSequenceClassification"}


def _network(class_name: str, reads: str, options: dict[str, Any], variant: str) -> Network:
    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, class_name)
        model: nn.Module = made(made.config_class(num_labels=CLASSES, **options))
        return model

    name = class_name + (f" ({variant})" if variant else "")
    return Network(
        "transformers",
        name,
        build,
        reads,
        REFUSED.get(class_name),
        class_name not in SINGLE,
    )


def _networks(table: dict[str, dict[str, Any]], reads: str, task: str) -> list[Network]:
    found = []
    for key, options in table.items():
        base, _, variant = key.partition(" ")
        suffix = "WithTeacher" if variant == "teacher" else ""
        found.append(
            _network(f"{base}For{task}Classification{suffix}", reads, options, "" if suffix else variant)
        )
    return found


TRANSFORMERS = [*_networks(TEXT, "texts", "Sequence"), *_networks(IMAGE, "images", "Image")]

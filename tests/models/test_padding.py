"""The probabilities of a text do not depend on the other texts of its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from hesstune.data.examples import Examples, Texts  # noqa: E402
from hesstune.inputs.batches import make_inputs, predict_logits  # noqa: E402
from hesstune.models.load import load_model  # noqa: E402

FEW = ["a", "short", "text", "another", "of", "few", "words", "with", "some", "more", "in", "it"]
WORDS = ["<unk>", "<s>", "</s>", "<mask>", *FEW, "<pad>"]
PAD = len(WORDS) - 1
SIZES = {"vocab_size": len(WORDS), "num_labels": 3}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    **SIZES,
}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, **SIZES}
ROPE = {**SMALL, "num_key_value_heads": 2}
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "eos_token_id": 2,
    "decoder_start_token_id": 2, **SIZES,
}  # fmt: skip
# (class, its configuration, the padding token of the configuration)
NETWORKS = [
    ("GPT2", {**GPT, "n_positions": 40}, 3),
    ("GPT2", {**GPT, "n_positions": 40}, None),
    ("OpenAIGPT", {**GPT, "n_positions": 40}, 5),
    ("Llama", ROPE, 0),
    ("Llama", ROPE, -1),
    ("Qwen2", ROPE, 2),
    ("OPT", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, 1),
    ("Bloom", {**GPT, "hidden_size": 16}, 3),
    ("Bert", SMALL, 0),
    ("Roberta", SMALL, 1),
    ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **SIZES}, 0),
    ("DebertaV2", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 0),
    ("Bart", ENCODER_DECODER, 1),
    ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, **SIZES}, 5),
]


def tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    given = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>", **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **given)


def network(name, options, pad):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options, pad_token_id=pad)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5)  # from 0.02 to a size at which the words count
    return model


def probabilities(loaded, texts):
    source = Examples(
        Texts([(text, None) for text in texts]), np.arange(len(texts)), [str(t) for t in texts], None
    )
    feed = make_inputs(source, loaded, torch.device("cpu"))
    return torch.softmax(predict_logits(loaded.model, feed), dim=1)


SHORT = ["a text", "words in it", "some", "another few words"]
LONG = "a short text with some more words in it another of few"


@pytest.mark.parametrize(("name", "options", "pad"), NETWORKS, ids=[f"{n}-{p}" for n, _, p in NETWORKS])
@pytest.mark.parametrize("given", ["module", "folder"])
def test_probabilities_of_a_text_do_not_depend_on_its_batch(name, options, pad, given, tmp_path):
    model, words = network(name, options, pad), tokenizer()
    if given == "folder":
        model.save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
    spec = (model, words) if given == "module" else f"hf:{tmp_path}"
    loaded = load_model(spec, 3, text=True, head_init="keep")
    together = probabilities(loaded, [*SHORT, LONG])
    alone = torch.cat([probabilities(loaded, [text]) for text in SHORT])
    torch.testing.assert_close(together[: len(SHORT)], alone, rtol=1e-4, atol=1e-5)
    assert together.std(dim=0).max() > 1e-3
    assert not any("padding" in note for note in loaded.notes)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == PAD


def test_a_tokenizer_without_padding_or_masks_pads_by_the_end_of_the_text():
    words = tokenizer(pad_token=None, model_input_names=["input_ids"])
    loaded = load_model(
        (network("GPT2", {**GPT, "n_positions": 40}, None), words), 3, text=True, head_init="keep"
    )
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == WORDS.index("</s>")
    together = probabilities(loaded, [*SHORT, LONG])
    alone = torch.cat([probabilities(loaded, [text]) for text in SHORT])
    torch.testing.assert_close(together[: len(SHORT)], alone, rtol=1e-4, atol=1e-5)


def test_a_network_that_depends_on_its_batch_says_so():
    config = transformers.FNetConfig(**{k: v for k, v in SMALL.items() if "heads" not in k}, pad_token_id=PAD)
    torch.manual_seed(0)
    model = transformers.FNetForSequenceClassification(config)
    words = tokenizer(model_input_names=["input_ids", "token_type_ids"])
    loaded = load_model((model, words), 3, text=True)
    assert any("padding" in note for note in loaded.notes)
    assert loaded.tokenizer.padding_side == "right"

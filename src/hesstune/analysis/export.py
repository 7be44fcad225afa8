"""`hesstune export`: write a finished run as a folder that other programs load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hesstune.analysis.onnx_export import ONNX_FILE, require_onnx, write_onnx
from hesstune.errors import MissingExtraError, RunError
from hesstune.models.load import LoadedModel, export_model
from hesstune.models.preparation import quiet_transformers
from hesstune.resizing import Resize, side_of
from hesstune.runs.loading import size_of
from hesstune.runs.model_card import model_card
from hesstune.runs.records import CARD, CERTIFICATE, MEASURE, NOISE_MATRIX, RECORD
from hesstune.runs.run import Run
from hesstune.storage.files import made_folder, one_line, write_json, write_text, writing
from hesstune.storage.tensors import add_metadata

COPIED = (MEASURE, CERTIFICATE, NOISE_MATRIX)
ONNX_RECORD = "onnx.json"
# The folder of the text encoder without its head, in an export of a mean-pooled network.
ENCODER = "encoder"
POOLING = "1_Pooling"
SENTENCE_MODULES = "modules.json"


def export_run(run: Run, folder: str | Path, overwrite: bool = False, onnx: bool = False) -> str:
    """Write a run's network, its model card and the records of its measure and certificate.

    A transformers model is written by `save_pretrained`; any other as safetensors and config.json. An
    export of `minilm` is also a folder that sentence-transformers opens.

    Args:
        run: A finished run.
        folder: Where to; created, or replaced if `overwrite` is set and it holds an export.
        overwrite: Whether an earlier export may be replaced.
        onnx: Whether to write model.onnx, too, with its record onnx.json.

    Returns:
        One line of Python that loads the network.

    Raises:
        RunError: If the run has not finished, or the folder is in use or cannot be written.
        MissingExtraError: If ONNX is asked for and its packages are not installed.
        ModelError: If the network cannot be written as ONNX.
    """
    _ = run.outcome
    if onnx:
        require_onnx()
    target = Path(folder)
    _check_target(target, overwrite)
    beside = target.with_name(f".{target.name}.part") / target.name
    try:
        shutil.rmtree(beside.parent, ignore_errors=True)
        made_folder(beside)
        facts = {
            "model": run.config.model,
            "classes": run.classes,
            "image_size": run.config.image_size,
            "resize": run.config.resize,
            "max_length": run.config.max_length,
        }
        loaded, side = run.loaded(), run.config.image_size or 0
        how = export_model(loaded, beside, facts)
        if is_mean_pooled(loaded):
            _write_sentence_encoder(loaded, beside, run.config.max_length)
        if onnx:
            write_json(
                beside / ONNX_RECORD, {**_input_facts(run, loaded), **write_onnx(loaded, beside, side)}
            )
        with writing(target):
            for name in COPIED:
                if (run.path / name).is_file():
                    shutil.copyfile(run.path / name, beside / name)
            write_text(beside / CARD, exported_card(run, how, beside))
            previous = beside.with_name(f"{target.name}.previous")
            if target.exists():
                target.replace(previous)
            try:
                beside.replace(target)
            except OSError:
                if previous.exists():
                    previous.replace(target)
                raise
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)
    return how


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise RunError(f"{target} is a file; give the path of a folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise RunError(f"the folder {target} exists and is not empty; choose another or give --overwrite")
        if not _is_export(target):
            raise RunError(f"the folder {target} holds no export; choose another")


def _input_facts(run: Run, loaded: LoadedModel) -> dict[str, Any]:
    """Return what a server needs besides a network: the classes, and how inputs are prepared."""
    facts: dict[str, Any] = {"classes": run.classes}
    if loaded.tokenizer is not None:
        facts["max_length"] = run.config.max_length
    elif loaded.width is None:
        size = size_of(run.config)
        facts |= {
            "image_size": side_of(size),
            "resize": str(size if isinstance(size, Resize) else Resize(size, size)),
        }
    return facts


def _is_export(folder: Path) -> bool:
    weights = (folder / CARD).is_file() and any(folder.glob("*.safetensors"))
    return weights and not (folder / RECORD).is_file()


def is_mean_pooled(loaded: LoadedModel) -> bool:
    """Tell whether a network is a BERT encoder whose head reads the mean of the token states."""
    kind = type(getattr(loaded.model, "config", None))  # the instance may have the type that it was read as
    return getattr(kind, "model_type", "") == "mean_pooled_bert"


def _write_sentence_encoder(loaded: LoadedModel, folder: Path, max_length: int) -> None:
    """Write the encoder as plain BERT, and the files by which sentence-transformers pools its states.

    The embeddings are the vectors that the head reads, not scaled to length 1.
    """
    encoder: Any = loaded.model.encoder
    loaded.seen.note_on(encoder)
    try:
        with quiet_transformers():
            for part in (encoder, loaded.tokenizer):
                part.save_pretrained(folder / ENCODER)
    except Exception as error:  # safetensors and tokenizers raise kinds of their own
        raise RunError(f"cannot write the encoder to {folder} ({one_line(error)})") from error
    for path in (folder / ENCODER).glob("*.safetensors"):
        add_metadata(path, loaded.seen.metadata())
    # Without the head it is the class of transformers, which needs no copy of ours.
    config = json.loads((folder / ENCODER / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "bert", "architectures": ["BertModel"]}
    config.pop("auto_map", None)
    write_json(folder / ENCODER / "config.json", config)
    (folder / ENCODER / "mean_pooled.py").unlink(missing_ok=True)
    made_folder(folder / POOLING)
    pooling = {"word_embedding_dimension": encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    parts = ((ENCODER, "Transformer"), (POOLING, "Pooling"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    write_json(folder / ENCODER / "sentence_bert_config.json", {"max_seq_length": max_length})
    write_json(folder / POOLING / "config.json", {**pooling, "pooling_mode_cls_token": False})
    write_json(folder / SENTENCE_MODULES, modules)


def push_to_hub(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload an export to the Hugging Face Hub as a model; return its address.

    Args:
        folder: A folder that `export_run` wrote; its README.md becomes the model card.
        name: `USER/NAME` or `NAME`; created unless it exists.
        private: Whether a new repository is private.

    Raises:
        RunError: If the folder holds no export, or the upload fails.
        MissingExtraError: If huggingface_hub is not installed.
    """
    if not _is_export(Path(folder)):
        raise RunError(f"the folder {folder} holds no export; write one by hesstune export RUN {folder}")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError("huggingface_hub", "transformers", "an upload to the Hub") from None
    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=repository)
    except Exception as error:  # the network, the hub and its client each raise kinds of their own
        raise RunError(
            f"cannot upload {folder} to '{name}' ({one_line(error)}); log in by hf auth login, and give "
            "USER/NAME of a repository that you may write to"
        ) from error
    return f"https://huggingface.co/{repository}"


def exported_card(run: Run, how: str, folder: Path) -> str:
    """Return the model card of an export: the run's, how to load it, its measure and certificate."""
    lines = ["---", "library_name: hesstune", "tags: [hesstune, noisy-labels]"]
    if run.config.model.startswith("hf:") and not Path(run.config.model[3:]).exists():
        lines.append(f"base_model: {json.dumps(run.config.model[3:])}")
    lines += ["---", "", model_card(run.config, run.facts), "## Load it", "", f"    {how}", ""]
    if (folder / SENTENCE_MODULES).is_file():
        lines += [f"    sentence_transformers.SentenceTransformer({folder.name!r})  # the embeddings", ""]
    if (folder / ONNX_RECORD).is_file():
        found = json.loads((folder / ONNX_RECORD).read_text(encoding="utf-8"))
        runtime = f"onnxruntime {found['versions']['onnxruntime']}"
        difference = f"{found['largest_difference']:.1g}, of {found['largest_logit']:.3g}"
        lines += [f"{ONNX_FILE}: by {runtime}, logits differed from torch's by at most {difference}.", ""]
    records = run.records
    if (measure := records.measure) is not None:
        value, mean = measure.measure, measure.mean_measure
        text = f"{value.value:.3f}, by the maximum over {measure.examples} examples of {measure.part}"
        if mean is not None and mean.value is not None:
            text += f"; {mean.value:.3f} by their mean"
        text += f" (n = {value.n}, C = {value.C:.3g}). {measure.statement}"
        lines += [f"## {measure.form.measure}", "", text, ""]
    if (certificate := records.certificate) is not None and not certificate.diagnostic:
        text = (
            f"Test error of {certificate.kind.short_name} at most {certificate.risk:.3f} with probability "
            f"{1 - certificate.delta:g}; its assumptions are in {CERTIFICATE}."
        )
        lines += ["## Certificate", "", text, ""]
    return "\n".join(lines)

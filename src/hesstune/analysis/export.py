"""`hesstune export`: write a finished run as a folder that other programs load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hesstune.errors import RunError
from hesstune.models.load import export_model
from hesstune.runs.model_card import model_card
from hesstune.runs.records import CARD, CERTIFICATE, MEASURE, NOISE_MATRIX, RECORD
from hesstune.runs.run import Run
from hesstune.storage.files import made_folder, write_text, writing

COPIED = (MEASURE, CERTIFICATE, NOISE_MATRIX)


def export_run(run: Run, folder: str | Path, overwrite: bool = False) -> str:
    """Write a run's network, its model card and the records of its measure and certificate.

    A transformers model is written by `save_pretrained`; any other as safetensors and config.json.

    Args:
        run: A finished run.
        folder: Where to; created, or replaced if `overwrite` is set and it holds an export.
        overwrite: Whether an earlier export may be replaced.

    Returns:
        One line of Python that loads the network.

    Raises:
        RunError: If the run has not finished, or the folder is in use or cannot be written.
    """
    _ = run.outcome
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
        how = export_model(run.loaded(), beside, facts)
        with writing(target):
            for name in COPIED:
                if (run.path / name).is_file():
                    shutil.copyfile(run.path / name, beside / name)
            write_text(beside / CARD, exported_card(run, how))
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
        exported = (target / CARD).is_file() and any(target.glob("*.safetensors"))
        if not exported or (target / RECORD).is_file():
            raise RunError(f"the folder {target} holds no export; choose another")


def exported_card(run: Run, how: str) -> str:
    """Return the model card of an export: the run's, how to load it, its measure and certificate."""
    lines = ["---", "library_name: hesstune", "tags: [hesstune, noisy-labels]"]
    if run.config.model.startswith("hf:") and not Path(run.config.model[3:]).exists():
        lines.append(f"base_model: {json.dumps(run.config.model[3:])}")
    lines += ["---", "", model_card(run.config, run.facts), "## Load it", "", f"    {how}", ""]
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

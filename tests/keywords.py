"""Write the types of `**options` from the models that declare options: `python tests/keywords.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hesstune
from hesstune.integrations.ray import ExtractionOptions
from hesstune.labeling.options import CleanOptions, LabelOptions
from hesstune.options import taken
from hesstune.runs import options
from hesstune.runs.config import FinetuneConfig
from hesstune.study.options import CompareOptions

FILE = Path(hesstune.__file__).parent / "runs" / "keywords.py"
HEADER = '''"""Keywords of functions that take options, for type checkers; written by tests/keywords.py."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from numpy.typing import ArrayLike

from hesstune.methods import Method
from hesstune.models.load import ModelObject
from hesstune.noise.matrix import NoiseMatrix

'''
# The base of each, its model, and options that its functions take as parameters of their own or refuse.
KEYWORDS = {
    "ColumnKeywords": ("TypedDict", options.ColumnOptions, ()),
    "FinetuneKeywords": ("ColumnKeywords", FinetuneConfig, ("model", "method")),
    "CompareKeywords": ("FinetuneKeywords", CompareOptions, ()),
    "LabelKeywords": ("TypedDict", LabelOptions, ("target", "votes", "functions")),
    "CleanKeywords": ("ColumnKeywords", CleanOptions, ("data", "write")),
    "StabilityKeywords": ("TypedDict", options.StabilityOptions, ()),
    "MeasureKeywords": ("TypedDict", options.MeasureOptions, ()),
    "CertifyKeywords": ("TypedDict", options.CertifyOptions, ()),
    "CheckKeywords": ("ColumnKeywords", options.CheckOptions, ()),
    "PredictKeywords": ("ColumnKeywords", options.PredictOptions, ()),
    "ExtractionKeywords": ("TypedDict", ExtractionOptions, ()),
}


def written() -> str:
    """Return what the file should hold."""
    parts = [HEADER]
    for name, (base, model, without) in KEYWORDS.items():
        left_out = {*without, *(KEYWORDS[base][1].model_fields if base in KEYWORDS else ())}
        fields = {each: field for each, field in model.model_fields.items() if each not in left_out}
        if name == "CompareKeywords":
            fields |= {each: FinetuneConfig.model_fields[each] for each in ("model", "method")}
        lines = [f"    {each}: {taken(field)}" for each, field in fields.items()]
        parts.append(f'class {name}({base}, total=False):\n    """`{model.__name__}` by name."""\n\n')
        parts.append("\n".join(lines) + "\n\n")
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    return subprocess.run(ruff, input="".join(parts), text=True, capture_output=True, check=True).stdout


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")

"""Write the types of `**options` from the models that declare options: `python tests/keywords.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hesstune
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
RUN = {"model", "method"}
# The model of each, options that its functions take as parameters of their own or refuse, and its base.
KEYWORDS = {
    "FinetuneKeywords": (FinetuneConfig, RUN, "TypedDict"),
    "CompareKeywords": (CompareOptions, (), "FinetuneKeywords"),
    "LabelKeywords": (LabelOptions, ("target", "votes", "functions"), "TypedDict"),
    "CleanKeywords": (CleanOptions, ("data", "write"), "TypedDict"),
    "DeviceKeywords": (options.DeviceOptions, (), "TypedDict"),
    "StabilityKeywords": (options.StabilityOptions, (), "TypedDict"),
    "MeasureKeywords": (options.MeasureOptions, (), "TypedDict"),
    "CertifyKeywords": (options.CertifyOptions, (), "TypedDict"),
    "CheckKeywords": (options.CheckOptions, (), "TypedDict"),
    "NoiseCheckKeywords": (options.NoiseCheckOptions, (), "TypedDict"),
    "PredictKeywords": (options.PredictOptions, (), "TypedDict"),
}


def written() -> str:
    """Return what the file should hold."""
    parts = [HEADER]
    for name, (model, without, base) in KEYWORDS.items():
        fields = {each: field for each, field in model.model_fields.items() if each not in without}
        if base == "FinetuneKeywords":
            fields |= {each: FinetuneConfig.model_fields[each] for each in sorted(RUN)}
        lines = [f"    {each}: {taken(field)}" for each, field in fields.items()]
        parts.append(f'class {name}({base}, total=False):\n    """`{model.__name__}` by name."""\n\n')
        parts.append("\n".join(lines) + "\n\n")
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    return subprocess.run(ruff, input="".join(parts), text=True, capture_output=True, check=True).stdout


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")

"""Small seeded runs and the digests of their files, to see whether a change moves a number.

    python benchmarks/digests.py --write            keep the digests of the code as it is
    python benchmarks/digests.py                    run again and compare, on the same machine

Digests cover weights bit for bit, the cells of CSV files, and every number with a fraction in the JSON
records: names, paths, times and versions may change, numbers may not. Digits differ between processors,
so a record is compared on the machine that made it, which `machine` names.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_files import write_table
from records import RESULTS

RECORD = RESULTS / "digests.json"
HEAD = ("--data", "digits", "--limit", "120", "--image-size", "32", "--epochs", "3", "--device", "cpu")
WHOLE = ("--data", "digits", "--limit", "48", "--image-size", "32", "--epochs", "2", "--device", "cpu")
# Words in keys of values that differ between runs, or are not measurements.
PASSING = ("seconds", "version", "path", "python", "torch")


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines by run, in order."""
    noisy = ("--inject-noise", "symmetric:0.3")
    texts, votes = folder / "texts.csv", folder / "votes.csv"

    def finetune(name: str, *options: str) -> list[str]:
        return ["finetune", "--out", str(folder / name), *options]

    return {
        "head": finetune("head", *HEAD, *noisy, "--train", "head", "--method", "robust"),
        "whole": finetune("whole", *WHOLE, *noisy, "--method", "robust", "--noise-matrix", "estimate:auto",
                          "--select", "last"),
        "text": finetune(
            "text", "--data", f"csv:{texts}", "--model", "minilm", "--method", "robust", "--noise-matrix",
            "0.2", "--train", "last:2", "--epochs", "1", "--max-length", "16", "--device", "cpu",
            "--select", "last",
        ),
        "certified": finetune("certified", *HEAD, "--train", "head", "--method", "certified"),
        "certify": ["certify", str(folder / "certified"), "--draws", "8", "--vouch", "normalisation"],
        "robust_plus": finetune("robust_plus", *HEAD, *noisy, "--train", "head", "--method", "robust_plus"),
        "prior": ["certify", str(folder / "head"), "--draws", "8", "--prior-fraction", "0.5"],
        "label": ["label", "--votes", str(votes), "--out", str(folder / "labelled.csv"),
                  "--label-model", "dawid_skene"],
        "compare": ["compare", "--data", "digits", "--limit", "100", "--image-size", "32", "--train", "head",
                    "--epochs", "2", "--methods", "vanilla,forward,gce", "--seeds", "2", *noisy,
                    "--device", "cpu", "--out", str(folder / "compare")],
        "measure": ["measure", str(folder / "whole"), "--max-examples", "16"],
        "noise": ["noise", str(folder / "head")],
        "predict": ["predict", str(folder / "whole"), "--data", "digits", "--out", str(folder / "p.csv")],
    }  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Write a small file of texts and one of votes."""
    good, bad = ("fine", "lovely", "bright", "warm"), ("poor", "dull", "cold", "grim")
    nouns = ("film", "book", "meal", "song", "walk", "house")
    rows = [(f"a {word} {noun} {end}", "good" if word in good else "bad")
            for word in (*good, *bad) for noun in nouns for end in ("today", "again")]  # fmt: skip
    write_table(folder / "texts.csv", ("text", "label"), rows)
    votes = [
        (str(i), *("cat" if (i * step) % 7 < 4 else "dog" if (i * step) % 11 else "" for step in (1, 2, 3)))
        for i in range(120)
    ]
    write_table(folder / "votes.csv", ("id", "vote_a", "vote_b", "vote_c"), votes)


def is_passing(name: str) -> bool:
    """Tell whether a key, a column or a metric differs from run to run."""
    return any(word in name for word in PASSING)


def numbers(value: Any, key: str = "") -> list[float]:
    """Return every number with a fraction in a record, but for those that differ from run to run."""
    if is_passing(key) or (isinstance(value, dict) and is_passing(str(value.get("metric")))):
        return []
    if isinstance(value, dict):
        return [n for k, v in value.items() for n in numbers(v, str(k))]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v, key)]
    return [value] if isinstance(value, float) and not value.is_integer() else []


def digest_of(path: Path) -> dict[str, Any] | None:
    """Return the digest of one file's contents, or None if it holds nothing to compare."""
    made, found = hashlib.sha256(), list[Any]()
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        found = sorted(tensors)
        for name in found:
            made.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
            made.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif path.suffix == ".csv":
        header, *rows = csv.reader(path.open(newline="", encoding="utf-8"))
        lasting = [at for at, name in enumerate(header) if not is_passing(name)]
        found = [[row[at] for at in lasting] for row in rows]
        made.update(json.dumps(found).encode())
    elif path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        found = sorted(number for line in lines for number in numbers(json.loads(line)))
        made.update(json.dumps(found).encode())
    return {"digest": made.hexdigest()[:20], "count": len(found)} if found else None


def run_all(folder: Path) -> None:
    """Run every command; stop at the first that fails."""
    write_inputs(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HESSTUNE_CACHE": ""}
    for name, command in commands(folder).items():
        print(name, flush=True)
        subprocess.run([sys.executable, "-m", "hesstune", *command, "--quiet"], env=environment, check=True)


def main() -> None:
    """Make the runs; keep their digests or compare them with those kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the digests")
    parser.add_argument("--keep", type=Path, help="folder for the runs, left there")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="digests-"))
    folder.mkdir(parents=True, exist_ok=True)
    run_all(folder)
    found = {
        str(path.relative_to(folder)): made
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "features" not in path.parts and (made := digest_of(path))
    }
    if given.keep is None:
        shutil.rmtree(folder)
    machine = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    if given.write:
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(made)}" for name, made in found.items())
        RECORD.write_text(f'{{\n "machine": {json.dumps(machine)},\n "files": {{\n{rows}\n }}\n}}\n')
        return
    kept = json.loads(RECORD.read_text())["files"]
    moved = [name for name in kept if found.get(name) != kept[name]]
    for name in moved:
        print(f"differs: {name}: {kept[name]} became {found.get(name)}")
    for name in found.keys() - kept.keys():
        print(f"new: {name}")
    print(f"{len(kept) - len(moved)} of {len(kept)} files hold the same numbers")
    sys.exit(bool(moved))


if __name__ == "__main__":
    main()

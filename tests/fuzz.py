"""Feed every reader mutated files: only HesstuneError may come out, soon, and within a memory limit.

`python tests/fuzz.py --count 20000 --seed 1` reads as many; the tests run fewer. Prints a JSON record:
per kind of file how many were read, how many were refused, and every other outcome with its seed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import signal
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, features
from safetensors.torch import save_file

import hesstune as ht
from hesstune.bounds.record import Certificate
from hesstune.curvature.result import Measure
from hesstune.data.formats import listing
from hesstune.data.images import decode, decode_objects
from hesstune.data.labels import read_checked_labels, read_clean_labels
from hesstune.data.load import load_examples
from hesstune.data.reading import Columns, Reading
from hesstune.labeling.label_data import label_data
from hesstune.models.load import read_weights
from hesstune.reference import Reference
from hesstune.report.layers import layer_rows, setters
from hesstune.report.narrative import assumptions, provenance, verdict
from hesstune.runs import guarantee_log, records
from hesstune.runs.config import make_config, read_yaml
from hesstune.runs.integrity import DataRecord, PartRecord
from hesstune.storage.stored import read_record
from hesstune.storage.tensors import load_tree, save_tree
from hesstune.weak.annotation_exports import read_export
from hesstune.weak.vote_files import vote_columns, votes_in
from hesstune.weak.vote_sources import read_vote_file

SECONDS = 20
MEMORY_MIB = 1024
NASTY = (
    b"", b"\0", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 400, b"[" * 3000, b"{" * 3000, b'"', b",", b"\n",
    b"\xff\xfe", "é".encode(), b"!!python/object/apply:os.system ['true']", b"&a [*a, *a]", b"null", b"true",
    b"../../../etc/passwd", b"\r\n\r\n", b"1.5", b"0x10", b"|", b";", b"PK\x03\x04",
)  # fmt: skip


class Hang(BaseException):
    """A reader took too long."""


def mutated(content, draw):
    """Return the content with a few random changes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = draw.choice((0, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randrange(1, 32)]
        elif kind == 4:
            data[at:at] = draw.choice(NASTY)
        elif kind == 5:
            part = bytes(data[at : at + draw.randrange(1, 64)])
            data[at:at] = part * draw.randrange(1, 4)
        elif len(data) >= 8:  # sizes and offsets
            at %= len(data) - 7
            number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**40))
            data[at : at + 8] = struct.pack("<Q", number)
    return bytes(data)


def label_studio_task(number, label):
    """Return a finished task of an export of Label Studio."""
    value = {"from_name": "label", "to_name": "example", "type": "choices", "value": {"choices": [label]}}
    data = {"hesstune_id": str(number), "given_label": "cat", "content": "0f", "text": "a"}
    return {"id": number, "data": data, "annotations": [{"completed_by": 1, "result": [value]}]}


def finished_run(folder):
    """Write a run folder by hand: it need not be trained to be read."""
    run = folder / "run"
    run.mkdir()
    config = (
        make_config({"model": "efficientnet_lite0", "inject_noise": "symmetric:0.2"}).resolved().to_dict()
    )
    import yaml

    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result = {
        "gap": 0.1,
        "test_accuracy": 0.5,
        "train_accuracy": 0.6,
        "distances": {"a": 0.1},
        "distance": 0.1,
    }
    noise = {"injected": None, "realised_rate": None, "loss_matrix": "nothing", "loss_matrix_rate": None}
    record = {"format": 1, "classes": ["cat", "dog"], "examples": {"train": 2, "val": 1, "test": 1},
              "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3}, "split": "uniform", "noise": noise,
              "versions": {"hesstune": "0.1.0"}, "result": result}  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text('{"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.5}\n')
    (run / "labels.csv").write_text("id,part,label,true_label\na,train,cat,cat\nb,train,dog,cat\n")
    ht.NoiseMatrix.symmetric(2, 0.2).save(run / "noise_matrix.json")
    derived_records(run)
    digests = np.arange(32, dtype=np.uint8).reshape(2, 16)
    part = PartRecord(["a", "b"], digests, digests + 1, np.array([0, 1]))
    DataRecord(["cat", "dog"], dict.fromkeys(("train", "val", "test"), part)).save(run / records.DATA)
    tail = {"errors": 3.0, "mean": 0.03, "low": 0.0, "high": 1.0}
    certificate = Certificate.of_network("holdout", tail, n=100, delta=0.05, classes=2)
    guarantee_log.log_certificate(run, certificate, {"bound": "holdout"})
    guarantee_log.log_sheet(run, ["a", "b"], {"sample": 2})
    return run


def derived_records(run):
    """Write what other commands leave in a run folder."""
    matrix = {"matrix": [[0.8, 0.2], [0.2, 0.8]], "rate": 0.2}
    assumed = {**matrix, "condition": 1.7, "log_likelihood": -0.5}
    check = {
        "run": "a", "classes": ["cat", "dog"], "examples": 2, "matrix_given": True, "assumed": assumed,
        "counted": None, "class_conditional": None, "statements": ["a"],
        "estimates": [{"method": "auto", **assumed, "total_variation": 0.1, "largest_at": [0, 1]},
                      {"method": "confident", "failed": "why"}],
        "cost_of_an_error": [{"off": 0.1, "direction": "too much", "accuracy_lost": 0.1, "stderr": None}],
    }  # fmt: skip
    layer = {"name": "a", "maximum": 0.1, "mean": 0.05, "mean_stderr": None, "distance": 0.1, "exact": True}
    measure = {"examples": 2, "measure": {"n": 2, "C": 1.0, "value": 0.3}, "layers": [layer], "notes": ["n"],
               "statement": "s", "ids": ["a", "b"], "part": "val"}  # fmt: skip
    row = {"sigma": 0.01, "value": 0.1, "stderr": 0.01, "taylor": 0.1, "ratio": None}
    radius = {"rule": "r", "curve": [{"factor": 1.0, "risk": 0.1, "stderr": None, "val_loss": 0.5}],
              "chosen": 1.0, "radius": {"head": 0.5}, "traces": {}}  # fmt: skip
    kept = {
        records.NOISE_CHECK: check, records.MEASURE: measure, records.RADIUS: radius,
        records.STABILITY: {"examples": 2, "rows": [row]}, records.EXAMPLES: {"a": {"text": "t"}},
        records.LABEL_ISSUES_RECORD: {"examples": 2, "noise_matrix": {**matrix, "examples": 2}},
    }  # fmt: skip
    for name, record in kept.items():
        (run / name).write_text(json.dumps(record))
    header = "id,given_label,likely_label,confidence,p_given_label,true_label\n"
    (run / records.LABEL_ISSUES).write_text(header + "a,cat,dog,0.9,0.1,cat\nb,dog,dog,0.9,0.9,\n")
    save_file({"quadratic": torch.ones(2, 1, dtype=torch.float64)}, str(run / records.MEASURE_TENSORS))


def read_run(path):
    """Read all that a run's folder holds, a file of which is given."""
    loaded = ht.Run.load(path.parent)
    _ = loaded.classes, loaded.result, loaded.metrics, loaded.noise_matrix, loaded.labels()
    read_record(path.parent / records.RADIUS, records.RadiusRecord)
    known = loaded.records
    known.read_all()
    DataRecord.load(path.parent / records.DATA).checksums()
    for one in guarantee_log.certificates(path.parent):
        guarantee_log.with_union(path.parent, one)
    guarantee_log.sheets(path.parent)
    _ = layer_rows(known), setters(known), assumptions(known), provenance(known), verdict(known)


def pictures_of(pixels):
    """Return images of every format, and those that are turned, transparent, deep or moving."""
    plain = Image.fromarray(pixels)
    exif = plain.getexif()
    exif[0x0112] = 6
    clear = Image.fromarray(np.dstack([pixels, pixels[..., 0]]))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    floats = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    made = {
        **{suffix: (plain, suffix, {}) for suffix in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")},
        "turned jpeg": (plain, "jpeg", {"exif": exif}),
        "turned png": (plain, "png", {"exif": exif}),
        "turned webp": (plain, "webp", {"exif": exif}),
        "clear png": (clear, "png", {}),
        "clear webp": (clear, "webp", {}),
        "palette png": (clear.quantize(9), "png", {}),
        "keyed png": (plain, "png", {"transparency": (1, 2, 3)}),
        "deep png": (deep, "png", {"transparency": 257}),
        "deep tiff": (deep, "tiff", {}),
        "float tiff": (floats, "tiff", {}),
        "cmyk jpeg": (plain.convert("CMYK"), "jpeg", {}),
        "moving gif": (plain, "gif", {"save_all": True, "append_images": [plain.rotate(90)]}),
        **({"avif": (plain, "avif", {})} if features.check("avif") else {}),
    }  # fmt: skip
    found = {}
    for kind, (image, suffix, how) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, format=suffix, **how)
        found[kind] = (buffer.getvalue(), f"x.{suffix}", lambda p: decode(p, 16, (1, 2, 3)))
    png = found["clear png"][0]
    found["picture in memory"] = (png, "x.bin", lambda p: decoded_in_memory(p.read_bytes()))
    return found


def decoded_in_memory(content):
    """Decode a file's bytes as hf: data does; what is damaged is named, and never raised."""
    if bad := decode_objects([content], 16).bad:
        raise ht.HesstuneError(bad[0])


def tables():
    """Return tables in other encodings, separators and columns: to train on, to predict, of votes."""
    text = "id;Text;label;split\n0;gut;1;Train\n1;schön;5;train\n\n2;na ja;1;Testing\n3;schlecht;5;dev\n"
    named = b"key,body,stars\n0,good film,1\n1,bad film,0\n2,fine,NA\n3,awful,0\n"
    long = b"task,worker,label\n0,a,cat\n0,b,dog\n1,a,cat\n1,b,NaN\n2,b,dog\n"
    lines = b"".join(b'{"text": "a %d", "label": "%d", "id": %d}\n' % (n, n % 2, n) for n in range(4))
    result = [{"from_name": "q", "type": "choices", "value": {"choices": ["a"]}}]
    task = {"id": 1, "data": {"text": "t"}, "annotations": [{"completed_by": 1, "result": result}]}
    export = json.dumps([task, task | {"id": 2}]).encode()
    how = Reading(columns=Columns(text="body", label="stars", id="key"))
    voted = b"id,text,vote_a,vote_b,p_cat,p_dog\n0,a,cat,dog,0.5,0.5\n1,b,,cat,0.1,0.9\n2,c,dog,null,1,0\n"
    return {
        "csv of semicolons": (text.encode(), "s.csv", lambda p: listing(f"csv:{p}", 16)),
        "csv in UTF-16": (text.encode("utf-16"), "u.csv", lambda p: listing(f"csv:{p}", 16)),
        "csv in UTF-32": (text.encode("utf-32"), "w.csv", lambda p: listing(f"csv:{p}", 16)),
        "json lines": (lines, "t.jsonl", lambda p: listing(f"jsonl:{p}", 16)),
        "export": (export, "e.json", read_export),
        "csv to predict": (
            named,
            "n.csv",
            lambda p: load_examples(f"csv:{p}", size=16, classes=["0", "1"], how=how),
        ),
        "csv of votes": (voted, "o.csv", lambda p: listing(f"csv:{p}", 16)),
        "csv of a vote a row": (long, "l.csv", lambda p: label_data(votes=str(p))),
        "clean labels": (
            b"id,label\n0,cat\n1,NA\n2,dog\n",
            "c.csv",
            lambda p: read_clean_labels(p, ["cat", "dog"]),
        ),
        "decisions": (
            b"id,given_label,decision,label,content\r\n0,cat,keep,cat,0f\r\n1,cat,change,dog,\r\n2,dog,remove,,\r\n",
            "d.csv",
            lambda p: read_checked_labels(p, ["cat", "dog"]),
        ),
        "decisions of Label Studio": (
            json.dumps([label_studio_task(n, name) for n, name in enumerate(("cat", "dog"))]).encode(),
            "d.json",
            lambda p: read_checked_labels(p, ["cat", "dog"]),
        ),
        "matrix in UTF-16": ("0,8;0,2\n0,2;0,8\n".encode("utf-16"), "m.CSV", ht.NoiseMatrix.load),
    }


def data_sets(folder):
    """Return every file of a data set that save_to_disk wrote, read as hf: data."""
    try:
        import datasets
    except ImportError:
        return {}
    rows = {"text": ["good", None, "fine", "bad"], "label": [0, 1, 0, 1], "id": list("abcd")}
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(rows), "dev": datasets.Dataset.from_dict(rows)}
    )
    datasets.disable_progress_bars()
    made.save_to_disk(folder / "set")
    files = sorted(p for p in (folder / "set").rglob("*") if p.is_file())
    return {
        f"hf {p.relative_to(folder / 'set')}": (
            p.read_bytes(), str(p.relative_to(folder)), lambda _: listing(f"hf:{folder / 'set'}", 16)
        )
        for p in files
    }  # fmt: skip


def readers(folder):
    """Return {kind: (a good file, its name, what reads it)}."""
    run = finished_run(folder)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    Reference.of(model).save(folder / "reference.safetensors")
    save_file(dict(model.state_dict()), str(folder / "weights.safetensors"))
    torch.save(dict(model.state_dict()), folder / "weights.pt")
    torch.save(dict(model.state_dict()), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_tree(folder / "tree.safetensors", {"a": torch.ones(3), "b": [1, {"c": None}]})
    found = ht.measure(model, Reference.of(model), [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))])
    found.save(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 3), dtype=np.uint8)
    arrays = {"images": pixels[None].repeat(4, 0), "labels": np.array([0, 1, 0, 1])}
    np.savez(folder / "images.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    np.save(folder / "matrix.npy", ht.NoiseMatrix.symmetric(2, 0.2).array)
    votes = b"id,vote_a,vote_b\n0,cat,dog\n1,,cat\n2,1,0\n"
    table = b"id,text,label,split\n0,good film,1,train\n1,bad film,0,train\n2,fine,1,test\n3,awful,0,test\n"
    named = b"image,label\nx.png,cat\ny.png,dog\n"
    config = b"method: robust\ninject_noise: pair:0.2\nbatch-size: 16\nradius: {head: 1.0}\nmean: [0.5]\n"

    certificate = Certificate(
        risk=0.3, empirical=0.2, empirical_bound=0.25, kl=3.0, n=100, delta=0.05,
        shares={"pac_bayes": 0.04, "monte_carlo": 0.01, "noise": 0.0}, classes=2, sigma={"a": 0.1},
        prior_sigma={"a": 0.1}, distance={"a": 0.2}, kl_terms={"a": 3.0}, family=10, draws=200, draw_size=1,
        loss="zero_one", noise="clean", assumptions=["the examples are independent"],
        held_out={"errors": 1, "n": 20, "error": 0.05, "bound": 0.2, "delta": 0.05},
    )  # fmt: skip
    certificate.save(folder / "certificate.json")
    return {
        **{f"run {p.name}": (p.read_bytes(), f"run/{p.name}", read_run) for p in sorted(run.iterdir())},
        "yaml": (config, "x.yaml", lambda p: make_config(read_yaml(p)).resolved()),
        "csv": (table, "x.csv", lambda p: listing(f"csv:{p}", 16)),
        "tsv": (table.replace(b",", b"\t"), "x.tsv", lambda p: listing(f"csv:{p}", 16)),
        "csv of images": (named, "y.csv", lambda p: listing(f"csv:{p}", 16)),
        "votes": (votes, "v.csv",
                  lambda p: votes_in(t := read_vote_file(p)[0], vote_columns(t), ["cat", "dog"])),
        "npz": ((folder / "images.npz").read_bytes(), "x.npz", lambda p: listing(f"array:{p}", 16)),
        "npz, packed": ((folder / "packed.npz").read_bytes(), "x.npz", lambda p: listing(f"array:{p}", 16)),
        "matrix.npy": ((folder / "matrix.npy").read_bytes(), "m.npy", ht.NoiseMatrix.load),
        "matrix.csv": (b"0.8,0.2\n0.2,0.8\n", "m.csv", ht.NoiseMatrix.load),
        "matrix.json": (b"[[0.8, 0.2], [0.2, 0.8]]", "m.json", ht.NoiseMatrix.load),
        "reference": ((folder / "reference.safetensors").read_bytes(), "r.safetensors", Reference.load),
        "weights": ((folder / "weights.safetensors").read_bytes(), "w.safetensors", read_weights),
        "weights.pt": ((folder / "weights.pt").read_bytes(), "w.pt", read_weights),
        "legacy weights": ((folder / "legacy.pt").read_bytes(), "w.pt", read_weights),
        "checkpoint": ((folder / "tree.safetensors").read_bytes(), "t.safetensors", load_tree),
        "measure": ((folder / "measure.safetensors").read_bytes(), "m/measure.safetensors",
                    lambda p: Measure.load(p.parent).to_dict()),
        "certificate": ((folder / "certificate.json").read_bytes(), "c.json",
                        lambda p: Certificate.load(p).summary()),
        "npz of parts": (parts_of_arrays(folder), "p.npz", lambda p: listing(f"array:{p}", 16)),
        **tables(),
        **data_sets(folder),
        **pictures_of(pixels),
    }  # fmt: skip


def parts_of_arrays(folder):
    """Return an .npz file of deep images with opacity, names and parts."""
    images = np.random.default_rng(1).integers(0, 65536, (6, 8, 8, 4)).astype(np.uint16)
    split = ["train"] * 4 + ["Test", "valid"]
    np.savez(folder / "p.npz", images=images, labels=[0, 1, 0, 1, 0, 1], classes=["a", "b"], split=split)
    return (folder / "p.npz").read_bytes()


def limit_memory():
    """Allow so much more than is in use now; return the limit in bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


def read_one(read, path):
    """Return what came of one file: `read`, `refused`, or the name of the wrong outcome."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(path)
    except ht.HesstuneError as error:
        return "refused" if len(str(error)) < 3000 else "a message of more than 3000 characters"
    except Hang:
        return f"hang of {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def main(count, seed):
    """Read `count` mutated files in all; return the counts and the wrong outcomes."""

    def hang(*_):
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    warnings.simplefilter("ignore")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    torch.set_num_threads(1)
    counts = {}
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = readers(folder)
        (folder / "m").mkdir()
        for picture in ("x.png", "y.png"):
            Image.new("RGB", (8, 8)).save(folder / picture)
        for kind, (content, file, read) in kinds.items():  # each good file is read, or nothing is tested
            (folder / file).write_bytes(content)
            outcome = read_one(read, folder / file)
            if outcome != "read":
                wrong.append({"kind": kind, "at": "the good file", "outcome": outcome})
        limit_memory()
        for at, kind in enumerate(list(kinds) * (count // len(kinds) + 1)):
            if at >= count:
                break
            content, file, read = kinds[kind]
            draw = random.Random(f"{seed} {at}")
            (folder / file).write_bytes(mutated(content, draw))
            outcome = read_one(read, folder / file)
            (folder / file).write_bytes(content)
            row = counts.setdefault(kind, {"read": 0, "refused": 0})
            if outcome in row:
                row[outcome] += 1
            else:
                wrong.append({"kind": kind, "at": at, "outcome": outcome})
        shutil.rmtree(folder / "run")
    return {"files": count, "seed": seed, "kinds": counts, "wrong": wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(main(given.count, given.seed)))

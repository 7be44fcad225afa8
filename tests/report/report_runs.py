"""A run folder made of records alone."""

import json

import numpy as np
import yaml
from safetensors.numpy import save_file

from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.records import FORMAT

EVIL = "<script>alert(1)</script>"


def run_folder(path, k=3, n=30, layers=4, measured=True, names=None):
    rng = np.random.default_rng(0)
    classes = [EVIL, *(f"class {i}" for i in range(1, k))]
    names = names or [f"_layer{i}.weight" for i in range(layers)]
    layers = len(names)
    result = {
        "test_accuracy": 0.8, "test_accuracy_interval": [0.7, 0.9], "train_accuracy": 0.9, "gap": 0.5,
        "distances": dict.fromkeys(names, 0.1), "distance": 0.2, "radii": {names[0]: 0.1, names[1]: 0.5},
    }  # fmt: skip
    noise = {
        "injected": "symmetric:0.3",
        "realised_rate": 0.3,
        "loss_matrix": "rate 0.3",
        "loss_matrix_rate": 0.3,
    }
    versions = {"hesstune": "0.1.0"}
    shape = {"mean": [0.5] * 3, "std": [0.5] * 3}
    sizes = {"train": n, "val": 5, "test": 5}
    record = {"format": FORMAT, "classes": classes, "examples": sizes, "split": "uniform", "noise": noise}
    record["versions"] = versions
    (path / "run.json").write_text(json.dumps({**record, "normalisation": shape, "result": result}))
    (path / "config.yaml").write_text(yaml.safe_dump({"model": "m", "data": "d", "method": "robust"}))
    if not measured:
        return path
    epoch = {"train_loss": 1.0, "val_accuracy": 0.5, "val_accuracy_true_labels": 0.6, "distance": 0.1}
    lines = [json.dumps({"epoch": i, "train_accuracy": 0.3 * i, **epoch}) for i in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    NoiseMatrix.symmetric(k, 0.3).save(path / "noise_matrix.json")
    rows = [f'{i},train,"{classes[i % k]}","{classes[(i + i // 9) % k]}"' for i in range(n)]
    (path / "labels.csv").write_text("id,part,label,true_label\n" + "\n".join(rows) + "\n")
    issues_of_all = [f'{i},"{classes[0]}",class 1,0.9,0.1,class 1' for i in range(n)]
    header = "id,given_label,likely_label,confidence,p_given_label,true_label\n"
    (path / "label_issues.csv").write_text(header + "\n".join(issues_of_all) + "\n")
    fit = {
        "wrong": {"agreed": 19, "examples": 20}, "right": {"agreed": n - 20, "examples": n - 20},
        "expected_right": 0.0, "known": True,
    }  # fmt: skip
    issues = {"examples": n, "noise_matrix": None, "judged_by": "probes", "fit": fit}
    (path / "label_issues.json").write_text(json.dumps(issues))
    quadratic = rng.random((n, layers)).astype(np.float32)
    save_file({"quadratic": quadratic}, str(path / "measure.safetensors"))
    layer = {
        "mean": 0.1, "mean_stderr": 0.01, "distance": 0.1, "trace_mean": 2.0, "exact": True,
        "method": "exact",
    }  # fmt: skip
    measured = [
        {"name": a, "maximum": float(m), **layer} for a, m in zip(names, quadratic.max(0), strict=True)
    ]
    whole = {
        "part": "train",
        "measure": {"value": 0.4, "n": n, "C": 2.0},
        "layers": measured,
        "notes": [],
        "statement": "No guarantee.",
    }
    sigmas = [{"sigma": s, "value": s, "stderr": 0.1 * s, "taylor": s / 2} for s in (0.001, 0.01)]
    (path / "noise_stability.json").write_text(json.dumps({"examples": n, "rows": sigmas}))
    (path / "measure.json").write_text(json.dumps(whole))
    return path

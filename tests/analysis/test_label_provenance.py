"""What a certificate may take for true: where priors, matrices and labels came from travels with them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.label_provenance import run_noise_knowledge
from hesstune.errors import ChangedDataError, ConfigError, DataError
from hesstune.noise.estimate import estimate_noise
from hesstune.noise.matrix import NoiseMatrix


@pytest.fixture
def plain(tiny, tmp_path):
    """Options of a head trained on true labels, in a folder."""
    options = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size")}
    return {**options, "method": "vanilla", "train": "head", "epochs": 1, "val_fraction": 0,
            "out": str(tmp_path / "a")}  # fmt: skip


def repaint(folder, seed):
    """Give every picture of a folder other pixels under its old name."""
    rng = np.random.default_rng(seed)
    for path in folder.rglob("*.png"):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)


def test_a_prior_is_not_reused_if_contents_have_changed_under_the_same_names(plain, image_folder):
    run = ht.finetune(plain)
    certify_run(run, prior_fraction=0.5, draws=32)
    before = (run.path / "prior" / "model.safetensors").read_bytes()
    made = ht.Run.load(run.path / "prior").facts.made_from
    assert set(made["checksums"]) == {"classes", "train", "val", "test", "weights"}
    repaint(image_folder, 1)
    with pytest.raises(ChangedDataError):
        certify_run(run, prior_fraction=0.5, draws=32)
    assert (run.path / "prior" / "model.safetensors").read_bytes() == before
    # A run that replaces this one loses what was derived from it.
    ht.finetune(plain, overwrite=True)
    assert not any((run.path / name).exists() for name in ("prior", "posterior", "certificate.json"))


def test_where_a_matrix_came_from_travels_with_it(tmp_path):
    g = np.array([[0.8, 0.2], [0.3, 0.7]] * 50)
    found = estimate_noise(g, np.arange(100) % 2, "confident")
    assert found.matrix.origin == "estimated"
    path = tmp_path / "F.json"
    found.matrix.regularized(0.1).save(path)
    assert NoiseMatrix.load(path).origin == "estimated"
    path.write_text(json.dumps(found.to_dict() | {"classes": ["b", "a"]}))
    turned = NoiseMatrix.parse(str(path), 2, ["a", "b"])
    assert turned.origin == "estimated"
    np.testing.assert_allclose(turned.array, found.matrix.array[::-1, ::-1])
    # By what made them, if files do not say it.
    for more, origin in (
        ({}, "stated"),
        ({"method": "confident"}, "estimated"),
        ({"method": "labelmodel"}, "instance_dependent"),
        ({"label_model": "majority"}, "instance_dependent"),
    ):
        path.write_text(json.dumps({"matrix": [[1, 0], [0, 1]], **more}))
        assert NoiseMatrix.load(path).origin == origin
    path.write_text(json.dumps({"matrix": [[1, 0], [0, 1]], "origin": "knwon"}))
    with pytest.raises(ConfigError, match="origin of a noise matrix"):
        NoiseMatrix.load(path)
    assert NoiseMatrix.from_array(found.matrix.array).origin == "stated"


def test_an_estimate_given_as_a_file_stays_an_estimate(tiny, tmp_path):
    options = {**tiny, "train": "head", "epochs": 1, "val_fraction": 0, "method": "robust", "seed": 1}
    first = ht.finetune(
        options, out=str(tmp_path / "a"), inject_noise=None, noise_matrix="estimate:confident"
    )
    file = str(first.path / "noise_matrix.json")
    again = ht.finetune(options, out=str(tmp_path / "b"), inject_noise=None, noise_matrix=file)
    for noise_is in ("auto", "known"):
        with pytest.raises(DataError, match="from noisy data alone"):
            certify_run(again, noise_is=noise_is)
    # The saved file of a saved file, too; and the mean of noise that depends on the example.
    assert NoiseMatrix.load(again.path / "noise_matrix.json").origin == "estimated"
    assert json.loads((again.path / "noise_matrix.json").read_text())["classes"] == again.classes
    third = ht.finetune(options, out=str(tmp_path / "c"), inject_noise="instance:0.2")
    file = str(third.path / "noise_matrix.json")
    fourth = ht.finetune(options, out=str(tmp_path / "d"), inject_noise=None, noise_matrix=file)
    with pytest.raises(DataError, match="depend on the input"):
        certify_run(fourth)
    # What the file's matrix puts into true labels is known all the same.
    fifth = ht.finetune(options, out=str(tmp_path / "e"), inject_noise=file)
    assert certify_run(fifth).noise == "noisy, with a known noise matrix"


@pytest.fixture
def soft_csv(image_folder, tmp_path):
    """A file of labels as a label model writes them for a crowd: soft labels, no votes."""
    path = tmp_path / "soft.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "label", "p_dark", "p_light"])
        for image in sorted(image_folder.rglob("*.png")):
            p = float(rng.uniform(0.55, 0.95))
            name = image.parent.name
            out.writerow([str(image), name, *((p, 1 - p) if name == "dark" else (1 - p, p))])
    return path


@pytest.mark.parametrize(("matrix", "soft"), [(None, True), ("0", False)])
def test_labels_that_a_model_made_are_no_truth_unless_the_user_says_so(
    tiny, soft_csv, tmp_path, matrix, soft
):
    options = {**tiny, "data": f"csv:{soft_csv}", "train": "head", "epochs": 1, "inject_noise": None,
               "val_fraction": 0, "noise_matrix": matrix, "soft_labels": soft}  # fmt: skip
    run = ht.finetune(options, method="vanilla", out=str(tmp_path / "a"))
    with pytest.raises(DataError, match="depend on the input"):
        certify_run(run)
    marked = certify_run(run, diagnostic=True, draws=64)
    assert marked.diagnostic
    assert marked.held_out_labels == "unknown"
    assert marked.held_out["bound"] == 1.0
    stated = certify_run(run, noise_is="none", draws=64)
    assert "you state that the given labels are the true ones" in stated.assumptions
    assert run_noise_knowledge(run.config, run.task(), "known") == "instance_dependent"

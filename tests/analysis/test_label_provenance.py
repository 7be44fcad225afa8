"""What a certificate may take for true: where priors, matrices and labels came from travels with them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.analysis.label_provenance import run_noise_knowledge
from hesstune.bounds.certificate import certify
from hesstune.bounds.noisy import KnownNoise, NoiseConfidenceSet, inverse_loss
from hesstune.bounds.pac_bayes import confidence_upper
from hesstune.errors import ChangedDataError, ConfigError, DataError
from hesstune.noise.estimate import estimate_noise
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference


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


def test_a_prior_is_not_reused_where_contents_have_changed_under_the_same_names(plain, image_folder):
    run = ht.finetune(plain)
    certify_run(run, prior_fraction=0.5, draws=32)
    before = (run.path / "prior" / "model.safetensors").read_bytes()
    made = ht.Run.load(run.path / "prior").facts.made_from
    assert set(made["checksums"]) == {"classes", "train", "val", "test", "weights"}
    certify_run(run, prior_fraction=0.5, draws=32)
    assert (run.path / "prior" / "model.safetensors").read_bytes() == before
    repaint(image_folder, 1)
    with pytest.raises(ChangedDataError):
        certify_run(run, prior_fraction=0.5, draws=32)
    assert (run.path / "prior" / "model.safetensors").read_bytes() == before


def test_a_replaced_run_loses_what_was_derived_from_it(plain, image_folder):
    run = ht.finetune(plain)
    certify_run(run, prior_fraction=0.5, draws=32)
    repaint(image_folder, 2)
    again = ht.finetune(plain, overwrite=True)
    assert not any((again.path / name).exists() for name in ("prior", "posterior", "certificate.json"))


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
    # Files from before they said so, by what made them.
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


def test_certify_takes_an_estimated_matrix_at_its_word():
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    model = torch.nn.Linear(5, 2)
    ref = Reference.of(model)
    with torch.no_grad():
        model.weight.add_(0.5)
    for origin, why in (
        ("estimated", "from noisy data alone"),
        ("instance_dependent", "depend on the input"),
    ):
        with pytest.raises(DataError, match=why):
            certify(model, ref, data, noise_matrix=NoiseMatrix.symmetric(2, 0.1).known_as(origin))
    assert not certify(model, ref, data, noise_matrix=NoiseMatrix.symmetric(2, 0.1), draws=64).diagnostic


def test_an_estimate_given_as_a_file_stays_an_estimate(tiny, tmp_path):
    options = {**tiny, "train": "head", "epochs": 1, "val_fraction": 0, "method": "robust", "seed": 1}
    first = ht.finetune(
        options, out=str(tmp_path / "a"), inject_noise=None, noise_matrix="estimate:confident"
    )
    file = str(first.path / "noise_matrix.json")
    again = ht.finetune(options, out=str(tmp_path / "b"), inject_noise=None, noise_matrix=file)
    with pytest.raises(DataError, match="from noisy data alone"):
        certify_run(again)
    with pytest.raises(DataError, match="from noisy data alone"):
        certify_run(again, noise_is="known")
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


@pytest.mark.parametrize("matrix", [None, "0"])
@pytest.mark.parametrize("soft", [False, True])
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


def test_held_out_labels_that_are_noisy_give_no_clopper_pearson_bound(plain, tmp_path):
    run = ht.finetune(plain, noise_matrix="0.2")
    found = certify_run(run)
    held = found.held_out
    naive = confidence_upper(int(held["errors"]), int(held["n"]), 0.05)
    assert found.held_out_labels == "noisy"
    assert "as noisy as the certificate's own" in found.summary()
    assert "Clopper-Pearson" not in found.summary()
    told = certify_run(run, test_labels="true").held_out
    assert told["bound"] == pytest.approx(naive)
    injected = ht.finetune(plain, inject_noise="symmetric:0.2", out=str(tmp_path / "b"))
    assert certify_run(injected).held_out_labels == "true"


def test_a_held_out_bound_under_asymmetric_noise_is_above_the_true_error():
    """A rule that says 0 errs on half; four in five of class 1 are called 0, so it seems to err less."""
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    true = (torch.arange(600) % 2).long()
    matrix = np.array([[1.0, 0.0], [0.8, 0.2]])
    noisy = torch.from_numpy(NoiseMatrix(matrix).corrupt(true.numpy(), seed=1))
    model = torch.nn.Linear(5, 2)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    ref = Reference.of(model)
    with torch.no_grad():
        model.bias[0] = 1.0
    train, held = (
        torch.utils.data.TensorDataset(x[part], noisy[part]) for part in (slice(0, 200), slice(200, 600))
    )
    how = {"noise_matrix": matrix, "draws": 64, "held_out": held}
    assert certify(model, ref, train, **how).held_out["bound"] < 0.2  # what was printed as clean
    assert certify(model, ref, train, held_out_labels="noisy", **how).held_out["bound"] > 0.5
    # A confidence set has its part of delta.
    counts = NoiseConfidenceSet([[500, 0], [400, 100]], 0.01)
    how["noise_matrix"] = counts
    found = certify(model, ref, train, held_out_labels="noisy", **how)
    assert found.held_out["bound"] > 0.5
    assert found.held_out["delta"] == 0.05


def test_a_comparison_reads_a_matrix_in_its_own_order_of_classes(tiny, tmp_path):
    """The file names its classes the other way round; both files tell the same noise."""
    array = np.array([[0.95, 0.05], [0.3, 0.7]])
    straight, turned = tmp_path / "straight.json", tmp_path / "turned.json"
    straight.write_text(json.dumps({"matrix": array.tolist(), "classes": ["dark", "light"]}))
    turned.write_text(json.dumps({"matrix": array[::-1, ::-1].tolist(), "classes": ["light", "dark"]}))
    risks = []
    for path in (straight, turned):
        shared = {name: value for name, value in tiny.items() if name != "method"}
        options = {**shared, "train": "head", "epochs": 1, "inject_noise": None, "noise_matrix": str(path)}
        found = ht.compare(options, methods=["vanilla"], seeds=1, certify=True, measure_examples=0,
                           out=str(tmp_path / path.stem))  # fmt: skip
        risks.append(found.results.cells[0].metrics["certificate"].risk)
    assert risks[0] == risks[1] is not None


@pytest.mark.parametrize("seed", [310, 411, 823])
def test_a_well_conditioned_inverse_loss_is_not_lost_by_rounding(seed):
    rng = np.random.default_rng(seed)
    k, rate = int(rng.integers(2, 30)), rng.uniform(0, 0.6)
    matrix = (1 - rate) * np.eye(k) + rate * rng.dirichlet(np.full(k, 0.5), k)
    noise = KnownNoise(matrix)
    loss = inverse_loss(noise)
    assert noise.shortfall(loss.matrix) <= 0
    np.testing.assert_allclose(loss.matrix, 1 - np.linalg.inv(matrix), atol=1e-11)


def test_what_was_fixed_beforehand_is_told(plain):
    text = certify_run(ht.finetune(plain), draws=64).summary()
    assert "delta, the method, every option and the part of the data" in text

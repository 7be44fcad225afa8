"""A run's records: typed, every file named in one place, old folders read, damaged and later ones refused."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import hesstune as ht
from hesstune.cli.main import run as command_line
from hesstune.curvature.stability import Stability
from hesstune.errors import RunError
from hesstune.report.run_page import render_run
from hesstune.runs import records as files
from hesstune.runs.records import MeasureRecord, StabilityRecord, StabilityRow
from hesstune.storage.stored import read_record, write_record

# Every JSON record of a run folder, and its type.
TYPES = {
    files.RECORD: files.RunRecord,
    files.NOISE_MATRIX: files.NoiseMatrixRecord,
    files.MEASURE: MeasureRecord,
    files.STABILITY: StabilityRecord,
    files.NOISE_CHECK: files.NoiseCheck,
    files.LABEL_ISSUES_RECORD: files.LabelIssuesRecord,
    files.EXAMPLES: files.ExampleImages,
    files.RADIUS: files.RadiusRecord,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a short run of which everything is known, on noisy labels; and its options."""
    root = tmp_path_factory.mktemp("records")
    (root / "recordnets.py").write_text(
        "from torch import nn\ndef small(k):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, k))\n"
    )
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / "images" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(rng.normal(level, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i:02d}.png")
    options = {
        "model": "py:recordnets:small", "data": f"folder:{root / 'images'}", "method": "robust",
        "inject_noise": "symmetric:0.2",
        "image_size": 16, "epochs": 1, "batch_size": 8, "lr": 1e-2, "head_init": "keep", "radius": "auto",
        "noise_matrix": "estimate:auto", "val_fraction": 0.4, "test_fraction": 0.1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        run = ht.finetune(options, out=str(root / "run"))
        assert command("measure", run, "--stability") == 0
        assert command("certify", run, "--draws", "8", "--diagnostic") == 0
        assert command("noise", run) == command("report", run) == 0
        yield run.path, options


@pytest.fixture
def full(made, tmp_path):
    """A copy of that run."""
    return ht.Run.load(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def bare(full):
    """A copy of what training alone left."""
    for name in files.DERIVED:
        (full.path / name).unlink(missing_ok=True)
    return full


def command(name, run, *words):
    """The exit code of a command on a run."""
    with pytest.raises(SystemExit) as ended:
        command_line([name, str(run.path), *words, "--quiet"])
    return ended.value.code


def test_every_file_has_its_name_and_every_record_its_type(full):
    found = {path.name for path in full.path.iterdir()}
    assert found <= {*files.OWN, *files.DERIVED, files.GUARANTEES, files.LOCK}
    assert found >= {*TYPES, files.CERTIFICATE, files.REPORT, files.LABEL_ISSUES}
    for name, kind in TYPES.items():
        kept = json.loads((full.path / name).read_text())
        record = read_record(full.path / name, kind)
        assert record.to_dict() == kept, name  # all of it, and no more
        assert kind is files.ExampleImages or set(kept) <= set(kind.model_fields), name
        write_record(full.path / name, record)
        assert json.loads((full.path / name).read_text()) == kept
    assert full.record == json.loads((full.path / "run.json").read_text())
    lines = (full.path / "metrics.jsonl").read_text().splitlines()
    assert full.metrics == [json.loads(line) for line in lines]
    assert set(full.metrics[0]) <= set(files.Epoch.model_fields)
    full.records.read_all()
    assert full.record["format"] == full.facts.format == files.FORMAT
    assert full.result["distances"] == full.outcome.distances


def broken(value):
    """Yield copies of a JSON value, each with one part of another type."""
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: part} for part in broken(value[key]))
    elif isinstance(value, list) and value:
        yield from ([part, *value[1:]] for part in broken(value[0]))
    yield ["strange"] if isinstance(value, dict) else {"strange": []}


def refusal(path):
    """The error that reading everything in a folder ends in, if any."""
    try:
        ht.Run.load(path).records.read_all()
        read_record(path / files.RADIUS, files.RadiusRecord)
    except RunError as error:
        return str(error)
    return None


def test_a_damaged_record_is_one_line_that_names_the_file_and_what_to_do(full, capsys):
    for name in TYPES:
        path, tried = full.path / name, 0
        kept = path.read_text()
        for wrong in itertools.islice(broken(json.loads(kept)), 20):
            path.write_text(json.dumps(wrong))
            if (message := refusal(full.path)) is not None:
                assert str(path) in message
                assert "\n" not in message
                assert "again" in message or "--overwrite" in message
                tried += 1
        assert tried > 0, name
        path.write_text(kept)
    (full.path / files.MEASURE).write_text('{"half": ')
    assert command("report", full) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert files.MEASURE in said


def test_keys_that_a_later_minor_version_adds_are_kept(bare):
    path = bare.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added": {"later": 1}}))
    run = ht.Run.load(bare.path)
    run.add(texts_cut=3)
    run.write_record()
    assert json.loads(path.read_text())["added"] == {"later": 1}
    assert ht.Run.load(bare.path).facts.texts_cut == 3


def test_later_formats_unknown_options_and_records_without_a_format_are_refused(bare, made, capsys):
    config, record = bare.path / "config.yaml", bare.path / "run.json"
    options, facts = config.read_text(), json.loads(record.read_text())
    config.write_text(options + "epoch_s: 1\n")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read .*epochs.*--overwrite"):
        ht.Run.load(bare.path)
    record.write_text(json.dumps({"format": 2, "all": "otherwise"}))
    with pytest.raises(RunError, match=r"run\.json has format 2.*upgrade hesstune"):
        ht.finetune(made[1], out=str(bare.path), resume=True)
    for words in (["report", str(bare.path)], ["finetune", "--out", str(bare.path), "--resume"]):
        with pytest.raises(SystemExit) as ended:
            command_line(words)
        said = capsys.readouterr().err
        assert (ended.value.code, len(said.strip().splitlines())) == (2, 1)
        assert "upgrade hesstune" in said
    record.write_text(json.dumps({k: v for k, v in facts.items() if k != "format"}))
    with pytest.raises(RunError, match="format"):
        ht.Run.load(bare.path)


def test_report_and_noise_keep_a_record_each(bare):
    for name in ("report", "noise", "report"):
        assert command(name, bare) == 0
    assert bare.records.estimated_afterwards.method == "confident"
    assert bare.records.noise_check.statements
    assert "Estimated afterwards" in render_run(bare)


def test_all_that_is_derived_goes_with_the_run_it_was_derived_from(bare, made):
    options = made[1] | {"out": str(bare.path), "radius": 0.5}
    names = set(files.DERIVED)
    for name in names:
        (bare.path / name).write_text("{}")
    for name in (files.PRIOR, files.POSTERIOR, files.TENSORBOARD, files.MLFLOW):
        (bare.path / name).unlink()
        (bare.path / name).mkdir()
        (bare.path / name / "run.json").write_text("{}")
    (bare.path / "notes.txt").write_text("mine")
    before = {str(p.relative_to(bare.path)) for p in bare.path.rglob("*")}

    def fail(done, total, text):
        raise RunError("no more")

    with pytest.raises(RunError, match="no more"):
        ht.finetune(options, overwrite=True, progress=fail)
    assert {str(p.relative_to(bare.path)) for p in bare.path.rglob("*")} == before
    ht.finetune(options, overwrite=True)
    left = {path.name for path in bare.path.iterdir()}
    assert not left & names
    assert "notes.txt" in left


def test_a_measurement_kept_elsewhere_is_the_same_record(full, tmp_path):
    full.measure().save(tmp_path / "m", part="val")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {files.MEASURE, files.MEASURE_TENSORS}
    measured = json.loads((tmp_path / "m" / files.MEASURE).read_text())
    assert MeasureRecord.model_validate(measured).to_dict() == measured


def test_a_ratio_that_does_not_exist_is_null(tmp_path):
    flat = Stability(0.1, 0.0, 0.0, 0.0, 0.0, 2, 3, ("a",))
    row = StabilityRow(**flat.to_dict())
    write_record(tmp_path / "s.json", StabilityRecord(examples=3, rows=[row]))
    assert json.loads((tmp_path / "s.json").read_text())["rows"][0]["ratio"] is None
    assert {**row}["ratio"] is None
    with pytest.raises(KeyError):
        row["absent"]

"""Files made to do harm: nothing runs, nothing is read or written outside, and one line tells why."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import hesstune as ht
from commands import inside
from hesstune.data.formats import listing
from hesstune.data.images import decode
from hesstune.errors import ConfigError, DataError, HesstuneError, ModelError, NoiseMatrixError
from hesstune.models.load import read_weights
from hesstune.runs.config import read_yaml


class Harm:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors", "legacy.pt"])
def test_pickled_weights_do_not_run(tmp_path, name):
    owned = tmp_path / "owned"
    path = tmp_path / name
    if name == "w.pt":
        torch.save({"a": Harm(owned)}, path)
    elif name == "legacy.pt":
        torch.save({"a": Harm(owned)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"a": Harm(owned)}))
    with pytest.raises(ModelError, match="cannot be read as weights"):
        read_weights(path)
    assert not owned.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch owned']", "!!python/name:os.system"]
)
def test_yaml_tags_do_not_run(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(f"method: {tag}\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml("x.yaml")
    assert not (tmp_path / "owned").exists()


def test_yaml_that_nests_thousands_deep_is_refused_at_once(tmp_path):
    for content in ("method: " + "{" * 3000, "[" * 5000, "a: " + "{b: [" * 40):
        (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(ConfigError, match="nested more than 64 deep"):
            read_yaml(tmp_path / "x.yaml")


def test_yaml_aliases_do_not_unfold(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="without aliases"):
        read_yaml(tmp_path / "x.yaml")


def test_object_arrays_do_not_run(tmp_path):
    owned = tmp_path / "owned"
    objects = np.array([Harm(owned)], dtype=object)
    np.savez(tmp_path / "x.npz", images=objects, labels=np.array([0]), allow_pickle=True)
    np.save(tmp_path / "m.npy", objects, allow_pickle=True)
    with pytest.raises(DataError, match="pickled objects, which are never read"):
        listing(f"array:{tmp_path / 'x.npz'}", 16)
    with pytest.raises(NoiseMatrixError, match="pickled objects, which are never read"):
        ht.NoiseMatrix.load(tmp_path / "m.npy")
    assert not owned.exists()


def bomb_png(side):
    """A PNG of side² pixels in a few kilobytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (side // 8 + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path, side):
    (tmp_path / "x.png").write_bytes(bomb_png(side))
    assert (tmp_path / "x.png").stat().st_size < 200_000
    with pytest.raises(DataError, match="pixels"):
        decode(tmp_path / "x.png", 64)


def test_an_image_in_a_format_that_runs_other_programs_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match="cannot identify image file"):
        decode(tmp_path / "x.png", 64)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    code = f"""
import resource, sys
from pathlib import Path
from hesstune.data.formats import listing
from hesstune.errors import DataError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for name in ("size", "shape"):
    try:
        listing(f"array:{tmp_path}/{{name}}.npz", 16)
    except DataError as error:
        print(error)
"""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (100_000, 400, 400)}
    )
    with zipfile.ZipFile(tmp_path / "shape.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 1000)
    with zipfile.ZipFile(tmp_path / "size.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(10):
                file.write(b"\0" * 2**20)
        # The directory claims 12 GiB; unpacking would not stop before.
        archive.infolist()[0].file_size = 12 * 2**30
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "more than 8192" in done.stdout
    assert "does not fit its size" in done.stdout


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "./../secret.png"])
def test_a_csv_file_cannot_name_images_outside_its_folder(tmp_path, image_folder, name):
    folder = tmp_path / "given"
    folder.mkdir()
    (image_folder / "dark" / "00.png").rename(tmp_path / "secret.png")
    (image_folder / "dark" / "01.png").rename(folder / "own.png")
    (folder / "x.csv").write_text(f"image,label\n{name},a\nown.png,b\n")
    with pytest.raises(DataError, match="outside its folder"):
        listing(f"csv:{folder / 'x.csv'}", 16)


def test_names_from_files_never_become_paths(tmp_path, image_folder):
    """Class names and ids that look like paths are text in every file a command writes."""
    rows = "\n".join(f"{p.relative_to(tmp_path)},../../{p.parent.name},../../../tmp/{p.stem}{p.parent.name}"
                     for p in sorted(image_folder.rglob("*.png")))  # fmt: skip
    (tmp_path / "x.csv").write_text(f"image,label,id\n{rows}\n")
    before = set(tmp_path.parent.iterdir())
    words = ["finetune", "--data", f"csv:{tmp_path / 'x.csv'}", "--inject-noise", "0.1", "--train", "head"]
    words += ["--epochs", "1", "--image-size", "32", "--out", str(tmp_path / "out"), "--quiet"]
    inside(*words)
    found = ht.predict(tmp_path / "out", f"csv:{tmp_path / 'x.csv'}")
    found.save(tmp_path / "p.csv")
    assert set(tmp_path.parent.iterdir()) == before
    assert {p.name for p in tmp_path.iterdir()} == {"images", "x.csv", "out", "p.csv"}
    assert all(p.is_file() for p in (tmp_path / "out").iterdir())


def test_user_code_runs_only_where_it_is_named(tmp_path, monkeypatch):
    """No data, weights or matrix file, whatever it holds, is imported: only py:module:factory is."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("csv:evil.py", "array:evil.py", "folder:evil.py", "evil.py", "py:evil:f"):
        with pytest.raises(HesstuneError):
            listing(spec, 16)
    for read in (read_weights, ht.NoiseMatrix.load, read_yaml):
        with pytest.raises(HesstuneError):
            read(tmp_path / "evil.py")
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
def test_fuzzed_files_end_in_one_clear_error():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz.py")), "--count", "3000"],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    refused = sum(row["refused"] for row in found["kinds"].values())
    assert 1000 < refused < found["files"]

"""Features by two actors of Ray Data, beside those of one process."""

import io
import sys
import tempfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

import hesstune as ht
from hesstune.data.formats import listing
from hesstune.data.load import load_examples
from hesstune.data.reading import Reading
from hesstune.errors import DataError, MissingExtraError, RunError
from hesstune.inputs.features import frozen_features
from hesstune.integrations import extract_features
from hesstune.models.load import load_model
from sentences import sentences

# The batches differ, and so the last digits.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_a_missing_ray_is_named_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[ray\]"):
        extract_features("csv:reviews.csv", tmp_path / "out")
    with pytest.raises(ht.HesstuneError, match="workers"):
        extract_features("csv:reviews.csv", tmp_path / "out", workers=0)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with a core for each of two actors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # sockets' paths must be short
        ray.init(
            num_cpus=3,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


def alone(data, model, **options):
    """The features of one process."""
    text = options.pop("text", True)
    examples = load_examples(data, size=16, classes=[], skip_blank=True, **options).examples
    torch.manual_seed(0)
    return frozen_features(load_model(model, 2, text=text), examples, torch.device("cpu"))


def reviews(n=90):
    rows = sentences(n)
    frame = pd.DataFrame(rows, columns=["review", "verdict"])
    return frame.assign(key=[f"r{i}" for i in range(n)], stars=np.arange(n) % 5, tags=[["a"]] * n)


@pytest.mark.slow
def test_texts_have_the_features_of_one_process(cluster, tiny_bert, tmp_path):
    frame, model = reviews(), f"hf:{tiny_bert}"
    frame.loc[[7, 41], "review"] = ["  ", None]
    frame.loc[3, "verdict"] = None
    parts = (frame.iloc[start : start + 15] for start in range(0, 90, 15))
    blocks = [pa.Table.from_pandas(part, preserve_index=False) for part in parts]
    named = {"text_column": "review", "id_column": "key", "label_column": "verdict"}
    found = extract_features(
        cluster.data.from_arrow(blocks), tmp_path / "out", model=model, batch_size=20, **named
    )
    assert (found.rows, found.width, found.left_out) == (88, 16, {"no text": 2})
    assert "2 rows left out: no text" in str(found)
    assert any("tags" in note for note in found.notes)
    assert 4 <= len(list(found.folder.iterdir())) == len(list(found.folder.glob("part-*.parquet")))
    here = frame.drop(index=[7, 41])
    read = listing(found.data, 8, labelled=False)
    assert read.ids == here["key"].tolist()
    assert read.given == here["verdict"].fillna("").tolist()
    wanted = alone(here["review"].tolist(), model)
    np.testing.assert_allclose(read.vectors.values(), wanted, **CLOSE)
    assert listing(found.data, 8, how=Reading(split_column="stars")).split_values[0] == "0"
    assert len(ht.clean(found.data)) == 87

    with pytest.raises(RunError, match="overwrite"):
        extract_features(frame, tmp_path / "out", model=model, **named)
    again = extract_features(frame, tmp_path / "out", model=model, overwrite=True, workers=1, **named)
    assert again.rows == 88
    np.testing.assert_allclose(listing(again.data, 8, labelled=False).vectors.values(), wanted, **CLOSE)
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(RunError, match="other files"):
        extract_features(frame, tmp_path / "out", model=model, overwrite=True, **named)


@pytest.mark.slow
def test_problems_of_actors_are_one_line_and_leave_nothing(cluster, tiny_bert, tmp_path):
    data = cluster.data.from_arrow(pa.Table.from_pandas(reviews(12).drop(columns="tags")))
    named, out = {"text_column": "review", "id_column": "key"}, tmp_path / "out"
    for wrong, error in (
        ({**named, "model": "hf:/nowhere"}, "nowhere"),
        ({**named, "model": "efficientnet_lite0"}, "texts"),
        ({**named, "id_column": "verdict"}, "repeats"),
    ):
        with pytest.raises(RunError, match=error) as raised:
            extract_features(data, out, **{"model": f"hf:{tiny_bert}", **wrong})
        assert "\n" not in str(raised.value)
    for wrong, error in (({"text_column": "review"}, "id_column"), ({"id_column": "key"}, "text-column")):
        with pytest.raises(DataError, match=error):
            extract_features(data, out, **wrong)
    with pytest.raises(DataError, match="already"):
        extract_features((np.eye(4), list("abab")), out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_images_have_the_features_of_one_process(cluster, tiny, image_folder, tmp_path):
    options = {"model": tiny["model"], "image_size": 16, "batch_size": 7}
    found = extract_features(f"folder:{image_folder}", tmp_path / "a", **options)
    read = listing(found.data, 8)
    assert (read.ids[0], read.classes, len(read)) == ("dark/00.png", ["dark", "light"], 24)
    wanted = alone(f"folder:{image_folder}", tiny["model"], text=False)
    np.testing.assert_allclose(read.vectors.values(), wanted, **CLOSE)

    files = sorted(image_folder.rglob("*.png"))
    contents = [path.read_bytes() for path in files[:4]]
    table = pa.table({"id": range(6), "image": [*contents, b"no image", None]})
    for skip in (True, False):
        options |= {"skip_bad_images": skip, "batch_size": 2, "overwrite": True}
        if not skip:
            with pytest.raises(RunError, match="cannot decode the image of example 4"):
                extract_features(cluster.data.from_arrow(table), tmp_path / "b", **options)
            continue
        found = extract_features(cluster.data.from_arrow(table), tmp_path / "b", **options)
        assert found.left_out == {"the image cannot be decoded": 1, "no image": 1}
        pictures = [Image.open(io.BytesIO(content)) for content in contents]
        read = listing(found.data, 8, labelled=False)
        np.testing.assert_allclose(read.vectors.values(), alone(pictures, tiny["model"], text=False), **CLOSE)
        assert read.ids == ["0", "1", "2", "3"]

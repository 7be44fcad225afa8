"""A run that is used from another working folder, or whose base or data has moved."""

import shutil
import sys
from pathlib import Path

import pytest

import hesstune as ht
from hesstune.errors import DataError, ModelError
from sentences import sentences


@pytest.fixture
def project(tmp_path, tiny_bert, monkeypatch):
    """A folder with data, a base model and a run made there, all named by relative paths."""
    here = tmp_path / "project"
    here.mkdir()
    shutil.copytree(tiny_bert, here / "base" / "bert")
    rows = "".join(f"{text},{label}\n" for text, label in sentences(24))
    (here / "reviews.csv").write_text(f"text,label\n{rows}")
    (here / "clean.csv").write_text("id,label\n0,no\n1,yes\n")
    monkeypatch.chdir(here)
    ht.finetune(data="csv:reviews.csv", model="hf:base/bert", method="vanilla", epochs=1, batch_size=8,
                checked_labels="clean.csv", out="run")  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return here


def test_relative_paths_are_found_from_another_working_folder_and_moved_ones_named(project, monkeypatch):
    run = ht.Run.load(project / "run")
    found = run.task()
    assert sum(map(len, (found.train, found.val, found.test))) == 24
    assert run.predict(["a good film"]).ids == ["0"]
    assert run.config.data == "csv:reviews.csv"  # as it was made, for --resume
    (project / "reviews.csv").rename(project / "moved.csv")
    with pytest.raises(DataError, match=r"project/reviews\.csv.*Run\.load"):
        run.task()
    assert len(ht.Run.load(project / "run", data=f"csv:{project / 'moved.csv'}").task().train) == 14
    (project / "base").rename(project / "old")
    for folder in (project, project.parent):
        monkeypatch.chdir(folder)
        with pytest.raises(ModelError, match=r"project/base/bert, which is not there now"):
            ht.Run.load(project / "run").predict(["a good film"])


def test_a_name_that_is_neither_on_the_hub_nor_a_folder_is_named_as_both(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"as a folder it would be .*no/bert"):
        ht.finetune((["a", "b"] * 4, ["x", "y"] * 4), model="hf:no/bert", method="vanilla", epochs=1)


def test_a_model_of_one_s_own_is_named_with_its_folder(tiny, tmp_path, monkeypatch):
    run = ht.finetune(tiny, epochs=1, out=str(tmp_path / "run"))
    # The folder may not be the first: loading by name puts the working folder before it.
    elsewhere = [folder for folder in sys.path if not Path(folder, "tinynets.py").is_file()]
    monkeypatch.setattr(sys, "path", elsewhere)
    monkeypatch.delitem(sys.modules, "tinynets")
    made = Path.cwd()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"the run was made in {made}: use it from there"):
        ht.Run.load(run.path).model()

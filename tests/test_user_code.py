"""A module that a user names is the file of the working directory, whatever is loaded under its name."""

import sys

import pytest

from hesstune.errors import HesstuneError
from hesstune.models import load_model
from hesstune.user_code import import_user_module
from hesstune.weak.vote_sources import load_functions


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mine_alone", "mine_package", "mine_package.part"):
        sys.modules.pop(name, None)


def test_the_working_directory_comes_before_a_loaded_module_that_stays(place):
    import json

    (place / "json.py").write_text("def only(row):\n    return 1\n")
    [(name, function)] = load_functions("py:json:only")
    assert (name, function({})) == ("only", 1)
    assert sys.modules["json"] is json


def test_a_module_is_imported_once_and_a_part_of_a_package_too(place):
    (place / "mine_alone.py").write_text("count = []\n")
    assert import_user_module("mine_alone") is import_user_module("mine_alone") is sys.modules["mine_alone"]
    (place / "mine_package").mkdir()
    (place / "mine_package" / "__init__.py").write_text("")
    (place / "mine_package" / "part.py").write_text("x = 3\n")
    assert import_user_module("mine_package.part").x == 3


def test_a_module_that_fails_in_any_way_is_named(place):
    (place / "broken.py").write_text("raise KeyError('weights')\n")
    for use in (lambda: load_functions("py:broken:f"), lambda: load_model("py:broken:f", 2)):
        with pytest.raises(HesstuneError, match=r"broken.*weights"):
            use()

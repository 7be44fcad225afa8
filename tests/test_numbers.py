"""Numbers that users write: one reader for all of them, and what it refuses is one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field
from torch import nn

import hesstune
from hesstune.checks import parse_integer, parse_number, parse_rate, unit_interval
from hesstune.data.labels import class_labels
from hesstune.data.reading import fold_of
from hesstune.errors import ConfigError, DataError, NoiseMatrixError
from hesstune.labeling.clean import clean
from hesstune.models.heads import freeze
from hesstune.noise.estimate import parse_request
from hesstune.noise.matrix import NoiseMatrix
from hesstune.options import Options, make_options
from hesstune.runs.config import make_config
from hesstune.storage.columns import Column, CsvTable
from hesstune.study.options import CompareOptions
from hesstune.weak.label_models import read_balance
from hesstune.weak.vote_files import classes_named, soft_labels

# What each reader makes of a text: integer, number, rate.
READ = {
    "²": (None, None, None),
    "٣": (None, None, None),
    "1_000": (None, None, None),
    " 3 ": (3, 3.0, 3.0),
    "1e3": (None, 1000.0, 1000.0),
    "nan": (None, None, None),
    "inf": (None, None, None),
    "-inf": (None, None, None),
    "1e999": (None, None, None),
    "-2": (-2, -2.0, -2.0),
    ".5": (None, 0.5, 0.5),
    "5.": (None, 5.0, 5.0),
    "0x10": (None, None, None),
    "": (None, None, None),
    "40%": (None, None, 0.4),
    "% 40": (None, None, None),
    "4" * 5000: (None, None, None),
}
ODD = ["²", "٣", "1_000", "nan", "inf", "1e999"]


@pytest.mark.parametrize("text", READ)
def test_a_number_is_written_in_ascii_and_finite(text):
    assert (parse_integer(text), parse_number(text), parse_rate(text)) == READ[text]


class Shares(Options):
    share: float = Field(0.1, ge=0, lt=1)
    steps: int = Field(1, gt=0)
    size: float | None = Field(None, gt=0)


@pytest.mark.parametrize("text", ODD)
def test_options_refuse_what_only_python_takes_for_a_number(text):
    for name in ("share", "steps", "size"):
        with pytest.raises(ConfigError, match=rf"^{name} must be an? (number|integer); got '{text}'$"):
            make_options(Shares, {name: text})
    for option in ("method_options", "radius"):
        with pytest.raises(ConfigError, match=f"{option}: write"):
            make_config({option: f"head={text}"})
    with pytest.raises(ConfigError, match="mean"):
        make_config({"mean": f"0.5,{text},0.5"})
    with pytest.raises(ConfigError, match="seeds"):
        make_options(CompareOptions, {"seeds": text})


def test_shares_are_also_percentages_and_other_numbers_are_not():
    made = make_options(Shares, {"share": "40%", "steps": " 3 ", "size": "1e3"})
    assert (made.share, made.steps, made.size) == (0.4, 3, 1000.0)
    for wrong in ({"share": "140%"}, {"size": "40%"}, {"steps": "3.0"}, {"size": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            make_options(Shares, wrong)
    config = make_config({"val_fraction": "25 %", "test_fraction": "10%", "lr": "1e-3"})
    assert (config.val_fraction, config.test_fraction, config.lr) == (0.25, 0.1, 1e-3)


@pytest.mark.parametrize("text", ["40%", "symmetric:40%", "0.4", " 0.4 ", "symmetric:4e-1"])
def test_noise_rates_are_numbers_or_percentages(text):
    assert NoiseMatrix.parse(text, 4) == NoiseMatrix.symmetric(4, 0.4)


@pytest.mark.parametrize("text", [*ODD, "0,4", "forty", "140%", "-1"])
def test_noise_that_is_no_rate_and_no_file_is_refused_with_what_was_given(text):
    for written in (text, f"pair:{text}"):
        with pytest.raises(NoiseMatrixError) as refused:
            NoiseMatrix.parse(written, 4)
        assert len(str(refused.value).splitlines()) == 1
        assert text.strip("%") in str(refused.value) or str(parse_rate(text)) in str(refused.value)


@pytest.mark.parametrize("text", ODD)
def test_every_other_place_where_users_write_numbers(text):
    with pytest.raises(ConfigError, match="last:N"):
        freeze(nn.Linear(2, 2), f"last:{text}", "")
    for fold in (f"{text}/5", f"1/{text}"):
        with pytest.raises(ValueError, match="I/K"):
            fold_of(fold)
    with pytest.raises(ConfigError, match="estimator"):
        parse_request(f"estimate:{text}")
    with pytest.raises(ConfigError, match="class balance"):
        read_balance([f"a={text}", "b=0.5"], ["a", "b"], np.ones(2) / 2)
    with pytest.raises(ConfigError, match="must be a number"):
        unit_interval("the rate", text)
    table = CsvTable.of({"p_a": ["0.5", text], "p_b": ["0.5", "0.5"]}, "the table")
    with pytest.raises(DataError, match="row 3"):
        soft_labels(table, ["a", "b"])
    for option in ("method_options", "radius"):
        with pytest.raises(ConfigError, match=f"{option}: write"):
            make_config({option: {"q": text}})


def test_class_names_that_only_look_like_numbers_are_names():
    features = np.repeat(np.eye(2), 20, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(40, 2))
    names = ["²"] * 20 + ["3"] * 20
    assert clean(features=features, labels=names).classes == ["3", "²"]
    assert class_labels(Column(["٣", "1", "٣"]), "it").classes == ["1", "٣"]
    assert classes_named(["٣", "1"], [], 9, "it") == ["1", "٣"]
    assert classes_named([], ["²", "1"], 9, "it") == ["1", "²"]


def test_no_module_reads_numbers_in_another_way():
    for path in Path(hesstune.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.is(digit|decimal|numeric)\(", path.read_text(encoding="utf-8")), path

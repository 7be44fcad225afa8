"""Options stand once: a model's fields are a function's keywords and a command's options."""

import inspect
from pathlib import Path

import pytest
from pydantic import Field

import hesstune as ht
import keywords
from hesstune.analysis.certify import certify_run
from hesstune.analysis.measure import measure_run, stability_of_run
from hesstune.bounds.sample import LEAKS, NOISE_KNOWLEDGE
from hesstune.errors import ConfigError
from hesstune.labeling.options import LabelOptions
from hesstune.options import Names, Options, make_options, takes_options
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options import CertifyOptions, MeasureOptions, ReportOptions
from hesstune.study.options import CompareOptions

MODELS = [FinetuneConfig, MeasureOptions, CertifyOptions, LabelOptions, CompareOptions, ReportOptions]


@pytest.mark.parametrize("kind", MODELS)
def test_every_option_says_what_it_is_and_stands_under_a_heading(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert kind.heading_of(name)


def test_the_run_is_of_five_groups_and_stays_flat():
    names = list(FinetuneConfig.model_fields)
    where = [names.index(n) for n in ("data", "model", "noise_matrix", "epochs", "radius", "out")]
    assert where == sorted(where)
    assert FinetuneConfig(lr=0.5).lr == 0.5


def test_names_known_elsewhere_are_those_taken():
    assert CertifyOptions.model_fields["noise_is"].annotation.__args__[2:] == NOISE_KNOWLEDGE
    assert make_options(CertifyOptions, {"vouch": list(LEAKS)}).vouch == tuple(LEAKS)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (measure_run, {"examples": "max", "trace": "exact", "mean_sample": 8, "memory_mib": None}),
        (stability_of_run, {"layers": None, "max_examples": None, "samples": 16, "device": "auto"}),
        (certify_run, {"delta": 0.05, "noise_is": "auto", "repeats": "refuse", "vouch": (), "seed": 0}),
        (ht.label_data, {"labelers": (), "label_model": "auto", "epochs": 10, "image_size": None}),
        (ht.compare, {"methods": ("vanilla", "robust"), "seeds": 3, "search": 0, "engine": "local"}),
        (ht.predict, {"device": "auto", "skip_bad_images": False}),
        (ht.finetune, {"epochs": 15, "lr": None, "noise_matrix": None, "out": None, "seed": 0}),
    ],
)
def test_functions_show_their_options_as_keywords(function, options):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in options} == options
    for name in options:
        assert f"        {name}: " in function.__doc__


class Few(Options):
    lr: float | None = Field(None, gt=0, description="rate")
    warm_up: int = Field(2, ge=0, description="steps")
    names: Names = Field((), description="names")
    folder: str | None = Field(None, description="folder")


@pytest.mark.parametrize(
    ("values", "told", "typed"),
    [
        ({"warm_up": "x"}, "warm_up must be an integer; got 'x'", "--warm-up must be an integer; got 'x'"),
        ({"warm_up": -1}, "warm_up must be at least 0; got -1", "--warm-up must be at least 0; got -1"),
        ({"lr": 0}, "lr must be above 0; got 0", "--lr must be above 0; got 0"),
        ({"warmup": 1}, "unknown option 'warmup'; did you mean 'warm_up'", "did you mean '--warm-up'"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_as_its_user_writes_it(values, told, typed):
    with pytest.raises(ConfigError) as error:
        make_options(Few, values)
    assert told in str(error.value)
    with pytest.raises(ConfigError) as error:
        make_options(Few, values, "--{}")
    assert typed in str(error.value)


def test_a_wrong_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="unknown value of examples 'al'; did you mean 'all'"):
        make_options(MeasureOptions, {"examples": "al"})
    with pytest.raises(ConfigError, match=r"unknown value of --label-model 'sof'.*soft"):
        make_options(LabelOptions, {"label_model": "sof"}, "--{}")
    with pytest.raises(ConfigError, match=r"unknown choice to vouch for 'norm'.*normalisation"):
        make_options(CertifyOptions, {"vouch": "norm"})


def test_paths_lists_and_texts_are_taken():
    made = make_options(Few, {"names": "a, b", "folder": Path("x"), "lr": "0.5"})
    assert (made.names, made.folder, made.lr) == (("a", "b"), "x", 0.5)
    assert made.given() == {"names": ("a", "b"), "folder": "x", "lr": 0.5}
    assert make_options(Few, {"names": ["a,b"]}).names == ("a,b",)  # a name of a list may hold a comma


def test_no_option_is_without_effect():
    for kind, values, told in (
        (MeasureOptions, {"examples": "all", "mean_sample": 4}, "mean_sample is for examples max"),
        (MeasureOptions, {"mean_sample": 1}, "at least 2 for a standard error"),
        (CertifyOptions, {"noise_is": "none", "clean_sample": "a.csv"}, "clean_sample that they are not"),
        (LabelOptions, {"epochs": 3}, "epochs is for labeler finetune"),
        (LabelOptions, {"labeler": "finetune"}, "labeler says how labelers are trained"),
        (LabelOptions, {"threshold": 0.5}, "threshold is for labelers"),
        (LabelOptions, {"model": "minilm", "label_model": "majority"}, "model is for labelers"),
    ):
        with pytest.raises(ConfigError, match=told):
            make_options(kind, values)


def test_help_lists_the_options_before_their_line():
    @takes_options(Few, without=("folder",))
    def use(first, *, last=1, **options):
        """Use them.

        Args:
            first: The first.
            last: The last.
            **options: Options of `Few`, by name.
        """

    assert list(inspect.signature(use).parameters) == ["first", "last", "lr", "warm_up", "names", "options"]
    lines = [line.strip() for line in use.__doc__.splitlines()]
    assert lines[5:9] == [
        "lr: Rate.",
        "warm_up: Steps.",
        "names: Names.",
        "**options: Options of `Few`, by name.",
    ]


def test_type_checkers_know_every_option():
    assert keywords.FILE.read_text(encoding="utf-8") == keywords.written()


def test_a_signature_takes_what_its_function_takes():
    compare, finetune = map(inspect.signature, (ht.compare, ht.finetune))
    compare.bind({}, data="digits", seeds=2, epochs=1)
    finetune.bind({"epochs": 1}, data="digits", lr=0.1)
    finetune.bind("digits", "minilm", "vanilla", train="head")
    assert compare.parameters["seeds"].annotation == "Sequence[int] | int"
    assert inspect.signature(measure_run).parameters["layers"].annotation == "Sequence[str] | str | None"

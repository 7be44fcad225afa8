"""Objects in: made tasks, modules and method classes train as what strings name does."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import hesstune as ht
from hesstune.analysis.export import export_run
from hesstune.errors import ConfigError, DataError, ModelError, RunError
from hesstune.methods import Method, method_class, method_name
from hesstune.models.load import load_model
from hesstune.runs.config import make_config
from hesstune.runs.loading import clean_task


@pytest.fixture
def named(tiny, tmp_path):
    """A run of strings alone, its options, its task as given and its network at the start."""
    options = tiny | {"epochs": 2}
    torch.manual_seed(7)
    task = clean_task(make_config(options).resolved())
    start = load_model(options["model"], task.k, head_init="keep").model
    return options, task, start


def without(options, *names):
    return {name: value for name, value in options.items() if name not in names}


def assert_same_weights(a, b):
    weights = b.model().state_dict()
    for name, tensor in a.model().state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_objects_train_as_their_names_do(named, tmp_path):
    options, task, start = named
    path = tmp_path / "start.pt"
    torch.save(start.state_dict(), path)
    by_name = ht.finetune(options, weights=str(path), out=str(tmp_path / "names"))
    before = copy.deepcopy(start.state_dict())
    own = without(options, "data", "model")
    run = ht.finetune(task, start, "robust", config=own, out=str(tmp_path / "objects"))
    assert_same_weights(run, by_name)
    assert run.metrics[-1]["val_loss"] == by_name.metrics[-1]["val_loss"]
    assert (run.config.data, run.config.model) == ("memory", "module")
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert start.training
    assert all(p.requires_grad for p in start.parameters())
    # Whole strings and objects mix.
    again = ht.finetune(without(options, "model"), model=start, out=str(tmp_path / "mixed"))
    assert_same_weights(again, by_name)


def test_a_run_of_objects_is_used_in_this_process_and_asks_for_them_in_another(named, tmp_path):
    options, task, start = named
    out = tmp_path / "a"
    run = ht.finetune(task, start, config=without(options, "data", "model"), out=str(out))
    assert [len(part) for part in (run.task().train, run.task().val, run.task().test)] == [
        len(task.train), len(task.val), len(task.test),
    ]  # fmt: skip
    measured = run.measure(examples="all")
    loaded = ht.Run.load(out)
    for needs_data in (loaded.task, loaded.label_issues, lambda: loaded.measure(model=start)):
        with pytest.raises(DataError, match="given in Python, which no file holds") as told:
            needs_data()
        assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match=r"Run\.load\(path, model=…\)"):
        loaded.measure(data=task)
    again = loaded.measure(data=task, model=start, examples="all")
    assert torch.equal(again.quadratic, measured.quadratic)
    assert ht.Run.load(out, data=task, model=start).model() is not start


def test_other_data_or_another_network_than_the_runs_is_refused(named, tmp_path):
    options, task, start = named
    run = ht.finetune(task, start, config=without(options, "data", "model"), out=str(tmp_path / "a"))
    darker = copy.deepcopy(task)
    darker.train.source.array[0] //= 2
    with pytest.raises(RunError, match="contents of 1 of"):
        run.measure(data=darker)
    with pytest.raises(RunError, match="missing"):
        run.measure(data=copy.deepcopy(task.__class__(**{**vars(task), "train": task.val})))
    with pytest.raises(ModelError, match="does not fit the run"):
        run.measure(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)))


def test_an_interrupted_run_is_resumed_with_its_own_objects_alone(named, tmp_path):
    options, task, start = named
    own, out = without(options, "data", "model"), tmp_path / "a"
    whole = ht.finetune(task, start, config=own, out=str(tmp_path / "whole"))

    def stop(done, total, text):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ht.finetune(task, start, config=own, out=str(out), progress=stop)
    darker = copy.deepcopy(task)
    darker.train.source.array[0] //= 2
    with pytest.raises(RunError, match=r"the data memory .* contents of 1 of"):
        ht.finetune(darker, start, config=own, out=str(out), resume=True)
    finished = ht.finetune(task, start, config=own, out=str(out), resume=True)
    assert_same_weights(finished, whole)
    # A finished one is returned as it is, and to its own objects alone, too.
    written = (out / "run.json").stat().st_mtime_ns
    assert_same_weights(ht.finetune(task, start, config=own, out=str(out), resume=True), whole)
    with pytest.raises(RunError, match=r"the data memory .* contents of 1 of"):
        ht.finetune(darker, start, config=own, out=str(out), resume=True)
    other = copy.deepcopy(start)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(RunError, match="the weights that training starts from of --model module changed"):
        ht.finetune(task, other, config=own, out=str(out), resume=True)
    assert (out / "run.json").stat().st_mtime_ns == written


def test_the_commands_are_methods_of_a_run(tiny, tmp_path):
    run = ht.finetune(tiny, epochs=1, noise_matrix="true", out=str(tmp_path / "a"))
    assert run.measure().names
    assert 0 < run.certify(draws=50).risk <= 1
    assert run.predict(tiny["data"]).accuracy is not None
    issues = run.label_issues()
    assert len(issues) == len(run.task().train)
    assert [float(row["p_given_label"]) for row in issues] == sorted(
        float(row["p_given_label"]) for row in issues
    )
    assert run.report() == run.path / "report.html"
    assert run.noise()["statements"]


def test_commands_on_a_run_of_objects_say_in_one_line_what_is_missing(named, tmp_path, monkeypatch):
    options, task, start = named
    run = ht.finetune(task, start, config=without(options, "data", "model"), out=str(tmp_path / "a"))
    for words in (["measure"], ["predict", "--data", options["data"], "--out", str(tmp_path / "p.csv")]):
        command = [sys.executable, "-m", "hesstune", words[0], str(run.path), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "given in Python, which no file holds" in done.stderr
    monkeypatch.chdir(tmp_path)
    told = export_run(run, "export")
    found = eval(told, {"hesstune": ht, "module": start, "__builtins__": {}})  # the line as it was printed
    assert_same_weights(run, SimpleNamespace(model=lambda: found))


def test_a_report_without_the_data_says_so(named, tmp_path):
    options, task, start = named
    ht.finetune(task, start, config=without(options, "data", "model"), out=str(tmp_path / "a"))
    with pytest.warns(ht.errors.HesstuneWarning, match="given in Python"):
        assert ht.Run.load(tmp_path / "a").report().is_file()


def test_a_method_may_be_a_class(named, tmp_path):
    options, task, start = named
    own = without(options, "data", "model")

    class Halved(method_class("vanilla")):
        def loss(self, logits, targets, epoch):
            return super().loss(logits, targets, epoch) / 2

    runs = [
        ht.finetune(task, start, method, config=own, out=str(tmp_path / str(at)))
        for at, method in enumerate(("vanilla", method_class("vanilla"), Halved))
    ]
    assert_same_weights(runs[0], runs[1])
    assert runs[2].config.method == "Halved"
    assert runs[2].measure().names
    assert not torch.equal(*(next(r.model().parameters()) for r in runs[1:]))
    with pytest.raises(ConfigError, match="a subclass of hesstune"):
        method_name(torch.nn.Linear)
    with pytest.raises(ConfigError, match="name of another method"):
        method_name(type("robust", (Method,), {}))


def test_options_that_make_a_task_are_refused_beside_one(named, tmp_path):
    options, task, start = named
    for name, value in (("limit", 4), ("split", "stratified")):
        with pytest.raises(ConfigError, match=f"the option {name} makes a task"):
            ht.finetune(task, start, config=without(options, "data", "model") | {name: value})
    with pytest.raises(ConfigError, match="16 pixels a side, not 32"):
        ht.finetune(task, start, config={"image_size": 32})


def test_arguments_given_twice_are_refused(tiny):
    with pytest.raises(ConfigError, match="options are given twice"):
        ht.finetune(tiny, config=tiny)
    with pytest.raises(ConfigError, match="data is given twice"):
        ht.finetune("digits", data="digits")
    with pytest.raises(ConfigError, match="configuration file"):
        ht.finetune("nowhere.yaml")
    with pytest.raises(ModelError, match="given in Python"):
        ht.finetune(tiny, model="module")
    with pytest.raises(DataError, match="given in Python"):
        ht.finetune(tiny, data="memory")
    with pytest.raises(ModelError, match=r"or \(module, tokenizer\); got int"):
        ht.finetune(tiny, model=3)

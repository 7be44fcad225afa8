"""Tasks, modules and method classes given in Python train as what strings name does."""

import copy
from types import SimpleNamespace

import pytest
import torch

import hesstune as ht
from commands import refused
from hesstune.analysis.export import export_run
from hesstune.errors import ConfigError, DataError, ModelError, RunError
from hesstune.methods import Method, method_class, method_name
from hesstune.models.load import load_model
from hesstune.runs.config import make_config
from hesstune.runs.loading import clean_task


@pytest.fixture
def named(tiny):
    """Options without data and model, the task and the network at the start."""
    options = tiny | {"epochs": 2}
    torch.manual_seed(7)
    task = clean_task(make_config(options).resolved(), seed=0)
    start = load_model(options["model"], task.k, head_init="keep").model
    own = {name: value for name, value in options.items() if name not in ("data", "model")}
    return own, task, start


def darker(task):
    """The same task with one image changed."""
    other = copy.deepcopy(task)
    other.train.source.array[0] //= 2
    return other


def test_objects_train_as_their_names_do(named, tiny, tmp_path, same_weights):
    options, (own, task, start) = tiny | {"epochs": 2}, named
    path = tmp_path / "start.pt"
    torch.save(start.state_dict(), path)
    by_name = ht.finetune(options, weights=str(path))
    before = copy.deepcopy(start.state_dict())
    run = ht.finetune(task, start, "robust", config=own)
    same_weights(run, by_name)
    assert run.metrics[-1]["val_loss"] == by_name.metrics[-1]["val_loss"]
    assert (run.config.data, run.config.model) == ("memory", "module")
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert start.training
    assert all(p.requires_grad for p in start.parameters())
    # Strings and objects mix.
    same_weights(ht.finetune({**own, "data": options["data"]}, model=start), by_name)


def test_a_run_of_objects_needs_them_again_in_another_process(named, tmp_path, monkeypatch, same_weights):
    own, task, start = named
    out = tmp_path / "a"
    run = ht.finetune(task, start, config=own, out=out)
    parts = [[len(part) for part in (t.train, t.val, t.test)] for t in (run.task(), task)]
    assert parts[0] == parts[1]
    measured = run.measure(examples="all")
    loaded = ht.Run.load(out)
    for needs_data in (loaded.task, loaded.label_issues, lambda: loaded.measure(model=start)):
        with pytest.raises(DataError, match="given in Python"):
            needs_data()
    with pytest.raises(ModelError, match=r"Run\.load\(path, model=…\)"):
        loaded.measure(data=task)
    again = loaded.measure(data=task, model=start, examples="all")
    assert torch.equal(again.quadratic, measured.quadratic)
    assert ht.Run.load(out, data=task, model=start).model() is not start
    with pytest.warns(ht.errors.HesstuneWarning, match="given in Python"):
        assert loaded.report().is_file()
    assert "given in Python" in refused("measure", out)
    monkeypatch.chdir(tmp_path)
    line = export_run(run, "export")
    found = eval(line, {"hesstune": ht, "module": start, "__builtins__": {}})  # the line as it is printed
    same_weights(run, SimpleNamespace(loaded=lambda: SimpleNamespace(model=found)))


def test_other_data_or_another_network_than_the_runs_is_refused(named):
    own, task, start = named
    run = ht.finetune(task, start, config=own)
    with pytest.raises(RunError, match="contents of 1 of"):
        run.measure(data=darker(task))
    with pytest.raises(RunError, match="missing"):
        run.measure(data=task.__class__(**{**vars(task), "train": task.val}))
    with pytest.raises(ModelError, match="does not fit the run"):
        run.measure(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)))


def test_an_interrupted_run_is_resumed_with_its_own_objects_alone(named, tmp_path, interrupt, same_weights):
    own, task, start = named
    out = tmp_path / "a"
    whole = ht.finetune(task, start, config=own)
    interrupt(task, start, config=own, out=out)
    with pytest.raises(RunError, match="contents of 1 of"):
        ht.finetune(darker(task), start, config=own, out=out, resume=True)
    same_weights(ht.finetune(task, start, config=own, out=out, resume=True), whole)
    # A finished one is returned as it is, to its own objects alone.
    written = (out / "run.json").stat().st_mtime_ns
    same_weights(ht.finetune(task, start, config=own, out=out, resume=True), whole)
    with pytest.raises(RunError, match="contents of 1 of"):
        ht.finetune(darker(task), start, config=own, out=out, resume=True)
    other = copy.deepcopy(start)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(RunError, match="--model module changed"):
        ht.finetune(task, other, config=own, out=out, resume=True)
    assert (out / "run.json").stat().st_mtime_ns == written


def test_the_commands_are_methods_of_a_run(tiny):
    run = ht.finetune(tiny, epochs=1, noise_matrix="true")
    assert run.measure().names
    assert 0 < run.certify(draws=50).risk <= 1
    assert run.predict(tiny["data"]).accuracy is not None
    issues = [float(row["p_given_label"]) for row in run.label_issues()]
    assert len(issues) == len(run.task().train)
    assert issues == sorted(issues)
    assert run.report() == run.path / "report.html"
    assert run.noise()["statements"]


def test_a_method_may_be_a_class(named, same_weights):
    own, task, start = named

    class Halved(method_class("vanilla")):
        def loss(self, logits, targets, epoch):
            return super().loss(logits, targets, epoch) / 2

    runs = [ht.finetune(task, start, m, config=own) for m in ("vanilla", method_class("vanilla"), Halved)]
    same_weights(runs[0], runs[1])
    assert runs[2].config.method == "Halved"
    assert runs[2].measure().names
    assert not torch.equal(*(next(r.model().parameters()) for r in runs[1:]))
    with pytest.raises(ConfigError, match="a subclass of hesstune"):
        method_name(torch.nn.Linear)
    with pytest.raises(ConfigError, match="name of another method"):
        method_name(type("robust", (Method,), {}))


def test_options_that_contradict_the_objects_are_refused(named, tiny):
    own, task, start = named
    for name, value in (("limit", 4), ("split", "stratified")):
        with pytest.raises(ConfigError, match=f"option {name} makes a task"):
            ht.finetune(task, start, config=own | {name: value})
    for error, message, data, more in (
        (ConfigError, "16 pixels a side, not 32", task, {"config": {"image_size": 32}}),
        (ConfigError, "options are given twice", tiny, {"config": tiny}),
        (ConfigError, "data is given twice", "digits", {"data": "digits"}),
        (ConfigError, "configuration file", "nowhere.yaml", {}),
        (ModelError, "given in Python", tiny, {"model": "module"}),
        (DataError, "given in Python", tiny, {"data": "memory"}),
        (ModelError, "got int", tiny, {"model": 3}),
    ):
        with pytest.raises(error, match=message):
            ht.finetune(data, **more)

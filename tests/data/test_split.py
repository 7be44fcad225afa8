"""Groups never straddle parts, times never mix, and folds are a partition."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, TimeSeriesSplit

import hesstune as ht
from hesstune.data.examples import Listing
from hesstune.data.load import load_task
from hesstune.data.reading import SplitRule
from hesstune.data.splits import draw_parts
from hesstune.errors import ConfigError, DataError
from hesstune.runs.config import make_config
from hesstune.study.compare import plan_of

GROUPS = [f"patient {i % 7}" for i in range(60)]
DAYS = [f"2024-{1 + i // 10:02d}-{1 + i % 10:02d}" for i in range(60)]


def frame(**more):
    labels = ["ab"[(i * 7) % 3 % 2] for i in range(60)]
    texts = [f"text number {i}" for i in range(60)]
    return pd.DataFrame({"text": texts, "label": labels, "who": GROUPS, "day": DAYS, **more})


def written(path, table):
    table.to_csv(path, index=False)
    return f"csv:{path}"


@pytest.fixture(params=["csv", "frame", "datasets"])
def data(request, tmp_path):
    if request.param == "csv":
        return written(tmp_path / "t.csv", frame())
    if request.param == "datasets":
        return pytest.importorskip("datasets").Dataset.from_pandas(frame())
    return frame()


def rows(task):
    return {name: [int(i) for i in getattr(task, name).ids] for name in ("train", "val", "test")}


def owners(task):
    return {name: {GROUPS[i] for i in at} for name, at in rows(task).items()}


def test_groups_do_not_straddle_parts_and_ids_stay(data):
    seen = set()
    for seed in range(4):
        task = load_task(data, size=32, seed=seed, split="group:who")
        parts, own = rows(task), owners(task)
        assert sum(map(len, own.values())) == len(set(GROUPS)) == len(set().union(*own.values()))
        assert sorted(i for at in parts.values() for i in at) == list(range(60))
        assert task.split == "group"
        assert abs(len(parts["test"]) - 12) <= 9
        counts = [f"{len(own[n])} for {n}" for n in ("train", "val", "test")]
        assert any(", ".join(counts) in note for note in task.notes)
        seen.add(frozenset(parts["test"]))
    assert len(seen) > 1


def test_the_latest_are_for_the_test(data):
    for seed in (0, 1):
        task = load_task(data, size=32, seed=seed, split="time:day")
        parts = {name: [DAYS[i] for i in at] for name, at in rows(task).items()}
        assert max(parts["train"]) < min(parts["val"])
        assert max(parts["val"]) < min(parts["test"])
        assert (len(parts["train"]), len(parts["val"]), len(parts["test"])) == (36, 12, 12)
        assert task.split == "time"


@pytest.mark.parametrize(
    ("times", "cut"),
    [
        ([9, 10, 2, 1, 30, 4, 5, 6, 7, 8], {0, 1, 4}),  # numbers are no texts: 10 comes after 9
        ([1.5, 1, 2, 3, 4, 5, 6, 7, 7, 7], {7, 8, 9}),  # one moment stays together
        ([f"2024-05-{20 - i}T0{i}:30" for i in range(10)], {0, 1, 2}),
    ],
)
def test_times_are_numbers_or_dates(times, cut):
    table = pd.DataFrame({"text": [f"t {i}" for i in range(10)], "label": list("ab" * 5), "when": times})
    task = load_task(table, size=32, split="time:when", val_fraction=0.0, test_fraction=0.3)
    assert {int(i) for i in task.test.ids} == cut


def test_a_file_names_parts_or_groups(tmp_path, image_folder):
    spec, path = f"folder:{image_folder}", tmp_path / "split.csv"
    ids = load_task(spec, size=16, val_fraction=0, test_fraction=0).train.ids
    names = ["training", "dev", "Test"]
    pd.DataFrame({"id": ids, "split": [names[i % 3] for i in range(24)]}).to_csv(path, index=False)
    task = load_task(spec, size=16, split=str(path))
    assert task.split == "given"
    assert set(task.test.ids) == {ids[i] for i in range(24) if i % 3 == 2}
    pd.DataFrame({"id": ids, "group": [f"video {i % 6}" for i in range(24)]}).to_csv(path, index=False)
    task = load_task(spec, size=16, split=str(path))
    assert task.split == "group"
    video = {example: i % 6 for i, example in enumerate(ids)}
    assert not {video[i] for i in task.train.ids} & {video[i] for i in (*task.test.ids, *task.val.ids)}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("group:whom", r"'whom'; did you mean 'who'"),
        ("time:who", r"'patient 0'.*'0'"),
        ("group:empty", r"1 .*7"),
        ("group:one", "two groups or more"),
        ("time:one", "two moments or more"),
        ("time:mixed", "time zone"),
    ],
)
def test_columns_that_cannot_split_are_refused(split, message, tmp_path):
    empty = [name if i != 7 else "" for i, name in enumerate(GROUPS)]
    mixed = ["2024-01-01T00:00" + ("Z" if i else "") for i in range(60)]
    table = frame(empty=empty, one=["1"] * 60, mixed=mixed)
    for data in (table, written(tmp_path / "t.csv", table)):
        with pytest.raises(DataError, match=message):
            load_task(data, size=32, split=split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\n0,train\n", "59 of the 60"),
        ("id,part\n0,train\n", "got id, part"),
        ("id,split,group\n0,train,a\n", "got id, split, group"),
        ("id,group\n" + "".join(f"{i},g{i}\n" for i in range(61)), "60"),
        ("id,group\n0,a\n0,b\n", "'0' twice"),
        ("id,split\n" + "".join(f"{i},later\n" for i in range(60)), "later"),
    ],
)
def test_files_that_cannot_split_are_refused(text, message, tmp_path):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_task(frame(), size=32, split=str(tmp_path / "s.csv"))


def test_data_without_columns_or_with_parts_of_its_own(tmp_path, image_folder):
    with pytest.raises(DataError, match="'patient'; give --split FILE"):
        load_task(f"folder:{image_folder}", size=16, split="group:patient")
    own = ["train" if i % 7 < 5 else "test" for i in range(60)]
    task = load_task(frame(split=own), size=32, split="group:who")
    assert task.split == "given"
    assert sum(map(len, owners(task).values())) == len(set(GROUPS))
    straddling = ["train" if i < 40 else "test" for i in range(60)]
    (tmp_path / "s.csv").write_text("id,split\n" + "".join(f"{i},train\n" for i in range(60)))
    for parts, options, message in (
        (straddling, {"split": "group:who"}, r"7 groups.*'\d+'"),
        (own, {"split": "time:day"}, "parts"),
        (own, {"fold": "1/3"}, "folds"),
        (own, {"split": str(tmp_path / "s.csv")}, "parts"),
        (own, {"val_fraction": 0.7, "test_fraction": 0.5}, "sum to 1.2"),
        (["val"] * 30 + ["test"] * 30, {}, "no training example"),
    ):
        with pytest.raises(DataError, match=message):
            load_task(frame(split=parts), size=32, **options)


@pytest.mark.parametrize(
    "options",
    [*({"split": rule} for rule in ("grop:who", "strat", "group:", "time")),
     *({"fold": fold} for fold in ("0/3", "4/3", "1/1", "half", "1"))],
)  # fmt: skip
def test_rules_that_do_not_exist_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_config(options)


def folds(split, k, seed=0, labels=None, groups=None, n=60):
    labels = np.arange(n) % 3 if labels is None else labels
    found = Listing([str(i) for i in range(n)], labels, list("abc"), split_values=groups)
    made = []
    for i in range(1, k + 1):
        rng = np.random.default_rng(seed * k + i)
        parts, _, _ = draw_parts(
            found, SplitRule.parse(split), rng, 0.1, 0.2, (i, k), np.random.default_rng(seed)
        )
        made.append(parts)
    return made


@given(n=st.integers(12, 80), k=st.integers(2, 6), groups=st.integers(6, 12), seed=st.integers(0, 5))
@pytest.mark.parametrize("split", ["uniform", "stratified", "group:g"])
def test_folds_are_a_partition(split, n, k, groups, seed):
    names = [f"g{i % groups}" for i in range(n)]
    made = folds(split, k, seed, groups=names, n=n)
    tested = np.concatenate([parts["test"] for parts in made])
    assert sorted(tested.tolist()) == list(range(n))
    sizes = [len(parts["test"]) for parts in made]
    if split != "group:g":
        assert max(sizes) - min(sizes) <= 1
    for parts in made:
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(n))
        if split == "group:g":
            owners = [{names[i] for i in parts[name]} for name in ("train", "val", "test")]
            assert sum(map(len, owners)) == len(set(names))
        if split == "stratified":
            counts = np.bincount(parts["test"] % 3, minlength=3)
            assert counts.max() - counts.min() <= 2 - (n % 3 == 0)


def test_folds_of_groups_are_as_even_as_scikit_learns():
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in rng.integers(0, 15, 200)]
    theirs = GroupKFold(4).split(np.zeros(200), groups=names)
    ours = folds("group:g", 4, labels=np.zeros(200, dtype=int), groups=names, n=200)
    spread = [sorted(len(test) for _, test in theirs), sorted(len(parts["test"]) for parts in ours)]
    assert spread[1][-1] - spread[1][0] <= spread[0][-1] - spread[0][0] + 1


def test_folds_of_time_are_scikit_learns():
    theirs = list(TimeSeriesSplit(4).split(np.zeros(60)))
    shuffled = np.random.default_rng(0).permutation(60)
    days = [str(int(i)) for i in shuffled]
    for parts, (train, test) in zip(folds("time:t", 4, groups=days), theirs, strict=True):
        assert sorted(shuffled[parts["test"]].tolist()) == test.tolist()
        past = np.concatenate([parts["train"], parts["val"]])
        assert sorted(shuffled[past].tolist()) == train.tolist()
        assert shuffled[parts["val"]].min() > shuffled[parts["train"]].max()


def test_too_few_for_the_folds_are_refused():
    with pytest.raises(DataError, match=r"5 groups.*3"):
        folds("group:g", 5, groups=[f"g{i % 3}" for i in range(60)])
    with pytest.raises(DataError, match=r"5 moments.*3"):
        folds("time:t", 4, groups=[str(i % 3) for i in range(60)])
    with pytest.raises(DataError, match=r"5 examples.*4"):
        folds("uniform", 5, n=4)


def test_a_comparison_by_folds_tests_on_each_example_once(tiny, tmp_path):
    ids = load_task(tiny["data"], size=16, val_fraction=0, test_fraction=0).train.ids
    path = tmp_path / "groups.csv"
    path.write_text("id,group\n" + "".join(f"{name},g{i % 8}\n" for i, name in enumerate(ids)))
    asked = {**tiny, "split": str(path), "methods": ["vanilla"], "seeds": 2, "folds": 3}
    del asked["method"]
    plan, again = (plan_of(asked)[0] for _ in range(2))
    expected = [(seed, f"{seed % 3 + 1}/3") for seed in range(6)]
    assert [(cell.seed, cell.config.fold) for cell in plan.cells] == expected
    assert [c.fingerprint for c in again.cells] == [c.fingerprint for c in plan.cells]
    tested = Counter()
    for cell in plan.cells:
        task = load_task(tiny["data"], size=16, seed=cell.seed, split=str(path), fold=cell.config.fold)
        tested.update(task.test.ids)
    assert tested == dict.fromkeys(ids, 2)
    found = ht.compare({**asked, "epochs": 1, "inject_noise": None}, seeds=1, jobs=1)
    assert found.finished
    assert "3 folds, each tested on once" in found.markdown()
    with pytest.raises(ConfigError, match="use folds"):
        plan_of({**asked, "fold": "1/3"})


def test_certificates_refuse_groups_and_time(tmp_path):
    from hesstune.analysis.label_provenance import read_label_provenance
    from hesstune.options import make_options
    from hesstune.runs.options import CertifyOptions

    head = {"train": "head", "epochs": 1, "image_size": 32, "inject_noise": "symmetric:0.2"}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2)
    ids = load_task(f"array:{tmp_path}/a.npz", size=16, val_fraction=0, test_fraction=0).train.ids
    (tmp_path / "g.csv").write_text("id,group\n" + "".join(f"{name},{i % 9}\n" for i, name in enumerate(ids)))
    run = ht.finetune({**head, "data": f"array:{tmp_path}/a.npz", "split": str(tmp_path / "g.csv")})
    assert run.facts.split == "group"
    story = read_label_provenance(run, run.task(), make_options(CertifyOptions, {}))
    assert "split" in story.leaks
    with pytest.raises(ht.errors.HesstuneError, match="uniformly at random"):
        run.certify()

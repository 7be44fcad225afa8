"""A certificate counts no example that the weights before fine-tuning have seen, however these travelled."""

import copy
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import hesstune as ht
from hesstune.analysis.certify import certify_run, check_run
from hesstune.analysis.export import export_run
from hesstune.analysis.trained_prior import split_prior_and_bound
from hesstune.errors import DataError, ModelError
from hesstune.storage.seen_examples import KEY
from sentences import sentences


@pytest.fixture
def quick(tiny, tmp_path):
    """Train a head on true labels: called with the name of the run and options."""
    base = {k: v for k, v in tiny.items() if k not in ("inject_noise", "lr", "batch_size")}
    base |= {"method": "vanilla", "train": "head", "epochs": 1, "test_fraction": 0.5}

    def train(name, model=base["model"], **options):
        return ht.finetune({**base, **options}, model=model, out=str(tmp_path / name))

    return train


@pytest.fixture
def other(tmp_path):
    """A folder of images, none of which is in `image_folder`, of the same classes."""
    rng = np.random.default_rng(7)
    for name in ("dark", "light"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "other" / name / f"{i:02d}.png")
    return f"folder:{tmp_path / 'other'}"


def contents(run, *parts):
    """Return the bytes of a run's images, by part, whatever their names."""
    root = run.config.data.removeprefix("folder:")
    files = [f"{root}/{row['id']}" for row in run.labels() if row["part"] in parts]
    return [hashlib.sha256(open(path, "rb").read()).digest() for path in files]


def refused(run, **options):
    """Return how many examples, of how many, the refusal of a certificate names, and the message."""
    with pytest.raises(DataError) as caught:
        certify_run(run, **{"bound": "holdout", **options})
    said = str(caught.value)
    found = re.search(r"have seen (\d+) of the (\d+) examples", said)
    assert found, said
    return int(found[1]), int(found[2]), said


def test_weights_of_a_run_are_refused_where_their_examples_are_counted(quick):
    one = quick("one")
    weights = one.path / "model.safetensors"
    two = quick("two", weights=str(weights), seed=1)
    seen = set(contents(one, "train", "val"))
    test = contents(two, "test")
    shared = sum(digest in seen for digest in test)
    assert 0 < shared < len(test)
    count, of, said = refused(two)
    assert (count, of) == (shared, len(test))
    assert str(weights) in said
    train = contents(two, "train")
    shared = sum(digest in seen for digest in train)
    assert refused(two, bound="pac_bayes")[:2] == (shared, len(train))
    assert refused(two, bound="compression")[:2] == (shared, len(train))
    rest = split_prior_and_bound(np.arange(len(train)), 0.3, 1)[1]
    shared = sum(train[row] in seen for row in rest)
    assert refused(two, bound="best", prior_fraction=0.3, seed=1)[:2] == (shared, len(rest))
    with pytest.raises(DataError, match=r"have seen \d+ of the"):
        check_run(two)
    assert not (two.path / "to_check.csv").exists()
    found = certify_run(two, bound="holdout", diagnostic=True, repeats="allow")
    assert any("have seen" in text for text in found.failures)
    assert any("test examples" in note for note in two.facts.notes)


def test_the_second_generation_is_refused(quick, other):
    one = quick("one")
    two = quick("two", weights=str(one.path / "model.safetensors"), data=other)
    found = certify_run(two, bound="holdout")  # of others
    assert any("checked by digests; near-copies are not" in text for text in found.assumptions)
    three = quick("three", weights=str(two.path / "model.safetensors"), seed=1)
    seen = set(contents(one, "train", "val"))
    assert refused(three)[0] == sum(digest in seen for digest in contents(three, "test")) > 0
    # The weights that the second run started from carry the record, too.
    four = quick("four", weights=str(two.path / "reference.safetensors"), seed=1)
    assert refused(four)[0] == refused(three)[0]


def export_of(run, place):
    export_run(run, place / "export")
    copied = shutil.copyfile(place / "export" / "model.safetensors", place / "renamed.safetensors")
    return {"weights": str(copied)}


def under_other_names(run, place):
    source = Path(run.config.data.removeprefix("folder:"))
    for label, name in (("dark", "night"), ("light", "day")):
        (place / "moved" / name).mkdir(parents=True)
        for path in (source / label).iterdir():
            shutil.copyfile(path, place / "moved" / name / f"x{path.name}")
    return {"weights": str(run.path / "model.safetensors"), "data": f"folder:{place / 'moved'}"}


@pytest.mark.parametrize(
    "start",
    [
        export_of,
        under_other_names,
        lambda run, _: {"model": nn.Sequential(run.model())},
        lambda run, _: {"model": copy.deepcopy(run.model())},
    ],
    ids=["an exported copy", "images under other names and labels", "a wrapped network", "a copied network"],
)
def test_the_record_travels_with_the_weights_and_knows_contents(start, quick, tmp_path):
    one = quick("one")
    two = quick("two", seed=1, **start(one, tmp_path))
    seen = set(contents(one, "train", "val"))
    assert refused(two)[0] == sum(digest in seen for digest in contents(two, "test")) > 0


def test_what_the_bound_does_not_count_may_have_been_seen(quick, other):
    one = quick("one")
    start = str(one.path / "model.safetensors")
    two = quick("two", weights=start, data=other, val_fraction=0)
    certify_run(two, bound="holdout", prior_fraction=0.5)
    same = quick("same", weights=start)  # its test examples were not seen
    assert certify_run(same, bound="holdout").n == len(contents(same, "test"))
    assert refused(same, bound="pac_bayes")[1] == len(contents(same, "train"))


def test_a_bound_by_held_out_examples_beside_another_leaves_none_out(quick, other, tmp_path):
    """Where the weights have seen some of the test examples there is no bound beside the PAC-Bayes bound."""
    one = quick("one")
    root = tmp_path / "mixed"
    shutil.copytree(other.removeprefix("folder:"), root / "train")
    shutil.copytree(one.config.data.removeprefix("folder:"), root / "test")
    two = quick("two", weights=str(one.path / "model.safetensors"), data=f"folder:{root}")
    found = certify_run(two, bound="pac_bayes", draws=32)
    seen = len(set(contents(one, "train", "val")))
    assert found.held_out is None
    assert any(f"have seen {seen} of the 24" in text for text in found.assumptions)


def test_weights_without_a_record_are_assumed_and_stay_named(quick, other, tmp_path):
    one = quick("one")
    plain = tmp_path / "plain.pt"
    torch.save(load_file(one.path / "model.safetensors"), plain)
    two = quick("two", weights=str(plain), seed=1)
    assumed = f"the weights in {plain} were trained on other examples"
    assert assumed in certify_run(two, bound="holdout").assumptions
    three = quick("three", weights=str(two.path / "model.safetensors"), data=other)
    found = certify_run(three, bound="holdout").assumptions
    assert assumed in found
    assert any("checked by digests" in text for text in found)


def test_a_damaged_record_is_refused_before_training(quick, tmp_path):
    one = quick("one")
    content = (one.path / "model.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(content.replace(b'\\"bytes\\": 6', b'\\"bytes\\": 9'))
    assert broken.read_bytes() != content
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        quick("two", weights=str(broken))
    assert not (tmp_path / "two").exists()


def test_transformers_exports_carry_the_record_back(tiny_bert, tmp_path):
    path = tmp_path / "reviews.csv"
    rows = sorted(set(sentences(60)))
    path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]) + "\n")
    how = {"data": f"csv:{path}", "method": "vanilla", "train": "head", "epochs": 1, "test_fraction": 0.5}
    one = ht.finetune(model=f"hf:{tiny_bert}", out=str(tmp_path / "one"), **how)
    export_run(one, tmp_path / "export")
    texts = dict(enumerate(text for text, _ in rows))
    seen = {r["id"] for r in one.labels() if r["part"] in ("train", "val")}
    assert KEY in json.loads((tmp_path / "export" / "config.json").read_text())
    starts = [
        {"model": f"hf:{tmp_path / 'export'}"},
        {"model": f"hf:{tiny_bert}", "weights": str(tmp_path / "export" / "model.safetensors")},
    ]
    for n, start in enumerate(starts):
        two = ht.finetune(**start, **how, seed=1, out=str(tmp_path / f"two{n}"))
        test = [r["id"] for r in two.labels() if r["part"] == "test"]
        count, of, said = refused(two, repeats="allow")
        assert (count, of) == (sum(name in seen for name in test), len(test)), texts
        assert str(tmp_path / "export") in said

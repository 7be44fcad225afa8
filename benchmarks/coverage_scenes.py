"""The scenes of `run_coverage`: what is trained and certified in each trial, soundly or not."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from coverage_worlds import (
    Even,
    Flat,
    Seeing,
    altered,
    careless,
    copied,
    cropped,
    doubtful,
    fitted,
    frame,
    fresh,
    guessed,
    many_sided,
    mirrored,
    noise_images,
    noisy,
    random_head,
    rates,
    rotated,
    ruled,
    sided_images,
    tired,
    true_error,
)
from hesstune.analysis import near_copies, trained_prior
from hesstune.analysis.certify import check_run
from hesstune.bounds.record import Certificate
from run_coverage import DELTA, Trial

# P(given | true) of two classes: mild, and such that the rarer answer hides most errors.
MILD = np.array([[0.85, 0.15], [0.3, 0.7]])
HIDING = np.array([[1.0, 0.0], [0.8, 0.2]])
SEEDS, FRACTIONS = range(10), np.linspace(0.1, 0.9, 10)
DELTAS = np.arange(1, 11) / 20
STARTS = range(16)
LOOSE = 0.1  # δ where two examples are all
CLEAR = 30.0  # the strength of pictures that tell more
PENALTIES = np.geomspace(0.05, 2.6, 70)


def rule(t: Trial) -> None:
    """True labels that follow a rule but for a tenth of them: every bound of ordinary runs."""
    x, y, _ = ruled(t.rng, 120)
    run = t.run((x, y), Flat(2), test_fraction=0.4)
    t.sound("true labels: hold-out by the test part", run, bound="holdout")
    for bound, name in (
        ("holdout", "hold-out by half"),
        ("pac_bayes", "PAC-Bayes, prior trained on half"),
        ("compression", "compression, start trained on half"),
        ("best", "best of three, half for the start"),
    ):
        t.sound(f"true labels: {name}", run, bound=bound, prior_fraction=0.5)
    own = t.run((x, y), Flat(2), method="certified")
    t.sound("true labels: PAC-Bayes, data-free prior", own)
    picked = t.run((x[:50], y[:50]), Flat(2), method="pick_to_learn")
    t.sound("true labels: compression", picked, bound="compression")


def worst(t: Trial) -> None:
    """Ten labels at random, true error .9: the bounds where they are tightest."""
    x, y = guessed(t.rng, 120, 10)
    run = t.run((x, y), Flat(10), test_fraction=0.4)
    t.sound("labels at random: hold-out by the test part", run, 0.9, bound="holdout")
    for bound, name in (
        ("holdout", "hold-out by half"),
        ("pac_bayes", "PAC-Bayes, prior trained on half"),
        ("best", "best of three, half for the start"),
    ):
        t.sound(f"labels at random: {name}", run, 0.9, bound=bound, prior_fraction=0.5)
    picked = t.run((x[:20], y[:20] % 2), Flat(2), method="pick_to_learn")
    t.sound("labels at random: compression, n = 20", picked, 0.5, bound="compression")


def replaced(t: Trial) -> None:
    """A run replaced by one of other data in its folder, as many examples as before."""
    x, y = guessed(t.rng, 100, 10)
    asked: Any = {"bound": "holdout", "prior_fraction": 0.5}
    first = t.run((x, y), Flat(10), epochs=20)
    t.attempt(first, **asked)
    order = t.rng.permutation(len(y))
    shutil.copytree(first.path / "prior", t.folder / "prior")
    then = t.run((x[order], y[order]), Flat(10), epochs=20)
    t.sound("a run replaced by other data: its prior is made anew", then, 0.9, **asked)
    # As if a prior were known by its options and number of examples alone, and outlived the run.
    with mock.patch.object(trained_prior, "_contents", return_value={}):
        shutil.rmtree(then.path / "prior")
        shutil.move(t.folder / "prior", then.path / "prior")
        _forget_contents(then.path / "prior" / "run.json")
        t.broken("a prior that outlives its data, half of the bound's examples seen", then, 0.9, **asked)


def _forget_contents(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in ("chosen_options", "checksums", "noise_matrix"):
        record["made_from"].pop(name)
    path.write_text(json.dumps(record), encoding="utf-8")


def seen(t: Trial) -> None:
    """A start that was trained on the examples: only its user can know, and the certificate says so."""
    x, y = guessed(t.rng, 100, 10)
    start = fitted(x, y, 10)
    run = t.run((x, y), start, head_init="keep", epochs=1, lr=1e-9)
    t.broken("a start that has seen the examples: PAC-Bayes", run, 0.9)
    picked = t.run((x, y), start, head_init="keep", method="pick_to_learn")
    t.broken("a start that has seen the examples: compression", picked, 0.9, bound="compression")


def choices(t: Trial) -> None:
    """What is to be fixed beforehand is chosen by the certificates: two labels at random."""
    x, y = guessed(t.rng, 120, 2)
    run = t.run((x, y), Flat(2), test_fraction=0.5)
    half: Any = {"bound": "holdout", "prior_fraction": 0.5}
    seeds = _given(t.attempt(run, **half, seed=seed) for seed in SEEDS)
    t.note("sound", "the smallest of ten seeds, the union paid", _least(seeds, DELTA / len(SEEDS)), 0.5)
    t.note("broken", "the smallest of ten seeds, without the union", _least(seeds, DELTA), 0.5)
    parts = _given(t.attempt(run, **{**half, "prior_fraction": float(part)}) for part in FRACTIONS)
    t.note("sound", "the smallest of ten prior fractions, the union paid", _least(parts, DELTA / 10), 0.5)
    t.note("broken", "prior_fraction chosen after ten were seen", _least(parts, DELTA), 0.5)
    tail = t.attempt(run, bound="holdout")
    told = [delta for delta in DELTAS if tail is not None and tail.at(delta) < 0.5]
    name = "δ chosen after the numbers: the least below guessing, up to .5"
    t.note("broken", name, tail.at(told[0]) if told and tail else None, 0.5, told[0] if told else 0.0)


def _given(found: Iterable[Certificate | None]) -> list[Certificate]:
    return [one for one in found if one is not None]


def _least(found: Sequence[Certificate], delta: float) -> float | None:
    return min((one.at(delta) for one in found), default=None)


def noise(t: Trial) -> None:
    """Noisy labels with a known matrix."""
    x, true, _ = ruled(t.rng, 200)
    matrix = _matrix(t.folder / "mild.csv", MILD)
    y = noisy(t.rng, true, MILD)
    run = t.run((x, y), Flat(2), noise_matrix=matrix, test_fraction=0.4)
    t.sound("noisy labels, matrix known: hold-out by the test part", run, bound="holdout")
    t.sound("noisy labels, matrix known: hold-out by half", run, bound="holdout", prior_fraction=0.5)
    t.sound("noisy labels, matrix known: PAC-Bayes, prior trained on half", run, prior_fraction=0.5)
    picked = t.run((x[:50], y[:50]), Flat(2), method="pick_to_learn", noise_matrix=matrix)
    t.sound("noisy labels, matrix known: compression", picked, bound="compression")
    own = t.run((x, y), Flat(2), method="certified", noise_matrix=matrix)
    t.sound("noisy labels, matrix known: PAC-Bayes, data-free prior", own)
    rows = t.rng.choice(len(y), 80, replace=False).tolist()
    sample = _sheet(t.folder / "clean.csv", {str(row): int(true[row]) for row in rows})
    t.sound("noisy labels, a clean sample of 80: PAC-Bayes", own, clean_sample=sample)


def hiding(t: Trial) -> None:
    """Labels at random of two classes, one mostly told as the other: whoever guesses that looks right."""
    x, true = guessed(t.rng, 150, 2)
    matrix = _matrix(t.folder / "hiding.csv", HIDING)
    y = noisy(t.rng, true, HIDING)
    run = t.run((x, y), Flat(2), noise_matrix=matrix, test_fraction=0.4)
    t.sound("labels at random, noise that hides errors: hold-out", run, 0.5, bound="holdout")
    t.sound("labels at random, noise that hides errors: PAC-Bayes", run, 0.5, prior_fraction=0.5)
    name = "noisy labels certified as true: hold-out"
    put = t.run((x, true), Flat(2), "put", inject_noise=matrix, test_fraction=0.4)
    t.refused(name, put, bound="holdout", prior_fraction=0.5, noise_is="none")
    plain = t.run((x, y), Flat(2), "plain", test_fraction=0.4)
    t.broken(name, plain, 0.5, bound="holdout")
    t.broken("noisy labels certified as true: PAC-Bayes", plain, 0.5, prior_fraction=0.5)


def estimated(t: Trial) -> None:
    """True labels that the pictures tell only in part: an estimate takes what is hard for noise."""
    x, y, _ = ruled(t.rng, 1000, 0.3, CLEAR)
    name = "a matrix estimated from the labels, passed off as known"
    asked: Any = {"bound": "holdout", "test_labels": "noisy"}
    told: Any = {"test_fraction": 0.5, "epochs": 20}
    run = t.run((x, y), Seeing(), noise_matrix="estimate:confident", **told)
    file = str(run.path / "noise_matrix.json")
    loaded = t.run((x, y), Seeing(), "loaded", noise_matrix=file, **told)
    t.refused(name, run, loaded, **asked)  # the file says where it comes from
    matrix = run.noise_matrix
    assert matrix is not None
    stated = _matrix(t.folder / "stated.csv", matrix.array)
    bare = t.run((x, y), Seeing(), "bare", noise_matrix=stated, **told)
    t.broken(name, bare, true_error(bare.model(), None, 0.3, CLEAR), **asked)


def soft(t: Trial) -> None:
    """A label model's answers, which the pictures tell well, and truth at random."""
    x = noise_images(t.rng, 150)
    lead = (x.reshape(len(x), -1) / 128.0 - 1) @ np.random.default_rng(2).standard_normal(x[0].size)
    up = 1 / (1 + np.exp(-lead))
    table = frame(x, p_0=1 - up, p_1=up, label=(up > 0.5).astype(int))
    run = t.run(table, Flat(2), soft_labels=True, test_fraction=0.4, epochs=30)
    name = "soft labels of a model, taken for the truth"
    t.refused(name, run, bound="holdout")
    t.broken(name, run, 0.5, bound="holdout", noise_is="none")


def copies(t: Trial) -> None:
    """Pictures stored four times, a grey level changed; two labels at random."""
    some = copied(t.rng, *guessed(t.rng, 30, 2), times=4)
    run = t.run(some, Flat(2), epochs=20)
    half: Any = {"bound": "holdout", "prior_fraction": 0.5}
    t.sound("copies: one of each is counted", run, 0.5, **half, repeats="drop")
    name = "test copies of what was learnt, counted (--repeats allow)"
    learnt = t.run(some, Flat(2), "b", epochs=20, test_fraction=0.4)
    t.refused(name, learnt, bound="holdout")
    t.broken(name, learnt, 0.5, bound="holdout", repeats="allow")
    name = "copies in the prior's part and the bound's"
    t.refused(name, run, **half)
    with mock.patch.object(near_copies, "near_duplicates", _no_copies):
        t.broken(name, run, 0.5, **half, repeats="allow")


def _no_copies(parts: Sequence[Any]) -> list[NDArray[np.int64]]:
    ends = np.cumsum([len(part) for part in parts])
    return np.split(np.arange(ends[-1]), ends[:-1])


def checked(t: Trial) -> None:
    """Noise as people make it, at what is hard to tell, and a few labels checked."""
    x, true, z = ruled(t.rng, 600, doubtful, CLEAR)
    given = true ^ (t.rng.random(len(true)) < 0.5 * np.exp(-np.abs(z[:, 0])) * np.where(z[:, 1] > 0, 1, 0.5))
    run = t.run((x, given), Seeing(), test_fraction=0.7, epochs=10)
    truth = true_error(run.model(), None, doubtful, CLEAR)
    with check_run(run, sample=250).open(newline="", encoding="utf-8") as file:
        drawn = [int(row["id"]) for row in csv.DictReader(file)]
    filled = _sheet(t.folder / "filled.csv", {str(row): int(true[row]) for row in drawn})
    t.sound("250 checked of 420 noisy labels", run, truth, checked=filled)
    easy = {str(row): int(true[row]) for row in drawn if abs(z[row, 0]) > 0.7}
    name = "what is hard to tell left out of the checked labels"
    t.broken(name, run, truth, checked=_sheet(t.folder / "easy.csv", easy))


def starts(t: Trial) -> None:
    """Six labels at random, and the luckiest of sixteen starts at random."""
    x, y = guessed(t.rng, 6, 2)
    found: list[Certificate] = []
    if np.bincount(y, minlength=2).min() > 1:  # a class of one example is refused
        for start in STARTS:
            model = random_head(np.random.default_rng([start, t.number]), 2)
            run = t.run((x, y), model, head_init="keep", method="pick_to_learn")
            found += _given([t.attempt(run, bound="compression")])
    t.note("sound", "compression, n = 6: one start", _least(found[:1], DELTA), 0.5)
    t.note("broken", "compression, n = 6: the best of sixteen starts", _least(found, DELTA), 0.5)


def penalty(t: Trial) -> None:
    """Two examples of 41 classes, and a start whose network runs through them as the penalty falls."""
    k, truth = 41, 1 - 1 / 41
    x, y = sided_images(t.rng, 600), t.rng.integers(0, k, 600)
    # The test part has every class; two examples are left.
    told: Any = {"head_init": "keep", "method": "pick_to_learn", "test_fraction": 1 - 2 / 600}
    plain = {"average": 0, "center": 0}  # so that a penalty decides where the network of one fit runs
    asked: Any = {"bound": "compression", "repeats": "allow", "delta": LOOSE}
    run = t.run((x, y), many_sided(k), **told, method_options=plain)
    found = _given([t.attempt(run, **asked)])
    t.note("sound", "compression, n = 2, δ = .1: the penalty as it is", _least(found, LOOSE), truth, LOOSE)
    sides = {int(x[int(row["id"]), 0, 0, 0]) for row in run.labels() if row["part"] == "train"}
    for value in PENALTIES if len(sides) == 2 else ():  # on one side no penalty can matter
        run = t.run((x, y), many_sided(k), **told, method_options={**plain, "penalty": float(value)})
        if len(run.outcome.kept or []) < 2:
            found += _given([t.attempt(run, **asked)])
            break
    name = "compression, n = 2, δ = .1: the penalty chosen on the examples"
    t.note("broken", name, _least(found, LOOSE), truth, LOOSE)


def instance(t: Trial) -> None:
    """Noise that depends on the input, and its exact average over each class given as the known matrix."""
    for name, flip in (("near the border alone", careless), ("more near the border", tired)):
        x, true, z = ruled(t.rng, 1500, 0.0)
        y = true ^ (t.rng.random(len(true)) < rates(flip, z))
        rate = float(rates(flip, fresh()[1]).mean())  # the same of both classes
        matrix = _matrix(t.folder / "average.csv", np.array([[1 - rate, rate], [rate, 1 - rate]]))
        run = t.run((x, y), Flat(2), noise_matrix=matrix, test_fraction=0.8)
        truth = true_error(run.model(), None, 0.0)
        name = f"noise {name}, its average given as known"
        t.judged(f"{name}: hold-out", run, truth, bound="holdout", test_labels="noisy")
        if flip is careless:
            whole = t.run((x[:600], y[:600]), Flat(2), noise_matrix=matrix)
            asked: Any = {"bound": "pac_bayes", "prior_fraction": 0.5}
            t.judged(f"{name}: PAC-Bayes, prior trained on half", whole, None, **asked)


def reused(t: Trial) -> None:
    """A start from the weights of a run on other examples, and on the same ones; ten labels at random."""
    x, y = guessed(t.rng, 120, 10)
    keep: Any = {"head_init": "keep", "test_fraction": 0.5, "epochs": 1, "lr": 1e-3}
    other = t.run(guessed(t.rng, 120, 10), Flat(10), "other", epochs=40, lr=0.02)
    start = str(other.path / "model.safetensors")
    fresh_run = t.run((x, y), Flat(10), weights=start, **keep)
    t.sound("a start that has seen other examples: hold-out", fresh_run, 0.9, bound="holdout")
    one = t.run((x, y), Flat(10), "one", epochs=40, lr=0.02)
    start = str(one.path / "model.safetensors")
    again = t.run((x, y), Flat(10), "again", weights=start, **keep)
    t.judged("weights of a run on the same examples: hold-out", again, 0.9, bound="holdout")
    whole = t.run((x, y), Flat(10), "whole", weights=start, **{**keep, "test_fraction": 0.0})
    t.judged("weights of a run on the same examples: PAC-Bayes", whole, 0.9, bound="pac_bayes", draws=100)
    bare = str(t.folder / "bare.safetensors")
    save_file(load_file(start), bare)
    plain = t.run((x, y), Flat(10), "plain", weights=bare, **keep)
    t.judged("the same weights, saved again without their record: hold-out", plain, 0.9, bound="holdout")


def offline(t: Trial) -> None:
    """Images augmented before the split: each one and an altered copy, two labels at random."""
    for alter in (mirrored, cropped, rotated):
        x = altered(t.rng, 60, alter)
        y = np.tile(t.rng.integers(0, 2, 60), 2)
        order = t.rng.permutation(len(y))
        run = t.run((x[order], y[order]), Even(2), image_size=32, test_fraction=0.4, epochs=40, lr=0.02)
        name = f"an altered copy of every image ({alter.__name__}) before the split"
        t.judged(name, run, 0.5, off={"repeats": "allow"}, bound="holdout")


def _matrix(path: Path, array: NDArray[np.float64]) -> str:
    np.savetxt(path, array, delimiter=",")
    return str(path)


def _sheet(path: Path, true: dict[str, int]) -> str:
    """Write ids and true labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "true_label"), *true.items()])
    return str(path)


# Each scene, and how many trials it gets.
SCENES: dict[str, tuple[Callable[[Trial], None], int]] = {
    "rule": (rule, 200),
    "worst": (worst, 200),
    "noise": (noise, 100),
    "hiding": (hiding, 100),
    "replaced": (replaced, 60),
    "seen": (seen, 60),
    "choices": (choices, 60),
    "estimated": (estimated, 40),
    "soft": (soft, 60),
    "copies": (copies, 100),
    "checked": (checked, 200),
    "starts": (starts, 60),
    "penalty": (penalty, 60),
    "instance": (instance, 100),
    "reused": (reused, 100),
    "offline": (offline, 100),
}

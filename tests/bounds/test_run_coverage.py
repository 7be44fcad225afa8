"""How often certificates of runs fail: train, certify as `hesstune certify` does, and count.

Every trial draws new examples from a distribution with a known true error (`coverage_worlds`), fine-tunes a
tiny network with `hesstune.finetune` and calls `Run.certify`. Sound ways must fail in at most a share δ of
trials, up to a binomial 99 % margin. Broken ways do what the assumptions of a certificate exclude, and must
fail more often on the worst case that shows it. If `certify` refuses one, the refusals are counted, and what
fails is the number with the safeguard turned off.
"""

import csv
import json
import shutil
import tempfile
import warnings
import zlib
from functools import partialmethod
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import coverage_worlds as worlds
import hesstune as ht
from analysis import most_failures
from coverage_worlds import Flat, Seeing, guessed, noisy, ruled, true_error
from data_files import write_table
from hesstune.analysis import near_copies, trained_prior
from hesstune.analysis.certify import check_run
from hesstune.data import load
from hesstune.errors import DataError, HesstuneError
from hesstune.runs.run import Run
from records import rows

DELTA = 0.05
HEAD = {"image_size": 8, "train": "head", "val_fraction": 0.0, "test_fraction": 0.0,
                        "weight_decay": 0.0, "epochs": 5, "overwrite": True}  # fmt: skip
HALVES = (
    ("holdout", "hold-out by half"),
    ("pac_bayes", "PAC-Bayes, prior trained on half"),
    ("compression", "compression, start trained on half"),
    ("best", "best of three, half for the start"),
)


class Trial:
    """One trial of a scene: its randomness, its folder, and the counts of its ways."""

    def __init__(self, scene, number, folder):
        self.rng = np.random.default_rng([zlib.crc32(scene.encode()), number])
        self.number, self.folder = number, folder
        self.ways = {"sound": {}, "broken": {}}

    def way(self, kind, name):
        """Return the counts of a way."""
        zero = ("trials", "given", "refused", "failures", "stated", "certificates", "truths")
        return self.ways[kind].setdefault(name, dict.fromkeys(zero, 0))

    def run(self, data, model, name="a", **options):
        """Fine-tune a head on data in memory."""
        options = {"method": "vanilla", **HEAD, "seed": self.number, **options}
        return ht.finetune(data, model=model, out=str(self.folder / name), **options)

    def attempt(self, run, **asked):
        """Certify as users do; return None if it is refused."""
        try:
            return run.certify(**asked)
        except HesstuneError:
            return None

    def judge(
        self,
        kind,
        name,
        run,
        truth=None,
        *,
        flip=worlds.FLIP,
        off=None,
        **asked,
    ):
        """Certify a run and count the certificate.

        `flip` is the label noise of a true error that is measured. `off` are options that turn the safeguards
        off, for a way that is refused; refusals are counted then.
        """
        given = found = self.attempt(run, **asked)
        if given is None and off is not None:
            found = self.attempt(run, **{**asked, **off})
        if truth is None and found is not None:
            truth = true_error(*certified(run, found, asked.get("prior_fraction", 0.0)), flip=flip)
        self.note(kind, name, None if found is None else found.risk, truth)
        if off is not None:
            false = given is not None and truth is not None and truth > given.risk
            way = self.way(kind, name)
            way["refused"] += given is None
            way["printed"] = way.get("printed", 0) + false

    sound = partialmethod(judge, "sound")
    broken = partialmethod(judge, "broken")
    guarded = partialmethod(judge, "broken", off={"diagnostic": True})

    def refused(self, name, *runs, **asked):
        """Count whether a broken way is refused for each of some runs."""
        refusals = [self.attempt(run, **asked) is None for run in runs]
        self.way("broken", name)["refused"] += all(refusals)

    def note(self, kind, name, risk, truth, delta=DELTA):
        """Count a certificate that states the probability of failure δ, or that none was given."""
        way = self.way(kind, name)
        way["trials"] += 1
        if risk is None or truth is None:
            way["refused"] += kind == "sound"
            return
        numbers = {"given": 1, "stated": delta, "failures": truth > risk}
        for key, value in {**numbers, "certificates": risk, "truths": truth}.items():
            way[key] += value


def certified(run, found, fraction):
    """Return the network that a certificate is of, and its weights' deviations if they are random."""
    part = {"holdout": "prior", "pac_bayes": "posterior", "compression": "compressed"}[found.bound]
    picked_anew = found.bound == "compression" and run.config.method != "pick_to_learn"
    own = Run.load(run.path / part, model=run.given.model) if fraction or picked_anew else run
    return own.model(), dict(found.sigma) if found.bound == "pac_bayes" else None


def played(scene, numbers):
    """Play trials of a scene, and return the counts of its ways."""
    total = {"sound": {}, "broken": {}}
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = Trial(scene, number, Path(folder))
            try:
                SCENES[scene][0](trial)
            except HesstuneError:  # by chance a class has no two examples: the trial does not count
                continue
        for kind, ways in trial.ways.items():
            for name, way in ways.items():
                into = total[kind].setdefault(name, {})
                into |= {key: round(into.get(key, 0) + value, 6) for key, value in way.items()}
    return total


def unexpected(ways):
    """Return the sound ways that fail too often, and the broken ones that do not."""
    return [
        name
        for kind, some in ways.items()
        for name, way in some.items()
        if (way["failures"] > most_failures(way)) == (kind == "sound")
    ]


# P(given | true) of two classes: mild, and such that the rarer answer hides most errors.
MILD = np.array([[0.85, 0.15], [0.3, 0.7]])
HIDING = np.array([[1.0, 0.0], [0.8, 0.2]])
SEEDS, FRACTIONS = range(10), np.linspace(0.1, 0.9, 10)
DELTAS = np.arange(1, 11) / 20
STARTS = range(16)
LOOSE = 0.1  # δ of scenes with two examples
CLEAR = 30.0  # the strength of images with less noise
PENALTIES = np.geomspace(0.05, 2.6, 70)


def rule(t):
    """True labels that follow a rule but for a tenth of them: every bound of ordinary runs."""
    x, y, _ = ruled(t.rng, 120)
    run = t.run((x, y), Flat(2), test_fraction=0.4)
    t.sound("true labels: hold-out by the test part", run, bound="holdout")
    for bound, name in HALVES:
        t.sound(f"true labels: {name}", run, bound=bound, prior_fraction=0.5)
    own = t.run((x, y), Flat(2), method="certified")
    t.sound("true labels: PAC-Bayes, data-free prior", own)
    picked = t.run((x[:50], y[:50]), Flat(2), method="pick_to_learn")
    t.sound("true labels: compression", picked, bound="compression")


def worst(t):
    """Ten labels at random, true error .9: the case of the tightest bounds."""
    x, y = guessed(t.rng, 120, 10)
    run = t.run((x, y), Flat(10), test_fraction=0.4)
    t.sound("labels at random: hold-out by the test part", run, 0.9, bound="holdout")
    for bound, name in (half for half in HALVES if half[0] != "compression"):
        t.sound(f"labels at random: {name}", run, 0.9, bound=bound, prior_fraction=0.5)
    picked = t.run((x[:20], y[:20] % 2), Flat(2), method="pick_to_learn")
    t.sound("labels at random: compression, n = 20", picked, 0.5, bound="compression")


def replaced(t):
    """A run replaced by one of other data in its folder, as many examples as before."""
    x, y = guessed(t.rng, 100, 10)
    asked = {"bound": "holdout", "prior_fraction": 0.5}
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


def _forget_contents(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in ("chosen_options", "checksums", "noise_matrix"):
        record["made_from"].pop(name)
    path.write_text(json.dumps(record), encoding="utf-8")


def seen(t):
    """A start that was trained on the examples: only its user can know, and the certificate says so."""
    x, y = guessed(t.rng, 100, 10)
    start = worlds.fitted(x, y, 10)
    run = t.run((x, y), start, head_init="keep", epochs=1, lr=1e-9)
    t.broken("a start that has seen the examples: PAC-Bayes", run, 0.9)
    picked = t.run((x, y), start, head_init="keep", method="pick_to_learn")
    t.broken("a start that has seen the examples: compression", picked, 0.9, bound="compression")


def choices(t):
    """What is to be fixed beforehand is chosen by the certificates: two random labels."""
    x, y = guessed(t.rng, 120, 2)
    run = t.run((x, y), Flat(2), test_fraction=0.5)
    half = {"bound": "holdout", "prior_fraction": 0.5}
    seeds = _given(t.attempt(run, **half, seed=seed) for seed in SEEDS)
    t.note("sound", "the smallest of ten seeds, the union paid", _least(seeds, DELTA / len(SEEDS)), 0.5)
    t.note("broken", "the smallest of ten seeds, without the union", _least(seeds, DELTA), 0.5)
    parts = _given(t.attempt(run, **{**half, "prior_fraction": float(part)}) for part in FRACTIONS)
    t.note("sound", "the smallest of ten prior fractions, the union paid", _least(parts, DELTA / 10), 0.5)
    t.note("broken", "prior_fraction chosen after ten were seen", _least(parts, DELTA), 0.5)
    tail = t.attempt(run, bound="holdout")
    below = [delta for delta in DELTAS if tail is not None and tail.at(delta) < 0.5]
    name = "δ chosen after the numbers: the least below guessing, up to .5"
    t.note("broken", name, tail.at(below[0]) if below and tail else None, 0.5, below[0] if below else 0.0)


def _given(found):
    return [one for one in found if one is not None]


def _least(found, delta):
    return min((one.at(delta) for one in found), default=None)


def noise(t):
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


def hiding(t):
    """Random labels of two classes, one mostly given as the other: always predicting that one looks right."""
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


def estimated(t):
    """True labels that depend on the images only in part: an estimate takes hard examples for noise."""
    x, y, _ = ruled(t.rng, 1000, 0.3, CLEAR)
    name = "a matrix estimated from the labels, passed off as known"
    asked = {"bound": "holdout", "test_labels": "noisy"}
    options = {"test_fraction": 0.5, "epochs": 20}
    run = t.run((x, y), Seeing(), noise_matrix="estimate:confident", **options)
    file = str(run.path / "noise_matrix.json")
    loaded = t.run((x, y), Seeing(), "loaded", noise_matrix=file, **options)
    t.refused(name, run, loaded, **asked)  # the file says that it is an estimate
    matrix = run.noise_matrix
    assert matrix is not None
    stated = _matrix(t.folder / "stated.csv", matrix.array)
    bare = t.run((x, y), Seeing(), "bare", noise_matrix=stated, **options)
    t.broken(name, bare, true_error(bare.model(), None, 0.3, CLEAR), **asked)


def soft(t):
    """Answers of a label model, which the images predict well, and random true labels."""
    x = worlds.noise_images(t.rng, 150)
    lead = (x.reshape(len(x), -1) / 128.0 - 1) @ np.random.default_rng(2).standard_normal(x[0].size)
    up = 1 / (1 + np.exp(-lead))
    table = worlds.frame(x, p_0=1 - up, p_1=up, label=(up > 0.5).astype(int))
    run = t.run(table, Flat(2), soft_labels=True, test_fraction=0.4, epochs=30)
    name = "soft labels of a model, taken for the truth"
    t.refused(name, run, bound="holdout")
    t.broken(name, run, 0.5, bound="holdout", noise_is="none")


def copies(t):
    """Images stored four times, a grey level changed; two random labels."""
    some = worlds.copied(t.rng, *guessed(t.rng, 30, 2), times=4)
    run = t.run(some, Flat(2), epochs=20)
    half = {"bound": "holdout", "prior_fraction": 0.5}
    t.sound("copies: one of each is counted", run, 0.5, **half, repeats="drop")
    name = "test copies of what was learnt, counted (--repeats allow)"
    with mock.patch.object(load, "copies_in", _no_copies):  # else they are in one part
        learnt = t.run(some, Flat(2), "b", epochs=20, test_fraction=0.4)
        t.refused(name, learnt, bound="holdout")
        t.broken(name, learnt, 0.5, bound="holdout", repeats="allow")
    name = "copies in the prior's part and the bound's"
    t.refused(name, run, **half)
    with mock.patch.object(near_copies, "near_duplicates", _no_copies):
        t.broken(name, run, 0.5, **half, repeats="allow")


def _no_copies(parts):
    ends = np.cumsum([len(part) for part in parts])
    return np.split(np.arange(ends[-1]), ends[:-1])


def checked(t):
    """Noise as people make it, at what is hard to tell, and a few labels checked."""
    x, true, z = ruled(t.rng, 600, worlds.ambiguous, CLEAR)
    given = true ^ (t.rng.random(len(true)) < 0.5 * np.exp(-np.abs(z[:, 0])) * np.where(z[:, 1] > 0, 1, 0.5))
    run = t.run((x, given), Seeing(), test_fraction=0.7, epochs=10)
    truth = true_error(run.model(), None, worlds.ambiguous, CLEAR)
    with check_run(run, sample=250).open(newline="", encoding="utf-8") as file:
        drawn = [int(row["id"]) for row in csv.DictReader(file)]
    filled = _sheet(t.folder / "filled.csv", {str(row): int(true[row]) for row in drawn})
    t.sound("250 checked of 420 noisy labels", run, truth, checked_labels=filled)
    easy = {str(row): int(true[row]) for row in drawn if abs(z[row, 0]) > 0.7}
    name = "what is hard to tell left out of the checked labels"
    t.broken(name, run, truth, checked_labels=_sheet(t.folder / "easy.csv", easy))


def starts(t):
    """Six labels at random, and the luckiest of sixteen starts at random."""
    x, y = guessed(t.rng, 6, 2)
    found = []
    if np.bincount(y, minlength=2).min() > 1:  # a class of one example is refused
        for start in STARTS:
            model = worlds.random_head(np.random.default_rng([start, t.number]), 2)
            run = t.run((x, y), model, head_init="keep", method="pick_to_learn")
            found += _given([t.attempt(run, bound="compression")])
    t.note("sound", "compression, n = 6: one start", _least(found[:1], DELTA), 0.5)
    t.note("broken", "compression, n = 6: the best of sixteen starts", _least(found, DELTA), 0.5)


def penalty(t):
    """Two examples of 41 classes, and a start with a network that runs through them as the penalty falls."""
    k, truth = 41, 1 - 1 / 41
    x, y = worlds.sided_images(t.rng, 600), t.rng.integers(0, k, 600)
    # The test part has every class; two examples are left.
    options = {"head_init": "keep", "method": "pick_to_learn", "test_fraction": 1 - 2 / 600}
    plain = {"average": 0, "center": 0}  # so that the network of one fit depends on the penalty
    asked = {"bound": "compression", "repeats": "allow", "delta": LOOSE}
    run = t.run((x, y), worlds.many_sided(k), **options, method_options=plain)
    found = _given([t.attempt(run, **asked)])
    t.note("sound", "compression, n = 2, δ = .1: the penalty as it is", _least(found, LOOSE), truth, LOOSE)
    sides = {int(x[int(row["id"]), 0, 0, 0]) for row in run.labels() if row["part"] == "train"}
    for value in PENALTIES if len(sides) == 2 else ():  # on one side no penalty can matter
        run = t.run(
            (x, y), worlds.many_sided(k), **options, method_options={**plain, "penalty": float(value)}
        )
        if len(run.outcome.kept or []) < 2:
            found += _given([t.attempt(run, **asked)])
            break
    name = "compression, n = 2, δ = .1: the penalty chosen on the examples"
    t.note("broken", name, _least(found, LOOSE), truth, LOOSE)


def instance(t):
    """Noise that depends on the input, and its exact average over each class given as the known matrix."""
    for name, flip in (("near the border alone", worlds.careless), ("more near the border", worlds.tired)):
        x, true, z = ruled(t.rng, 1500, 0.0)
        y = true ^ (t.rng.random(len(true)) < worlds.rates(flip, z))
        rate = float(worlds.rates(flip, worlds.fresh()[1]).mean())  # the same of both classes
        matrix = _matrix(t.folder / "average.csv", np.array([[1 - rate, rate], [rate, 1 - rate]]))
        run = t.run((x, y), Flat(2), noise_matrix=matrix, test_fraction=0.8)
        truth = true_error(run.model(), None, 0.0)
        name = f"noise {name}, its average given as known"
        t.guarded(f"{name}: hold-out", run, truth, bound="holdout", test_labels="noisy")
        if flip is worlds.careless:
            whole = t.run((x[:600], y[:600]), Flat(2), noise_matrix=matrix)
            asked = {"bound": "pac_bayes", "prior_fraction": 0.5}
            t.guarded(f"{name}: PAC-Bayes, prior trained on half", whole, flip=0.0, **asked)


def reused(t):
    """A start from the weights of a run on other examples, and on the same ones; ten random labels."""
    x, y = guessed(t.rng, 120, 10)
    keep = {"head_init": "keep", "test_fraction": 0.5, "epochs": 1, "lr": 1e-3}
    other = t.run(guessed(t.rng, 120, 10), Flat(10), "other", epochs=40, lr=0.02)
    start = str(other.path / "model.safetensors")
    fresh_run = t.run((x, y), Flat(10), weights=start, **keep)
    t.sound("a start that has seen other examples: hold-out", fresh_run, 0.9, bound="holdout")
    one = t.run((x, y), Flat(10), "one", epochs=40, lr=0.02)
    start = str(one.path / "model.safetensors")
    again = t.run((x, y), Flat(10), "again", weights=start, **keep)
    t.guarded("weights of a run on the same examples: hold-out", again, 0.9, bound="holdout")
    whole = t.run((x, y), Flat(10), "whole", weights=start, **{**keep, "test_fraction": 0.0})
    t.guarded("weights of a run on the same examples: PAC-Bayes", whole, 0.9, bound="pac_bayes", draws=100)
    bare = str(t.folder / "bare.safetensors")
    save_file(load_file(start), bare)
    plain = t.run((x, y), Flat(10), "plain", weights=bare, **keep)
    t.guarded("the same weights, saved again without their record: hold-out", plain, 0.9, bound="holdout")


def offline(t):
    """Images augmented before the split: each one and an altered copy, two random labels."""
    for alter in (worlds.mirrored, worlds.cropped, worlds.rotated):
        x = worlds.altered(t.rng, 60, alter)
        y = np.tile(t.rng.integers(0, 2, 60), 2)
        order = t.rng.permutation(len(y))
        options = {"image_size": 32, "test_fraction": 0.4, "epochs": 40, "lr": 0.02}
        run = t.run((x[order], y[order]), worlds.Even(2), **options)
        name = f"an altered copy of every image ({alter.__name__}) before the split"
        t.broken(name, run, 0.5, off={"repeats": "allow"}, bound="holdout")


def _matrix(path, array):
    np.savetxt(path, array, delimiter=",")
    return str(path)


def _sheet(path, true):
    rows = [(name, str(label)) for name, label in true.items()]
    return str(write_table(path, ("id", "true_label"), rows))


# Each scene, and how many trials it gets.
SCENES = {
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


def cases(settings):
    """The scenes, for the record `run_coverage`; `at_most` of the settings limits their trials."""
    yield from ({"scene": scene} for scene in SCENES)


def measure(case, asked):
    trials = min(SCENES[case["scene"]][1], asked.settings.get("at_most", 10**6))
    return {"delta": DELTA, "trials": trials, "ways": played(case["scene"], range(trials))}


def test_a_replaced_run_is_certified_soundly_and_a_prior_that_outlives_its_data_fails():
    found = played("replaced", range(3))
    (sound,), (broken,) = found["sound"].values(), found["broken"].values()
    assert sound["given"] == 3
    assert sound["failures"] <= most_failures(sound)
    assert broken["failures"] == 3 > most_failures(broken)


def test_refusals_are_counted_with_what_would_have_failed():
    found = played("copies", range(2))
    for way in found["broken"].values():
        assert way["refused"] == way["failures"] == 2
    (sound,) = found["sound"].values()
    assert sound["given"] + sound["refused"] == 2
    assert not sound["failures"]


def test_a_start_that_has_seen_the_examples_fails_and_the_certificate_states_the_assumption(tmp_path):
    t = Trial("seen", 0, tmp_path)
    x, y = worlds.guessed(t.rng, 60, 4)
    start = worlds.fitted(x, y, 4)
    drawn = t.run((x, y), start, head_init="keep", epochs=1, lr=1e-9).certify(draws=64)
    picked = t.run((x, y), start, head_init="keep", method="pick_to_learn").certify(bound="compression")
    assert max(drawn.risk, picked.risk) < 0.3 < 0.75
    assert any("did not use these examples" in text for text in drawn.assumptions)
    assert any("were fixed without these examples" in text for text in picked.assumptions)


def test_a_true_error_is_that_of_weights_drawn_at_random():
    """The closed form of a randomised head against draws, and a fixed network against its errors."""
    model = worlds.fitted(*worlds.ruled(np.random.default_rng(0), 60)[:2], 2)
    sigma = {"head.weight": 0.05, "head.bias": 0.3}
    x, z = worlds.fresh()
    side = torch.from_numpy(z[:, 0] > 0)
    wrong = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = model.head.weight + 0.05 * torch.randn(model.head.weight.shape, generator=g)
            bias = model.head.bias + 0.3 * torch.randn(2, generator=g)
            logits = x[:2000].flatten(1) @ weight.T + bias
        wrong.append(float(((logits[:, 1] > logits[:, 0]) != side[:2000]).float().mean()))
    missed = float(np.mean(wrong))
    assert worlds.true_error(model, sigma) == pytest.approx(missed * 0.9 + (1 - missed) * 0.1, abs=0.02)
    labels = (side.numpy() ^ (np.random.default_rng(5).random(len(z)) < worlds.FLIP)).astype(int)
    seen = float((model(x).argmax(1).numpy() != labels).mean())
    assert worlds.true_error(model) == pytest.approx(seen, abs=0.01)


def test_labels_of_a_model_are_refused(tmp_path):
    t = Trial("soft", 0, tmp_path)
    x = worlds.noise_images(t.rng, 40)
    up = t.rng.random(40)
    table = worlds.frame(x, p_0=1 - up, p_1=up, label=(up > 0.5).astype(int))
    run = t.run(table, worlds.Flat(2), soft_labels=True, test_fraction=0.5)
    with pytest.raises(DataError, match="test labels"):
        run.certify(bound="holdout")


def test_in_the_record_sound_ways_hold_and_broken_ones_fail():
    scenes = {row["scene"]: row["ways"] for row in rows("run_coverage")}
    assert set(scenes) == set(SCENES)
    assert not [name for ways in scenes.values() for name in unexpected(ways)]

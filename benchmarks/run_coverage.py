"""How often do certificates fail that users can have? Train, certify as `hesstune certify` does, and count.

Every trial draws new examples in a world whose true error is known (`coverage_worlds`), fine-tunes a tiny
network with `hesstune.finetune` and calls `Run.certify`. Sound ways must fail in at most a share δ of trials,
up to a binomial 99 % margin. Broken ones, each of which does what the assumptions of a certificate exclude,
must be seen to fail on the worst case that shows it. Where the product refuses one, the refusals are counted,
and what fails is the number with the safeguard turned off.

Run: OMP_NUM_THREADS=1 python benchmarks/run_coverage.py. It goes on where it was stopped, trial by trial;
--again starts over.
"""

from __future__ import annotations

import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

import hesstune as ht
from coverage_worlds import true_error
from hesstune.bounds.record import Certificate
from hesstune.errors import HesstuneError
from hesstune.runs.run import Run
from records import RESULTS, arguments, read_record, write_record

DELTA = 0.05
NAME = "run_coverage"
AT_A_TIME = 10  # trials between two writes of the record
HEAD: dict[str, Any] = {"image_size": 8, "train": "head", "val_fraction": 0.0, "test_fraction": 0.0,
                        "weight_decay": 0.0, "epochs": 5, "overwrite": True}  # fmt: skip
Way = dict[str, float]
Ways = dict[str, dict[str, Way]]


class Trial:
    """One trial of a scene: its randomness, its folder, and what its ways gave.

    Args:
        scene: The scene's name.
        number: The trial's.
        folder: Where its runs go.
    """

    def __init__(self, scene: str, number: int, folder: Path) -> None:
        self.rng = np.random.default_rng([zlib.crc32(scene.encode()), number])
        self.number, self.folder = number, folder
        self.found: Ways = {"sound": {}, "broken": {}}

    def run(self, data: Any, model: nn.Module, name: str = "a", **options: Any) -> Run:
        """Fine-tune a head on data in memory."""
        told = {"method": "vanilla", **HEAD, "seed": self.number, **options}
        made: Run = ht.finetune(data, model=model, out=str(self.folder / name), **told)
        return made

    def attempt(self, run: Run, **asked: Any) -> Certificate | None:
        """Certify as users do; None where it is refused."""
        try:
            return run.certify(**asked)
        except HesstuneError:
            return None

    def sound(self, name: str, run: Run, truth: float | None = None, **asked: Any) -> None:
        """Certify, and note it as a sound way; a truth that is not told is measured."""
        self._judge("sound", name, run, truth, asked)

    def broken(self, name: str, run: Run, truth: float | None = None, **asked: Any) -> None:
        """Certify, and note it as a broken way."""
        self._judge("broken", name, run, truth, asked)

    def refused(self, name: str, *runs: Run, **asked: Any) -> None:
        """Count whether a broken way is refused, for each of some runs."""
        refusals = [self.attempt(run, **asked) is None for run in runs]
        self._way("broken", name)["refused"] += all(refusals)

    def judged(
        self, name: str, run: Run, truth: float | None, *, off: dict[str, Any] | None = None, **asked: Any
    ) -> None:
        """Certify a broken way as users do; where it is refused, note what it would be.

        Args:
            name: The way.
            run: The run.
            truth: The true error; measured without label noise if None.
            off: Options that turn the safeguards off.
            **asked: Options of `hesstune.certify`.
        """
        given = self.attempt(run, **asked)
        found = given or self.attempt(run, **{**asked, **(off or {"diagnostic": True})})
        if truth is None and found is not None:
            truth = true_error(*certified(run, found, asked.get("prior_fraction", 0.0)), flip=0.0)
        self.note("broken", name, None if found is None else found.risk, truth)
        way = self._way("broken", name)
        way["refused"] += given is None
        false = given is not None and truth is not None and truth > given.risk
        way["printed"] = way.get("printed", 0) + false

    def _judge(self, kind: str, name: str, run: Run, truth: float | None, asked: dict[str, Any]) -> None:
        found = self.attempt(run, **asked)
        if found is not None and truth is None:
            truth = true_error(*certified(run, found, asked.get("prior_fraction", 0.0)))
        self.note(kind, name, None if found is None else found.risk, truth)

    def note(
        self, kind: str, name: str, risk: float | None, truth: float | None, delta: float = DELTA
    ) -> None:
        """Note a certificate, or that none was given.

        Args:
            kind: `sound` or `broken`.
            name: The way.
            risk: The certificate.
            truth: The true error.
            delta: The probability of failure that it states.
        """
        way = self._way(kind, name)
        way["trials"] += 1
        if risk is None or truth is None:
            way["refused"] += kind == "sound"
            return
        way["given"] += 1
        way["stated"] += delta
        way["failures"] += truth > risk
        way["certificates"] += risk
        way["truths"] += truth

    def _way(self, kind: str, name: str) -> Way:
        zero = ("trials", "given", "refused", "failures", "stated", "certificates", "truths")
        return self.found[kind].setdefault(name, dict.fromkeys(zero, 0))


def certified(run: Run, found: Certificate, fraction: float) -> tuple[nn.Module, dict[str, float] | None]:
    """Return the network that a certificate is of, and its weights' deviations where they are random."""
    part = {"holdout": "prior", "pac_bayes": "posterior", "compression": "compressed"}[found.bound]
    picked_anew = found.bound == "compression" and run.config.method != "pick_to_learn"
    own = Run.load(run.path / part, model=run.given.model) if fraction or picked_anew else run
    return own.model(), dict(found.sigma) if found.bound == "pac_bayes" else None


def most(way: Way) -> int:
    """Return the largest number of failures that the stated probabilities allow, with 99 % probability.

    A sum of independent draws of different probabilities spreads no wider than one of their mean.
    """
    trials = int(way["trials"])
    return int(stats.binom.ppf(0.99, trials, way["stated"] / trials))


def added(total: Ways, more: Ways) -> None:
    """Add counts to counts."""
    for kind, ways in more.items():
        for name, way in ways.items():
            into = total[kind].setdefault(name, dict.fromkeys(way, 0))
            for key, value in way.items():
                into[key] = round(into[key] + value, 6)


def trial(scene: str, play: Callable[[Trial], None], number: int, work: Path | None = None) -> Ways:
    """Play one trial of a scene, and return what its ways gave."""
    with tempfile.TemporaryDirectory(dir=work) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = Trial(scene, number, Path(folder))
        try:
            play(one)
        except HesstuneError:  # by chance a class has no two examples, so that no run is made: nothing counts
            return {"sound": {}, "broken": {}}
    return one.found


def printed(way: Way) -> int:
    """Return how many certificates were printed and false."""
    return int(way.get("printed", 0 if way["refused"] else way["failures"]))


def unexpected(ways: Ways) -> list[str]:
    """Name sound ways that fail too often, and broken ones that are not found out."""
    return [
        name
        for kind, some in ways.items()
        for name, way in some.items()
        if (way["failures"] > most(way)) == (kind == "sound")
    ]


def told(scenes: dict[str, Any]) -> None:
    """Print what every way gave."""
    for own in scenes.values():
        for kind, ways in own["ways"].items():
            for name, way in ways.items():
                given = max(1, way["given"])
                means = " of ".join(f"{way[key] / given:.3f}" for key in ("certificates", "truths"))
                failed = f"failed {way['failures']:3.0f} of {way['trials']:3.0f} (most {most(way)})"
                print(f"{kind:7s}{name:66s}{failed}, refused {way['refused']:3.0f}, {means}")


def main() -> None:
    """Play every scene to its number of trials, and write the record."""
    from coverage_scenes import SCENES

    parser = arguments(__doc__)
    parser.add_argument("--scenes", nargs="*", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--again", action="store_true", help="start these scenes over")
    parser.add_argument("--at-most", type=int, default=10**6, help="trials of each scene, for a first look")
    parser.add_argument("--work", type=Path, help="folder for the runs while they are needed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kept = (RESULTS / f"{NAME}.json").is_file()
    record: dict[str, Any] = read_record(NAME) if kept else {"delta": DELTA, "scenes": {}}
    for scene in asked.scenes:
        play, planned = SCENES[scene]
        trials = min(planned, asked.at_most)
        if asked.again or scene not in record["scenes"]:
            record["scenes"][scene] = {"trials": 0, "seconds": 0.0, "ways": {"sound": {}, "broken": {}}}
        own, start = record["scenes"][scene], time.process_time()
        for number in range(own["trials"], trials):
            added(own["ways"], trial(scene, play, number, asked.work))
            own["trials"] += 1
            if own["trials"] % AT_A_TIME == 0 or own["trials"] == trials:
                own["seconds"] = round(own["seconds"] + time.process_time() - start, 1)
                start = time.process_time()
                write_record(NAME, record)
                print(scene, own["trials"], f"{own['seconds']:.0f} s", flush=True)
    told(record["scenes"])
    if wrong := [name for own in record["scenes"].values() for name in unexpected(own["ways"])]:
        raise SystemExit(f"sound ways that failed too often, or broken ones not found out: {wrong}")


if __name__ == "__main__":
    main()

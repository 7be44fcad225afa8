"""Write docs/certificates.md from the records in benchmarks/results.

python benchmarks/write_certificates.py
"""

from __future__ import annotations

from typing import Any

import run_coverage
from records import DOCS, read_record

PAGE = DOCS / "certificates.md"

TEXT = """# Certificates

*This page is written by `python benchmarks/write_certificates.py` from the records in `benchmarks/results`.*

`hesstune certify RUN` bounds the *clean* error. Of the network itself, no noise on its weights:
`--bound compression` by the few examples that determine it ([Sample compression](compression.md)), `--bound holdout`
by examples it has not seen (exact binomial tails), `--checked FILE` by a few checked labels and the given ones of
many, whatever their noise. Of the network with random weights, `--bound pac_bayes`, the default: with probability
at least 1 − δ over the draw of the examples, and of the weights that estimate it,

    risk ≤ kl⁻¹( R̂⁺, (KL + ln(2√n · J / δ₁)) / n )

R̂⁺ bounds the randomised predictor's error on the n examples from m weight draws, KL is that of the
posterior N(Ŵ, σ²) from the prior N(W⁽ˢ⁾, s²) over every trained weight, and J counts the priors (and
losses) fixed beforehand that share δ₁. The measure of the same run bounds nothing; this number
holds, if what is listed with it holds. It says nothing of the network without noise. `--bound best` gives the
smallest of the three, each with a third of δ. Where a prior was trained, its network's own exact tail has nine
tenths of δ and is returned where it is smaller: with KL = 0 PAC-Bayes is a hold-out bound, and a looser one.

- `--method certified` minimises the bound itself: the head first, on features computed once, then all that
  trains, by descent in units of the prior's deviations; the noise's size is learnt and snapped to the grid.
- `--prior-fraction 0.5` repeats the run's recipe on half of the examples for the prior's centre, trains
  the posterior from there on all, and counts on the other half. What the run found on all examples (a head's
  penalty, default radii, a solved head, patience) is found anew on the first half: the prior knows nothing of the
  other.
- Labels are true if nothing says otherwise. Soft labels and votes are a model's answers, and true only with
  `--noise-is none`; a matrix says where it came from, and an estimate is never known. `--test-labels` says what
  the test part's labels are worth.
- Noisy labels with a known matrix: a loss L with F·L ≥ 1 − I carries the noisy mean over to the clean risk.
  `--clean-sample FILE` estimates F with a confidence set. Estimated from noisy labels alone, or where the
  noise is no class's property (votes), it is refused; `--diagnostic` prints the number as no certificate.
- A known matrix is tested, and refused if a test rejects. A prediction h differs from the given label with
  probability at least 1 − max_y F[y, h], whatever the classifier. *Noise floor test*: so few errors on unseen examples
  (all, those of one predicted class, or the most confident ones of a probe that was trained on the other half) must
  have a binomial probability of at least 0.01·δ, divided among the tests. A bound on the error on noisy labels below
  the floor, or one on the true error below 0, refutes the matrix, too. Refusing makes no certificate wrong, so δ does
  not pay for the tests: their levels are probabilities of a false refusal (0.01·δ for each network and 0.01·δ for the
  probe; δ for a bound below 0).
- *Permutation test* of whether the noise depends on the input (`hesstune noise` runs it, too), at level 0.01: printed
  with the certificate. If it does not reject, that shows nothing. It is exact for true classes only, and also rejects
  if the features mix the classes, so a rejection is listed as an assumption. It is not run for noise that hesstune
  injected.
- With `--inject-noise` the bound uses the injected matrix, and the labels before are assumed true. A file given by
  `--noise-matrix` that says it is an estimate, or of noise that depends on the input, contradicts that: it is refused.
- Refused, with what would mend it: batch-norm statistics that moved, normalisation constants from the data,
  splits that are stratified, by group or by time, random augmentation at evaluation, repeated inputs, radii or
  matrices chosen on all
  examples under a trained prior.
- Near-duplicates (a picture re-encoded, resized, or cropped by a pixel; a text spaced otherwise; equal inputs) are
  found by the inputs alone, counted, and said with the certificate. Those that the part of a trained prior or start
  shares with the bound's part are left out of the *prior's* training: groups of copies are then on one side only, so
  that prior and bound are independent where groups are drawn independently. Leaving them out of the bound instead
  would certify another distribution, of what luck did not divide; its sample stays as it was drawn.
- Copies within the bound's part, and test examples with a copy in the training of a network that is there already,
  are refused. `--repeats drop` counts one of each, and none that training saw, and says which distribution the bound
  is then for; `--repeats allow` counts all, as draws of a distribution that has such repeats.
- Weights carry digests of the examples that trained or selected them, and those that their own start had seen, through
  `--weights`, exports and `hf:FOLDER`. A bound that counts on such an example is refused, with the number of them.
  They are not left out instead: the data of the earlier run may have been chosen by its labels, and the examples that
  remain would then be chosen by theirs. Weights without the digests are assumed to be trained on other examples, and
  the certificate says so, also for runs that start from a run that started from them. Digests find equal files and
  texts, not near-copies. An image given as an array is not recognised as the file that it was read from.

- `run.json` has checksums of the configuration, the weights, the start and the noise matrix, as training wrote them.
  `certify` and `check` refuse a run in which one of these files was changed, and a prior that was changed is trained
  anew. A checkpoint of a run from other examples or weights is not resumed. A log of certificates that lacks the
  certificate in the folder is refused. [Attacks](#attacks) lists what is detected and what is not.

```sh
hesstune finetune --data folder:photos --method certified --val-fraction 0 --out runs/certified
hesstune certify runs/certified
hesstune certify runs/certified --prior-fraction 0.5
```

## Networks themselves

`python benchmarks/certificates_networks.py --data DATA`; PACS at 128 pixels, EfficientNet-Lite0, SST-2 with MiniLM,
δ = 0.05, a seed each, *every number a certificate by itself*: the smallest of three is none. *Kept* is the number
of examples that determine the network. (`pac_bayes`: of the network with random weights, beside them.)

How the settings of `pick_to_learn` were fixed: splits of seed 100, of all four domains, served to compare orders of
picking, scalings of the features and penalties, some twenty settings in all. Among penalties of 0.03, 0.1 and 0.2 art
and cartoon together kept the fewest with 0.1 (826 examples; 865 with 0.03), photo and sketch with 0.03 (903; 908 with
0.1). The default is 0.1. So the penalty of photo's and sketch's rows was chosen by other pictures; art's and
cartoon's is told twice, with the default, which their own pictures chose, and with 0.03, which others did. The rest
of the search had seen some of every domain's pictures; a union over twenty settings would add about 0.01 to each of
these rows. The digits and the sentences were not looked at before.

{networks}

{network_notes}

## With a few checked labels

`python benchmarks/certificates_checked.py --data DATA`: CIFAR-10N, labels as people gave them; a head trained on
one half, 300 of the other half drawn by `hesstune check` and given their true labels; three seeds, every number a
certificate by itself, δ = 0.05. *Checked alone*: Clopper-Pearson on the 300. One draw's difference is mostly luck, so
the means of both over 100 draws or more of 300 from the same half stand beside them, with the error on all of that half.

{checked}

## With random weights

`python benchmarks/certificates.py --data DATA`; PACS at 128 pixels, EfficientNet-Lite0, δ = 0.05, true labels
unless said, one seed. *Held-out error* is the unperturbed certified network's on the test part, with the
Clopper–Pearson bound beside it. PACS holds some pictures twice; they are counted as draws from such a
collection.

{table}

{notes}

## What limits the backbone

`python benchmarks/certificate_frontier.py --data DATA`: photo, seed 100, a quarter of the training pictures
for validation, n = {n}, {draws} weight draws (so the bounds are looser than above). *noise* is the
backbone's at the start, against the size of its weights.

{frontier}

The head alone is already near what these pictures and this backbone give: plain fine-tuning of all weights,
without any certificate, does not beat it on the same pictures. Moving the backbone further raised the KL, or
the error under the noise that the bound needs, and not the accuracy. The row *all weights* above takes the
settings of the first such row here: as accurate on validation as the head alone, with {body:.0f} nats spent on
the backbone.

Published marks, for scale, none of them the same task: MNIST 0.015 and CIFAR-10 0.167 (PAC-Bayes with
backprop, learnt priors, 30,000 to 60,000 examples), CIFAR-10 by transfer 0.166 to 0.35 (compression). Here n is
about a thousand, and what limits the data-free bound is the head's KL: about {head:.2f} nats an example.

## What a weight draw costs

Weights are perturbed in place, a fresh draw for every block of examples. {cost}

## Attacks

What users may do around a certificate, by mistake or not, and what `certify` does then. The data are 200 images of
noise in ten classes with labels at random, so the true error of every network is 0.9 (0.3 in the row of the noise
matrix, whose images tell the class). *Number*: the certificate that is printed, or the one with the check turned off;
one run each. `tests/analysis/test_changed_runs.py` repeats the rows with a number that are refused.

| what is done | what happens | number | true error |
|---|---|---|---|
| `model.safetensors` replaced by weights that have seen the test examples, also if their record was removed | refused: the file was changed | 0.140 | 0.9 |
| `prior/model.safetensors` replaced by such weights | the prior is trained anew | 0.058 | 0.9 |
| `reference.safetensors` replaced by the trained weights | refused: the file was changed | below 0.9 | 0.9 |
| `config.yaml`: the method changed to `pick_to_learn`, which counts the examples kept (none) | refused: the file was changed | 0.044 | 0.9 |
| `noise_matrix.json` changed after training, to more noise | refused: the file was changed | below 0.3 | 0.3 |
| the checkpoint of a run with another split put into the folder, `--resume` | refused: it is of other examples | 0.102 | 0.9 |
| `guarantees.jsonl` removed, cut, or replaced by that of another run, `certificate.json` still there | refused: the log lacks the certificate | – | 0.9 |
| the validation part holds the test images under other names, early stopping | refused: equal examples | – | 0.9 |
| the average of the networks of two runs as the start, made from `Run.model()` | refused: the network carries its record | – | 0.9 |
| `config.yaml`: `seed`, `limit` or `test_fraction` changed, so that training examples become test examples | refused: the data differ | – | 0.9 |
| class folders permuted; parts in `labels.csv` changed | refused: the data or the file differ | – | 0.9 |
| links to images, or a link to the folder, set to other images after training | refused: the data differ | – | 0.9 |
| links to training images in the test part before training | refused: equal examples | – | 0.9 |
| the output of `hesstune predict` given to `--checked` | refused: its column `label_source` | – | 0.9 |
| the sheet of `hesstune check` filled in from predictions | **printed**; assumes that the labels were checked rightly | 0.079 | 0.9 |
| a `py:` factory, or a network given in Python, with weights that `torch.save` kept | **printed**; assumes that the network did not use the examples | 0.288 | 0.9 |
| weights averaged and saved by hand, `--weights` | **printed**; assumes that the file was trained on other examples | 0.244 | 0.9 |
| weights that have seen image files, which are then given as an array | **printed**; assumes that the examples are other ones | 0.288 | 0.9 |
| `hesstune.certify` in Python, the trained weights as the reference | **printed**; assumes that the reference did not use the examples | 0.276 | 0.9 |
| 20 runs that share the test part, the smallest certificate reported | **printed** for each run; assumes that nothing was chosen by the result | 0.952 | 0.9 |
| 20 copies of a run folder, a seed each, the smallest reported; the same with the log and the certificate removed each time | **printed**; no copy knows of the others | 0.929 | 0.9 |
| `run.json` changed by hand: two of the examples kept by `pick_to_learn`, of 94 | **printed**; no checksum covers this file | 0.085 | 0.9 |

In the two rows before the last one this draw's smallest certificate holds. Over many draws it fails more often than δ:
the row *the smallest of ten seeds, without the union* below.

## Does it hold?

`python benchmarks/certificate_coverage.py` draws training sets from known distributions and counts how often a
certificate is below the truth; δ = {delta:g}. *Most* is the largest count a sound one may show (binomial, 99 %).
Broken certificates must be found out.

{coverage}

The same from end to end: `python benchmarks/run_coverage.py` draws examples, trains with `hesstune.finetune` and
certifies with `Run.certify`, in tiny worlds whose true error is known or measured on 20,000 fresh examples: small
pictures and linear networks, in the worst cases with labels that no picture tells. *Refused* counts sound ways that
gave no certificate (six labels at random may lack a class, a prior's part may be all copies), and broken ones that the product does not certify; what
failed is then the number with that safeguard turned off. *Printed* counts the certificates that were not refused and
are false. A broken way that is not refused did what no program can see, or what the tests missed; it is among the
assumptions that are printed with every certificate. *Most* goes by the δ stated.

Three scenes have 100 trials each. *Noise* that depends on the input has its exact average over each class as the
known matrix. *Starts* are weights of an earlier run. *Altered copies* are images of a split that holds each image and
a mirrored, cropped (85 %) or rotated (8°) copy of it.

{runs}
"""


def page() -> str:
    """Return the page."""
    record = read_record("certificates")
    coverage = read_record("coverage")
    frontier = read_record("certificate_frontier")
    cells = record["cells"]
    head = cells["photo, head only, data-free prior"]
    return TEXT.format(
        networks=_networks(read_record("certificates_networks")["cells"]),
        network_notes=_network_notes(read_record("certificates_networks")["cells"]),
        checked=_checked(read_record("certificates_checked", {"cells": {}})["cells"]),
        table=_table(cells),
        notes=_notes(cells),
        frontier=_frontier(frontier),
        n=frontier["head only"]["n"],
        draws=128,
        body=frontier["lr 0.5, noise 0.05, 6 epochs"]["kl_body"],
        head=head["kl_head"] / head["n"],
        cost=_cost(record.get("throughput")),
        delta=coverage["delta"],
        coverage=_coverage(coverage),
        runs=_runs(read_record("run_coverage")["scenes"]),
    )


def _cost(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "Its throughput against a plain forward pass has not been recorded yet."
    ratios = speed["ratios"]
    ratio = ratios[len(ratios) // 2]
    return (
        f"Throughput against the plain forward pass of the same blocks of {speed['block']}, all weights random, "
        f"{speed['threads']} threads: {ratio:.2f} (median of {len(ratios)} turns, {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}). "
        + ("The goal was 0.8." if ratio >= 0.8 else "The goal of 0.8 was not reached on this machine.")
    )


def _table(cells: dict[str, Any]) -> str:
    rows = ["| | certificate | error with noise | KL | n | held-out error (bound) |", "|---" * 6 + "|"]
    for name, cell in cells.items():
        held = cell["held_out"]
        risk = f"{cell['risk']:.3f}" + (" (vacuous)" if cell["vacuous"] else "")
        rows.append(
            f"| {name} | {risk} | {cell['empirical']:.3f} | {cell['kl']:.1f} | {cell['n']} | "
            f"{held['error']:.3f} ({held['bound']:.3f}) |"
        )
    return "\n".join(rows)


def _networks(cells: dict[str, Any]) -> str:
    rows = ["| | bound | certificates | kept, or errors | n | test error |", "|---" * 6 + "|"]
    for name, seeds in cells.items():
        for bound in ("compression", "holdout", "pac_bayes"):
            found = [(seed, cell) for seed, cell in seeds.items() if bound in cell]
            if not found:
                continue
            counted = {"compression": "kept", "holdout": "errors"}.get(bound)
            risks = ", ".join(f"{cell[bound]['risk']:.3f}" for _, cell in found)
            counts = ", ".join(f"{cell[bound]['numbers'][counted]:.0f}" for _, cell in found if counted)
            tests = ", ".join(f"{cell[bound]['held_out']['error']:.3f}" for _, cell in found)
            rows.append(
                f"| {name} | {bound} | {risks} | {counts or '–'} | {found[0][1][bound]['n']} | {tests} |"
            )
    return "\n".join(rows)


# Goals set before the numbers were made: the row, its bound, and the most that it may be.
GOALS = {
    "photo, head": ("compression", 0.10),
    "art_painting, head": ("compression", 0.30),
    "art_painting, head, penalty 0.03": ("compression", 0.30),
    "cartoon, head": ("compression", 0.30),
    "cartoon, head, penalty 0.03": ("compression", 0.30),
    "sketch, head": ("compression", 0.30),
    "photo, head, half for the start": ("holdout", 0.045),
    "photo, all weights, half for the start": ("holdout", 0.15),
    "digits, head, 20 % symmetric noise, from noisy labels": ("compression", 0.65),
    "SST-2, MiniLM head": ("compression", 0.35),
    "SST-2, MiniLM head, certified": ("pac_bayes", 0.35),
}


def _network_notes(cells: dict[str, Any]) -> str:
    lines = []
    for name, (bound, most) in GOALS.items():
        risks = [cell[bound]["risk"] for cell in cells.get(name, {}).values() if bound in cell]
        if not risks:
            lines.append(f"- {name}: goal {most:g}, not recorded yet.")
            continue
        reached = sum(risk <= most for risk in risks)
        lines.append(f"- {name}: goal {most:g}, reached on {reached} of {len(risks)} seeds.")
    whole, head = (
        [cell["compression"]["held_out"]["error"] for cell in cells[name].values()]
        for name in ("photo, all weights, half for the start", "photo, head, half for the start")
    )
    told = "no higher" if sum(whole) <= sum(head) else "higher"
    lines.append(
        f"- From half for the start, the network whose weights all moved errs on {_mean(whole):.1%} of the test part "
        f"(mean of its compression networks), the head alone on {_mean(head):.1%}: {told}."
    )
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _checked(cells: dict[str, Any]) -> str:
    """Return a row for each kind of labels: this draw's certificates, and the means over further draws."""
    titles = (
        "labels",
        "certificates",
        "checked alone",
        "mean over draws",
        "checked alone, mean",
        "tighter",
        "error",
    )
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for labels, seeds in cells.items():
        runs = [seeds[key] for key in sorted(seeds)]
        keys = ("risk", "checked alone", "mean risk", "mean alone")
        shown = [", ".join(f"{run[key]:.3f}" for run in runs) for key in keys]
        shown.append(", ".join(f"{run['tighter']:.0%}" for run in runs))
        shown.append(", ".join(f"{run['error of the half']:.3f}" for run in runs))
        rows.append(f"| {labels} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _notes(cells: dict[str, Any]) -> str:
    lines = []
    photo = cells["photo, head only, prior trained on half"]
    limit = 1.6 * photo["held_out"]["error"] + 0.05
    lines.append(
        f"- Photo with a trained prior: {photo['risk']:.3f} against 1.6 times the held-out error plus 0.05, "
        f"{limit:.3f}: {'reached' if photo['risk'] <= limit else 'not reached'}."
    )
    lines.append(_whole_note(cells))
    return "\n".join(lines)


def _whole_note(cells: dict[str, Any]) -> str:
    """Compare all weights with the head alone on the held-out pictures."""
    whole = cells["photo, all weights, data-free prior"]
    wrong, alone = (
        cells[f"photo, {trained}, data-free prior"]["held_out"]["errors"]
        for trained in ("all weights", "head only")
    )
    told = (
        "fewer, by a margin within the noise of so small a test"
        if wrong < alone
        else "the goal, a lower error than the head alone, is not reached"
    )
    return (
        f"- Photo, all weights: certificate {whole['risk']:.3f} (goal: below 0.5), the backbone's share of the KL "
        f"{whole['kl'] - whole['kl_head']:.1f} nats; {wrong:.0f} errors on {whole['held_out']['n']:.0f} held-out "
        f"pictures, against {alone:.0f} of the network whose head alone was trained: {told}."
    )


def _frontier(record: dict[str, Any]) -> str:
    rows = [
        "| | certificate | error with noise | KL | of the backbone | σ of the stem | validation accuracy |",
        "|---" * 7 + "|",
    ]
    for name, cell in record.items():
        numbers = ["–"] * 5
        if "risk" in cell:
            stem = cell["sigma_stem"]
            numbers = [
                f"{cell['risk']:.3f}",
                f"{cell['empirical']:.3f}",
                f"{cell['kl']:.1f}",
                f"{cell['kl_body']:.1f}",
                "–" if stem is None else f"{stem:.4f}",
            ]
        rows.append(f"| {name} | {' | '.join(numbers)} | {100 * cell['val_accuracy']:.1f} % |")
    return "\n".join(rows)


def _coverage(record: dict[str, Any]) -> str:
    rows = ["| | certificate | failed | of | most |", "|---" * 5 + "|"]
    for kind in ("sound", "broken"):
        for name, found in record[kind].items():
            rows.append(f"| {kind} | {name} | {found['failures']} | {found['trials']} | {found['most']} |")
    return "\n".join(rows)


def _runs(scenes: dict[str, Any]) -> str:
    titles = ("", "way", "refused", "mean certificate", "mean true error", "failed", "printed", "of", "most")
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for kind in ("sound", "broken"):
        for scene in scenes.values():
            for name, way in scene["ways"][kind].items():
                given = max(1, way["given"])
                cells = [
                    f"{way['refused']:.0f}",
                    *(f"{way[key] / given:.3f}" for key in ("certificates", "truths")),
                    f"{way['failures']:.0f}",
                    f"{run_coverage.printed(way)}",
                    f"{way['trials']:.0f}",
                    f"{run_coverage.most(way)}",
                ]
                rows.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

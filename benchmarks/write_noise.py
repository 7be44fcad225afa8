"""Write docs/noise.md from the records of noise_pacs.py, noise_choices.py, noise_digits.py, label_scale.py and field.

python benchmarks/write_noise.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

from label_tables import label_words, labels_table, rate_words, votes_table
from records import DOCS, RESULTS, read_record, read_rows

PAGE = DOCS / "noise.md"

TEXT = """# Estimating the noise matrix

*This page is written by `python benchmarks/write_noise.py` from the records in `benchmarks/results`.*

The consistent loss needs F[i, j] = P(given label = j | true label = i). Nobody knows it in use:
`--noise-matrix estimate:METHOD` estimates it from the noisy labels alone, or with a few checked ones
(`--clean-labels FILE`). Probabilities come from cross-fitted probes on the reference's features, their
temperature from held-out noisy labels; the network itself is not trained for it, so fine-tuning starts at
the reference. The estimate and what it was made from are kept in the run folder, and a resumed run takes it
from there.

| method | what it uses |
|---|---|
| `em` | features: true classes, probes and F in turn (below) |
| `confident` | the confident joint of probabilities and labels (Northcutt et al. 2021) |
| `labelmodel` | the votes: P(true class \\| votes) of a label model against the label trained on |
| `holdout` | checked labels, with a confidence set |
| `auto` | `holdout` with checked labels, `labelmodel` with votes unless they say far more noise, else `em` |

## Latent-truth EM

`em` takes the true class of each example as unknown. Its probability is q_i ∝ p(x_i)·F[·, ỹ_i], with p from a
softmax regression on the features' principal components that was fitted to the q of *other* folds, at the
temperature that the given labels speak for; F is refitted to q, the probes to q, until F rests (Raykar et al.
2010; Bekker and Goldberger 2016). Candidates differ in the penalty of the probes and in what F may be: the
identity (the labels are believed), symmetric, or full, its rows drawn to the symmetric matrix as much as their
evidence says. EM's own folds leak (each probe learnt from posteriors that had seen the label it is judged by), so
the choice is *nested*: each candidate is fitted, EM and all, without a fifth of the examples, and judged by
ln Σ_c p_c(x)·F[c, ỹ] there. The simplest shape within half a standard error of the best is taken; between the
identity and a shape that comes so near it, noise of a rate of 0.1 seen through the best probe that believes the
labels decides for the other. No true label is read. The method `auto` takes its head from there, `hesstune clean`
the first of its two classifiers, and `hesstune label` its label model `latent`, where an example's votes stand for its label.

The errors of `em` are those of a parametric bootstrap: true classes drawn from the probes' probabilities, labels
from these by F, all refitted, 20 times. They know of the sample's size, not of a model that is wrong. A test
compares what was observed with what p·F foretells, along the 20 leading components of the features: where p
is below 0.001, the noise does not depend on the class alone, and F is a mean. It rejects seldom, and where it
does not, nothing is shown.

The tables below also have estimators and a label model that are no longer in the package, because others had the
better mean in every table: `anchor` (Patrini et al. 2017), `dual_t` (Yao et al. 2020), `volmin` (Li et al. 2021)
and `features` (Dawid-Skene with a class prior from the nearest examples).

## Labels made of votes

Share of right labels, in per cent, on training examples with a vote. `label` with its defaults looks at the
texts or images (*auto*); *votes alone* is the same without them. The first five sets were looked at while the
label models were made: no fresh test. The last four are PACS with simulated labelers (annotators, a crowd,
labeling functions, weak models), seen by nobody before this run. *Said wrong* is the noise rate of the labels of
*auto* by the label model's own estimate, with the interval that `label` prints if that is recorded; *wrong* is what it should
be. The estimate is too low if labelers err together. The interval therefore reaches up to the share of pairs of votes that
differ, or of majority votes that a probe of the features contradicts, if that is larger. `{votes_command}`:

{votes}

From rules to a network by the defaults (`{rules_command}`): SST-2's sentences, the rules of
`examples/sentiment_rules.py`, MiniLM's head; test accuracy on true labels, mean of {rules_seeds} seeds: {rules}.

## Labels that are wrong

`clean` on test tasks, one seed each. That labels of more than two classes are not assumed correct if a probe sees any noise
was decided after the first rows of CIFAR-10N worse and aggregate had been seen, where that assumption gave a rate of 11 % for
41 % and of 2 % for 9 %. *wrong* is the share of wrong labels; *estimate* is the rate that `clean` prints,
with its 90 % interval. *ECE* is the expected calibration error of the probability that a label is wrong, in ten bins.
*top 100* is the share of wrong labels among the 100 most suspected. *F* compares rows of the estimated matrix with those
realised in the labels, in total variation. *AP* and *F1* (of the default cut) judge how well wrong labels are found. cleanlab
has out-of-sample probabilities of scikit-learn's LogisticRegression on the same features: *F1* is that of `find_label_issues`,
*AP* the best of its three scores.

The probabilities are the mean of two classifiers. The odds of a wrong label are larger for ambiguous examples if wrong labels
are of classes that look alike. If no noise is found, their mean is that of a prior rate of 10 % that counts as 20 checked labels,
beside the examples, each of which counts as an eighth of one. These
numbers were chosen on the development tasks (`--part development`); so was the width of the interval. All development tasks
with labels that people gave are of CIFAR-10N. `{labels_command}`:

{labels}

{rate_words}
{label_words}

On the development tasks the calibration error is above .05 where features say little of the class: SST-2 with 15 % symmetric
noise (.10 and .07, the rate is estimated too high) and cartoon with 8 % (.07).

## On digits, where F is known

{train} digits, frozen EfficientNet-Lite0 features at {pixels} pixels, noise injected; total variation between the
rows of the estimate and of F, averaged over rows and {seeds} seeds (a row's noise rate is what an estimator
that sees no noise at all would be off by). `{command}`:

{digits}

`holdout` has {checked} checked labels drawn at random. Its estimate lay in its own {level} % confidence set in
{inside} of {runs} runs, and so did the true F in {covers}. Without a checked label all estimators are off by a
multiple of that: a probe on {train} examples is far from certain, and they need examples that surely belong
to their class. `volmin` can end at the identity where a linear probe fits the noise, and likelihood, by which `auto`
chose among the estimators until this table was seen, never speaks for noise: it took `confident`, `dual_t` or
`volmin`. It takes `em` now, which was far ahead on the other sets above, too, save on labels that people gave.

## On programmatic labels

PACS: each domain's labels come from labelers trained on the other domains; a linear head on frozen
EfficientNet-Lite0 features at {pacs_pixels} pixels, trained with each matrix inside a ball, the radius chosen from
{radii} by the loss on noisy validation labels. `{pacs_command}`, {pacs_seeds} seeds; test accuracy on true
labels, mean and standard error in per cent:

{table}

*Share* is the part of the true F's gain over cross-entropy that is kept, summed over the domains. `majority` to
`soft_features` are `labelmodel` with that label model.

**How the choices were made.** The numbers of `soft_features` (how much a labeler's likelihood counts, the
probe's share of the class prior, how often a checked label counts) come from `{choice_command}`: for each
target another domain played the target, labelled by the two that remain, and the choice was the one whose
matrix was nearest the true one there. Nothing of the target's pictures, labels or labeler was read, and the
seeds of the table are others than those of that choice. Its parts (tempered soft votes, neighbours, a probe)
were thought of while looking at test accuracy on other splits of the same pictures, so some optimism is
left. The radii were fixed beforehand.

| target | chosen on | likelihood counts | probe's share | checked label counts |
|---|---|---|---|---|
{choices}

**What was reached.** The goal without a checked label was three quarters of the oracle's gain:
`soft_features` keeps {free:.2f}{free_told}. With {pacs_checked} checked labels it was nine tenths: as a
matrix, `soft_features` keeps {matrix:.2f}, and {loss:.2f} with those examples also in the loss as clean ones,
each weighed by how much less its aim varies than a corrected one{loss_told}. (`finetune --clean-labels`
counts each of them once; the method `auto` four times, chosen on development tasks.) One can do better than by any
matrix: a label model says of *each example* what its class probably is. Trained on these posteriors as soft
labels by plain cross-entropy, the same head keeps {soft:.2f} without and {soft_checked:.2f} with checked
labels (`hesstune label --label-model soft_features --clean-labels FILE`, then `finetune --soft-labels --method
vanilla`). Where F was not estimated (a class never the most probable) the identity stands for it:
{failed} of {estimates} estimates.

Labelers trained elsewhere err on the same hard examples, so their noise is not class-conditional: `hesstune
noise RUN` tests for that, and a certificate refuses such labels. It is also why `auto` as it then was, a choice by
likelihood, does badly here: that never speaks *for* noise, and F of class-conditional noise is less likely than none.
It takes `labelmodel` now where there are votes.

## A million rows of votes

`hesstune label --votes FILE` on {rows:,} rows of a vote each, {long[examples]:,} examples and {long[annotators]} annotators, the
label model left to `auto`: {long[seconds]} s from start to end and at most {long[peak_mib]} MiB (`{scale_command}`, one
machine). Labels are {long[accuracy]:.2%} right, majority vote {long[majority_accuracy]:.2%}.

With a row an example, {annotators} votes in each ({file_mib} MiB, {distinct:,} distinct rows of votes), and
`--label-model dawid_skene`: {seconds} s and {peak} MiB. Labels are {accuracy:.2%} right, majority vote {majority:.2%};
the matrix is {tv:.4f} from the true one. On the first {few} rows the posteriors differ from crowd-kit's by
{difference:.0e} at most.

## Is my F wrong?

`hesstune noise RUN` puts the matrix that the loss believed beside every estimate, and beside the counted one
where true labels are known; simulates what accuracy would be lost were F off by 5, 10 or 20 %; and tests
whether labels within a class agree among neighbours in the features more often than the class explains.

For studies, `--inject-noise` injects noise at its actual rate, by seed: `symmetric:RATE`, `pair:RATE`, a file with a
matrix, or `instance:RATE`, which depends on the example (Xia et al. 2020) and which no matrix tells. A run's
`labels.csv` has the true label beside the one trained on.
"""


def _rules(record: dict[str, Any]) -> dict[str, object]:
    """Say how accurate heads are on labels made of rules."""
    by: dict[tuple[str, str], list[float]] = {}
    for run in record["runs"]:
        by.setdefault((run["method"], run["labels"]), []).append(100 * run["accuracy"])
    said = [
        f"`{method}` on {'the default labels' if labels == 'auto' else 'the majority of votes'} "
        f"{np.mean(found):.1f} %"
        for (method, labels), found in by.items()
    ]
    seeds = len({run["seed"] for run in record["runs"]})
    return {"rules": ", ".join(said), "rules_seeds": seeds, "rules_command": record["command"]}


def page() -> str:
    """Return the page."""
    digits, pacs, scale = read_record("noise_digits"), read_record("noise_pacs"), read_record("label_scale")
    labels = read_rows(RESULTS / "field_labels.csv")
    held = [r for r in digits["runs"] if r["method"] == "holdout"]
    shares = _shares(pacs)
    few = pacs["setting"]["checked"]
    loss = shares[f"soft_features, {few} checked, also in the loss"]
    estimates = [r for r in pacs["runs"] if r["total_variation"] is not None and r["matrix"] != "true F"]
    return TEXT.format(
        command=digits["command"],
        train=digits["setting"]["train"],
        pixels=digits["setting"]["pixels"],
        seeds=len(digits["setting"]["seeds"]),
        digits=_digits(digits),
        checked=digits["setting"]["checked"],
        level=round(100 * (1 - digits["setting"]["delta"])),
        inside=sum(r["inside"] for r in held),
        covers=sum(r["covers"] for r in held),
        runs=len(held),
        pacs_pixels=pacs["setting"]["pixels"],
        pacs_command=pacs["command"],
        pacs_seeds=len(pacs["seeds"]),
        radii=", ".join(f"{r:g}" for r in pacs["setting"]["radii"]),
        table=_table(pacs, shares),
        choice_command=read_record("noise_choices")["command"],
        choices=_choices(read_record("noise_choices")),
        pacs_checked=few,
        free=shares["soft_features"],
        free_told="; it is reached" if shares["soft_features"] >= 0.75 else "; it is not reached",
        matrix=shares[f"soft_features, {few} checked"],
        loss=loss,
        loss_told="; it is reached" if loss >= 0.9 else "; with a matrix it is not reached",
        soft=shares["posterior as soft labels"],
        soft_checked=shares[f"posterior as soft labels, {few} checked"],
        failed=sum(bool(r.get("failed")) for r in estimates),
        estimates=len(estimates),
        rows=scale["rows"],
        annotators=scale["annotators"],
        file_mib=scale["file_mib"],
        distinct=scale["distinct_rows"],
        seconds=scale["seconds"],
        peak=scale["peak_mib"],
        scale_command=scale["command"],
        long=scale["a_row_a_vote"],
        labels=labels_table(labels),
        label_words=label_words(labels),
        rate_words=rate_words(labels),
        labels_command="python benchmarks/field/label_errors.py --data DATA",
        votes=votes_table(read_record("field_votes")["sets"]),
        **_rules(read_record("field_rules")),
        votes_command="python benchmarks/field/votes.py --data DATA",
        accuracy=scale["accuracy"],
        majority=scale["majority_accuracy"],
        tv=scale["total_variation"],
        few=scale["crowd_kit_rows"],
        difference=scale["crowd_kit_difference"],
    )


def _digits(record: dict[str, Any]) -> str:
    runs = record["runs"]
    noises = list(dict.fromkeys(r["noise"] for r in runs))
    rows = [f"| method | {' | '.join(noises)} |", "|---" * (len(noises) + 1) + "|"]
    for method in dict.fromkeys(r["method"] for r in runs):
        cells = []
        for noise in noises:
            found = [r["error"] for r in runs if (r["method"], r["noise"]) == (method, noise)]
            cells.append(f"{np.mean(found):.3f}")
        rows.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _choices(record: dict[str, Any]) -> str:
    pseudo = {t["target"]: t["pseudo_target"] for t in record["trials"]}
    return "\n".join(
        f"| {target} | {pseudo[target]} | {made['none']['temper']:g} | {made['none']['probe_share']:g} "
        f"| {made['checked']['clean_weight']:g} times |"
        for target, made in record["chosen"].items()
    )


def _values(record: dict[str, Any], matrix: str, target: str) -> np.ndarray:
    runs = record["runs"]
    return np.array([r["test_accuracy"] for r in runs if r["matrix"] == matrix and r["target"] == target])


def _shares(record: dict[str, Any]) -> dict[str, float]:
    """Return the part of the true F's gain over cross-entropy that each matrix keeps."""
    targets = dict.fromkeys(r["target"] for r in record["runs"])
    names = dict.fromkeys(r["matrix"] for r in record["runs"])
    total = {name: float(sum(_values(record, name, t).mean() for t in targets)) for name in names}
    plain, oracle = total["cross-entropy"], total["true F"]
    return {name: (value - plain) / (oracle - plain) for name, value in total.items()}


def _table(record: dict[str, Any], shares: dict[str, float]) -> str:
    targets = list(dict.fromkeys(r["target"] for r in record["runs"]))
    rows = [f"| trained with | {' | '.join(targets)} | share |", "|---" * (len(targets) + 2) + "|"]
    for matrix, share in shares.items():
        cells = []
        for target in targets:
            found = _values(record, matrix, target)
            error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else float("nan")
            cells.append(f"{100 * found.mean():.1f} ± {100 * error:.1f}")
        rows.append(f"| {matrix} | {' | '.join(cells)} | {share:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""A certificate in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["dependence_text", "summary_of"]

# What a bound speaks of, and of what it says nothing.
_SPOKEN = {
    "pac_bayes": (
        "the randomised predictor",
        "Predictor: fresh weights N(trained weights, sigma^2) for every prediction; "
        "nothing is claimed of the unperturbed network.",
    ),
    "holdout": (
        "the network",
        "Predictor: the network itself, fixed before it saw the examples counted; no noise on its weights.",
    ),
    "compression": (
        "the network",
        "Predictor: the network itself, trained on the examples kept and no others; no noise on its weights.",
    ),
    "checked": (
        "the network",
        "Predictor: the network itself, fixed before it saw the examples counted; no noise on its weights.",
    ),
}


def summary_of(found: Any) -> str:
    """Return a certificate in words, for a terminal."""
    if found.diagnostic:
        head = f"DIAGNOSTIC, NO CERTIFICATE: the number {found.risk:.4f} is not guaranteed, because"
        lines = [head, *(f"  - {reason}" for reason in found.failures)]
    else:
        verdict = (
            f"vacuous: guessing among {found.classes} classes does as well"
            if found.vacuous
            else "non-vacuous"
        )
        lines = [
            f"Certified: {_SPOKEN[found.bound][0]}'s true error is at most {found.risk:.4f} "
            f"with probability {1 - found.delta:g} ({verdict})."
        ]
    if found.number > 1 and not found.diagnostic:
        lines.append(
            f"It is certificate {found.number} of this run folder. The smallest of them holds only with the "
            f"union paid: {found.smallest:.4f}."
        )
    lines += [_SPOKEN[found.bound][1], _counts(found)]
    if found.tried:
        told = ", ".join(f"{name} {risk:.4f}" for name, risk in found.tried.items())
        lines.append(f"The smallest of bounds that share delta: {told}.")
    if found.held_out:
        lines.append(_beside(found, found.held_out))
    if some := {name: count for name, count in found.near_duplicates.items() if count}:
        told = ", ".join(f"{name.replace('_', ' ')} {count:.0f}" for name, count in some.items())
        lines.append(f"Near-duplicates among the examples: {told}.")
    if found.noise_dependence:
        lines.append(dependence_text(found.noise_dependence))
    lines += ["It holds if:", *(f"  - {text}" for text in found.assumptions)]
    return "\n".join(lines)


def dependence_text(test: Mapping[str, float]) -> str:
    """Return the result of the test of whether the noise depends on the input, in words."""
    rejected = bool(test["depends"])
    told = "rejected" if rejected else "did not reject; that shows nothing"
    return (
        f"Permutation test of whether the noise depends on the input: {told} (p = {test['p_value']:.2g}, "
        f"{test['examples']:.0f} examples; within a class, neighbours have the same label "
        f"{test['agreement']:.1%} of the time, {test['expected']:.1%} expected)."
    )


def _counts(found: Any) -> str:
    head = f"n = {found.n}, delta = {found.delta:g}, "
    labels = f"labels: {found.noise}; loss: {found.loss}"
    if found.bound == "compression":
        kept = f"examples kept = {found.numbers['kept']:.0f}"
        return f"{head}{kept}; every other one is classified right; {labels}"
    if found.bound == "checked":
        told = {name: f"{count:.0f}" for name, count in found.numbers.items()}
        if found.numbers.get("unchecked"):
            head += f"drawn examples without a label, counted as errors: {told['unchecked']}, "
        return (
            f"{head}disagreeing with the given label: {told['disagreeing']}; truly wrong among the checked: "
            f"{told['wrong_disagreeing']} of {told['checked_disagreeing']} of these, "
            f"{told['wrong_agreeing']} of {told['checked_agreeing']} of the others"
        )
    if found.bound == "holdout":
        return f"{head}error on the given labels: {found.empirical:.4f}; {labels}"
    return (
        f"{head}KL = {found.kl:.2f} nats, priors and losses to choose from = {found.family}, "
        f"draws = {found.draws}\n"
        f"Error on the given labels over the draws: {found.empirical:.4f}; {labels}"
    )


def _beside(found: Any, held: dict[str, float]) -> str:
    if found.held_out_labels == "unknown":
        return (
            f"Beside it, the unperturbed network disagrees with {held['error']:.4f} of the labels of "
            f"{held['n']:.0f} held-out examples; how many of these are wrong is not known, so no bound "
            "on the true error follows."
        )
    text = f"Beside it, the unperturbed network on {held['n']:.0f} held-out examples: "
    text += f"error {held['error']:.4f}"
    sure = f"probability {1 - held['delta']:g}"
    if found.held_out_labels == "noisy":
        return (
            f"{text} on labels as noisy as the certificate's own; its true error is at most "
            f"{held['bound']:.4f} ({sure})."
        )
    return f"{text}, at most {held['bound']:.4f} (Clopper-Pearson, {sure})."

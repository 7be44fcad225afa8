"""Write docs/measure.md and its figures from the committed records in benchmarks/results.

python benchmarks/write_measure.py
"""

from __future__ import annotations

from typing import Any

from records import DOCS, FIGURES, read_record

PAGE = DOCS / "measure.md"

TEXT = """# The Hessian distance measure

*This page is written by `python benchmarks/write_measure.py` from the records in `benchmarks/results`.*

For a layer i with weights W_i and reference W_i⁽ˢ⁾ let v_i = vec(W_i − W_i⁽ˢ⁾), H_i(x, y) the Hessian of
one example's loss in vec(W_i) alone, and H_i⁺ its positive part. With 𝓗_i = max over the training
examples of v_iᵀ H_i⁺ v_i, the paper's measure of the generalization gap (Theorem 2.1) is

    Σ_i √(C · 𝓗_i / n)

n the number of training examples and C a bound on the loss. hesstune takes the largest observed loss
for C. It is a *measure*: it tells which layers went far along sharp directions. Over
[the study's 1,262 runs](study.md#measures-against-the-gap) it did not follow the gap (Kendall's τ −0.00;
+0.38 for whole networks on weak labels, where the distance alone has +0.52; −0.10 to +0.04 for heads
alone). The theorem's maximum is over the distribution, its C is known beforehand, its networks are twice
differentiable and its O(n^(-3/4)) has no known constant. For a number that holds, see the certificates.

`hesstune measure RUN` therefore measures examples that were held out (`--part train`: those it was trained
on), and gives beside the maximum Σ_i √(C · mean v_iᵀ H_i⁺ v_i / n), chosen among
[all that was tried](gap.md) for how it goes with the gap and for its size.

## How it is computed

*Exact path.* Where only piecewise-linear operations follow a layer (ReLU, pooling, batch norm in eval
mode, residual sums), the logits are piecewise linear in W_i, so H_i = J_iᵀ Λ J_i with Λ = diag(p) − p pᵀ,
and v_iᵀ H_i⁺ v_i = Σ_k p_k (u_k − ū)² with u = J_i v_i. K − 1 backward passes to the layers' outputs
give u for every layer and every example of a batch at once; traces and spectra come from the same
passes. No per-example loop, no double backward.

*Smooth path.* After GELU, softmax attention or layer norm, H_i has negative eigenvalues and no closed form.
Lanczos from v_i, in the span of the layer's own inputs, gives a bracket: Gauss–Radau quadrature with
its node at zero is a lower bound, the best over fixed nodes an upper one. The value reported is the
bounds' harmonic mean. Padded tokens are cut where that leaves the logits alone.

*A random sample* (`examples="max"` with `mean_sample=8`, the command's default for smooth layers). Smooth
layers are measured on examples drawn at random. Gauss–Newton values of all examples and layers cost K − 1
passes; the mean is estimated as their mean plus the sample's mean difference from them, with a standard
error. The maximum is that of the sample, and a note says so. `--examples all` measures every example.

*Which path* a layer takes is decided by the structure of the autograd graph and a numerical probe, and
is in the result with its reason. Refused by name: examples that influence each other, batch norm on
batch statistics, active dropout, randomness in eval mode. Tied weights and weights used without a
module call are measured in weight space, slower and correct.

*Spectra* (`--spectrum`, `measure(spectrum=True)`). The K × K Gram matrix of the same passes' gradients has
all nonzero eigenvalues of an exact layer's H_i, at most K − 1. measure.json has, by layer, the mean of the
j-th largest over the examples with its standard error, j up to 10; measure.safetensors has every one. Smooth
layers have none, and a note names them.

*Blocks.* Of networks with more than 24 layers the command and the report show first what blocks add up to,
such as `_blocks.3` or `layer1.0`: the longest prefix of names that ends in an index and that several layers
share. `--all-layers` prints every layer below. A sentence says which carry the measure.

*Layouts.* Inputs come batch first; inside, the network may lay them out as it likes. Where the examples
are in a layer's tensors is told by dependence on at most four examples of the first batch: which
dimension grows with the batch, and which part of the layer's output each example's logits depend on. So
a sequence as long as the batch is not mistaken for it, nor do examples need to differ. Batch first,
sequence first (`batch_first=False`), and examples folded into one dimension with tokens, windows or
frames take the paths above. A layer that holds the examples in other ways, or none (positions alone),
is measured in weight space. A tensor in a mapping has one row an example where its first dimension is
the first batch's size.

*Memory* is forecast before the first example is measured, and said in one line, which the record keeps:
the layers' differences, the batches (and the sample's inputs), and for each example measured at a time what
its passes and Lanczos' graph and vectors take.
`memory_mib` (`--memory-mib`) bounds all of that, beside the network and its reference: batches are split to
fit, and where not even one example fits, it is refused with a number that would do. Without it, the examples
measured at a time get 512 MiB, or what one of them takes, as long as the device has that much left. Before,
the plan looks at up to four examples at once, whatever the budget. Weights stored in bfloat16 or float16 are
measured as float32, on copies that the forecast counts.

## Against the paper's code

The paper's code takes one Hessian-vector product of a batch's *mean* loss, in *every layer's* v at once,
and keeps negative curvature. Three things differ from v_iᵀ H_i⁺ v_i: other layers leak in through the
off-diagonal blocks, negative curvature cancels positive, and the largest batch mean is not the largest
example. `{paper_command}`: three small networks on scikit-learn's digits, 20 % of the labels
changed, {paper_examples} examples in batches of {paper_batch}, dense Hessians in float64.

{paper_table}

"Leak" is the paper's mean over v_iᵀ H_i v_i's: what the off-diagonal blocks add. "Maximum" is the paper's
largest batch over the largest v_iᵀ H_i⁺ v_i: {paper_range}. Batches with a
negative value, where no square root can be taken: {paper_negative}. The last column is the error of
`hesstune.measure` against the dense twin: rounding on exact layers, within the default tolerance of
3 % on smooth ones.

## Noise stability

`{stability_command}`: E[ℓ(W + U)] − ℓ(W) for Gaussian U of size σ on every layer, antithetic draws, beside
½σ²·Σ_i Tr H_i, over {stability_examples} training examples.

![The rise of the loss against the size of the noise](figures/noise_stability.svg)

{stability_table}

On a smooth network the ratio is 1 while σ is small. On ReLU networks the trace does not see the kinks,
which the noise crosses, so the ratio is not 1 however small σ is.

`measure RUN --stability` measures the rise under noise for a run.

## Cost

![CPU seconds against examples and classes](figures/measure_cost.svg)

`{cost_command}`: EfficientNet-Lite0, 50 layers, 96 px. Cost grows linearly in examples and in classes;
where that is likely to halve the passes, unlikely classes are left out (`skip_classes`, by default
{skip_tolerance:.0%} of an entry or trace, with 99 % each, by random probes of what is left out; the bounds
cover it, a note says so, and 0 takes all). Where little mass lies on most classes, with traces:
{skip_found}.
Ratios against other ways are in [benchmarks](benchmarks.md).
"""


def paper_facts(record: dict[str, Any]) -> dict[str, Any]:
    lines = [
        "| network | layer | distance | paper's maximum | max vᵀH⁺v | maximum, ratio | leak "
        "| share of examples with vᵀHv < 0 | error of `measure` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ratios, negative, batches = [], 0, 0
    for network, rows in record["networks"].items():
        for r in rows:
            ratios.append(r["paper_maximum"] / r["positive_maximum"])
            negative += r["paper_negative_batches"]
            batches += record["examples"] // record["batch"]
            error = abs(r["fast_maximum"] / r["positive_maximum"] - 1)
            lines.append(
                f"| {network} | `{r['layer']}` | {r['distance']:.2f} | {r['paper_maximum']:.3f} "
                f"| {r['positive_maximum']:.3f} | {ratios[-1]:.2f} "
                f"| {r['paper_mean'] / r['block_mean']:.1f}× | {r['block_negative_share']:.0%} "
                f"| {error:.0e} |"
            )
    return {
        "paper_command": record["command"],
        "paper_examples": record["examples"],
        "paper_batch": record["batch"],
        "paper_table": "\n".join(lines),
        "paper_range": f"from {min(ratios):.2f} to {max(ratios):.2f}",
        "paper_negative": f"{negative} of {batches}",
    }


def stability_facts(record: dict[str, Any]) -> dict[str, Any]:
    lines = ["| network | σ | rise ± s.e. | ½σ²·Tr H | ratio |", "|---|---|---|---|---|"]
    for network, rows in record["networks"].items():
        lines += [
            f"| {network} | {r['sigma']:g} | {r['value']:.3g} ± {r['stderr']:.1g} | {r['taylor']:.3g} "
            f"| {r['ratio']:.2f} |"
            for r in rows
        ]
    return {
        "stability_command": record["command"],
        "stability_examples": record["examples"],
        "stability_table": "\n".join(lines),
    }


def page() -> str:
    """Return the whole page."""
    cost = read_record("measure_efficientnet")
    skipped = cost["skipped_classes"]
    facts = {
        **paper_facts(read_record("paper_code")),
        **stability_facts(read_record("noise_stability")),
        "cost_command": cost["command"],
        "skip_tolerance": skipped[0]["tolerance"],
        "skip_found": ", ".join(
            f"{row['passes']} of {row['passes_all']} passes with {row['classes']} classes, "
            f"{row['ratio_seconds']:.1f} times faster"
            for row in skipped
            if row["passes"] < row["passes_all"]
        ),
    }
    return TEXT.format(**facts)


def draw_cost() -> None:
    import matplotlib.pyplot as plt

    growth = read_record("measure_efficientnet")["growth"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, key in zip(axes, ("examples", "classes"), strict=True):
        x = [row[key] for row in growth[key]]
        y = [row["seconds"] for row in growth[key]]
        unit = "s" if key == "examples" else "s an example"
        axis.plot(x, y, "o-", color="#0072b2")
        axis.set(xlabel=key, ylabel=f"CPU time ({unit})", xlim=(0, None), ylim=(0, None))
        axis.set_title(f"Cost against {key}")
    save(figure, "measure_cost")


def draw_stability() -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    colours = ("#d55e00", "#0072b2", "#009e73")
    networks = read_record("noise_stability")["networks"]
    for colour, (network, rows) in zip(colours, networks.items(), strict=True):
        sigma = [r["sigma"] for r in rows]
        value, error = [r["value"] for r in rows], [2 * r["stderr"] for r in rows]
        axis.errorbar(sigma, value, error, fmt="o-", color=colour, label=network)
        axis.plot(sigma, [r["taylor"] for r in rows], "--", color=colour)
    axis.set(xscale="log", yscale="log", xlabel="noise σ", ylabel="rise of the mean loss (nats)")
    axis.set_title("Noise stability (dashed: ½σ²·Tr H; bars: 2 s.e.)")
    axis.legend()
    save(figure, "noise_stability")


def save(figure: Any, name: str) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hesstune"})
    draw_cost()
    draw_stability()
    PAGE.write_text(page())

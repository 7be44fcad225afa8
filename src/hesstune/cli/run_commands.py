"""The commands on a finished run: `measure`, `certify`, `check`, `noise`, `predict`, `report`, `export`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import DRY_RUN, RUN, replacing, with_options
from hesstune.cli.render import Output, command_line, name_table, say_data
from hesstune.curvature.declared import FORECAST, FORMS, FormNames
from hesstune.errors import ConfigError, RunError
from hesstune.runs.options import (
    CertifyOptions,
    CheckOptions,
    MeasureOptions,
    NoiseCheckOptions,
    PredictOptions,
    ReportOptions,
    SampleOptions,
)

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.bounds.record import Certificate
    from hesstune.curvature.stability import Stability
    from hesstune.report.layers import Block
    from hesstune.runs.records import CostOfError, LayerMeasure, MatrixFacts, NoiseCheck

# Layers and eigenvalues that a table of the spectrum has room for.
LARGEST, EIGENVALUES = 10, 3


@with_options(
    "part", "max_examples", "layers", "more", "stability", "method", "trace", "spectrum", "device", "seed"
)
def measure(
    run: RUN,
    options: MeasureOptions,
    output: Output,
    stability: Annotated[
        bool,
        typer.Option("--stability", help="also the rise of the loss under Gaussian noise on the weights"),
    ] = False,
    more: Annotated[
        bool, typer.Option("--more", help="print the table of all layers, both measures, and the evidence")
    ] = False,
) -> None:
    """Compute the Hessian distance measure: which layers moved far along sharp directions."""
    from hesstune.analysis.measure import measure_run, stability_of_run
    from hesstune.curvature.result import CONSTRAINT_EVIDENCE
    from hesstune.report.layers import blocks_of, carriers, is_large, layer_shares
    from hesstune.runs.records import MEASURE, MEASURE_TENSORS, MeasureRecord
    from hesstune.runs.run import Run
    from hesstune.storage.stored import read_record

    loaded = Run.load(run)
    with output.progress("measure") as shown:
        found = measure_run(
            loaded, progress=shown, on_forecast=output.say if more else None, **options.given()
        )
    alike = {name: v for name, v in options.given().items() if name in SampleOptions.model_fields}
    stable = stability_of_run(loaded, **alike) if stability else []
    record = found.to_dict(loaded.facts.examples.train)
    written = read_record(loaded.path / MEASURE, MeasureRecord)
    assert written is not None
    record["part"] = written.part
    rows, gap = layer_shares(written), loaded.outcome.gap
    carried = carriers(rows, loaded.config.method if loaded.outcome.radii else None)
    if more:
        if is_large(rows):
            output.say(block_table(blocks_of(rows)), "")
        output.say(layer_table(rows, found.form), "")
        carried = carried and f"{carried} {CONSTRAINT_EVIDENCE}."
    if options.spectrum:
        output.say(spectrum_table(rows, found.form), "")
    # The forecast is printed before the measurement.
    notes = [note for note in record["notes"] if not note.startswith(FORECAST)]
    if more:
        output.say(*full_summary(record, gap, notes))
    else:
        usual = found.quantity_notes()
        output.say(summary(record, gap), *(note for note in notes if note not in usual))
    output.say(*([carried] if carried else []))
    if stable:
        output.say("", stability_table(stable))
        record["noise_stability"] = [row.to_dict() for row in stable]
    output.say(f"Written: {loaded.path / MEASURE}, {loaded.path / MEASURE_TENSORS}")
    output.end({"path": str(loaded.path), "gap": gap, **record}, command_line("certify", run))


def layer_table(rows: Sequence[tuple[LayerMeasure, float]], form: FormNames) -> Table:
    """Return the layers, largest share of the measure first."""
    how = max([7, *(len(layer.how) for layer, _ in rows)])
    widths = {"share": 7, f"max {form.form}": 10, "mean ± s.e.": 15, "distance": 8, form.trace: 8, "how": how}
    table = name_table("layer", widths=widths)
    moved = [(layer, share) for layer, share in rows if layer.distance]
    for layer, share in moved:
        error = layer.mean_stderr
        table.add_row(
            layer.name,
            f"{100 * share:.1f} %",
            _formatted(layer.maximum, ".3g"),
            _formatted(layer.mean, ".2g", f" ± {'-' if error is None else f'{error:.1g}'}"),
            f"{layer.distance:.3f}",
            _formatted(layer.trace_mean, ".3g"),
            layer.how,
        )
    if still := len(rows) - len(moved):
        table.add_row(f"{still} did not move", "0.0 %", "0", "-", "0.000", "-", "")
    return table


def block_table(blocks: Sequence[Block]) -> Table:
    """Return the blocks of a large network, largest share of the measure first."""
    table = name_table("block", widths={"layers": 6, "share": 7, "distance": 8})
    moved = [block for block in blocks if block.distance > 0]
    for block in moved:
        share = 100 * (block.share or 0.0)
        table.add_row(block.name, str(len(block.layers)), f"{share:.1f} %", f"{block.distance:.3f}")
    if still := len(blocks) - len(moved):
        table.add_row(f"{still} did not move", "", "0.0 %", "0.000")
    return table


def spectrum_table(rows: Sequence[tuple[LayerMeasure, float]], form: FormNames) -> Table:
    """Return the first mean eigenvalues of the layers that have any, largest share first."""
    known = [(layer.name, layer.spectrum) for layer, _ in rows if layer.spectrum is not None][:LARGEST]
    columns = min(EIGENVALUES, max((len(found.mean) for _, found in known), default=1))
    table = name_table(
        f"eigenvalues of {form.matrix}", widths={f"λ{at + 1} ± s.e.": 13 for at in range(columns)}
    )
    for name, found in known:
        pairs = list(zip(found.mean, found.stderr, strict=True))[:columns]
        table.add_row(name, *(f"{v:.3g} ± {'-' if e is None else f'{e:.1g}'}" for v, e in pairs))
    return table


def _formatted(value: float | None, form: str, suffix: str = "") -> str:
    return "-" if value is None or value != value else f"{value:{form}}{suffix}"


def stability_table(rows: list[Stability]) -> Table:
    """Return the rise of the mean loss under noise of several sizes, beside its Taylor prediction."""
    table = name_table("noise σ", "rise of the loss", "½σ²·Tr H", "ratio")
    for row in rows:
        table.add_row(
            f"{row.sigma:g}",
            f"{row.value:.3g} ± {row.stderr:.1g}",
            f"{row.taylor:.3g}" + (f" ± {row.taylor_stderr:.1g}" if row.taylor_stderr else ""),
            _formatted(row.ratio, ".2f"),
        )
    return table


def summary(record: dict[str, Any], gap: float | None) -> str:
    """Return what one person needs: the measure, its error and the observed gap."""
    form, held_out, mean = FORMS[record["quantity"]], record["part"] == "val", record["mean_measure"]
    if held_out and mean["value"] is not None:
        text = f"Mean {form.measure}: {mean['value']:.3f}"
        text += "" if mean["stderr"] is None else f" ± {mean['stderr']:.2g}"
    else:
        text = f"{form.measure}: {record['measure']['value']:.3f}"
    text += f", on {record['examples']} {'held-out' if held_out else 'training'} examples. "
    text += "" if gap is None else f"The observed generalization gap is {gap:.3f}. "
    return f"{text}It is a measure, no guarantee."


def full_summary(record: dict[str, Any], gap: float | None, notes: list[str]) -> list[str]:
    """Return the lines with both measures, the observed gap, and the evidence for the measure."""
    from hesstune.curvature.result import HELD_OUT_EVIDENCE, TRAINING_EVIDENCE

    form = FORMS[record["quantity"]]
    value, mean, held_out = record["measure"], record["mean_measure"], record["part"] == "val"
    examples = f"{record['examples']} {'held-out' if held_out else 'training'} examples"
    lines = [f"Measured on {examples}; n = {value['n']}, C = {value['C']:.3g}, the largest loss observed"]
    if mean["value"] is not None:
        error = "" if mean["stderr"] is None else f" ± {mean['stderr']:.2g}"
        lines.append(f"Mean {form.measure}, Σ √(C·mean {form.form}/n): {mean['value']:.3f}{error}")
    lines.append(f"{form.measure}, Σ √(C·max {form.form}/n): {value['value']:.3f}")
    if gap is not None:
        lines.append(f"Generalization gap observed: {gap:.3f} (cross-entropy, test minus training)")
    evidence = HELD_OUT_EVIDENCE if held_out else TRAINING_EVIDENCE
    return [*lines, *notes, f"It is a measure, no guarantee. {evidence}."]


@with_options(
    "bound", "delta", "prior_fraction", "noise_is", "checked_labels", "clean_sample", "test_labels",
    "no_groups", "diagnostic", "seed",
)  # fmt: skip
def certify(run: RUN, options: CertifyOptions, output: Output) -> None:
    """Bound the clean error of a run's network: a guarantee, with its assumptions."""
    from hesstune.analysis.certify import certify_run
    from hesstune.runs.records import CERTIFICATE
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    with output.progress("certify") as shown:
        found = certify_run(loaded, progress=shown, **options.given())
    output.say(found.summary())
    if found.kl_terms:
        output.say("", kl_table(found))
    output.say(f"Written: {loaded.path / CERTIFICATE}")
    output.end({"path": str(loaded.path), **found.to_dict()}, command_line("report", run))


def kl_table(found: Certificate, most: int = 8) -> Table:
    """Return the parameters with the largest KL terms, their distances and their noise."""
    titles = ("KL, nats", "distance", "noise σ", "prior s")
    table = name_table("parameter", widths=dict.fromkeys(titles, 8))
    order = sorted(found.kl_terms, key=found.kl_terms.__getitem__, reverse=True)
    for name in order[:most]:
        cells = (found.kl_terms, found.distance, found.sigma, found.prior_sigma)
        table.add_row(name, *(f"{column[name]:.3g}" for column in cells))
    if len(order) > most:
        other = sum(found.kl_terms[name] for name in order[most:])
        table.add_row(f"and {len(order) - most} more", f"{other:.3g}", "", "", "")
    return table


@with_options("sample", "prior_fraction", "seed", "text_column", "label_column", "id_column", "image_column")
def check(run: RUN, options: CheckOptions, output: Output) -> None:
    """Draw random examples for a person to label; write the sheet for certify."""
    from hesstune.analysis.certify import check_run
    from hesstune.runs.run import Run

    path = check_run(Run.load(run), **options.given())
    output.say(f"Written: {path}. Fill in true_label for every example, then certify.")
    alike = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ("prior_fraction", "seed")}
    words = [word for flag, value in alike.items() if value for word in (flag, value)]
    output.end({"path": str(path)}, command_line("certify", run, "--checked-labels", path, *words))


@with_options()
def noise(run: RUN, options: NoiseCheckOptions, output: Output) -> None:
    """Check a run's noise matrix: estimates of it, and the cost of an error."""
    from hesstune.analysis.noise import check_noise
    from hesstune.runs.records import NOISE_CHECK
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    found = check_noise(loaded, **options.given())
    output.say(estimates_table(found), "", "Change of accuracy, in points, if F is wrong (by simulation):")
    output.say(cost_table(found), "")
    output.say(*found.statements, f"Written: {loaded.path / NOISE_CHECK}")
    output.end({"path": str(loaded.path), **found.to_dict()}, command_line("report", run))


def estimates_table(found: NoiseCheck) -> Table:
    """Return a row for each matrix: noise rate, condition, log-likelihood, distance from the given."""
    from hesstune.runs.records import Failed

    table = name_table("noise matrix", "rate", "condition", "log-lik.", "from given")
    table.add_row("given" if found.matrix_given else "none (identity)", *_matrix_figures(found.assumed), "")
    if (counted := found.counted) is not None:
        table.add_row("counted (truth)", f"{counted.rate:.2f}", "-", "-", f"{counted.total_variation:.2f}")
    for row in found.estimates:
        if isinstance(row, Failed):
            table.add_row(row.method, "-", "-", "-", "failed")
        else:
            name = row.method if row.chose is None else f"{row.method}: {row.chose}"
            table.add_row(name, *_matrix_figures(row), f"{row.total_variation:.2f}")
    return table


def _matrix_figures(row: MatrixFacts) -> list[str]:
    fit, condition = row.log_likelihood, row.condition
    return [
        f"{row.rate:.2f}",
        "singular" if condition is None else f"{condition:.3g}",
        "-" if fit is None else f"{fit:.3f}",
    ]


def cost_table(found: NoiseCheck) -> Table:
    """Return the accuracy lost, in points, for each error of F."""
    rows = found.cost_of_an_error
    sizes = sorted({row.off for row in rows})
    table = name_table("noise in F", *(f"off by {size:.0%}" for size in sizes))
    for direction in dict.fromkeys(row.direction for row in rows):
        lost = {row.off: row for row in rows if row.direction == direction}
        table.add_row(direction, *(_points_lost(lost.get(size)) for size in sizes))
    return table


def _points_lost(row: CostOfError | None) -> str:
    if row is None:
        return "-"
    error = "" if row.stderr is None else f" ± {100 * row.stderr:.1f}"
    return f"{-100 * row.accuracy_lost:+.1f}{error}"


@with_options("data", "out", "text_column", "image_column", "id_column", "label_column", "device")
def predict(
    run: RUN,
    data: Annotated[str, typer.Option(metavar="DATA", help="as for finetune; labels are not needed")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV file to write")],
    options: PredictOptions,
    output: Output,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[bool, replacing("the file in --out")] = False,
) -> None:
    """Predict the classes of new data: ids, labels and probabilities as CSV."""
    from hesstune.analysis.predict import predict as run_predict

    if dry_run:
        from hesstune.data.describe import describe
        from hesstune.runs.loading import reading_of
        from hesstune.runs.run import Run

        config = Run.load(run).config
        say_data(output, describe(data, reading_of(config, config.seed, options), labelled=False))
        return
    if out.exists() and not overwrite:
        raise RunError(f"{out} exists; choose another --out or give --overwrite")
    found = run_predict(run, data, **options.given())
    found.save(out, overwrite=overwrite)
    counts = Counter(found.predicted)
    output.say(
        f"{len(found.ids)} examples: " + ", ".join(f"{n} {name}" for name, n in counts.most_common(12))
    )
    if found.accuracy is not None and found.labels is not None:
        given = int((found.labels >= 0).sum())
        output.say(f"accuracy on the {given} labels given: {found.accuracy:.1%}")
    output.say(
        *(f"Data: {note}." for note in found.notes),
        *(f"left out: {example} ({reason})" for example, reason in found.skipped),
        f"Predictions: {out}",
    )
    record = {
        "path": str(out),
        "examples": len(found.ids),
        "predicted": dict(counts),
        "accuracy": found.accuracy,
        "skipped": len(found.skipped),
        "notes": found.notes,
    }
    output.end(record, command_line("export", run, "exported"))


@with_options()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="the folder of a run or a comparison")],
    options: ReportOptions,
    output: Output,
) -> None:
    """Write one self-contained HTML page, report.html, about a run or a comparison."""
    from hesstune.report.write import write_report, write_study
    from hesstune.runs.run import Run
    from hesstune.study.results import RESULTS

    following = command_line("measure", run)
    if (run / RESULTS).is_file():
        page, note = write_study(run, options.baseline), None
        following = best_method(run)
    elif options.baseline is not None:
        raise ConfigError("--baseline is for the report of a comparison, and this is none")
    else:
        page, note = write_report(Run.load(run), device=options.device)
    output.say(*([note] if note else []), f"Report: {page}")
    output.end({"path": str(page), "bytes": page.stat().st_size, "note": note}, following)


def best_method(study: Path) -> str:
    """Return the command that trains by the best method of a comparison, on its first task."""
    from hesstune.study.results import method_rows, read_results

    results = read_results(study)
    _, rows = method_rows(results, None if len(results.tasks) > 1 else results.tasks[0])
    method = rows[0][0] if rows else results.baseline
    own = {**results.shared, **results.configs.get(results.tasks[0], {}).get(method, {})}
    words = ["--data", own.get("data", "DATA"), "--method", own.get("method", method)]
    return command_line("finetune", *words, "--out", f"runs/{method}")


@with_options()
def export(
    run: RUN,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write")],
    output: Output,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="write model.onnx, too, checked against torch")
    ] = False,
    hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="NAME", help="upload the folder to the Hugging Face Hub"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="make a new repository of the Hub private")
    ] = False,
    overwrite: Annotated[bool, replacing("an earlier export")] = False,
) -> None:
    """Write a run's network for transformers, sentence-transformers, ONNX and the Hugging Face Hub."""
    from hesstune.analysis.export import export_run, push_to_hub
    from hesstune.runs.run import Run

    how = export_run(Run.load(run), folder, overwrite=overwrite, onnx=onnx)
    output.say(f"Written: {folder}", f"Load it with: {how}")
    address = None if hub is None else push_to_hub(folder, hub, private=private)
    if address:
        output.say(f"Uploaded: {address}")
    written = sorted(path.name for path in folder.iterdir())
    record = {"path": str(folder), "load": how, "files": written, "hub": address}
    output.end(record, command_line("report", run))

"""Ray Data: features of more images or texts than one machine takes, in files for `features:FOLDER`."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from pydantic import Field

from hesstune.checks import expanded
from hesstune.data.formats import listing
from hesstune.data.load import load_examples
from hesstune.data.reading import Columns, Reading
from hesstune.data.tables import USUAL
from hesstune.data.vectors import is_missing_cell
from hesstune.errors import DataError, HesstuneError, MissingExtraError, RunError, counted, listed
from hesstune.inputs.features import frozen_features
from hesstune.labeling.options import FeatureOptions, default_model, size_for
from hesstune.models.load import LoadedModel, load_model
from hesstune.options import make_options, takes_options
from hesstune.runs.keywords import ExtractionKeywords
from hesstune.runtime.device import pick_device
from hesstune.storage.columns import as_cell
from hesstune.storage.files import is_file, made_folder, one_line, replace_file, writing
from hesstune.storage.tensors import digest_of_texts

FEATURES, PARTS = "features", "part-*.parquet"
# Rows of a part if none are asked for: so many texts fill the batches that are sorted by length.
TEXTS, IMAGES = 2048, 256


class ExtractionOptions(FeatureOptions):
    """How Ray Data extracts features."""

    heading: ClassVar[str] = "Features by Ray Data"

    text_column: str | None = Field(
        None, description="column of texts, or two separated by a comma; default: text, and text2 for pairs"
    )
    image_column: str | None = Field(
        None,
        description="column of images: paths that every machine sees, bytes of image files, or arrays; "
        "default: image",
    )
    id_column: str | None = Field(None, description="column that names each row; default: id")
    label_column: str | None = Field(None, description="column of labels; default: label")
    batch_size: int | None = Field(
        None, gt=0, description="rows of one file; default: 2048 texts, or 256 images"
    )
    workers: int = Field(2, gt=0, description="actors, each with its own copy of the network")
    cpus: int = Field(1, gt=0, description="cores of each actor")
    gpus: float = Field(0, ge=0, description="GPUs of each actor, such as 1 or 0.5")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be decoded")
    overwrite: bool = Field(False, description="replace the files of an earlier extraction")


@dataclass(frozen=True)
class ExtractedFeatures:
    """The files that `extract_features` has written.

    Attributes:
        folder: The folder of Parquet files.
        rows: Number of rows that have features.
        width: D, the length of a feature vector.
        left_out: {reason: number of rows that were left out}.
        notes: What a reader should know, in sentences.
    """

    folder: Path
    rows: int
    width: int
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def data(self) -> str:
        """The files as `--data`."""
        return f"features:{self.folder}"

    def __str__(self) -> str:
        left = [f"{counted(n, 'row')} left out: {reason}" for reason, n in self.left_out.items()]
        return (
            f"{counted(self.rows, 'row')} of {'; '.join([f'{self.width} features in {self.folder}', *left])}"
        )


@takes_options(ExtractionOptions)
def extract_features(data: Any, out: str | Path, **options: Unpack[ExtractionKeywords]) -> ExtractedFeatures:
    """Compute features of a pretrained network on the machines of a Ray cluster, for `features:FOLDER`.

    Each actor loads the network once. The features are those of `clean` and `finetune --train head`, up to
    rounding. Each Parquet file holds `id`, `label` and `split` if there are such columns, other columns of
    texts and numbers, and `features`. Rows are in the order of the data. Rows without a text or an image are
    left out, and counted; rows without a label are kept.

    Args:
        data: A `ray.data.Dataset` with an id in each row; or data as for `hesstune.clean` with texts or
            files of images, whose table is read on this machine.
        out: The folder that is written, on a file system that all machines share.
        **options: Options of `ExtractionOptions`, by name.

    Raises:
        MissingExtraError: If Ray Data is not installed.
        DataError: If a column is missing, or a row cannot be read.
        RunError: If `out` exists and `overwrite` is not set, it cannot be written, or an actor fails.

    Example:
        >>> import ray                                                           # doctest: +SKIP
        >>> reviews = ray.data.read_parquet("/shared/reviews")                   # doctest: +SKIP
        >>> found = extract_features(reviews, "/shared/features", workers=16)    # doctest: +SKIP
        >>> issues = ht.clean(found.data)                                        # doctest: +SKIP
    """
    asked = make_options(ExtractionOptions, options)
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray[data]", "ray", "extract_features") from None
    folder = expanded(out).absolute()
    _check_free(folder, asked.overwrite)
    starts_cluster = not ray.is_initialized()
    try:
        dataset, roles = _dataset(ray, data, asked)
        with _new_folder(folder) as part:
            return _extracted(ray, dataset, roles, asked, part, folder)
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
        raise RunError(f"Ray did not finish the features ({one_line(reason)})") from error
    finally:
        if starts_cluster:
            ray.shutdown()


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise RunError if a folder has files, unless they are features that may be replaced."""
    if not folder.exists():
        return
    others = set(folder.iterdir()) - set(folder.glob(PARTS)) if folder.is_dir() else {folder}
    if others:
        raise RunError(f"{folder} holds other files than features; choose another folder for out")
    if not overwrite and any(folder.iterdir()):
        raise RunError(
            f"{folder} holds features already; choose another folder for out, or give overwrite=True"
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` at the end; it is removed if an error is raised."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an extraction that was killed
    made_folder(part)
    try:
        yield part
        with writing(folder):
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _dataset(ray: Any, data: Any, asked: ExtractionOptions) -> tuple[Any, dict[str, str]]:
    """Return the data as a Ray data set, and {role: column}."""
    named = Columns(asked.text_column, asked.label_column, asked.id_column, asked.image_column)
    if not isinstance(data, ray.data.Dataset):
        table = _table(data, Reading(named))
        size = asked.batch_size or (TEXTS if "text" in table.column_names else IMAGES)
        blocks = [table.slice(start, size) for start in range(0, len(table), size)]
        return ray.data.from_arrow(blocks), {name: name for name in table.column_names}
    columns = data.columns()
    if not columns:
        raise DataError("the Ray data set has no rows")
    roles, _ = named.find(columns, USUAL, "the Ray data set")
    if "id" not in roles:
        raise DataError(
            "the Ray data set needs a column that names each row, such as id; name it by id_column; got the "
            f"columns {listed(columns)}"
        )
    return data, roles


def _table(data: Any, how: Reading) -> pa.Table:
    """Return texts, or absolute paths of images, with ids, labels and parts."""
    found = listing(data, 8, labelled=False, how=how)
    if found.vectors is not None:
        raise DataError("the data holds feature vectors already")
    columns: dict[str, Sequence[Any] | None] = {"id": found.ids, "label": found.given, "split": found.parts}
    if found.texts is not None:
        columns["text"] = [first for first, _ in found.texts]
        if any(second is not None for _, second in found.texts):
            columns["text2"] = [second or "" for _, second in found.texts]
    elif found.paths is not None:
        columns["image"] = [str(path.absolute()) for path in found.paths]
    else:
        raise DataError(
            "the images are no files, so this machine's memory would have to hold them; give a Ray data set, "
            "such as ray.data.read_parquet(PATH)"
        )
    return pa.table({name: own for name, own in columns.items() if own is not None})


def _extracted(
    ray: Any, dataset: Any, roles: dict[str, str], asked: ExtractionOptions, part: Path, folder: Path
) -> ExtractedFeatures:
    """Run the actors, and name their files in the order of the data."""
    made = dataset.map_batches(
        _Extractor,
        fn_constructor_args=(asked, roles, str(part), sys.path),
        batch_size=asked.batch_size or (TEXTS if "text" in roles else IMAGES),
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=asked.workers),
        num_cpus=asked.cpus,
        num_gpus=asked.gpus or None,
    )
    names, rows, width, left, notes = list[str](), 0, 0, Counter[str](), dict[str, None]()
    for found in _in_order(made):
        if "problem" in found:
            raise RunError(found["problem"])
        left.update(found["left_out"])
        notes |= dict.fromkeys(found["notes"])
        if found["rows"]:
            names.append(found["file"])
            rows, width = rows + found["rows"], found["width"]
    if not rows:
        raise DataError(f"no row has features: {listed(f'{n} {reason}' for reason, n in left.items())}")
    if absent := [name for name in names if not is_file(part / name)]:
        raise RunError(
            f"{len(absent)} of {len(names)} files of the actors are not in {part}: out must be on a file "
            "system that all machines of the cluster share"
        )
    kept = set(names)
    if len(kept) < len(names):
        raise DataError("some ids repeat, in batches of the same ids; give each row an id of its own")
    with writing(part):
        for path in part.iterdir():
            if path.name not in kept:  # of an actor that was lost, whose rows another one has computed
                path.unlink()
        for number, name in enumerate(names):
            (part / name).rename(part / PARTS.replace("*", f"{number:06d}"))
    return ExtractedFeatures(folder, rows, width, dict(left), list(notes))


def _in_order(made: Any) -> Iterator[dict[str, Any]]:
    """Yield what the actors say they did, in the order of the data."""
    execution = made.context.execution_options
    before, execution.preserve_order = execution.preserve_order, True
    try:
        for row in made.iter_rows():
            yield json.loads(row["found"])
    finally:
        execution.preserve_order = before


class _Extractor:
    """An actor: it computes the features of batches of rows, writes a file for each, and says what it did."""

    def __init__(
        self, asked: ExtractionOptions, roles: dict[str, str], folder: str, places: list[str]
    ) -> None:
        sys.path += [place for place in places if place not in sys.path]  # of the modules of py: networks
        self._asked, self._roles, self._folder = asked, roles, Path(folder)
        self._kind = "text" if "text" in roles else "image"
        self._model = asked.model or default_model(self._kind == "text")

    @cached_property
    def _loaded(self) -> LoadedModel:
        asked, text = self._asked, self._kind == "text"
        torch.manual_seed(0)  # layers that no checkpoint holds are random, and equal in all actors
        return load_model(self._model, 2, text=text, head=asked.head, image_size=asked.image_size)

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        """Return what was written as JSON, or the problem in a sentence."""
        try:
            found = self._written(batch)
        except HesstuneError as error:
            found = {"problem": str(error)}
        except Exception as error:  # the libraries of networks raise many kinds
            found = {"problem": f"an actor failed: {type(error).__name__}: {one_line(error)}"}
        return {"found": [json.dumps(found)]}

    def _written(self, batch: pa.Table) -> dict[str, Any]:
        cells = {role: _cells(batch[name]) for role, name in self._roles.items() if role in ("text", "text2")}
        if self._kind == "image":
            cells = {"image": _cells(batch[self._roles["image"]])}
        ids = [as_cell(value) for value in batch[self._roles["id"]].to_pylist()]
        here = [at for at, cell in enumerate(cells[self._kind]) if not self._is_absent(cell)]
        left = Counter({f"no {self._kind}": len(ids) - len(here)})
        features = np.zeros((0, 0), np.float32)
        if here:
            here, features, bad = self._features(cells, ids, here)
            left["the image cannot be decoded"] += bad
        kept, notes = _columns_beside(batch, self._roles)
        name = f"{digest_of_texts(ids)}.parquet"
        if here:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
            table = kept.take(here).append_column(FEATURES, vectors)
            replace_file(self._folder / name, lambda path: parquet.write_table(table, path))
        return {
            "file": name,
            "rows": len(here),
            "width": features.shape[1],
            "left_out": {reason: n for reason, n in left.items() if n},
            "notes": [*self._loaded.notes, *notes] if here else notes,
        }

    def _is_absent(self, cell: Any) -> bool:
        if isinstance(cell, str) and self._kind == "image":
            return not cell.strip() or (self._asked.skip_bad_images and not is_file(expanded(cell)))
        return is_missing_cell(cell) or (isinstance(cell, str) and not cell.strip())

    def _features(
        self, cells: dict[str, list[Any]], ids: list[str], rows: list[int]
    ) -> tuple[list[int], np.ndarray[Any, np.dtype[np.float32]], int]:
        """Return the rows with features, these, (N, D), and the number of images that were left out."""
        import pandas as pd

        asked = self._asked
        own = {"id": ids, **cells}
        columns = {name: pd.Series([each[at] for at in rows], dtype=object) for name, each in own.items()}
        read = load_examples(
            pd.DataFrame(columns),
            size=size_for(self._model, asked, self._kind == "text"),
            classes=[],
            skip_bad=asked.skip_bad_images,
            may_be_empty=True,
        )
        place = {ids[at]: at for at in rows}
        kept = [place[name] for name in read.examples.ids]
        if not kept:
            return [], np.zeros((0, 0), np.float32), len(read.skipped)
        device = pick_device(asked.device)
        features = frozen_features(self._loaded, read.examples, device, asked.max_length)
        return kept, features, len(read.skipped)


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; images of Ray's own types as arrays."""
    return [value for chunk in column.chunks for value in chunk.to_numpy(zero_copy_only=False)]


def _columns_beside(batch: pa.Table, roles: dict[str, str]) -> tuple[pa.Table, list[str]]:
    """Return the columns that are kept beside the features, by their usual names, and a note on others."""
    new = {column: role for role, column in roles.items()}
    taken = {*USUAL, FEATURES}
    kept, left = dict[str, pa.ChunkedArray](), list[str]()
    for name in batch.column_names:
        if name in new:
            if new[name] in ("id", "label", "split"):
                kept[new[name]] = batch[name]
            continue
        kind = batch[name].type
        is_plain = not (pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))
        if name in taken or not is_plain or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            left.append(name)
        else:
            kept[name] = batch[name]
    return pa.table(kept), [f"columns left out: {listed(left)}"] if left else []

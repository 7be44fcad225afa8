"""What the record of a run's examples says of changes, against the changes that were made."""

from dataclasses import replace

import numpy as np
import pytest

from hesstune.data.examples import PARTS
from hesstune.runs.integrity import DataRecord, PartRecord


def random_record(rng, n):
    names, trained = [f"e{i}" for i in rng.permutation(n)], rng.integers(0, 2, n)
    contents, labels = (rng.integers(0, 256, (n, 16), dtype=np.uint8) for _ in range(2))
    ends = np.sort(rng.integers(0, n + 1, 2))
    parts = zip(
        PARTS, *(np.split(np.array(x), ends) for x in (names, contents, labels, trained)), strict=True
    )
    return DataRecord(["a", "b"], {name: PartRecord(i.tolist(), c, y, t) for name, i, c, y, t in parts})


@pytest.mark.parametrize("seed", range(6))
def test_differences_name_exactly_the_examples_that_were_edited(seed):
    rng = np.random.default_rng(seed)
    before = random_record(rng, 30)
    parts, edited = dict(before.parts), {"contents": set(), "labels": set()}
    for part, record in parts.items():
        changed = {}
        for what in edited:
            values = getattr(record, what).copy()
            rows = np.flatnonzero(rng.random(len(values)) < 0.1)
            values[rows, rng.integers(16)] ^= 1
            edited[what] |= {record.ids[at] for at in rows}
            changed[what] = values
        parts[part] = replace(record, **changed)
    after = DataRecord(before.classes, parts)
    said = before.difference(after)
    for what, names in edited.items():
        assert (f"{what} of {len(names)} of 30 examples changed" in said) == bool(names)
        if 0 < len(names) <= 3:
            assert all(name in said for name in names)
    touched = {n for n in PARTS if after.checksums()[n] != before.checksums()[n]}
    assert touched == {n for n in PARTS if set(before.parts[n].ids) & (edited["contents"] | edited["labels"])}


def test_records_are_read_back(tmp_path):
    record = random_record(np.random.default_rng(0), 12)
    record.save(tmp_path / "data.safetensors")
    assert DataRecord.load(tmp_path / "data.safetensors").checksums() == record.checksums()

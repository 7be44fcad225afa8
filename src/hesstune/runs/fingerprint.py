"""What a run was started from, as checksums: classes, examples, labels, contents, weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hesstune.data.examples import Task
from hesstune.storage.tensors import digest, digest_of_texts

__all__ = ["contents_digest", "fingerprints"]


def fingerprints(task: Task, start: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return checksums of a task (classes, ids by part, labels, contents) and of the starting weights."""
    parts = (("train", task.train), ("val", task.val), ("test", task.test))
    ids = [text for name, part in parts for text in (f"\1{name}", *part.ids)]
    labels = {name: torch.from_numpy(part.labels) for name, part in parts if part.labels is not None}
    return {
        "classes": digest_of_texts(task.classes),
        "examples": digest_of_texts(ids),
        "labels": digest(labels),
        "contents": contents_digest(task),
        "weights": digest(start),
    }


def contents_digest(task: Task) -> str:
    """Return a checksum of the images (as decoded, or their files) or texts of all parts."""
    return str(getattr(task.train.source, "digest", ""))

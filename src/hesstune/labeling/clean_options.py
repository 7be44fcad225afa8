"""The options of `clean`, each declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hesstune.options import DEVICE, FilePath, Names, Options, Shown

__all__ = ["CleanOptions"]


class CleanOptions(Options):
    """How wrong labels are looked for."""

    heading: ClassVar[str] = "Labels"
    first: ClassVar[tuple[str, ...]] = ("data", "clean_labels", "write")

    data: Annotated[str, Shown("DATA")] | None = Field(
        None, description="labelled examples: folder:PATH, csv:PATH or hf:NAME with texts"
    )
    write: Literal["given", "corrected", "pruned"] = Field(
        "given",
        description="labels of the file: as given, beside soft ones; corrected: the likely ones; pruned: as "
        "given, without the examples whose label is probably wrong",
    )
    clean_labels: FilePath | None = Field(
        None, description="CSV file of labels a person has checked: id, and clean_label, true_label or label"
    )
    model: str | None = Field(
        None, description="whose features; default: efficientnet_lite0, or minilm for texts"
    )
    head: Names = Field(
        (), description="module of the model's classifier, before which features are taken; default: found"
    )
    image_size: int = Field(96, ge=8, le=2048, description="side of the images in pixels")
    max_length: int = Field(128, ge=4, le=1 << 20, description="tokens of a text at most")
    seed: int = Field(0, ge=0, description="seed of the folds")
    device: str = DEVICE

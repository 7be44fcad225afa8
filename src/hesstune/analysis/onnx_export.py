"""A fine-tuned network as an ONNX file, compared with torch by onnxruntime when it is written."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.errors import MissingExtraError, ModelError
from hesstune.forward import logits_of
from hesstune.models.load import LoadedModel
from hesstune.storage.files import one_line

ONNX_FILE = "model.onnx"
# The largest difference between the logits of onnxruntime and torch, relative to the largest logit above 1.
TOLERANCE = 1e-3
# A protobuf file has at most 2 GiB; weights above this go to a file beside it.
MOST_INSIDE = 1 << 30
TEXTS = ("a short text", "another text that has a few words more", "one")


def require_onnx() -> None:
    """Raise MissingExtraError unless the packages of the extra `onnx` are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx", "an export to ONNX") from None


class _FromPixels(nn.Module):
    """A network of images after their preprocessing: (N, 3, S, S) bytes in RGB order to logits."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, loaded: LoadedModel, network: nn.Module) -> None:
        super().__init__()
        self.network, self.bgr = network, loaded.bgr
        std = torch.tensor(loaded.std)
        self.register_buffer("scale", (1.0 / (255.0 * std)).reshape(1, 3, 1, 1))
        self.register_buffer("shift", (-torch.tensor(loaded.mean) / std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flip(1) if self.bgr else images
        return logits_of(self.network, images.float() * self.scale + self.shift)


class _FromInputs(nn.Module):
    """A network whose inputs come by position: token ids, masks and segments, or feature vectors."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return logits_of(self.network, named if "input_ids" in named else inputs[0])


def write_onnx(loaded: LoadedModel, folder: Path, image_size: int) -> dict[str, Any]:
    """Write `model.onnx` into a folder and compare its logits with torch's on inputs of several sizes.

    Images are bytes (N, 3, S, S) in RGB order, resized as for the run; the file scales them. Texts are the
    tokenizer's tensors (N, T), feature vectors (N, D) floats. The weights are written in float32.

    Returns:
        The record for `onnx.json`: the file, its inputs and output, and the largest difference of a logit.

    Raises:
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        ModelError: If torch cannot export the network, or the logits differ.
    """
    require_onnx()
    import onnxruntime

    network, examples = copy.deepcopy(loaded.model).cpu().float().eval(), _examples(loaded, image_size)
    names = list(examples[0])
    images = names == ["images"]
    whole = (_FromPixels(loaded, network) if images else _FromInputs(network, names)).eval()
    axes = {0: "batch", 1: "tokens"} if loaded.tokenizer is not None else {0: "batch"}
    shapes: Any = (axes,) if images else (tuple(axes for _ in names),)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                whole,
                tuple(examples[0].values()),
                folder / ONNX_FILE,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=shapes,
                external_data=size > MOST_INSIDE,
                dynamo=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
        difference = largest = 0.0
        for batch in examples:
            with torch.no_grad():
                expected = whole(*batch.values())
            found = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
            difference = max(difference, float((torch.from_numpy(found) - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    except Exception as error:  # the exporter, onnx and onnxruntime each raise kinds of their own
        raise ModelError(
            f"torch cannot write this network as ONNX ({one_line(error)}); export it without ONNX"
        ) from error
    if not difference <= TOLERANCE * max(1.0, largest):
        raise ModelError(
            f"the logits of the ONNX file differ from torch's by up to {difference:.3g}, of {largest:.3g}; "
            "export without ONNX"
        )
    return {
        "file": ONNX_FILE,
        "inputs": {value.name: [str(length) for length in value.shape] for value in session.get_inputs()},
        "output": "logits",
        "largest_difference": difference,
        "largest_logit": largest,
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
    }


def _examples(loaded: LoadedModel, image_size: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of three examples, which the export traces, of two and of one."""
    rng = torch.Generator().manual_seed(0)
    if loaded.tokenizer is not None:
        batches = (TEXTS, TEXTS[1:], TEXTS[:1])
        return [dict(loaded.tokenizer(list(some), padding=True, return_tensors="pt")) for some in batches]
    if loaded.width is not None:
        return [{"features": torch.randn(n, loaded.width, generator=rng)} for n in (3, 2, 1)]
    shape = (3, image_size, image_size)
    return [
        {"images": torch.randint(0, 256, (n, *shape), generator=rng, dtype=torch.uint8)} for n in (3, 2, 1)
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says of its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

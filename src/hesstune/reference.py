"""The reference W⁽ˢ⁾: the weights at the start of fine-tuning, and the distance from them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from hesstune.errors import HesstuneWarning, LayerError, listed, unknown_name
from hesstune.forward import (
    Inputs,
    clear_caches,
    evaluating,
    logits_of,
    named_buffers,
    named_modules,
    named_parameters,
)
from hesstune.runtime.sharding import is_sharded, over_parts, pair, whole
from hesstune.storage.files import reading
from hesstune.storage.tensors import save_tensors

# Why a trained weight counts in no distance, measure or constraint of layers.
NO_LAYER = "trained, but of no known kind of layer (Linear, convolution, attention)"
_MHA_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_MATRIX_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# The entries of a difference that are computed at a time for its norm.
_NORM_ENTRIES = 2**18


def in_modules(name: str, modules: Iterable[str]) -> bool:
    """Return whether a parameter belongs to one of some modules; "" is the network itself.

    Example:
        >>> in_modules("fc.weight", ["fc"]), in_modules("fc2.weight", ["fc"]), in_modules("weight", [""])
        (True, False, True)
    """
    return any(name.startswith(f"{module}." if module else "") for module in modules)


def _weight_attributes(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return tuple(a for a in _MHA_WEIGHTS if getattr(module, a, None) is not None)
    return ("weight",) if is_conv1d(module) or isinstance(module, _MATRIX_MODULES) else ()


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D, which need not be installed or imported."""
    return any(
        c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def layer_names(model: nn.Module, inputs: Inputs | None = None) -> list[str]:
    """List the layers of a model, in the order of definition, or of use in one forward pass.

    A layer is a weight matrix: the `weight` of Linear, ConvNd and transformers' Conv1D, and the
    input projections of torch's MultiheadAttention. Names are those of `model.named_parameters()`, without
    what `torch.compile` adds to them; a weight tied between modules is one layer. With `inputs`, one batch,
    layers are ordered by their first use on it, and those that are not called come last. LayerError if a
    layer's weight is computed (parametrized) and thus is no parameter.
    """
    names = {id(p): name for name, p in named_parameters(model).items()}
    owners: dict[str, list[nn.Module]] = {}
    for path, module in named_modules(model).items():
        for attribute in _weight_attributes(module):
            weight = getattr(module, attribute)
            if id(weight) not in names:
                raise LayerError(
                    f"'{path}.{attribute}' is computed from other parameters, not a parameter itself; "
                    "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations)"
                )
            owners.setdefault(names[id(weight)], []).append(module)
    if inputs is None:
        return list(owners)
    used: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, n=name: used.setdefault(n))
        for name, modules in owners.items()
        for module in modules
    ]
    try:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng():
            logits_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(used) + [name for name in owners if name not in used]


def matching_names(pattern: str, names: Sequence[str], kind: str) -> list[str]:
    """Return the names that match an fnmatch pattern; raise LayerError, with the kind, if there are none."""
    if not (found := [name for name in names if fnmatchcase(name, pattern)]):
        raise unknown_name(kind, pattern, names, LayerError)
    return found


class Reference:
    """A clone of all parameters and buffers of a model, matched by name.

    A network and its `torch.compile`d form have the same names.

    Take it before training; the head's values at that time are part of it (with a zero head, the
    head's distance is its norm, as in the paper's code).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> ref = Reference.of(model)
        >>> ref.layers()
        ['weight']
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> round(ref.distances(model)["weight"], 4)  # Frobenius norm of six ones
        2.4495
    """

    def __init__(self, tensors: dict[str, torch.Tensor], layers: list[str]) -> None:
        missing = [name for name in layers if name not in tensors]
        if missing:
            raise LayerError(f"the reference holds no values for the layers {listed(missing)}")
        self._tensors = tensors
        self._layers = list(layers)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs | None = None) -> Reference:
        """Clone a model's parameters and buffers; with `inputs`, a batch, layers follow its forward pass."""
        tensors = {name: tensor.detach().clone() for name, tensor in _named_tensors(model)}
        return cls(tensors, layer_names(model, inputs))

    def layers(self) -> list[str]:
        """List the layer names, in forward order if known, else in order of definition."""
        return list(self._layers)

    def names(self) -> list[str]:
        """List the names of all parameters and buffers held."""
        return list(self._tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise LayerError(f"the reference holds no '{name}'; it holds {listed(self._tensors)}")
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        return f"Reference({len(self._layers)} layers, {len(self._tensors)} tensors)"

    def to(self, device: torch.device | str) -> Reference:
        """Return the same reference on another device."""
        return Reference({k: v.to(device) for k, v in self._tensors.items()}, self._layers)

    def gathered(self) -> Reference:
        """Return the same reference with whole tensors on every process; all of them call this alike."""
        if not any(is_sharded(value) for value in self._tensors.values()):
            return self
        return Reference({name: whole(value) for name, value in self._tensors.items()}, self._layers)

    def check(self, model: nn.Module) -> None:
        """Raise LayerError, with the names, unless the model has the reference's parameters and buffers.

        Forward passes may replace buffers by others of another shape, or add some (tables that depend on
        the size of the image): these are no difference.
        """
        present = {name for name, _ in _named_tensors(model)}
        shapes = {name: tuple(p.shape) for name, p in named_parameters(model).items()}
        missing = [name for name in self._tensors if name not in present]
        extra = [name for name in shapes if name not in self._tensors]
        if missing or extra:
            parts = [f"missing in the model: {listed(missing)}"] if missing else []
            parts += [f"not in the reference: {listed(extra)}"] if extra else []
            raise LayerError("the model does not match the reference; " + "; ".join(parts))
        for name, shape in shapes.items():
            if tuple(self._tensors[name].shape) != shape:
                raise LayerError(
                    f"'{name}' has shape {shape} in the model but {tuple(self._tensors[name].shape)} "
                    "in the reference; was the head replaced after the reference was taken?"
                )

    def difference(self, model: nn.Module, name: str) -> torch.Tensor:
        """Return W − W⁽ˢ⁾ of one parameter, detached, in the model's dtype and at least float32."""
        return _difference(named_parameters(model)[name], self[name])

    def distances(self, model: nn.Module, *, warn: bool = True) -> dict[str, float]:
        """Return ‖v_i‖, the Frobenius norm of W_i − W_i⁽ˢ⁾, of every layer.

        Unless `warn` is False, warn of weight matrices that have changed but are not layers, such as
        embeddings, recurrent weights and experts of three dimensions: they are left out. LayerError if the
        model's names or shapes differ from the reference's.
        """
        self.check(model)
        if warn and (others := self.changed_others(model)):
            warnings.warn(
                f"the distances leave out {listed(others)}: {NO_LAYER}", HesstuneWarning, stacklevel=2
            )
        return self._norms_of_change(model, self._layers)

    def changed_others(self, model: nn.Module) -> list[str]:
        """List the weight matrices that are not layers and differ from the reference."""
        self.check(model)
        layers = set(self._layers)
        names = [n for n, p in named_parameters(model).items() if n not in layers and is_matrix(p)]
        return [name for name, norm in self._norms_of_change(model, names).items() if norm != 0]  # also NaN

    def _norms_of_change(self, model: nn.Module, names: list[str]) -> dict[str, float]:
        parameters = named_parameters(model)
        with torch.no_grad():
            weights = [parameters[name] for name in names]
            parts = [pair(w, self[name], name) for w, name in zip(weights, names, strict=True)]
            # One tensor for all: a number that is kept for each layer would take the place of the layer's
            # difference in memory, and the next difference would need new memory.
            values = torch.zeros(len(parts), dtype=torch.float64)
            for at, (w, anchor) in enumerate(parts):
                # A few rows at a time: the difference of a large embedding takes memory.
                rows = max(1, _NORM_ENTRIES * len(w) // max(1, w.numel()))
                moved = (_difference(*few) for few in zip(w.split(rows), anchor.split(rows), strict=True))
                norms = [torch.linalg.vector_norm(part, dtype=wide(part)) for part in moved]
                values[at] = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
            if any(is_sharded(w) for w in weights):
                values = over_parts(values.square(), weights).sqrt()
        return dict(zip(names, values.tolist(), strict=True))

    @torch.no_grad()
    def restore_(self, model: nn.Module) -> None:
        """Set the model's parameters and buffers back to the reference, in place if the shapes agree.

        Buffers that the reference does not hold stay as they are.
        """
        self.check(model)
        for name, tensor in _named_tensors(model):
            own = self._tensors.get(name)
            if own is not None and own.shape == tensor.shape:
                tensor.copy_(own)
            elif own is not None:
                place, _, attribute = name.rpartition(".")
                named_modules(model)[place]._buffers[attribute] = own.clone().to(tensor.device)
        clear_caches(model)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the reference as a safetensors file; the layers' order and `metadata` go in its metadata."""
        save_tensors(Path(path), self._tensors, {**(metadata or {}), "layers": json.dumps(self._layers)})

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read a reference written by `save`; RunError if the file is missing or is none."""
        from safetensors import safe_open

        with reading(path, "a reference"):
            with safe_open(str(path), framework="pt") as file:
                layers = json.loads((file.metadata() or {})["layers"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(tensors, [str(layer) for layer in layers])


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from named_parameters(model).items()
    yield from named_buffers(model).items()


def wide(tensor: torch.Tensor) -> torch.dtype:
    """Return the precision that norms are taken in: float64 if the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def is_matrix(weight: torch.Tensor) -> bool:
    """Return whether at least two dimensions are larger than 1: no bias and no scale of a normalisation."""
    return sum(size > 1 for size in weight.shape) > 1


def _difference(weight: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    # Half precision is subtracted in float32: the difference is small beside the weights.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(dtype) - reference.to(device=weight.device, dtype=dtype)

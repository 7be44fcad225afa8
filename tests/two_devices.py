"""A second device, simulated on the CPU, and the operations that an accelerator would refuse.

Every tensor is on the CPU. A storage is marked as being on the device if it was put there, made with a
`device=` argument, moved by `to`, or computed from such tensors. It is marked as being on the CPU if it was
made without `device=`, or moved by `cpu`. Operations on tensors of both kinds are collected.
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_NAMES = "zeros ones empty full arange tensor as_tensor eye linspace rand randn randint randperm"
_FACTORIES = frozenset(getattr(torch, name) for name in _NAMES.split())
_COPIES = frozenset({"copy_", "_to_copy", "_copy_from"})
# A tensor on the device may be indexed by places on the CPU; not the other way round.
_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


class TwoDevices:
    """Which storages are on the device and which are not, and the operations that mixed them.

    Attributes:
        mixed: (operator, function of hesstune that called it).
    """

    def __init__(self):
        self.mixed = []
        # The storages are kept, so that no other one takes their place.
        self._places = {}

    def put(self, *tensors, there=True):
        """Mark tensors as being on the device, or on the CPU."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._places[storage._cdata] = there, storage

    def place(self, tensor):
        """Tell whether a tensor is on the device; None if that is unknown, or if it has no dimensions."""
        known = self._places.get(tensor.untyped_storage()._cdata)
        return known[0] if known else None

    @contextmanager
    def watching(self):
        """Watch what runs inside."""
        with _Operators(self), _Calls(self):
            yield


class _Operators(TorchDispatchMode):
    def __init__(self, devices):
        super().__init__()
        self._devices = devices

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split(".")[0].removeprefix("aten::")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        places = {self._devices.place(t) for t in given if t.ndim}
        indexed = name in _INDEXED and self._devices.place(given[0])
        if {True, False} <= places and name not in _COPIES and not indexed:
            self._devices.mixed.append((name, _caller()))
        found = func(*args, **kwargs)
        known = {self._devices.place(t) for t in given} - {None}
        if known and name != "copy_":
            outputs = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
            self._devices.put(*outputs, there=True in known)
        return found


class _Calls(TorchFunctionMode):
    def __init__(self, devices):
        super().__init__()
        self._devices = devices

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return self._moved(found, there=False)
        if func is torch.Tensor.to:
            target = kwargs.get("other", kwargs.get("device", args[1] if len(args) > 1 else None))
            if isinstance(target, torch.Tensor):
                return self._moved(found, there=self._devices.place(target) is not False)
            if isinstance(target, torch.device):
                return self._moved(found, there=True)
        elif func in _FACTORIES:
            self._devices.put(found, there=kwargs.get("device") is not None)
        return found

    def _moved(self, tensor, there):
        if self._devices.place(tensor) == there:
            return tensor
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            copy = tensor.clone()
        self._devices.put(copy, there=there)
        return copy


def _caller():
    frames = [f for f in traceback.extract_stack() if "/hesstune/" in f.filename]
    return f"{frames[-1].filename.rsplit('/', 1)[1]}:{frames[-1].name}" if frames else ""
